"""Synaptic Intelligence on split CIFAR: its table, its tasks, and that a stopped run goes on to the same numbers."""

import pytest
import torch
from cifar_files import pictures
from dendrite_lab import datasets, si_cifar_run
from dendrite_lab.cifar import CIFAR
from dendrite_lab.config import experiment
from dendrite_lab.errors import LabError
from dendrite_lab.si_cifar_run import ConvHeads, SICIFARRun
from dendrite_lab.state import TaskState
from resuming import resumes_to_the_same


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)


def made_up(classes, sizes=(400, 100)):
    parts = []
    for seed, count in enumerate(sizes):
        images, labels = pictures(count, classes, seed)
        parts += [torch.from_numpy(images).view(-1, 3, 32, 32), torch.from_numpy(labels)]
    return CIFAR(*parts, classes)


def test_the_table():
    config = experiment("si_split_cifar")
    fields = ("tasks", "c", "xi", "batch_size", "epochs", "lr", "classes_per_task", "note")
    assert [getattr(config, field) for field in fields] == [6, 0.1, 1e-3, 256, 60, 1e-3, 10, None]
    assert config.steps == 60 * (195 + 5 * 19)
    strengths = {name: experiment(f"si_split_cifar{name}").c for name in ("_c0", "_c0.01", "_scratch")}
    assert strengths == {"_c0": 0, "_c0.01": 0.01, "_scratch": 0}
    alone = experiment("si_split_cifar10")
    assert (alone.tasks, alone.classes_per_task, alone.steps) == (5, 2, 60 * 5 * 39)
    assert "CIFAR-10 alone" in alone.note and "not the paper's experiment" in alone.note
    with pytest.raises(LabError, match="schedule: expected sequence with Synaptic Intelligence"):
        experiment("si_split_cifar", {"schedule": "scratch"})
    with pytest.raises(LabError, match="tasks: expected 1 or more, at most 5, got 6"):
        experiment("si_split_cifar10", {"tasks": "6"})


def test_the_network():
    model = ConvHeads(10, 6, init="keras").eval()
    shapes = [tuple(p.shape) for p in model.body.parameters() if p.dim() > 1]
    assert shapes == [(32, 3, 3, 3), (32, 32, 3, 3), (64, 32, 3, 3), (64, 64, 3, 3), (512, 2304)]
    assert [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)] == [0.25, 0.25, 0.5]
    assert (model(torch.rand(2, 3, 32, 32), 5) == 0).all() and len(model.heads) == 6
    glorot = (6 / (2304 + 512)) ** 0.5
    assert 0.99 * glorot < model.body[-3].weight.abs().max() <= glorot


def of_seed(data, name, seed=0):
    config = experiment(name)
    return SICIFARRun(config, TaskState(config.to_dict(), seed, 1), data)


def test_tasks_of_both_data_sets():
    """All of CIFAR-10, then consecutive classes of CIFAR-100: every class of the first fifty once, labels from 0."""
    both = made_up(10, (40, 20)), made_up(100)
    run = of_seed(both, "si_split_cifar")
    images, labels = run.of_task(0, "train")
    assert torch.equal(images, both[0].train_images) and torch.equal(labels, both[0].train_labels)
    for task in range(1, 6):
        images, labels = run.of_task(task, "test")
        index = ((both[1].test_labels >= 10 * (task - 1)) & (both[1].test_labels < 10 * task)).nonzero().squeeze(1)
        assert torch.equal(images, both[1].test_images[index]) and len(images) == 10
        assert torch.equal(labels + 10 * (task - 1), both[1].test_labels[index])


def test_tasks_of_cifar10_alone():
    data = made_up(10)
    run = of_seed((data,), "si_split_cifar10")
    classes = [run.of_task(task, "train")[1].unique().tolist() for task in range(5)]
    assert classes == [[0, 1]] * 5
    assert torch.equal(run.of_task(3, "train")[0], data.train_images[data.train_labels // 2 == 3])


def tiny(name, **changes):
    return experiment(name, {"tasks": "3", "epochs": "2", "batch_size": "16", "test_batch_size": "10", **changes})


@pytest.mark.parametrize("name", ["si_split_cifar10", "si_split_cifar10_scratch"])
def test_a_stopped_run_resumes_to_the_same_numbers(name, tmp_path):
    config, data = tiny(name, epochs="1"), made_up(10)
    keys, last = ("accuracy_by_task", "loss_by_task"), "task 3 of 3"
    whole, steps = resumes_to_the_same(si_cifar_run.run, config, data, tmp_path, lambda _, what: what == last, keys)
    assert {what for *_, what in steps} == {last}
    assert [len(values) for values in whole["accuracy_by_task"].values()] == [1, 2, 3]
    if config.schedule == "scratch":  # a network's accuracy on its own task stays what it was
        assert whole["accuracy_by_task"]["3"][:2] == whole["accuracy_by_task"]["2"]


def test_consolidation_begins_with_the_second_task():
    """The first is trained alike; a strong penalty then holds what mattered to it nearer than none does."""
    runs, moved = {}, {}
    for c in ("1000", "0"):
        config = tiny("si_split_cifar10", c=c, tasks="2")
        run = runs[c] = SICIFARRun(config, TaskState(config.to_dict(), 0, 1), (made_up(10),))
        run.train(0, lambda *_: None)
    for strong, none in zip(runs["1000"].model.parameters(), runs["0"].model.parameters(), strict=True):
        assert torch.equal(strong, none)
    for c, run in runs.items():
        before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
        importance = {name: value.clone() for name, value in run.si.importance.items()}
        first = run.si.optimizer
        run.train(1, lambda *_: None)
        assert run.si.optimizer is not first and run.si.tasks == 2
        moved[c] = sum(
            (importance[name] * (p.detach() - before[name]).square()).sum() for name, p in run.model.named_parameters()
        )
    assert moved["1000"] < 0.5 * moved["0"]


def test_it_learns(tmp_path):
    row = si_cifar_run.run(tiny("si_split_cifar10", tasks="1", epochs="8"), 0, made_up(10), tmp_path)
    assert row["accuracy"] > 0.9  # of two noisy patterns
    assert "CIFAR-10 alone" in row["note"]


def test_both_data_sets_are_loaded_from_one_folder(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(datasets, "load_cifar", lambda name, folder, say: asked.append((name, folder)) or name)
    assert datasets.load("cifar10_100", tmp_path) == ("cifar10", "cifar100")
    assert sorted(asked) == [("cifar10", tmp_path / "cifar-10"), ("cifar100", tmp_path / "cifar-100")]
    datasets.load("cifar10_100")
    assert asked[-1] == ("cifar10", None)
