"""The named experiments (Grewal et al. 2021, tables of its appendix; Bain 2022, section 3.2)."""

from __future__ import annotations

import difflib
import hashlib
import json
from dataclasses import replace

from . import published, si_cifar, si_experiment, tickets_experiment
from .configuration import LARGEST_SEED, Configuration, changed
from .errors import LabError
from .experiment import Experiment
from .split_cifar import split_cifar_experiments

__all__ = ["EXPERIMENTS", "LARGEST_SEED", "Configuration", "changes_of", "experiment", "run_name"]

# family: number of tasks -> (epochs, learning rate)
TRAINED = {
    "prototype": {2: (1, 5e-4), 5: (1, 5e-4), 10: (3, 5e-4), 25: (5, 3e-4), 50: (3, 3e-4), 100: (3, 1e-4)},
    "prototype_segments_10": {2: (5, 1e-3), 5: (5, 7e-4), 10: (3, 5e-4), 25: (5, 3e-4), 50: (5, 7e-5), 100: (3, 7e-5)},
    "si_prototype": dict.fromkeys(published.TASKS, (20, 5e-4)),
    "construct_prototype": {2: (5, 1e-3), 5: (5, 1e-3), 10: (3, 1e-3), 25: (1, 3e-4), 50: (3, 1e-4), 100: (3, 1e-4)},
    "active_dendrites_only": {
        **{2: (5, 5e-4), 5: (10, 1e-3), 10: (5, 5e-6), 25: (5, 5e-6), 50: (5, 1e-5), 100: (5, 5e-6)}
    },
    "sparse_representations_only": {
        **{2: (3, 1e-3), 5: (10, 5e-5), 10: (5, 1e-4), 25: (10, 1e-5), 50: (10, 1e-5), 100: (5, 1e-4)}
    },
    "three_layer_mlp": {10: (5, 3e-6), 100: (3, 1e-6)},
    "ten_layer_mlp": {10: (3, 3e-6), 100: (3, 3e-7)},
    "context_mean": {10: (3, 5e-4), 100: (3, 7e-5)},
    "context_onehot": {10: (3, 5e-4), 100: (3, 7e-5)},
    "context_zeros": {10: (3, 5e-4), 100: (3, 7e-5)},
}

_PLAIN = {"segments": 0, "context": "none", "activation": "relu", "weight_sparsity": 0.0, "init": "public"}
# its footnote 4: unlike Grewal et al., whose permutations were always the same
_BAIN = {"segments": 10, "context_density": 0.05, "optimizer_lifetime": "run", "permutations": "run"}
_SI = {"hidden": (2000, 2000), "si_c": 0.1, "si_xi": 0.1, "optimizer_lifetime": "run"}

# family: what differs from prototype_N, which has as many segments as tasks
NETWORKS = {
    "prototype": {},
    "prototype_segments_10": {"segments": 10, "context_density": 0.05},
    "si_prototype": {**_SI, "evaluate_after": (1, 2, 3, 4, 5, 10, 25, 50, 75, 100)},
    "construct_prototype": {"context": "clusters"},
    "active_dendrites_only": {"activation": "relu"},
    "sparse_representations_only": {"segments": 0, "context": "none"},
    "three_layer_mlp": _PLAIN,
    "ten_layer_mlp": {**_PLAIN, "hidden": (2048,) * 9},
    "context_mean": {**_BAIN, "context": "mean"},
    "context_onehot": {**_BAIN, "context": "onehot"},
    "context_zeros": {**_BAIN, "context": "zeros"},
}

# Its figures have the accuracy after every task; over a hundred tasks after every tenth is enough.
_BAIN_EVALUATES = {10: tuple(range(1, 11)), 100: (1, *range(10, 101, 10))}


def _families() -> list[Experiment]:
    out = []
    for family, trained in TRAINED.items():
        for tasks, (epochs, lr) in trained.items():
            config = Experiment(
                published.name_of(family, tasks), family, tasks, epochs, lr, segments=tasks, context_density=0.1
            )
            config = replace(config, **NETWORKS.get(family, {}))
            if family.startswith("context_"):
                config = replace(config, evaluate_after=_BAIN_EVALUATES[tasks])
            out.append(config)
    return out


def _sweeps() -> list[Experiment]:
    out = []
    for field, values in published.SWEPT.items():
        for tasks in published.SWEEP_TASKS:
            base = Experiment("", f"sweep_{field}", tasks, 3, 5e-4, segments=tasks, context_density=0.1, percent_on=0.1)
            out += [replace(base, name=published.sweep_name(field, v, tasks), **{field: v}) for v in values]
    return out


def _experiments() -> dict[str, Experiment]:
    named = {config.name: config for config in [*_families(), *_sweeps(), *split_cifar_experiments()]}
    recorded = replace(named["prototype_10"], name="hidden_activations_per_task", family="hidden_activations")
    return {**named, recorded.name: replace(recorded, record_activations=5000)}


EXPERIMENTS: dict[str, Configuration] = {
    **_experiments(),
    **si_experiment.EXPERIMENTS,
    **si_cifar.EXPERIMENTS,
    **tickets_experiment.EXPERIMENTS,
}


def experiment(name: str, changes: dict[str, str] | None = None) -> Configuration:
    """The experiment of this name, with fields replaced ("lr" -> "1e-3"). Raises LabError for unknown ones."""
    if name in published.not_runnable():
        raise LabError(f"{name} can't be run: {published.not_runnable()[name]}")
    if name not in EXPERIMENTS:
        near = difflib.get_close_matches(name, EXPERIMENTS, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ":"
        raise LabError(f"unknown experiment {name!r}{hint} `dendrite-lab list` names them all")
    return changed(EXPERIMENTS[name], changes or {})


def changes_of(name: str, config: dict) -> dict:
    """What of a configuration, as a dict, differs from the experiment of this name; all of it where there is none."""
    named = EXPERIMENTS[name].to_dict() if name in EXPERIMENTS else {}
    return {key: value for key, value in config.items() if key not in named or named[key] != value}


def run_name(config: Configuration, seed: int) -> str:
    """What a run's files are called: by its experiment, its seed and, where --set changed it, a hash of the changes."""
    changes = changes_of(config.name, config.to_dict())
    digest = hashlib.sha256(json.dumps(changes, sort_keys=True).encode()).hexdigest()[:8]
    return f"{config.name}-seed{seed}" + (f"-{digest}" if changes else "")
