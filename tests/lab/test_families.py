"""Each kind of network and each source of contexts: its numbers, and that a stopped run goes on to the same ones."""

import dataclasses

import numpy as np
import pytest
import torch
from dendrite_lab import activations, contexts, si_train, train
from dendrite_lab.config import experiment, run_name
from dendrite_lab.networks import PlainMLP, build_model, draw_as_keras
from dendrite_lab.permuted import PermutedMNIST, batches, permutations
from dendrite_lab.state import State
from resuming import resumes_to_the_same

from dendrite_kernels.nn import DendriticMLP
from dendrite_kernels.optim import Adam, SynapticIntelligence

KINDS = [
    *("active_dendrites_only_10", "sparse_representations_only_10", "construct_prototype_10", "three_layer_mlp_10"),
    *("ten_layer_mlp_10", "context_mean_10", "context_onehot_10", "context_zeros_10", "hidden_activations_per_task"),
    *("sweep_weight_sparsity_0.9_tasks_10", "si_prototype_10"),
]


@pytest.fixture(autouse=True)
def one_thread(threads):
    """Tiny products only wait for a second thread."""
    threads(1)


@pytest.fixture
def tiny(small):
    """The small experiment of any name, with what makes it that experiment."""

    def make(name, **changes):
        named = experiment(name)
        base = {key: value for key, value in small.items() if key != "segments" or named.segments}
        hidden = ",".join(["40"] * len(named.hidden))
        return experiment(name, {**base, "epochs": "1", "hidden": hidden, **changes})

    return make


@pytest.mark.parametrize("name", KINDS)
def test_a_stopped_run_of_any_kind_resumes_to_the_same_numbers(name, tiny, mnist, tmp_path):
    config = tiny(name)
    keys = ("accuracy_by_task", "loss_by_task", "clusters", "overlap_by_layer")
    # in the third of three tasks of 12 steps
    whole, _ = resumes_to_the_same(train.run, config, mnist, tmp_path, lambda done, _: done == 30, keys)
    assert config.family == whole["family"]


@pytest.mark.parametrize("name", [n for n in KINDS if n.endswith("_10") and n[:3] in ("act", "spa", "con", "thr")])
def test_each_kind_learns_what_a_small_network_can(name, tiny, mnist, tmp_path):
    row = train.run(tiny(name, epochs="4", lr="0.01"), 0, mnist, tmp_path)
    assert row["accuracy_by_task"]["3"][2] > 0.9  # ten noisy patterns; the latest task


def test_evaluating_after_every_task_changes_nothing_else(tiny, mnist, tmp_path):
    config = tiny("prototype_10", evaluate_after="3")
    curve = dataclasses.replace(config, evaluate_after=(1, 2, 3))
    plain, with_curve = (train.run(c, 0, mnist, tmp_path / str(i)) for i, c in enumerate((config, curve)))
    assert plain["loss_by_task"] == with_curve["loss_by_task"] and plain["accuracy"] == with_curve["accuracy"]
    assert [*with_curve["accuracy_by_task"]] == ["1", "2", "3"] and [*plain["accuracy_by_task"]] == ["3"]


# ---- optimizers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lifetime, made", [("task", 3), ("run", 1)])
def test_adam_is_made_anew_only_where_it_should_be(lifetime, made, tiny, mnist, tmp_path, monkeypatch):
    optimizers, make = set(), train.new_optimizer
    monkeypatch.setattr(train, "new_optimizer", lambda *args: optimizers.add(new := make(*args)) or new)
    train.run(tiny("context_mean_10", optimizer_lifetime=lifetime), 0, mnist, tmp_path)
    assert len(optimizers) == made


def test_which_adam_steps_which_network(tiny):
    for name, kind in (("three_layer_mlp_10", torch.optim.Adam), ("sparse_representations_only_10", Adam)):
        config = tiny(name)
        assert type(train.new_optimizer(build_model(config, 0), config)) is kind


