"""Synaptic Intelligence on split CIFAR (Zenke et al. 2017, section 5.3), and on CIFAR-10 alone in its place."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from .configuration import TRAIN_IMAGES, Configuration, check_choices, check_range
from .errors import LabError

CHOICES = {"dataset": ("cifar10_100", "cifar10"), "schedule": ("sequence", "scratch"), "init": ("keras", "torch")}
TASKS = {"cifar10_100": 6, "cifar10": 5}


@dataclass(frozen=True)
class SICIFAR(Configuration):
    """A convolutional network with a head a task, all drawn at once, and Adam made anew for each task.

    dataset: "cifar10_100", all of CIFAR-10 and then 10 consecutive classes of CIFAR-100 at a time; "cifar10", 2
    consecutive classes of it at a time. schedule: "scratch" has a new network for each task, tested on that task alone.
    """

    runner: ClassVar[str] = "si_cifar_run"
    tasks: int
    c: float = 0.1
    xi: float = 1e-3
    batch_size: int = 256
    epochs: int = 60
    lr: float = 1e-3
    schedule: str = "sequence"
    dataset: str = "cifar10_100"
    test_batch_size: int = 100
    init: str = "torch"  # "keras": the paper's code's (networks.draw_as_keras)

    @property
    def classes_per_task(self) -> int:
        return 10 if self.dataset == "cifar10_100" else 2

    def task_samples(self, task: int) -> int:
        """Training images of a task."""
        if self.dataset == "cifar10":
            return TRAIN_IMAGES["cifar10"] // TASKS["cifar10"]
        return TRAIN_IMAGES["cifar10"] if task == 0 else TRAIN_IMAGES["cifar100"] // 10

    @property
    def steps(self) -> int:
        """Training steps of the whole run."""
        return self.epochs * sum(self.task_samples(task) // self.batch_size for task in range(self.tasks))

    @property
    def evaluations(self) -> int:
        """Passes over a task's test images in the whole run."""
        return self.tasks * (self.tasks + 1) // 2

    @property
    def step_guess(self) -> float:
        """Seconds of a step that was never measured, on two cores."""
        return 0.0025 * self.batch_size

    @property
    def note(self) -> str | None:
        """That CIFAR-10 stands in, where it does."""
        if self.dataset == "cifar10_100":
            return None
        return f"CIFAR-10 alone, {self.tasks} tasks of 2 classes, {self.epochs} epochs each; not the paper's experiment"

    def describe(self) -> str:
        return f"mean accuracy over {self.tasks} tasks"

    def checks(self) -> None:
        """Raises LabError for values that no run could use."""
        check_choices(self, CHOICES)
        check_range(self, ("tasks",), 1, TASKS[self.dataset])
        check_range(self, ("epochs", "batch_size", "test_batch_size"), 1)
        check_range(self, ("c",), 0)
        check_range(self, ("xi", "lr"), 0, above=True)
        if self.schedule == "scratch" and self.c:
            raise LabError(f"schedule: expected sequence with Synaptic Intelligence (c={self.c}), got scratch")


def _experiments() -> dict[str, SICIFAR]:
    out = []
    for dataset, name in (("cifar10_100", "si_split_cifar"), ("cifar10", "si_split_cifar10")):
        base = SICIFAR(name, name, TASKS[dataset], dataset=dataset, init="keras")
        out += [base, *(replace(base, name=f"{name}_c{c:g}", c=c) for c in (0.01, 0.0))]
        out.append(replace(base, name=f"{name}_scratch", c=0.0, schedule="scratch"))
    return {config.name: config for config in out}


EXPERIMENTS = _experiments()
