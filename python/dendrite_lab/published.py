"""The published numbers that experiments are judged against (shared by `list` and `report`)."""

from __future__ import annotations

TASKS = (2, 5, 10, 25, 50, 100)


def _by_tasks(pattern: str, values: tuple[float, ...], tasks: tuple[int, ...] = TASKS) -> dict[str, float]:
    return {pattern.format(n): value for n, value in zip(tasks, values, strict=True)}


# experiment: mean test accuracy over all tasks after the last, of 8 trials (Grewal et al. 2021)
ACCURACY = {
    **_by_tasks("prototype_{}", (0.974744, 0.963630, 0.945509, 0.920947, 0.870479, 0.814206)),
    **_by_tasks("prototype_{}_segments_10", (0.975281, 0.964697, 0.945509, 0.913108, 0.862821, 0.784747)),
    **_by_tasks("si_prototype_{}", (0.976512, 0.974700, 0.972305, 0.964564, 0.944486, 0.915934)),
    **_by_tasks("construct_prototype_{}", (0.975531, 0.960042, 0.943196, 0.886420, 0.853417, 0.769118)),
    **_by_tasks("active_dendrites_only_{}", (0.967594, 0.891100, 0.828535, 0.761537, 0.683277, 0.615350)),
    **_by_tasks("sparse_representations_only_{}", (0.965681, 0.938915, 0.913330, 0.845923, 0.755599, 0.656131)),
    **_by_tasks("three_layer_mlp_{}", (0.820320, 0.483134), (10, 100)),
    **_by_tasks("ten_layer_mlp_{}", (0.718430, 0.286087), (10, 100)),
    # from the literature, as that paper's figure has them
    **_by_tasks("si_alone_{}", (0.980, 0.979, 0.971, 0.946, 0.905, 0.825)),
    **_by_tasks("xdg_{}", (0.980, 0.978, 0.972, 0.903, 0.790, 0.620)),
    **_by_tasks("si_xdg_{}", (0.985, 0.982, 0.9795, 0.975, 0.962, 0.955)),
    # prototype_10 again
    "hidden_activations_per_task": 0.945509,
    # Bain 2022, 5 trials; it has no number in its text for the other contexts
    **_by_tasks("context_mean_{}", (0.943, 0.783), (10, 100)),
}

# Synaptic Intelligence, permuted MNIST: mean over the tasks so far, after each (a public reference run)
SI_PERMUTED = (0.9830, 0.9832, 0.98273, 0.97992, 0.97894, 0.97767, 0.97559, 0.97459, 0.97118, 0.96943)
ACCURACY |= {
    "si_permuted_mnist_10": SI_PERMUTED[-1],
    **{f"si_permuted_mnist_10_c{c}": value for c, value in (("0.02", 0.9391), ("0.01", 0.91997), ("0", 0.57406))},
}
# Synaptic Intelligence on split CIFAR: the mean of its reference run
ACCURACY |= {
    **{f"si_split_cifar{what}": value for what, value in (("_c0", 0.6251), ("_c0.01", 0.7353), ("", 0.7200))},
    "si_split_cifar_scratch": 0.7112,
}

# experiment: clusters found, mean of 8 trials
CLUSTERS = _by_tasks("construct_prototype_{}", (2.25, 5.625, 11.375, 28.125, 56.75, 110.5))

SWEPT = {
    "segments": (2, 3, 5, 7, 10, 20, 30, 50, 100),
    "percent_on": (0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.99),
    "weight_sparsity": (0.01, 0.05, 0.1, 0.5, 0.7, 0.9, 0.95, 0.99),
}
SWEEP_TASKS = (10, 50)

# (field, tasks): accuracy for each swept value; weight sparsity was swept without published numbers
_SWEEPS = {
    ("segments", 10): (0.9358, 0.9377, 0.9423, 0.9441, 0.9451, 0.9495, 0.9499, 0.9482, 0.9511),
    ("segments", 50): (0.7053, 0.7201, 0.7409, 0.7553, 0.7761, 0.7948, 0.8041, 0.8240, 0.8355),
    ("percent_on", 10): (0.9341, 0.9490, 0.9429, 0.9014, 0.7601, 0.7315, 0.7391, 0.6965, 0.5712),
    ("percent_on", 50): (0.8138, 0.8623, 0.8200, 0.5048, 0.4344, 0.4225, 0.4024, 0.3672, None),
}


def sweep_name(field: str, value: float, tasks: int) -> str:
    return f"sweep_{field}_{value:g}_tasks_{tasks}"


ACCURACY |= {
    sweep_name(field, value, tasks): accuracy
    for (field, tasks), values in _SWEEPS.items()
    for value, accuracy in zip(SWEPT[field], values, strict=True)
    if accuracy is not None
}


# how an experiment's name begins: its runs in its source
_TRIALS = {"context_": 5, "split_cifar100_": 5, "tickets_": 8, "si_split_mnist": 10, "si_split_cifar": 5}
_OF_PUBLISHED = dict.fromkeys(("prototype_", "si_prototype_", "construct_", "active_", "sparse_", "three_", "ten_"), 8)


def trials(name: str) -> int | None:
    """The runs of an experiment in its source; None of what is not there, or not with their number."""
    if name.endswith("_short") or name.startswith("si_split_cifar10"):  # what stands in for an experiment
        return None
    counts = {**_TRIALS, **(_OF_PUBLISHED if name in ACCURACY else {})}
    return next((count for start, count in counts.items() if name.startswith(start)), None)


def runs_in_words(name: str, count: int) -> str:
    """Runs of an experiment beside those of its source: "3 of 8"."""
    return f"{count} of {trials(name)}" if trials(name) else str(count)


def name_of(family: str, tasks: int) -> str:
    """The name of a family's experiment on so many tasks."""
    return f"prototype_{tasks}_segments_10" if family == "prototype_segments_10" else f"{family}_{tasks}"


def curve(family: str, values: dict[str, float] = ACCURACY) -> dict[int, float]:
    """tasks -> published value of a family."""
    return {tasks: values[name_of(family, tasks)] for tasks in TASKS if name_of(family, tasks) in values}


# family: why no experiment of it can be run
NOT_RUNNABLE = {
    "si_alone": "a number from the literature",
    "xdg": "a number from the literature",
    "si_xdg": "a number from the literature",
}


def not_runnable() -> dict[str, str]:
    """name -> why, of every published row that can't be run."""
    return {f"{family}_{tasks}": why for family, why in NOT_RUNNABLE.items() for tasks in TASKS}


def percent(name: str) -> str:
    """An experiment's published accuracy in words; "-" of one without."""
    return f"{100 * ACCURACY[name]:.2f} %" if name in ACCURACY else "-"
