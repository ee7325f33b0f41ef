"""What an unfinished run leaves on disk."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from .claims import check_unstarted, state_path
from .configuration import Configuration
from .data import write_atomically
from .errors import LabError

Kind = TypeVar("Kind", bound="Saved")
Progress = Callable[[int, int, str], None]  # is told steps done, steps in all, what is going on


@dataclass
class Saved:
    """What every kind of run needs to go on; what is saved is exactly its fields."""

    config: dict
    seed: int
    threads: int
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    step_ms: list = field(default_factory=list)  # medians
    model: dict = field(default_factory=dict)

    def save(self, path: Path) -> None:
        buffer = io.BytesIO()
        torch.save(vars(self), buffer)
        write_atomically(path, buffer.getvalue())

    @classmethod
    def load(cls: type[Kind], path: Path, config: Configuration) -> Kind:
        try:
            state = cls(**torch.load(path, weights_only=True, map_location="cpu"))
        except Exception as error:  # a damaged file fails in many ways
            raise LabError(f"{path} can't be read ({error}): delete it to start anew") from None
        if config.completed(state.config) != config.to_dict():
            raise LabError(
                f"{path} is of another configuration: run it with the same --set, or delete it to start anew"
            )
        return state


@dataclass
class TaskState(Saved):
    """Of a run that learns one task after the other: enough to go on after any of them."""

    tasks_done: int = 0
    accuracy: dict = field(default_factory=dict)  # tasks seen -> accuracy by task
    loss: list = field(default_factory=list)  # of each task's last step
    optimizer: dict | None = None  # of one that lives for the whole run
    si: dict | None = None  # of Synaptic Intelligence


@dataclass
class State(TaskState):
    """Of a permutedMNIST run."""

    contexts: dict = field(default_factory=dict)


@contextmanager
def begun(
    kind: type[Kind], config: Configuration, seed: int, folder: Path, resume: bool
) -> Iterator[tuple[Kind, Path]]:
    """A run's state and its file, with its thread count in force: torch's matrix products depend on it.

    With `resume`, the state that a run left, if it did. Without it, raises LabError where a run has left one.
    """
    path, before = state_path(folder, config, seed), torch.get_num_threads()
    if resume and path.exists():
        state = kind.load(path, config)
    else:
        check_unstarted(path)
        state = kind(config.to_dict(), seed, before)
        state.save(path)  # so that a run stopped early is resumed with its threads too
    torch.set_num_threads(state.threads)
    try:
        yield state, path
    finally:
        torch.set_num_threads(before)  # the next seed runs with what its own command asks for


class Saver:
    """Saves the state after tasks: after each one where that is quick, else so often that it takes 5 % of the time."""

    QUICK, SHARE = 0.2, 0.05  # seconds; of the time

    def __init__(self, state: Saved, path: Path):
        self.state, self.path, self.cost, self.saved_at = state, path, 0.0, time.perf_counter()

    def save_if_worth(self, last: bool, **kept) -> None:
        """kept: by the state's field, what has a state_dict to save, which may cost a copy."""
        start = time.perf_counter()
        if last or self.cost <= max(self.QUICK, self.SHARE * (start - self.saved_at)):
            for name, part in kept.items():
                setattr(self.state, name, part.state_dict())
            self.state.save(self.path)
            self.saved_at = time.perf_counter()
            self.cost = self.saved_at - start
