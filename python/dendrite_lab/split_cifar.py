"""SplitCIFAR100 (Bain 2022): what the experiment is, its three networks, and its stand-in on CIFAR-10."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .configuration import IMAGE_VALUES, TRAIN_IMAGES, Configuration, check_choices, check_range, ours
from .errors import LabError

CHOICES = {
    "dataset": ("cifar100", "cifar10"),
    "context": ("onehot", "zeros", "mean", "none"),
    "optimizer_lifetime": ("task", "run"),
}
CLASSES = {"cifar100": 100, "cifar10": 10}
GRID = {"lr": (1e-5, 1e-4, 1e-3), "batch_size": (32, 64, 128)}  # the source's searches
CNN_GRID = {**GRID, "weight_decay": (0.0, 1e-5, 1e-4)}
SPARSE_GRID = {
    **GRID,
    "conv_percent_on": (0.1, 0.2, 0.3),
    "fc_percent_on": (0.1, 0.3),
    "weight_density": (0.3, 0.5, 0.7),
}


@dataclass(frozen=True)
class SplitCIFAR(Configuration):
    """Tasks of classes drawn without replacement by the run's seed, one shared head.

    Without segments, with all values and weights active, the network is torch's ordinary layers with ReLU. A task is
    trained until its validation accuracy has not risen for `patience` epochs; the network of the best epoch is kept.
    context: of the true task, "onehot", "zeros", or the "mean" of its training images, normalised and flattened.
    """

    runner: ClassVar[str] = "split_cifar_run"
    tasks: int
    classes_per_task: int
    epochs: int  # of a task, at most
    lr: float
    batch_size: int
    weight_decay: float = 0.0
    conv_percent_on: float = 1.0  # share of winners among a convolution's C * H * W values
    fc_percent_on: float = 1.0  # in the hidden linear layers
    weight_density: float = 1.0  # of the linear layers
    segments: int = 0
    context: str = "none"
    patience: int = 30
    validation: float = 0.1  # share of a task's training images
    dataset: str = "cifar100"
    optimizer_lifetime: str = "run"
    test_batch_size: int = 100

    @property
    def plain(self) -> bool:
        """Whether nothing of the network is sparse or dendritic."""
        return not self.segments and self.conv_percent_on == self.fc_percent_on == self.weight_density == 1

    @property
    def dim_context(self) -> int:
        """Numbers of a task's context."""
        return IMAGE_VALUES[self.dataset] if self.context == "mean" else self.tasks

    @property
    def context_density(self) -> float:
        """The share of them that is not 0, for the segments' draw."""
        return 1.0 if self.context == "mean" else 1 / self.tasks

    @property
    def grid(self) -> dict[str, tuple]:
        """The values of the source's search."""
        return CNN_GRID if self.plain else SPARSE_GRID

    @property
    def task_samples(self) -> int:
        """Training images of a task, those for validation included."""
        return self.classes_per_task * TRAIN_IMAGES[self.dataset] // CLASSES[self.dataset]

    @property
    def steps(self) -> int:
        """Training steps of the whole run, at most."""
        trained = self.task_samples - round(self.validation * self.task_samples)
        return self.tasks * self.epochs * (trained // self.batch_size)

    @property
    def evaluations(self) -> int:
        """Passes over a task's test images in the whole run."""
        return self.tasks * (self.tasks + 1) // 2

    @property
    def step_guess(self) -> float:
        """Seconds of a step that was never measured, on two cores."""
        return self.batch_size * (0.001 if self.plain else 0.0025)

    @property
    def note(self) -> str | None:
        """That CIFAR-10 stands in, where it does; what of it is not the source's."""
        if self.dataset == "cifar100":
            held_out = f"{100 * self.validation:g} % of its images held out"
            return ours(f"at most {self.epochs} epochs a task, {held_out}")
        return (
            f"CIFAR-10 in CIFAR-100's place: {self.tasks} {self.classes_per_task}-way tasks, at most {self.epochs} "
            "epochs each; not the paper's experiment"
        )

    def describe(self) -> str:
        return f"mean accuracy over {self.tasks} tasks"

    def checks(self) -> None:
        """Raises LabError for values that no run could use."""
        check_choices(self, CHOICES)
        check_range(self, ("tasks", "epochs", "batch_size", "test_batch_size", "patience"), 1)
        check_range(self, ("classes_per_task",), 2)
        check_range(self, ("segments", "weight_decay"), 0)
        check_range(self, ("lr",), 0, above=True)
        check_range(self, ("conv_percent_on", "fc_percent_on", "weight_density"), 0, 1, above=True)
        check_range(self, ("validation",), 0, 0.9, above=True)
        if self.tasks * self.classes_per_task > CLASSES[self.dataset]:
            wanted = f"{self.tasks} x {self.classes_per_task}"
            raise LabError(f"tasks: expected {CLASSES[self.dataset]} classes or fewer in all, got {wanted}")
        if (self.context == "none") != (self.segments == 0):
            raise LabError(f"context: expected none exactly with segments=0, got {self.context} with {self.segments}")
        if self.weight_decay and not self.plain:
            raise LabError(f"weight_decay: expected 0 for a sparse network, got {self.weight_decay}")


# network: its row of the source's table (appendix A.3)
TABLE = {
    "cnn": {"lr": 1e-3, "batch_size": 64, "weight_decay": 1e-5},
    "sparse": {
        **{"lr": 1e-3, "batch_size": 32, "conv_percent_on": 0.2, "fc_percent_on": 0.1, "weight_density": 0.5},
    },
    "adn": {
        **{"lr": 1e-3, "batch_size": 128, "conv_percent_on": 0.2, "fc_percent_on": 0.3, "weight_density": 0.5},
        **{"segments": 10, "context": "onehot"},
    },
}
# data set: its tasks; 5 epochs are what two cores manage
TASKS = {
    "cifar100": {"tasks": 10, "classes_per_task": 10, "epochs": 200},
    "cifar10": {"tasks": 5, "classes_per_task": 2, "epochs": 5},
}


def split_cifar_experiments() -> list[SplitCIFAR]:
    """Each network on each data set."""
    return [
        SplitCIFAR(f"split_{dataset}_{network}", f"split_{dataset}_{network}", dataset=dataset, **tasks, **row)
        for dataset, tasks in TASKS.items()
        for network, row in TABLE.items()
    ]
