"""SplitCIFAR: its table, its tasks, early stopping, and that a stopped run goes on to the same numbers."""

import dataclasses
import itertools

import pytest
import torch
from cifar_files import pictures
from dendrite_lab import grid, split_cifar_run
from dendrite_lab.cifar import CIFAR
from dendrite_lab.config import experiment
from dendrite_lab.errors import LabError
from dendrite_lab.images import MEAN, STD
from dendrite_lab.split_cifar_run import EarlyStop, SplitRun, SplitState
from dendrite_lab.state import TaskState
from resuming import resumes_to_the_same

from dendrite_kernels.optim import Adam
from dendrite_kernels.testing import assert_close

NETWORKS = ("cnn", "sparse", "adn")
# lr, batch, weight decay, active in convolutions, active in linear layers, weight density (Bain 2022, appendix A.3)
TABLE = """
    cnn    1e-3 64  1e-5 1   1   1
    sparse 1e-3 32  0    0.2 0.1 0.5
    adn    1e-3 128 0    0.2 0.3 0.5
"""


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)


@pytest.fixture(scope="module")
def data():
    """Few images of ten classes, in CIFAR-10's place."""
    parts = []
    for count, seed in ((400, 0), (100, 1)):
        images, labels = pictures(count, 10, seed)
        parts += [torch.from_numpy(images).view(-1, 3, 32, 32), torch.from_numpy(labels)]
    return CIFAR(*parts, classes=10)


def tiny(network, **changes):
    small = {"tasks": "3", "batch_size": "16", "epochs": "2", "test_batch_size": "10"}
    return experiment(f"split_cifar10_{network}", {**small, **changes})


@pytest.mark.parametrize("line", TABLE.strip().splitlines())
@pytest.mark.parametrize("dataset", ["cifar100", "cifar10"])
def test_the_table(line, dataset):
    name, *numbers = line.split()
    config = experiment(f"split_{dataset}_{name}")
    fields = ("lr", "batch_size", "weight_decay", "conv_percent_on", "fc_percent_on", "weight_density")
    assert [getattr(config, field) for field in fields] == [float(number) for number in numbers]
    assert (config.segments, config.context) == ((10, "onehot") if name == "adn" else (0, "none"))
    assert config.patience == 30 and config.plain == (name == "cnn")


