"""Synaptic Intelligence's own experiments: split and permuted MNIST (Zenke et al. 2017, sections 5.1 and 5.2)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

from .configuration import (
    IMAGE_VALUES,
    LARGEST_SEED,
    TRAIN_IMAGES,
    Configuration,
    check_choices,
    check_positive_counts,
    check_range,
    ours,
)
from .errors import LabError

CLASSES = 10

# field: what it may be
CHOICES = {
    "benchmark": ("split_mnist", "permuted_mnist"),
    "optimizer": ("adam", "sgd"),
    "optimizer_lifetime": ("task", "run"),
    "variant": ("zenke", "adn"),
    "schedule": ("sequence", "joint", "scratch"),
    "init": ("keras", "torch"),
}


@dataclass(frozen=True)
class SIExperiment(Configuration):
    """A network of ReLU layers that learns one task after the other, with Synaptic Intelligence or (c = 0) without.

    benchmark: "split_mnist", two digits and a head of its own a task; "permuted_mnist", one head for all tasks.
    schedule: "joint" learns all tasks at once; "scratch" has a new network for each task, tested on that task alone.
    init: "keras" is the paper's code's (networks.draw_as_keras), "torch" that of torch's layers.
    """

    runner: ClassVar[str] = "si_train"
    benchmark: str
    tasks: int
    hidden: tuple[int, ...]
    c: float
    xi: float
    batch_size: int
    epochs: int
    optimizer_lifetime: str
    lr: float = 1e-3
    optimizer: str = "adam"
    dropout: float = 0.0  # of hidden units
    variant: str = "zenke"
    schedule: str = "sequence"
    data_seed: int = 42  # of the permutations
    train_samples: int = TRAIN_IMAGES["mnist"]  # fewer for a quick look
    test_batch_size: int = 1000
    init: str = "torch"

    @property
    def heads(self) -> int:
        """Output layers: one a task, or one for all."""
        return self.tasks if self.benchmark == "split_mnist" else 1

    @property
    def steps(self) -> int:
        """Training steps of the whole run; of split MNIST to within the few that its unequal tasks differ by."""
        samples = self.train_samples if self.heads == 1 else 2 * self.train_samples // CLASSES
        return self.tasks * self.epochs * (samples // self.batch_size)

    @property
    def evaluations(self) -> int:
        """Passes over a task's test images in the whole run."""
        return self.tasks * (self.tasks + 1) // 2

    @property
    def step_guess(self) -> float:
        """Seconds of a step at 1e11 sums a second, and what its Python takes."""
        weights = sum(a * b for a, b in pairwise((IMAGE_VALUES["mnist"], *self.hidden)))
        return 0.002 + 6 * self.batch_size * weights / 1e11

    @property
    def note(self) -> str | None:
        """What of it is not the source's."""
        return ours(f"SGD's rate of {self.lr:g}") if self.optimizer == "sgd" else None

    def describe(self) -> str:
        return f"mean accuracy over {self.tasks} tasks"

    def checks(self) -> None:
        check_choices(self, CHOICES)
        check_range(self, ("tasks", "epochs", "batch_size", "test_batch_size"), 1)
        check_positive_counts(self, ("hidden",))
        check_range(self, ("c",), 0)
        check_range(self, ("xi", "lr"), 0, above=True)
        check_range(self, ("data_seed",), 0, LARGEST_SEED)
        check_range(self, ("train_samples",), self.batch_size, TRAIN_IMAGES["mnist"])
        if not 0 <= self.dropout < 1:
            raise LabError(f"dropout: expected a fraction in [0, 1), got {self.dropout}")
        if self.benchmark == "split_mnist" and self.tasks > CLASSES // 2:
            raise LabError(f"tasks: expected at most {CLASSES // 2} of two digits each, got {self.tasks}")
        if self.schedule != "sequence" and self.c:
            raise LabError(f"schedule: expected sequence with Synaptic Intelligence (c={self.c}), got {self.schedule}")


def _experiments() -> dict[str, SIExperiment]:
    split = SIExperiment(
        *("si_split_mnist", "si_split_mnist", "split_mnist", 5, (256, 256), 1.0, 1e-3, 64, 10, "task"), init="keras"
    )
    permuted = SIExperiment(
        *("si_permuted_mnist_10", "si_permuted_mnist", "permuted_mnist", 10, (2000, 2000), 0.1, 0.1, 256, 20, "run"),
        init="keras",
    )
    sgd = replace(permuted, c=0.0, optimizer="sgd", lr=0.1)
    changed = [
        (split, "c0", replace(split, c=0.0)),
        *((permuted, f"c{c:g}", replace(permuted, c=c)) for c in (0.02, 0.01, 0.0)),
        (permuted, "sgd", sgd),
        (permuted, "sgd_dropout", replace(sgd, dropout=0.5)),
        *((base, s, replace(base, c=0.0, schedule=s)) for base in (split, permuted) for s in ("joint", "scratch")),
    ]
    named = [replace(config, name=f"{base.name}_{what}") for base, what, config in changed]
    return {config.name: config for config in (split, permuted, *named)}


EXPERIMENTS = _experiments()
