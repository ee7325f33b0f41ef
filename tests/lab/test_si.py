"""Synaptic Intelligence's own experiments: their tables, tasks and heads, and runs against a loop written out."""

import numpy as np
import pytest
import torch
from dendrite_lab import si_train
from dendrite_lab.config import experiment
from dendrite_lab.errors import LabError
from dendrite_lab.permuted import batches
from dendrite_lab.si_tasks import tasks_of
from resuming import resumes_to_the_same
from torch.nn.functional import cross_entropy, linear

TINY = {"hidden": "20,15", "epochs": "2", "train_samples": "400", "batch_size": "20", "tasks": "3"}
KINDS = ["si_split_mnist", "si_split_mnist_c0", "si_permuted_mnist_10", "si_permuted_mnist_10_sgd_dropout"]
KINDS += ["si_split_mnist_scratch", "si_permuted_mnist_10_c0"]


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)


def tiny(name, **changes):
    return experiment(name, {**TINY, **changes})


# name: c, xi, batch, epochs, learning rate, Adam's lifetime, hidden units, tasks
TABLE = {
    "si_split_mnist": (1, 1e-3, 64, 10, 1e-3, "task", (256, 256), 5),
    "si_split_mnist_c0": (0, 1e-3, 64, 10, 1e-3, "task", (256, 256), 5),
    **{
        f"si_permuted_mnist_10{end}": (c, 0.1, 256, 20, 1e-3, "run", (2000, 2000), 10)
        for end, c in (("", 0.1), ("_c0.02", 0.02), ("_c0.01", 0.01), ("_c0", 0))
    },
}


@pytest.mark.parametrize("name", TABLE)
def test_the_papers_settings(name):
    config = experiment(name)
    got = config.c, config.xi, config.batch_size, config.epochs, config.lr, config.optimizer_lifetime
    assert (*got, config.hidden, config.tasks) == TABLE[name] and config.name == name
    assert (config.variant, config.optimizer, config.dropout, config.schedule) == ("zenke", "adam", 0, "sequence")


def test_baselines_differ_in_one_thing():
    sgd, dropout = experiment("si_permuted_mnist_10_sgd"), experiment("si_permuted_mnist_10_sgd_dropout")
    assert (sgd.optimizer, sgd.c, sgd.dropout, dropout.dropout) == ("sgd", 0, 0, 0.5)
    for name in ("split_mnist", "permuted_mnist_10"):
        for schedule in ("joint", "scratch"):
            assert experiment(f"si_{name}_{schedule}").schedule == schedule


def test_steps_and_evaluations():
    config = experiment("si_permuted_mnist_10")
    assert config.steps == 10 * 20 * 234 and config.evaluations == 55


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"tasks": "6"}, "tasks: expected at most 5 of two digits each, got 6"),
        ({"c": "-1"}, "c: expected 0 or more, got -1.0"),
        ({"c": "nan"}, "c: expected 0 or more, got nan"),
        ({"xi": "0"}, "xi: expected above 0, got 0.0"),
        ({"lr": "inf"}, "lr: expected above 0, got inf"),
        ({"dropout": "1"}, r"dropout: expected a fraction in \[0, 1\), got 1.0"),
        ({"schedule": "joint"}, r"schedule: expected sequence with Synaptic Intelligence \(c=1.0\), got joint"),
        ({"benchmark": "x"}, "benchmark: expected one of split_mnist, permuted_mnist, got x"),
        ({"train_samples": "60001"}, "train_samples: expected 64 or more, at most 60000, got 60001"),
    ],
)
def test_values_that_no_run_could_use(changes, says):
    with pytest.raises(LabError, match=says):
        experiment("si_split_mnist", changes)


# ---- tasks ----------------------------------------------------------------------------------------------------------


def test_split_tasks_are_pairs_of_digits(mnist):
    tasks = tasks_of(mnist, experiment("si_split_mnist", {"train_samples": "800"}))
    for task in range(5):
        x, labels = tasks.train(task)
        of = [i for i, digit in enumerate(mnist.train_labels.tolist()) if digit in (2 * task, 2 * task + 1)]
        assert labels.tolist() == [int(mnist.train_labels[i]) % 2 for i in of]
        assert torch.equal((x * 255).round().to(torch.uint8), mnist.train_images[of])
    assert sum(len(tasks.test(task)[0]) for task in range(5)) == len(mnist.test_labels)


