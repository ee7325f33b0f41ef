"""Seeds of an experiment as jobs: carried out here one after the other, or side by side by an engine."""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol

from .configuration import Configuration
from .errors import sentence_of

MOST_OFTEN = 0.2  # seconds between two reports of a run that go from one process to another


@dataclass(frozen=True)
class Job:
    """A run to carry out; what goes on with `resume` is the state that it left in the folder, if it did."""

    config: Configuration
    seed: int
    out: Path
    resume: bool = False
    device: str = "cpu"

    @property
    def name(self) -> str:
        return f"{self.config.name}, seed {self.seed}"


@dataclass(frozen=True)
class Step:
    """How far a seed's run has come: steps done, steps in all, what is going on."""

    seed: int
    done: int
    total: int
    what: str


@dataclass(frozen=True)
class Landed:
    """A seed's run has ended with this row, which is not saved yet."""

    seed: int
    row: dict


@dataclass(frozen=True)
class Failed:
    """A seed's run has ended without a row."""

    seed: int
    why: str


End = Landed | Failed
Tell = Callable[[Step | End], None]


class Engine(Protocol):
    """Carries out jobs somewhere else than in this process."""

    slots: int  # jobs at once

    def start(self, job: Job) -> None: ...

    def events(self) -> Iterator[Step | End]:
        """What the jobs report, waiting for it a little; each started job ends with exactly one End."""

    def stop(self) -> None:
        """Ends what still runs, at once; its states stay as they were last saved."""


def run_job(job: Job, data, progress: Callable[[int, int, str], None]) -> dict:
    """Carries a job out in this process and returns its row."""
    run = import_module(f".{job.config.runner}", __package__).run  # its kind's, which takes torch
    options = {} if job.device == "cpu" else {"device": job.device}
    return run(job.config, job.seed, data, job.out, resume=job.resume, progress=progress, **options)


def attempt(job: Job, load: Callable[[], object], tell: Callable[[Step], None]) -> End:
    """Carries a job out in this process, on what load() returns, and says how it ended; no error gets out."""
    try:
        return Landed(job.seed, run_job(job, load(), lambda *step: tell(Step(job.seed, *step))))
    except Exception as error:  # one seed's: the others go on
        return Failed(job.seed, sentence_of(error) or traceback.format_exc())


def one_by_one(jobs: Iterable[Job], data, tell: Tell) -> None:
    """Carries jobs out in this process."""
    for job in jobs:
        tell(attempt(job, lambda: data, tell))


def side_by_side(jobs: Iterable[Job], engine: Engine, tell: Tell) -> None:
    """Has an engine carry jobs out, as many at once as it has slots; whatever tell raises stops them all."""
    waiting, going = deque(jobs), set()
    try:
        while waiting or going:
            while waiting and len(going) < engine.slots:
                going.add(waiting[0].seed)
                engine.start(waiting.popleft())
            for event in engine.events():
                if isinstance(event, End):
                    going.discard(event.seed)
                tell(event)
    finally:
        engine.stop()


class Seldom:
    """Passes steps on at most so often, but always when something else goes on."""

    def __init__(self, tell: Callable[[Step], None]):
        self._tell, self._last, self._at = tell, "", 0.0

    def __call__(self, step: Step) -> None:
        now = time.monotonic()
        if step.what != self._last or now - self._at >= MOST_OFTEN:
            self._last, self._at = step.what, now
            self._tell(step)
