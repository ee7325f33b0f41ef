"""Seeds of an experiment as jobs: carried out here one after the other, or side by side by an engine."""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol

from .claims import held, state_path
from .configuration import Configuration
from .errors import Busy, sentence_of
from .results import finished

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

    @property
    def state(self) -> Path:
        return state_path(self.out, self.config, self.seed)


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


@dataclass(frozen=True)
class Elsewhere:
    """A seed's run is another command's, which may have finished it with this row."""

    seed: int
    why: str
    row: dict | None = None


End = Landed | Failed | Elsewhere
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


def claimed(job: Job, until: ExitStack) -> Elsewhere | None:
    """Keeps other commands from the run until the stack is closed, after its row is saved; or says that one has it."""
    try:
        until.enter_context(held(job.state))
    except Busy as busy:
        return Elsewhere(job.seed, str(busy))
    row = finished(job.out, job.config).get(job.seed) if job.resume else None
    return Elsewhere(job.seed, "another command has finished it", row) if row else None


def here(job: Job, load: Callable[[], object], tell: Tell) -> End:
    """Carries a job out in this process, on what load() returns, unless it is another command's; tells and returns how
    that ended.
    """
    with ExitStack() as claim:
        end = claimed(job, claim) or attempt(job, load, tell)
        tell(end)
    return end


def one_by_one(jobs: Iterable[Job], data, tell: Tell) -> None:
    """Carries jobs out in this process."""
    for job in jobs:
        here(job, lambda: data, tell)


def side_by_side(jobs: Iterable[Job], engine: Engine, tell: Tell) -> None:
    """Has an engine carry jobs out, as many at once as it has slots; whatever tell raises stops them all."""
    waiting, going = deque(jobs), {}  # going: by seed, what keeps other commands from it
    try:
        while waiting or going:
            while waiting and len(going) < engine.slots:
                job, claim = waiting.popleft(), ExitStack()
                if elsewhere := claimed(job, claim):
                    claim.close()
                    tell(elsewhere)
                    continue
                going[job.seed] = claim
                engine.start(job)
            for event in engine.events() if going else ():
                tell(event)
                if isinstance(event, End):
                    going.pop(event.seed).close()
    finally:
        engine.stop()
        for claim in going.values():
            claim.close()


class Seldom:
    """Passes steps on at most so often, but always when something else goes on."""

    def __init__(self, tell: Callable[[Step], None]):
        self._tell, self._last, self._at = tell, "", 0.0

    def __call__(self, step: Step) -> None:
        now = time.monotonic()
        if step.what != self._last or now - self._at >= MOST_OFTEN:
            self._last, self._at = step.what, now
            self._tell(step)