def test_the_tasks_and_what_stands_in_for_them():
    full, small = experiment("split_cifar100_cnn"), experiment("split_cifar10_cnn")
    assert (full.tasks, full.classes_per_task, full.task_samples) == (10, 10, 5000)
    assert full.note.startswith("ours, where the source is silent: at most 200 epochs")
    assert (small.tasks, small.classes_per_task, small.task_samples) == (5, 2, 10000)
    assert "not the paper's experiment" in small.note and "5 2-way tasks, at most 5 epochs" in small.note
    assert small.steps == 5 * 5 * (9000 // 64) and small.evaluations == 1 + 2 + 3 + 4 + 5


@pytest.mark.parametrize("network, count", [("cnn", 27), ("sparse", 162), ("adn", 162)])
def test_the_points_of_a_grid(network, count):
    config = experiment(f"split_cifar100_{network}")
    points = grid.points(config)
    values = [tuple(getattr(point, field) for field in config.grid) for point in points]
    assert values == list(itertools.product(*config.grid.values())) and len(set(values)) == count
    assert config in points  # what the source chose
    assert all(dataclasses.replace(point, **{f: getattr(config, f) for f in config.grid}) == config for point in points)


def test_what_has_no_grid():
    with pytest.raises(LabError, match=r"expected an experiment whose source searched a grid .* got prototype_10"):
        grid.points(experiment("prototype_10"))


@pytest.mark.parametrize(
    "network, changes, said",
    [
        ("cnn", {"tasks": "6"}, "tasks: expected 10 classes or fewer in all, got 6 x 2"),
        ("sparse", {"weight_decay": "1e-5"}, "weight_decay: expected 0 for a sparse network, got 1e-05"),
        ("sparse", {"context": "onehot"}, "context: expected none exactly with segments=0, got onehot with 0"),
        ("adn", {"fc_percent_on": "0"}, "fc_percent_on: expected above 0, at most 1, got 0.0"),
        ("adn", {"patience": "0"}, "patience: expected 1 or more, got 0"),
        ("cnn", {"dataset": "mnist"}, "dataset: expected one of cifar100, cifar10, got mnist"),
    ],
)
def test_values_that_no_run_could_use(network, changes, said):
    with pytest.raises(LabError, match=said):
        experiment(f"split_cifar10_{network}", changes)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_stopped_run_resumes_to_the_same_numbers(network, data, tmp_path):
    config = tiny(network)
    keys = ("accuracy_by_task", "loss_by_task", "epochs_by_task", "classes_by_task")
    # in the third of three tasks, of 2 epochs of 4 steps
    whole, _ = resumes_to_the_same(split_cifar_run.run, config, data, tmp_path, lambda done, _: done == 20, keys)
    assert [len(values) for values in whole["accuracy_by_task"].values()] == [1, 2, 3]
    assert whole["accuracy"] == sum(whole["accuracy_by_task"]["3"]) / 3


@pytest.mark.parametrize("network", NETWORKS)
def test_each_network_learns_a_task_at_once(network, data, tmp_path):
    row = split_cifar_run.run(tiny(network, tasks="1", epochs="12"), 0, data, tmp_path)
    assert row["accuracy"] > 0.9  # of two noisy patterns, moved about


def test_optimizers_and_contexts_of_the_networks(data):
    runs = {n: SplitRun(tiny(n), SplitState({"tasks": 3}, 0, 1), data) for n in NETWORKS}
    assert type(runs["cnn"].optimizer) is torch.optim.Adam and isinstance(runs["adn"].optimizer, Adam)
    assert runs["cnn"].optimizer.param_groups[0]["weight_decay"] == 1e-5
    assert runs["sparse"]._context(1) is None and runs["adn"]._context(1).tolist() == [[0, 1, 0]]
    zeros = SplitRun(tiny("adn", context="zeros"), SplitState({"tasks": 3}, 0, 1), data)
    assert zeros._context(1).tolist() == [[0, 0, 0]]
    of_means = SplitRun(tiny("adn", context="mean"), SplitState({"tasks": 3}, 0, 1), data)
    (images, _), _ = of_means._split(1)
    pixels = (images / 255).mean(0)
    want = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    assert_close(of_means._context(1), want.flatten()[None], terms=len(images))
    assert of_means.model.linear[0].segments.weights.shape[2] == 3072


def test_a_task_has_its_classes_and_holds_some_images_out(data):
    run = SplitRun(tiny("cnn"), SplitState({"tasks": 3}, 5, 1), data)
    (images, labels), (others, other_labels) = run._split(1)
    assert len(images) == 72 and len(others) == 8  # of 40 images a class
    together = torch.cat([images, others])
    assert len(together.flatten(1).unique(dim=0)) == 80
    everything = data.train_images.flatten(1)
    for image, label in zip(together, torch.cat([labels, other_labels]), strict=True):
        source = (everything == image.flatten()).all(1).nonzero().item()
        assert run.classes[1, label] == data.train_labels[source]


def test_the_best_epoch_is_kept_and_patience_ends_a_task():
    model = torch.nn.Linear(1, 1)
    stop = EarlyStop(model, 3)
    stopped = []
    for epoch, score in enumerate((0.5, 0.7, 0.6, 0.7, 0.2)):
        with torch.no_grad():
            model.weight.fill_(epoch)
        stopped.append(stop.after_epoch(score))
    assert stopped == [False, False, False, False, True] and stop.epochs == 5
    stop.restore()
    assert model.weight.item() == 1 and isinstance(SplitState({}, 0, 1), TaskState)
