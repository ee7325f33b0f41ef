"""The named experiments and published numbers are the tables of the sources, written out here a second time."""

import pytest
from dendrite_lab import published
from dendrite_lab.config import EXPERIMENTS, experiment
from dendrite_lab.errors import LabError
from dendrite_lab.experiment import Experiment

TASKS = (2, 5, 10, 25, 50, 100)
EPOCHS_AND_RATES = """
    prototype_N                   1@5e-4 1@5e-4 3@5e-4 5@3e-4 3@3e-4 3@1e-4
    prototype_N_segments_10       5@1e-3 5@7e-4 3@5e-4 5@3e-4 5@7e-5 3@7e-5
    active_dendrites_only_N       5@5e-4 10@1e-3 5@5e-6 5@5e-6 5@1e-5 5@5e-6
    sparse_representations_only_N 3@1e-3 10@5e-5 5@1e-4 10@1e-5 10@1e-5 5@1e-4
    si_prototype_N                20@5e-4 20@5e-4 20@5e-4 20@5e-4 20@5e-4 20@5e-4
    construct_prototype_N         5@1e-3 5@1e-3 3@1e-3 1@3e-4 3@1e-4 3@1e-4
    three_layer_mlp_N             - - 5@3e-6 - - 3@1e-6
    ten_layer_mlp_N               - - 3@3e-6 - - 3@3e-7
    context_mean_N                - - 3@5e-4 - - 3@7e-5
    context_onehot_N              - - 3@5e-4 - - 3@7e-5
    context_zeros_N               - - 3@5e-4 - - 3@7e-5
"""
ACCURACIES = """
    prototype_N                   .974744 .963630 .945509 .920947 .870479 .814206
    prototype_N_segments_10       .975281 .964697 .945509 .913108 .862821 .784747
    si_prototype_N                .976512 .974700 .972305 .964564 .944486 .915934
    construct_prototype_N         .975531 .960042 .943196 .886420 .853417 .769118
    active_dendrites_only_N       .967594 .891100 .828535 .761537 .683277 .615350
    sparse_representations_only_N .965681 .938915 .913330 .845923 .755599 .656131
    three_layer_mlp_N             - - .820320 - - .483134
    ten_layer_mlp_N               - - .718430 - - .286087
    si_alone_N                    .980 .979 .971 .946 .905 .825
    xdg_N                         .980 .978 .972 .903 .790 .620
    si_xdg_N                      .985 .982 .9795 .975 .962 .955
    context_mean_N                - - .943 - - .783
"""
SEGMENTS = (2, 3, 5, 7, 10, 20, 30, 50, 100)
SEGMENTS_10 = (0.9358, 0.9377, 0.9423, 0.9441, 0.9451, 0.9495, 0.9499, 0.9482, 0.9511)
SEGMENTS_50 = (0.7053, 0.7201, 0.7409, 0.7553, 0.7761, 0.7948, 0.8041, 0.8240, 0.8355)
DENSITIES = (0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.99)
DENSITIES_10 = (0.9341, 0.9490, 0.9429, 0.9014, 0.7601, 0.7315, 0.7391, 0.6965, 0.5712)
DENSITIES_50 = (0.8138, 0.8623, 0.8200, 0.5048, 0.4344, 0.4225, 0.4024, 0.3672)
SPARSITIES = (0.01, 0.05, 0.1, 0.5, 0.7, 0.9, 0.95, 0.99)


def cells(text):
    """(name, cell) of a table by number of tasks."""
    for line in text.strip().splitlines():
        pattern, *row = line.split()
        for tasks, cell in zip(TASKS, row, strict=True):
            if cell != "-":
                yield pattern.replace("N", str(tasks)), cell


@pytest.mark.parametrize("name, cell", list(cells(EPOCHS_AND_RATES)))
def test_epochs_and_learning_rates(name, cell):
    epochs, lr = cell.split("@")
    config = experiment(name)
    assert (config.epochs, config.lr) == (int(epochs), float(lr)) and f"_{config.tasks}" in name


def test_published_accuracies():
    sweeps = {f"sweep_segments_{s}_tasks_10": a for s, a in zip(SEGMENTS, SEGMENTS_10, strict=True)}
    sweeps |= {f"sweep_segments_{s}_tasks_50": a for s, a in zip(SEGMENTS, SEGMENTS_50, strict=True)}
    sweeps |= {f"sweep_percent_on_{d:g}_tasks_10": a for d, a in zip(DENSITIES, DENSITIES_10, strict=True)}
    sweeps |= {f"sweep_percent_on_{d:g}_tasks_50": a for d, a in zip(DENSITIES, DENSITIES_50, strict=False)}
    tables = {name: float(cell) for name, cell in cells(ACCURACIES)}
    tables |= {"si_permuted_mnist_10": 0.96943, "si_permuted_mnist_10_c0.02": 0.9391}
    tables |= {"si_permuted_mnist_10_c0.01": 0.91997, "si_permuted_mnist_10_c0": 0.57406}
    tables |= {"si_split_cifar_c0": 0.6251, "si_split_cifar_c0.01": 0.7353, "si_split_cifar": 0.7200}
    tables |= {"si_split_cifar_scratch": 0.7112}
    assert {**tables, **sweeps, "hidden_activations_per_task": 0.945509} == published.ACCURACY
    assert list(published.CLUSTERS.values()) == [2.25, 5.625, 11.375, 28.125, 56.75, 110.5]


