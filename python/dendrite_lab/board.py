"""Runs on the console while they go, and their rows saved as they land."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from . import published
from .claims import remove
from .jobs import Elsewhere, End, Job, Landed, Step
from .results import append_row, as_configured

# Without markup: names, paths and values that users give are printed as they are.
console = Console(markup=False, emoji=False)
errors = Console(markup=False, emoji=False, highlight=False, stderr=True, soft_wrap=True)


def say_error(sentence: str) -> None:
    errors.print(Text.assemble(("error:", "red"), " ", sentence))


class Board:
    """A line for each run that goes on and, where there are several jobs, one for all. As a context: while they go.

    sharing: a run that another command has is no failure.
    """

    def __init__(self, jobs: Iterable[Job], sharing: bool = False):
        self.sharing = sharing
        self.jobs = {job.seed: job for job in jobs}
        self.failed: list[int] = []  # seeds
        self._bar = _progress()
        self._lines: dict[int, TaskID] = {}
        self._done = dict.fromkeys(self.jobs, 0)
        self._ended = 0
        self._all = None
        if len(self.jobs) > 1:
            steps = sum(job.config.steps for job in self.jobs.values())
            self._all = self._bar.add_task(f"{len(self.jobs)} runs", total=steps, what="none ended")

    def __enter__(self) -> Board:
        self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()

    def tell(self, event: Step | End) -> None:
        """Shows a step. Saves a row and forgets its state. Says what failed."""
        job = self.jobs[event.seed]
        if isinstance(event, Step):
            self._step(job, event)
            return
        self._ended += 1
        if event.seed in self._lines:
            self._bar.remove_task(self._lines.pop(event.seed))
        if isinstance(event, Landed):
            _land(job, event.row)
        elif isinstance(event, Elsewhere) and (event.row or self.sharing):
            console.print(f"{job.name}: {event.why}", soft_wrap=True)
        else:
            self.failed.append(event.seed)
            say_error(f"{job.name}: {event.why}")
        self._count(event.seed, job.config.steps)

    def _step(self, job: Job, step: Step) -> None:
        if job.seed not in self._lines:
            self._lines[job.seed] = self._bar.add_task(job.name, total=step.total, what="")
        self._bar.update(self._lines[job.seed], completed=step.done, total=step.total, what=step.what)
        self._count(job.seed, step.done)

    def _count(self, seed: int, steps: int) -> None:
        self._done[seed] = steps
        if self._all is not None:
            self._bar.update(self._all, completed=sum(self._done.values()), what=f"{self._ended} ended")


def _land(job: Job, row: dict) -> None:
    """Adds a finished run's row, removes its state and says what came out."""
    path = append_row(job.out, row)
    remove(job.state)
    value = published.percent(job.config.name)
    beside = f" (published: {value})" if as_configured(row) and value != "-" else ""
    found = f", {row['clusters']} clusters found" if "clusters" in row else ""
    console.print(
        f"{job.name}: {job.config.describe()} {100 * row['accuracy']:.2f} %{beside}"
        f"{found}; training {row['train_seconds']:.0f} s, evaluation {row['eval_seconds']:.0f} s, "
        f"{row['step_ms']:.1f} ms a step (median). Row added to {path}"
    )
    if "note" in row:
        console.print(row["note"], soft_wrap=True)


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps,"))
    times = (TimeElapsedColumn(), TextColumn("gone,"), TimeRemainingColumn(), TextColumn("left; {task.fields[what]}"))
    return Progress(*columns, *times, console=console, refresh_per_second=2)
