"""What an unfinished run leaves on disk."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .data import write_atomically
from .errors import LabError
from .experiment import Experiment, completed


@dataclass
class State:
    """All that a run needs to go on after any task; what is saved is exactly this."""

    config: dict
    seed: int
    threads: int
    tasks_done: int = 0
    contexts: dict = field(default_factory=dict)
    accuracy: dict = field(default_factory=dict)  # tasks seen -> accuracy by task
    loss: list = field(default_factory=list)  # of each task's last step
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    step_ms: list = field(default_factory=list)  # median of each task
    model: dict = field(default_factory=dict)
    optimizer: dict | None = None  # of one that lives for the whole run
    si: dict | None = None  # of Synaptic Intelligence

    def save(self, path: Path) -> None:
        buffer = io.BytesIO()
        torch.save(vars(self), buffer)
        write_atomically(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path, config: Experiment) -> State:
        try:
            state = cls(**torch.load(path, weights_only=True))
        except Exception as error:  # a damaged file fails in many ways
            raise LabError(f"{path} can't be read ({error}): delete it to start anew") from None
        if completed(state.config) != config.to_dict():
            raise LabError(
                f"{path} is of another configuration: run it with the same --set, or delete it to start anew"
            )
        return state


class Saver:
    """Saves the state after tasks: after each one where that is quick, else so often that it takes 5 % of the time."""

    QUICK, SHARE = 0.2, 0.05  # seconds; of the time

    def __init__(self, state: State, path: Path):
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


def state_path(folder: Path, config: Experiment, seed: int) -> Path:
    return folder / f"{config.name}-seed{seed}.state.pt"


def check_unstarted(path: Path) -> None:
    """Raises LabError where a run has left its state: starting anew would write over it."""
    if path.exists():
        raise LabError(f"{path} is of an unfinished run: --resume goes on with it; delete it to start anew")