def test_synaptic_intelligence_is_the_librarys_around_the_same_loop(tiny, mnist, tmp_path):
    """Against a loop of ordinary gradients with torch's Adam and the penalty in the loss, task by task."""
    config = tiny("si_prototype_10", hidden="30,30", si_c="10", si_xi="0.01", train_samples="200")
    row = train.run(config, 0, mnist, tmp_path)
    model, tasks = build_model(config, 0), PermutedMNIST(mnist, 3)
    si = SynapticIntelligence(model, torch.optim.Adam(model.parameters(), lr=config.lr), 10, 0.01, "adn")
    losses, penalties = [], []
    for task in range(3):
        x, labels = (part[:200] for part in tasks.train(task))
        generator = torch.Generator().manual_seed(1_000_003 + task)
        for index in batches(200, 50, generator):
            model.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(x[index], x.mean(0)[None]), labels[index])
            loss.backward()
            penalties.append(float(si.penalty()))
            si.step()
        si.end_task()
        losses.append(float(loss.detach()))
    assert row["loss_by_task"] == pytest.approx(losses, rel=1e-4)
    assert penalties[:9] == [0.0] * 9 and min(penalties[9:]) > 0  # from the second step of the third task on


# ---- networks -------------------------------------------------------------------------------------------------------


def test_a_plain_network_is_its_layers_one_after_the_other():
    model, x = PlainMLP((784, 7, 5, 10)), torch.randn(3, 784)
    first, second, last = (m for m in model if isinstance(m, torch.nn.Linear))
    want = last(second(first(x).clamp(min=0)).clamp(min=0))
    assert torch.equal(model(x, None), want) and torch.equal(model.forward_gated(x, model.gates(None)), want)
    assert [m.weight.shape[0] for m in (first, second, last)] == [7, 5, 10]


def fills(values, bound):
    """Whether these many numbers look drawn from U(-bound, bound)."""
    return 0.99 * bound < values.abs().max() <= bound and abs(values.mean()) < 0.05 * bound


def test_a_plain_network_takes_half_of_its_hidden_units_to_fire():
    first, second, last = (m for m in PlainMLP((784, 300, 200, 50)) if isinstance(m, torch.nn.Linear))
    bounds = [(2 / 300) ** 0.5, (2 / 200) ** 0.5]
    assert all(fills(m.weight, bound) for m, bound in zip((first, second, last), [1 / 28, *bounds], strict=True))
    old = PlainMLP((784, 300, 50), "torch")[2]
    assert fills(old.weight, 300**-0.5)
    assert [experiment(name).init for name in ("ten_layer_mlp_10", "si_split_cifar")] == ["public", "keras"]


@pytest.mark.parametrize("heads", [1, 2])
def test_a_network_drawn_as_keras_does(heads):
    model = si_train.MultiHead((300, 200), 50, heads)
    draw_as_keras(model)
    weights = [p for p in model.parameters() if p.dim() == 2]
    drawn = [w for w in weights if w.any()]
    assert not any(p.any() for p in model.parameters() if p.dim() == 1) and len(drawn) == (3 if heads == 1 else 2)
    assert all(fills(w, (6 / sum(w.shape)) ** 0.5) for w in drawn)


def test_permutations_of_the_run(tiny, mnist):
    """Bain's differ from seed to seed; Numenta's never do."""
    for name, added in (("context_mean_10", 3), ("prototype_10", 0)):
        config = tiny(name)
        tasks = train.Run(config, State(config.to_dict(), 3, 1), mnist).tasks
        for mine, theirs in zip(tasks.permutations, permutations(config.tasks, 42 + added), strict=True):
            assert torch.equal(mine, theirs)


