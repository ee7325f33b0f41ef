"""The named experiments as typed configurations, with the published numbers that they are judged against."""

from __future__ import annotations

import difflib
import math
from dataclasses import asdict, dataclass, fields, replace

from .errors import LabError

LARGEST_SEED = 2**32 - 1  # what follows from a seed and a task stays within torch's 64 bits


@dataclass(frozen=True)
class Experiment:
    """A permutedMNIST experiment with prototype contexts (Grewal et al. 2021, table 4 and appendix)."""

    name: str
    family: str
    tasks: int
    epochs: int
    lr: float
    segments: int
    context_density: float
    hidden: tuple[int, ...] = (2048, 2048)
    percent_on: float = 0.05
    weight_sparsity: float = 0.5
    batch_size: int = 256
    test_batch_size: int = 512
    evaluate_after: tuple[int, ...] = (2, 5, 10, 25, 50, 100)
    data_seed: int = 42
    train_samples: int = 60000  # fewer for a quick look; a result with fewer says so in its configuration

    def to_dict(self) -> dict:
        """The fields as JSON gives them back (lists, not tuples), so that rows and states compare by ==."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def checks(self) -> None:
        """Raises LabError for values that no run could use."""
        for field in ("tasks", "epochs", "segments", "batch_size", "test_batch_size", "train_samples"):
            if getattr(self, field) < 1:
                raise LabError(f"{field}: expected 1 or more, got {getattr(self, field)}")
        for field in ("hidden", "evaluate_after"):
            if min(getattr(self, field)) < 1:
                raise LabError(f"{field}: expected numbers of 1 or more, got {_as_typed(getattr(self, field))}")
        if not 0 < self.lr < math.inf:  # NaN is neither
            raise LabError(f"lr: expected a finite number above 0, got {self.lr}")
        if not 0 <= self.data_seed <= LARGEST_SEED:
            raise LabError(f"data_seed: expected 0 to {LARGEST_SEED}, got {self.data_seed}")
        if not self.batch_size <= self.train_samples <= 60000:
            raise LabError(f"train_samples: expected batch_size ({self.batch_size}) to 60000, got {self.train_samples}")
        for field, top in (("percent_on", 1), ("context_density", 1)):
            if not 0 < getattr(self, field) <= top:
                raise LabError(f"{field}: expected a fraction in (0, 1], got {getattr(self, field)}")
        if not 0 <= self.weight_sparsity < 1:
            raise LabError(f"weight_sparsity: expected a fraction in [0, 1), got {self.weight_sparsity}")
        if round(min(self.hidden) * self.percent_on) < 1:
            raise LabError(f"percent_on: {self.percent_on} of {min(self.hidden)} units leaves no winner in a layer")


# systems.md, section 2: epochs and learning rate by number of tasks
_PROTOTYPE = {2: (1, 5e-4), 5: (1, 5e-4), 10: (3, 5e-4), 25: (5, 3e-4), 50: (3, 3e-4), 100: (3, 1e-4)}
_SEGMENTS_10 = {2: (5, 1e-3), 5: (5, 7e-4), 10: (3, 5e-4), 25: (5, 3e-4), 50: (5, 7e-5), 100: (3, 7e-5)}

# family: number of tasks -> mean accuracy over all of them after the last, of 8 trials (Grewal et al. 2021, figure 6)
PUBLISHED = {
    "prototype": {2: 0.974744, 5: 0.963630, 10: 0.945509, 25: 0.920947, 50: 0.870479, 100: 0.814206},
    "prototype_segments_10": {2: 0.975281, 5: 0.964697, 10: 0.945509, 25: 0.913108, 50: 0.862821, 100: 0.784747},
}


def _experiments() -> dict[str, Experiment]:
    out = {}
    for tasks, (epochs, lr) in _PROTOTYPE.items():
        name = f"prototype_{tasks}"
        out[name] = Experiment(name, "prototype", tasks, epochs, lr, segments=tasks, context_density=0.1)
    for tasks, (epochs, lr) in _SEGMENTS_10.items():
        name = f"prototype_{tasks}_segments_10"
        out[name] = Experiment(name, "prototype_segments_10", tasks, epochs, lr, segments=10, context_density=0.05)
    return out


EXPERIMENTS = _experiments()


def experiment(name: str, changes: dict[str, str] | None = None) -> Experiment:
    """The experiment of this name, with fields replaced ("lr" -> "1e-3"). Raises LabError for unknown ones."""
    if name not in EXPERIMENTS:
        near = difflib.get_close_matches(name, EXPERIMENTS, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ":"
        raise LabError(f"unknown experiment {name!r}{hint} `dendrite-lab list` names them all")
    config = EXPERIMENTS[name]
    config = replace(config, **{key: _parsed(config, key, text) for key, text in (changes or {}).items()})
    config.checks()
    return config


def _parsed(config: Experiment, key: str, text: str):
    settable = [f.name for f in fields(config) if f.name not in ("name", "family")]
    if key not in settable:
        raise LabError(f"--set {key}: expected one of {', '.join(settable)}")
    present = getattr(config, key)
    try:
        if isinstance(present, tuple):
            return tuple(int(part) for part in text.split(","))
        return type(present)(text)
    except ValueError:
        raise LabError(f"--set {key}: expected a value like {_as_typed(present)}, got {text!r}") from None


def _as_typed(value) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
