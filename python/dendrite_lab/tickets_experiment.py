"""Iterative magnitude pruning and noise robustness on MNIST and CIFAR-10 (Bain 2022, section 4.1, appendix A.1)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from .configuration import IMAGE_VALUES, TRAIN_IMAGES, Configuration, check_choices, check_range, ours
from .errors import LabError

BEST = 0.03  # the winning ticket that a row's accuracy is of: at about this density

# field: what it may be
CHOICES = {"network": ("fc", "lenet5"), "dataset": ("mnist", "cifar10")}


@dataclass(frozen=True)
class Tickets(Configuration):
    """A network is trained, pruned and rewound level by level; at each level also a random ticket of its densities.

    network: "fc", 784-300-100-10 (of CIFAR-10, 3072 inputs); "lenet5", convolutions 1-64-64 of 3x3 that are not
    pruned, pool, 12544-256-256-10.
    """

    runner: ClassVar[str] = "tickets"
    network: str
    dataset: str = "mnist"
    levels: int = 35  # trained networks: the dense one, and one after each pruning
    pruned: float = 0.125  # share of each fully connected layer's remaining weights that a level takes
    lr: float = 1.2e-3
    weight_decay: float = 1e-4
    batch_size: int = 60
    epochs: int = 100  # at most, a level
    patience: int = 10  # epochs without a better validation accuracy that end a level; the source has none
    validation: int = 5000  # of the training images, the last: which epoch's network is kept
    train_samples: int = 55000  # fewer for a quick look
    test_batch_size: int = 1000
    noise: tuple[float, ...] = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)  # shares of pixels
    noisy_densities: tuple[float, ...] = (0.03, 0.3)  # tickets that meet it: both winning, the larger random too

    @property
    def pixels(self) -> int:
        """Values of an image."""
        return IMAGE_VALUES[self.dataset]

    def density(self, level: int) -> float:
        """The share of weights left at a level, but for rounding."""
        return (1 - self.pruned) ** level

    def level_of(self, density: float) -> int:
        """The level whose density is nearest."""
        return min(range(self.levels), key=lambda level: abs(self.density(level) - density))

    @property
    def steps(self) -> int:
        """Training steps of the whole run, were no level to end early."""
        return (2 * self.levels - 1) * self.epochs * (self.train_samples // self.batch_size)

    @property
    def evaluations(self) -> int:
        """Passes over test images in the whole run."""
        return 2 * self.levels + 4 * len(self.noise)

    @property
    def step_guess(self) -> float:
        """Seconds of a step, less what levels save by ending after the best epoch, about the 15th, and `patience`."""
        return min(1.0, (15 + self.patience) / self.epochs) * (0.002 if self.network == "fc" else 0.2)

    @property
    def note(self) -> str | None:
        """That it is shortened, where it is by name; what of it is not the source's."""
        if self.name not in SHORTENED:
            return ours(f"patience of {self.patience} epochs, {self.validation:,} images held out")
        return (
            f"shortened for two cores: {self.levels} levels of {100 * self.pruned:.0f} %, at most {self.epochs} epochs "
            f"of {self.train_samples} images each; not the paper's experiment"
        )

    def describe(self) -> str:
        return f"winning ticket of {100 * self.density(self.level_of(BEST)):.1f} % of the weights"

    def checks(self) -> None:
        check_choices(self, CHOICES)
        check_range(self, ("levels", "batch_size", "epochs", "patience", "validation", "test_batch_size"), 1)
        check_range(self, ("lr",), 0, above=True)
        check_range(self, ("weight_decay",), 0)
        check_range(self, ("validation",), 1, TRAIN_IMAGES[self.dataset] - self.batch_size)
        check_range(self, ("train_samples",), self.batch_size, TRAIN_IMAGES[self.dataset] - self.validation)
        if self.network == "lenet5" and self.dataset != "mnist":
            raise LabError(f"dataset: expected mnist for lenet5, got {self.dataset}")
        if not 0 < self.pruned < 1:
            raise LabError(f"pruned: expected a fraction in (0, 1), got {self.pruned}")
        for field in ("noise", "noisy_densities"):
            if not all(0 <= share <= 1 for share in getattr(self, field)):
                raise LabError(f"{field}: expected fractions in [0, 1], got {getattr(self, field)}")


# name: what differs from the experiment that it shortens, whose noisy densities these levels meet too
SHORTENED = {
    "tickets_fc_short": {"levels": 10, "pruned": 0.33, "epochs": 6, "patience": 2},
    "tickets_lenet5_short": {
        **{"levels": 4, "pruned": 0.7, "epochs": 2, "train_samples": 12000, "validation": 2000},
        "noise": (0.0, 0.1, 0.2, 0.3, 0.4, 0.5),
    },
}


def _experiments() -> dict[str, Tickets]:
    fc = Tickets("tickets_fc", "tickets_fc", "fc")
    # of larger batches the images between two convolutions leave the caches
    lenet = Tickets("tickets_lenet5", "tickets_lenet5", "lenet5", test_batch_size=100)
    cifar = replace(fc, name="tickets_fc_cifar10", family="tickets_fc_cifar10", dataset="cifar10", train_samples=45000)
    cifar = replace(cifar, noise=tuple(round(share / 3, 4) for share in fc.noise))  # as hard to see with a third
    short = (
        replace(whole, name=name, family=name, **SHORTENED[name])
        for whole, name in ((fc, "tickets_fc_short"), (lenet, "tickets_lenet5_short"))
    )
    return {config.name: config for config in (fc, lenet, cifar, *short)}


EXPERIMENTS = _experiments()
