"""What a permutedMNIST experiment is: its network, where its contexts come from, how it is trained and evaluated."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from .configuration import (
    IMAGE_VALUES,
    LARGEST_SEED,
    TRAIN_IMAGES,
    Configuration,
    check_choices,
    check_positive_counts,
    check_range,
)
from .errors import LabError

CLUSTER_PIXELS = 256  # that contexts found by clustering are made of

# field: what it may be
CHOICES = {
    "activation": ("kwinners", "relu"),
    "context": ("prototype", "clusters", "mean", "onehot", "zeros", "none"),
    "optimizer_lifetime": ("task", "run"),
    "si_variant": ("adn", "zenke"),
    "permutations": ("fixed", "run"),
    "init": ("torch", "public"),
}


@dataclass(frozen=True)
class Experiment(Configuration):
    """A configuration. Without segments, with ReLU and dense weights, the network is torch's ordinary layers.

    context: "prototype" (mean image of a task in training, the nearest of them at test), "clusters" (found while
    training), of the true task at test too: "mean" image, "onehot" or "zeros"; "none" for no dendrites.
    """

    runner: ClassVar[str] = "train"
    tasks: int
    epochs: int
    lr: float
    segments: int  # a unit; 0: no dendrites
    context_density: float
    hidden: tuple[int, ...] = (2048, 2048)
    percent_on: float = 0.05  # share of winners, with activation kwinners
    weight_sparsity: float = 0.5
    batch_size: int = 256
    test_batch_size: int = 512
    evaluate_after: tuple[int, ...] = (2, 5, 10, 25, 50, 100)
    data_seed: int = 42
    train_samples: int = TRAIN_IMAGES["mnist"]  # fewer for a quick look; its row says so
    activation: str = "kwinners"
    context: str = "prototype"
    optimizer_lifetime: str = "task"  # "run": Adam is never made anew
    record_activations: int = 0  # test samples a task whose active units are counted after the last task
    si_c: float = 0.0  # strength of Synaptic Intelligence; 0: without it
    si_xi: float = 0.1  # its damping
    si_variant: str = "adn"
    permutations: str = "fixed"  # drawn from data_seed alone; "run": from data_seed + the run's seed
    init: str = "torch"  # of a plain network, "public": as networks.PlainMLP says; others have the papers' anyway

    @property
    def plain(self) -> bool:
        """Whether nothing of the network is sparse or dendritic."""
        return not self.segments and self.activation == "relu" and not self.weight_sparsity

    @property
    def dim_context(self) -> int:
        if self.context in ("onehot", "zeros"):
            return self.tasks
        return CLUSTER_PIXELS if self.context == "clusters" else IMAGE_VALUES["mnist"]

    @property
    def steps(self) -> int:
        """Training steps of the whole run."""
        return self.tasks * self.epochs * (self.train_samples // self.batch_size)

    @property
    def evaluations(self) -> int:
        """Passes over a task's test images in the whole run."""
        return sum({seen for seen in self.evaluate_after if seen < self.tasks} | {self.tasks})

    def describe(self) -> str:
        return f"mean accuracy over {self.tasks} tasks"

    def checks(self) -> None:
        """Raises LabError for values that no run could use."""
        for field in ("tasks", "epochs", "batch_size", "test_batch_size", "train_samples"):
            if getattr(self, field) < 1:
                raise LabError(f"{field}: expected 1 or more, got {getattr(self, field)}")
        for field in ("segments", "record_activations"):
            if getattr(self, field) < 0:
                raise LabError(f"{field}: expected 0 or more, got {getattr(self, field)}")
        check_positive_counts(self, ("hidden", "evaluate_after"))
        check_choices(self, CHOICES)
        if not 0 < self.lr < math.inf:  # NaN is neither
            raise LabError(f"lr: expected a finite number above 0, got {self.lr}")
        if not 0 <= self.si_c < math.inf:
            raise LabError(f"si_c: expected a finite number of 0 or more, got {self.si_c}")
        if not 0 < self.si_xi < math.inf:
            raise LabError(f"si_xi: expected a finite number above 0, got {self.si_xi}")
        if not 0 <= self.data_seed <= LARGEST_SEED:
            raise LabError(f"data_seed: expected 0 to {LARGEST_SEED}, got {self.data_seed}")
        check_range(self, ("train_samples",), self.batch_size, TRAIN_IMAGES["mnist"])
        for field, top in (("percent_on", 1), ("context_density", 1)):
            if not 0 < getattr(self, field) <= top:
                raise LabError(f"{field}: expected a fraction in (0, 1], got {getattr(self, field)}")
        if not 0 <= self.weight_sparsity < 1:
            raise LabError(f"weight_sparsity: expected a fraction in [0, 1), got {self.weight_sparsity}")
        self._check_combinations()

    def _check_combinations(self) -> None:
        if (self.context == "none") != (self.segments == 0):
            raise LabError(f"context: expected none exactly with segments=0, got {self.context} with {self.segments}")
        if self.activation == "kwinners" and round(min(self.hidden) * self.percent_on) < 1:
            raise LabError(f"percent_on: {self.percent_on} of {min(self.hidden)} units leaves no winner in a layer")
        if self.context == "clusters" and self.batch_size < 2:
            raise LabError("batch_size: expected 2 or more to test a batch against a cluster, got 1")
        if self.record_activations and self.plain:
            raise LabError("record_activations: expected 0 for a network of dense ReLU layers")