def test_every_published_row_can_be_run_or_says_why_not():
    assert set(published.ACCURACY) <= set(EXPERIMENTS) | set(published.not_runnable())
    assert not set(EXPERIMENTS) & set(published.not_runnable())
    with pytest.raises(LabError, match="si_alone_10 can't be run: a number from the literature"):
        experiment("si_alone_10")


@pytest.mark.parametrize("tasks", TASKS)
def test_what_the_networks_differ_in(tasks):
    def of(name):
        config = experiment(name)
        shape = (config.segments, config.context, config.activation, config.weight_sparsity, config.percent_on)
        return (*shape, config.context_density)

    assert of(f"prototype_{tasks}") == (tasks, "prototype", "kwinners", 0.5, 0.05, 0.1)
    assert of(f"prototype_{tasks}_segments_10") == (10, "prototype", "kwinners", 0.5, 0.05, 0.05)
    assert of(f"active_dendrites_only_{tasks}") == (tasks, "prototype", "relu", 0.5, 0.05, 0.1)
    assert of(f"sparse_representations_only_{tasks}") == (0, "none", "kwinners", 0.5, 0.05, 0.1)
    assert of(f"construct_prototype_{tasks}") == (tasks, "clusters", "kwinners", 0.5, 0.05, 0.1)


@pytest.mark.parametrize("tasks", TASKS)
def test_prototypes_with_synaptic_intelligence(tasks):
    config = experiment(f"si_prototype_{tasks}")
    assert (config.si_c, config.si_xi, config.si_variant) == (0.1, 0.1, "adn") and config.hidden == (2000, 2000)
    assert (config.segments, config.context, config.percent_on, config.context_density) == (
        tasks,
        "prototype",
        0.05,
        0.1,
    )
    assert config.optimizer_lifetime == "run" and config.evaluate_after == (1, 2, 3, 4, 5, 10, 25, 50, 75, 100)
    assert experiment(f"prototype_{tasks}").si_c == 0


def test_depths_of_the_plain_networks():
    assert experiment("three_layer_mlp_10").hidden == (2048, 2048) and experiment("three_layer_mlp_10").plain
    assert experiment("ten_layer_mlp_100").hidden == (2048,) * 9 and experiment("ten_layer_mlp_100").plain


@pytest.mark.parametrize("tasks", [10, 100])
@pytest.mark.parametrize("context, length", [("mean", lambda n: 784), ("onehot", int), ("zeros", int)])
def test_the_three_contexts(context, length, tasks):
    config = experiment(f"context_{context}_{tasks}")
    assert (config.segments, config.context, config.dim_context) == (10, context, length(tasks))
    assert config.optimizer_lifetime == "run" and experiment(f"prototype_{tasks}").optimizer_lifetime == "task"


@pytest.mark.parametrize("tasks", [10, 50])
@pytest.mark.parametrize(
    "field, values", [("segments", SEGMENTS), ("percent_on", DENSITIES), ("weight_sparsity", SPARSITIES)]
)
def test_sweeps_change_one_field(field, values, tasks):
    base = {"segments": tasks, "percent_on": 0.1, "weight_sparsity": 0.5, "epochs": 3, "lr": 5e-4, "tasks": tasks}
    for value in values:
        config = experiment(f"sweep_{field}_{value:g}_tasks_{tasks}")
        assert {key: getattr(config, key) for key in base} == {**base, field: value}


def test_every_experiment_passes_its_own_checks():
    for name, config in EXPERIMENTS.items():
        assert experiment(name) == config and config.name == name


def test_steps_and_evaluations_of_a_run():
    config = experiment("prototype_10")
    assert config.steps == 10 * 3 * 234 and config.evaluations == 2 + 5 + 10
    assert experiment("context_mean_100").evaluations == 1 + sum(range(10, 101, 10))
    assert experiment("prototype_10", {"tasks": "3"}).evaluations == 2 + 3


def test_what_an_older_version_wrote_is_the_same_configuration():
    now = EXPERIMENTS["prototype_10"].to_dict()
    older = {key: now[key] for key in list(now)[: list(now).index("activation")]}
    assert Experiment.completed(older) == now and older != now


@pytest.mark.parametrize(
    "name, changes, says",
    [
        ("prototype_10", {"segments": "0"}, "context: expected none exactly with segments=0, got prototype with 0"),
        ("sparse_representations_only_10", {"segments": "3"}, "context: expected none exactly with segments=0, got"),
        ("prototype_10", {"segments": "-1"}, "segments: expected 0 or more, got -1"),
        ("prototype_10", {"activation": "tanh"}, "activation: expected one of kwinners, relu, got tanh"),
        ("prototype_10", {"context": "dream"}, "context: expected one of prototype, clusters, mean"),
        ("prototype_10", {"optimizer_lifetime": "x"}, "optimizer_lifetime: expected one of task, run, got x"),
        ("construct_prototype_10", {"batch_size": "1"}, "batch_size: expected 2 or more to test a batch"),
        ("si_prototype_10", {"si_c": "-1"}, "si_c: expected a finite number of 0 or more, got -1.0"),
        ("si_prototype_10", {"si_xi": "0"}, "si_xi: expected a finite number above 0, got 0.0"),
        ("si_prototype_10", {"si_variant": "x"}, "si_variant: expected one of adn, zenke, got x"),
        ("three_layer_mlp_10", {"record_activations": "5"}, "record_activations: expected 0 for a network of dense"),
    ],
)
def test_combinations_that_no_run_could_use(name, changes, says):
    with pytest.raises(LabError, match=says):
        experiment(name, changes)
