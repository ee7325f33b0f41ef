"""What the configurations of all kinds of experiments have in common: written down, read back, changed in words."""

from __future__ import annotations

import math
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import ClassVar, TypeVar

from .errors import LabError

LARGEST_SEED = 2**32 - 1  # what follows from a seed and a task stays within torch's 64 bits

# of each data set: images to train on, and values of one
TRAIN_IMAGES = {"mnist": 60000, "cifar10": 50000, "cifar100": 50000}
IMAGE_VALUES = {"mnist": 784, "cifar10": 3072, "cifar100": 3072}

Kind = TypeVar("Kind", bound="Configuration")


@dataclass(frozen=True)
class Configuration:
    """A named experiment of some kind: a frozen dataclass whose fields `--set` changes.

    A kind also has epochs and lr, `steps` (training steps of a whole run), `evaluations` (passes over test images) and
    `step_guess` (seconds of a step that was never measured), for the sweep's estimates.
    """

    runner: ClassVar[str]  # the module whose run(config, seed, data, folder, resume=, progress=) returns a row
    name: str
    family: str

    def to_dict(self) -> dict:
        """The fields as JSON gives them back (lists, not tuples), so that rows and states compare by ==."""
        return {key: _listed(value) for key, value in asdict(self).items()}

    @classmethod
    def completed(cls, config: dict) -> dict:
        """A configuration as it was written, with what an older version did not know of."""
        return {**{f.name: _listed(f.default) for f in fields(cls) if f.default is not MISSING}, **config}

    @property
    def dataset(self) -> str:
        """What datasets.load gives to the runner as data; a kind may have a field of this name."""
        return "mnist"

    @property
    def note(self) -> str | None:
        """What a reader of its results must know: that another data set stands in for the paper's, or what is ours."""
        return None

    @property
    def grid(self) -> dict[str, tuple]:
        """field -> the values that the source's search tried; empty where it made none."""
        return {}

    def checks(self) -> None:
        """Raises LabError for values that no run could use."""

    def describe(self) -> str:
        """What its row's accuracy is, in words."""
        return "accuracy"


def changed(config: Kind, changes: dict[str, str]) -> Kind:
    """The configuration with fields replaced ("lr" -> "1e-3"). Raises LabError for those that no run could use."""
    config = replace(config, **{key: _parsed(config, key, text) for key, text in changes.items()})
    config.checks()
    return config


def check_range(config: Configuration, names: tuple[str, ...], low: float, high: float = math.inf, *, above=False):
    """Raises LabError unless low <= value (low < value, where above) and value <= high (finite); NaN is neither."""
    for name in names:
        value = getattr(config, name)
        if not (low < value if above else low <= value) or not value <= high or value == math.inf:
            least = f"above {low}" if above else f"{low} or more"
            raise LabError(f"{name}: expected {least}{'' if high == math.inf else f', at most {high}'}, got {value}")


def check_choices(config: Configuration, choices: dict[str, tuple[str, ...]]) -> None:
    """Raises LabError where a field is none of its choices."""
    for field, some in choices.items():
        if getattr(config, field) not in some:
            raise LabError(f"{field}: expected one of {', '.join(some)}, got {getattr(config, field)}")


def check_positive_counts(config: Configuration, names: tuple[str, ...]) -> None:
    """Raises LabError where a tuple of counts has one below 1."""
    for name in names:
        if min(getattr(config, name)) < 1:
            raise LabError(f"{name}: expected numbers of 1 or more, got {as_typed(getattr(config, name))}")


def _parsed(config: Configuration, key: str, text: str):
    settable = [f.name for f in fields(config) if f.name not in ("name", "family")]
    if key not in settable:
        raise LabError(f"--set {key}: expected one of {', '.join(settable)}")
    present = getattr(config, key)
    try:
        if isinstance(present, tuple):
            return tuple(type(present[0])(part) for part in text.split(","))
        return type(present)(text)
    except ValueError:
        raise LabError(f"--set {key}: expected a value like {as_typed(present)}, got {text!r}") from None


def ours(choices: str) -> str:
    """A note on what had to be chosen for a source."""
    return f"ours, where the source is silent: {choices}"


def as_typed(value) -> str:
    """A value as a user would type it."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _listed(value):
    return list(value) if isinstance(value, tuple) else value