def test_networks_without_dendrites_or_winners(tiny):
    sparse, relu = (
        build_model(tiny(f"{name}_10"), 0) for name in ("sparse_representations_only", "active_dendrites_only")
    )
    assert isinstance(sparse, DendriticMLP) and all(layer.segments is None for layer in sparse.layers)
    assert all(layer.kwinners.k == 20 for layer in sparse.layers)  # 40 units, half of them on
    assert all(layer.kwinners is None and layer.relu for layer in relu.layers)
    assert [tuple(layer.segments.weights.shape) for layer in relu.layers] == [(40, 3, 784)] * 2
    for model in (sparse, relu):
        assert all(int((layer.weight != 0).sum(1).max()) <= layer.in_features // 2 for layer in model.layers)


# ---- contexts -------------------------------------------------------------------------------------------------------


def source(name, seed=0, **changes):
    return contexts.contexts_of(experiment(name, changes), seed)


@pytest.mark.parametrize("kind, want", [("onehot", torch.eye(10)), ("zeros", torch.zeros(10, 10))])
def test_vectors_of_the_true_task(kind, want):
    given = source(f"context_{kind}_10")
    for task in range(10):
        given.begin_task(torch.randn(4, 784))
        assert torch.equal(given.of_batch(torch.randn(2, 784)), want[task][None])
    assert torch.equal(given.all(), want) and given.choose(torch.randn(3, 784), 7).tolist() == [7, 7, 7]


def test_mean_images_with_and_without_the_true_task():
    tasks = [torch.randn(50, 784) + shift for shift in (-1.0, 0.0, 1.0)]
    true, nearest = source("context_mean_10"), source("prototype_10")
    for x in tasks:
        for given in (true, nearest):
            given.begin_task(x)
            torch.testing.assert_close(given.of_batch(x[:5]), x.mean(0)[None])
    torch.testing.assert_close(true.all(), torch.stack([x.mean(0) for x in tasks]))
    assert true.choose(tasks[2], 1).tolist() == [1] * 50  # whatever they look like
    assert nearest.choose(tasks[2], 1).tolist() == [2] * 50


def test_found_prototypes_are_means_over_the_same_random_pixels():
    given, other = source("construct_prototype_10", 5), source("construct_prototype_10", 6)
    assert len(given.pixels.unique()) == 256 and not torch.equal(given.pixels, other.pixels)
    near, far = torch.randn(256, 784), torch.randn(256, 784) + 4
    torch.testing.assert_close(given.of_batch(near), near[:, given.pixels].mean(0)[None])
    torch.testing.assert_close(given.of_batch(far), far[:, given.pixels].mean(0)[None])
    assert given.all().shape == (2, 256) and given.choose(far[:3], 0).tolist() == [1, 1, 1]


# ---- active units ---------------------------------------------------------------------------------------------------


def test_active_shares_are_counted_as_a_plain_loop_does(tiny, mnist):
    config = tiny("prototype_10", percent_on="0.1")
    model, tasks, given = build_model(config, 0), PermutedMNIST(mnist, 3), source("prototype_10")
    for task in range(3):
        given.begin_task(tasks.train(task)[0])
    got = activations.active_shares(model, tasks, 3, given, samples=30, batch=7)
    for task in range(3):
        x = tasks.test(task)[0][:30]
        context = given.all()[given.choose(x, task).long()]
        for layer, share in zip(model.layers, got, strict=True):
            a = torch.einsum("bc,osc->bos", context, layer.segments.weights)
            gate = a.gather(2, a.abs().argmax(2, keepdim=True)).squeeze(2).sigmoid()
            winners = ((x @ layer.weight.T + layer.bias) * gate).topk(4, dim=1)
            x = torch.zeros(30, 40).scatter(1, winners.indices, winners.values)
            # a winner may change with the rounding of a product: one sample of thirty at most
            np.testing.assert_allclose(share[task], (x != 0).double().mean(0).detach().numpy(), atol=1.01 / 30)
            assert share[task].sum() == pytest.approx(4)  # k winners a sample


def test_overlap_of_subnetworks_by_hand():
    assert activations.overlap(np.array([[1, 0.5, 0], [1, 0.5, 0]])) == 1
    assert activations.overlap(np.array([[1, 0], [0, 1]])) == 0
    # pairs: min/max sums 0.5/1.5, 0/2, 0.5/1.5
    shares = np.array([[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0]])
    assert activations.overlap(shares) == pytest.approx((1 / 3 + 0 + 1 / 3) / 3)


def test_recorded_activations_lie_beside_the_results(tiny, mnist, tmp_path):
    row = train.run(tiny("hidden_activations_per_task"), 1, mnist, tmp_path)
    with np.load(tmp_path / row["activations"]) as layers:
        assert sorted(layers) == ["layer_1", "layer_2"] and layers["layer_1"].shape == (3, 40)
        want = [activations.overlap(layers[name].astype(float)) for name in sorted(layers)]
    assert row["overlap_by_layer"] == pytest.approx(want, abs=1e-6) and row["activations"] == (
        f"{run_name(tiny('hidden_activations_per_task'), 1)}.activations.npz"
    )
