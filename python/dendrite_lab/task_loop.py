"""Learning tasks of images one after the other, evaluated after each: what the runs on CIFAR share."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median
from typing import Protocol

import torch
from torch import Tensor, nn

from .configuration import Configuration
from .permuted import batches
from .results import row_of
from .state import Progress, Saver, TaskState, begun


class TaskRun(Protocol):
    """A run in memory: all that its state on disk brings back."""

    model: nn.Module

    def train(self, task: int, report: Progress) -> None: ...

    def evaluate(self, seen: int) -> list[float]:
        """Test accuracy on each of the first `seen` tasks."""

    def kept(self) -> dict:
        """What has a state_dict to save beside the model, by the state's field."""

    def findings(self) -> dict:
        """What only its row has."""


def learn(
    make: Callable[[TaskState], TaskRun],
    kind: type[TaskState],
    config: Configuration,
    seed: int,
    folder: Path,
    resume: bool,
    progress: Progress | None,
) -> dict:
    """Learns what is left of a run's tasks, saving its state after each, and returns the run's row."""
    report = progress or (lambda done, total, what: None)
    with begun(kind, config, seed, folder, resume) as (state, path):
        going, saver = make(state), Saver(state, path)
        if state.tasks_done:
            going.model.load_state_dict(state.model)
        for task in range(state.tasks_done, config.tasks):
            start = time.perf_counter()
            going.train(task, report)
            trained = time.perf_counter()
            state.accuracy[task + 1] = going.evaluate(task + 1)
            state.train_seconds += trained - start
            state.eval_seconds += time.perf_counter() - trained
            state.tasks_done, state.model = task + 1, going.model.state_dict()
            saver.save_if_worth(last=task + 1 == config.tasks, **going.kept())
        by_task = {str(seen): values for seen, values in state.accuracy.items()}
        more = {"accuracy_by_task": by_task, "loss_by_task": state.loss, **going.findings()}
        return row_of(config, state, mean(state.accuracy[config.tasks]), **more)


class Steps:
    """Training steps of one task: shuffled batches, each step timed and reported."""

    def __init__(self, state: TaskState, task: int, total: int, report: Progress):
        self.state, self.task, self.total, self.report = state, task, total, report
        # what a task draws follows from seed and task alone, dropout included
        self.generator = torch.Generator().manual_seed(1_000_003 * (state.seed + 1) + task)
        torch.manual_seed(1_000_003 * (state.seed + 1) + task)
        self.times, self.loss = [], torch.tensor(float("nan"))

    def epoch(self, count: int, size: int, step: Callable[[Tensor], Tensor]) -> None:
        """step(indices of a batch [size]) -> loss, over all of `count` samples but a last short batch."""
        for index in batches(count, size, self.generator):
            start = time.perf_counter()
            self.loss = step(index)
            self.times.append(1e3 * (time.perf_counter() - start))
            done = self.task * self.total // self.state.config["tasks"] + len(self.times)
            self.report(done, self.total, f"task {self.task + 1} of {self.state.config['tasks']}")

    def end(self) -> None:
        """Notes the last loss and the median step in the state."""
        self.state.loss.append(float(self.loss))
        self.state.step_ms.append(median(self.times))


@torch.no_grad()
def accuracy(model: nn.Module, predict: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, size: int) -> float:
    """Share of images uint8 [N, 3, 32, 32] whose largest logit is their label; predict(images) -> logits."""
    model.eval()
    right = 0
    for part, target in zip(images.split(size), labels.split(size), strict=True):
        right += int((predict(part).argmax(1) == target).sum())
    model.train()
    return right / len(images)