def test_permuted_tasks_move_pixels_alike_in_training_and_test(mnist):
    tasks = tasks_of(mnist, experiment("si_permuted_mnist_10", {"train_samples": "300"}))
    x, labels = tasks.train(0)
    assert len(x) == 300 and torch.equal(x * 255, mnist.train_images[:300].float())
    assert torch.equal(labels, mnist.train_labels[:300])
    generator = torch.Generator().manual_seed(42)
    order = torch.randperm(784, generator=generator)
    assert torch.equal(tasks.train(1)[0], x[:, order])
    assert torch.equal(tasks.test(1)[0], tasks.test(0)[0][:, order])


# ---- training -------------------------------------------------------------------------------------------------------


def test_heads_are_untouched_by_other_tasks(mnist, tmp_path, monkeypatch):
    """Not one bit, though the penalty is on for them too."""
    seen, end = [], si_train.SIRun.capture

    def keep(run, tasks_done):
        seen.append([head.weight.detach().clone() for head in run.model.heads])
        return end(run, tasks_done)

    config = tiny("si_split_mnist", c="100")
    before = [head.weight.detach().clone() for head in si_train.new_model(config, 2, 0).heads]
    monkeypatch.setattr(si_train.SIRun, "capture", keep)
    si_train.run(config, 0, mnist, tmp_path)
    for task, after in enumerate(seen):
        moved = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        assert moved == [head == task for head in range(3)]
        before = after


def test_a_run_is_the_papers_equations(mnist, tmp_path):
    """Against a loop with the penalty in the loss, autograd through it, and omega from the task's gradient alone."""
    config = tiny("si_permuted_mnist_10", c="0.5", xi="0.01")
    row = si_train.run(config, 0, mnist, tmp_path)
    tasks, model = tasks_of(mnist, config), si_train.new_model(config, 10, 0)
    p = list(model.parameters())  # weight, bias of three layers
    adam = torch.optim.Adam(p, lr=config.lr)
    star, big = [t.detach().clone() for t in p], [torch.zeros_like(t) for t in p]
    losses, omegas = [], []
    for task in range(3):
        x, labels = tasks.train(task)
        torch.manual_seed(1_000_003 + task)
        small = [torch.zeros_like(t) for t in p]
        for _ in range(2):
            for index in batches(len(x), 20, torch.default_generator):
                z = linear(linear(x[index], p[0], p[1]).relu(), p[2], p[3]).relu()
                loss = cross_entropy(linear(z, p[4], p[5]), labels[index])
                task_gradient = torch.autograd.grad(loss, p, retain_graph=True)
                penalty = sum((o * (t - s) ** 2).sum() for o, t, s in zip(big, p, star, strict=True))
                adam.zero_grad()
                (loss + 0.5 * penalty).backward()
                before = [t.detach().clone() for t in p]
                adam.step()
                for w, g, t, b in zip(small, task_gradient, p, before, strict=True):
                    w -= g * (t.detach() - b)
        for k, t in enumerate(p):
            big[k] += small[k].relu() / ((t.detach() - star[k]) ** 2 + 0.01)
            star[k] = t.detach().clone()
        losses.append(loss.item())
        omegas.append(small)
    # float32 sums in another order, over 120 steps of Adam
    assert row["loss_by_task"] == pytest.approx(losses, rel=2e-3)
    for number, k in ((1, 0), (2, 2)):
        want = np.corrcoef(np.stack([task[k].numpy().ravel() for task in omegas]))
        np.testing.assert_allclose(row["omega_correlation"][f"layer_{number}"], want, atol=5e-3)


@pytest.mark.parametrize("name", KINDS)
def test_a_stopped_run_resumes_to_the_same_numbers(name, mnist, tmp_path):
    config = tiny(name)
    keys = ("accuracy_by_task", "loss_by_task", "omega_correlation")
    last = "task 3 of 3"
    _, steps = resumes_to_the_same(si_train.run, config, mnist, tmp_path, lambda _, what: what == last, keys)
    assert {what for *_, what in steps} == {last}


def test_from_scratch_each_task_has_its_own_network_and_is_tested_once(mnist, tmp_path):
    row = si_train.run(tiny("si_split_mnist_scratch", epochs="30", hidden="64,32"), 0, mnist, tmp_path)
    curve = row["accuracy_by_task"]
    assert curve["1"] == curve["3"][:1] and curve["2"] == curve["3"][:2] and "omega_correlation" not in row
    assert min(curve["3"]) > 0.9  # two noisy patterns a task


def test_jointly_all_tasks_are_learned(mnist, tmp_path):
    row = si_train.run(tiny("si_permuted_mnist_10_joint", epochs="15", hidden="100,50"), 0, mnist, tmp_path)
    assert list(row["accuracy_by_task"]) == ["3"] and min(row["accuracy_by_task"]["3"]) > 0.9
