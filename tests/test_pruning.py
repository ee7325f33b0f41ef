"""Pruning for lottery tickets: masks by hand and by torch.nn.utils.prune, rewinding, random tickets."""

import copy

import pytest
import torch
from torch.nn.utils import prune as torch_prune

import dendrite_kernels as dk
from dendrite_kernels import nn as dnn
from dendrite_kernels.sparsity import densities, prune, random_ticket, rewind, rezero_weights
from dendrite_kernels.testing import assert_same_bits


def layer_of(rows, input_major=False):
    rows = torch.tensor(rows)
    layer = dnn.SparseLinear(rows.shape[1], rows.shape[0], input_major=input_major)
    with torch.no_grad():
        layer.weight.copy_(rows)
    return layer


def lenet():
    """The smallest of its kind: convolutions, then two fully connected layers."""
    return torch.nn.Sequential(
        dnn.SparseConv2d(1, 4, 3),
        torch.nn.BatchNorm2d(4),
        torch.nn.Flatten(),
        dnn.SparseLinear(4 * 4 * 4, 10),
        torch.nn.ReLU(),
        dnn.SparseLinear(10, 3),
    )


def train(model, steps=3, optimizer=None):
    optimizer = optimizer or torch.optim.Adam(model.parameters(), 0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 1, 6, 6)).square().mean().backward()
        optimizer.step()
        rezero_weights(model)


# ---- prune ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("input_major", [False, True])
def test_masks_by_hand(input_major):
    layer = layer_of([[4.0, -1, 0.5, 3], [-2, 0.1, -6, 1]], input_major)
    prune(layer, 0.5)
    assert layer.weight.tolist() == [[4, 0, 0, 3], [-2, 0, -6, 0]]
    assert layer.weight_mask.tolist() == [[True, False, False, True], [True, False, True, False]]
    assert layer.weight_mask.stride() == layer.weight.stride()
    prune(layer, 0.25)  # of the four that are left
    assert layer.weight.tolist() == [[4, 0, 0, 3], [0, 0, -6, 0]]
    prune(layer, 0.1)  # 0.3 of a weight
    assert layer.weight_mask.sum() == 3


@pytest.mark.parametrize("input_major", [False, True])
def test_of_equal_weights_the_first_stay_and_zeros_count_as_left(input_major):
    layer = layer_of([[1.0, -1, 1], [-1, 1, 1]], input_major)
    prune(layer, 0.5)
    assert layer.weight.tolist() == [[1, -1, 1], [0, 0, 0]]
    with torch.no_grad():
        layer.weight[0, 2] = 0  # trained to zero, but not masked: the next to go
    prune(layer, 1 / 3)
    assert layer.weight_mask.tolist() == [[True, True, False], [False] * 3]


def test_a_weight_trained_to_zero_is_not_taken_for_a_masked_one():
    layer = layer_of([[0.5, 2.0, 3.0, 4.0]])
    prune(layer, 0.25)
    with torch.no_grad():
        layer.weight[0, 3] = 0
    prune(layer, 0.0)
    assert layer.weight_mask.tolist() == [[False, True, True, True]]


def test_layer_by_layer_as_torch_prunes():
    model = lenet()
    plain = copy.deepcopy(model)
    for fraction in (0.125, 0.3, 0.125, 0.7):
        prune(model, fraction)
        for mine, theirs in zip(model, plain, strict=True):
            if isinstance(mine, dnn.SparseLinear | dnn.SparseConv2d):
                torch_prune.l1_unstructured(theirs, "weight", fraction)
                assert torch.equal(mine.weight_mask, theirs.weight_mask.bool())
                assert_same_bits(mine.weight.detach() + 0.0, theirs.weight.detach() + 0.0)


def test_thirty_five_levels_end_at_the_papers_percentage():
    """Bain 2022: 12.5 % a level; the first of the 35 levels is the dense network."""
    model = torch.nn.Sequential(dnn.SparseLinear(784, 300), dnn.SparseLinear(300, 100), dnn.SparseLinear(100, 10))
    left = [784 * 300, 300 * 100, 100 * 10]
    for _ in range(34):
        prune(model, 0.125)
        left = [n - round(0.125 * n) for n in left]
    assert [int(m.weight_mask.sum()) for m in model] == left
    report = densities(model)
    assert f"{100 * report.total:.2f}" == "1.07"
    assert report.total == sum(left) / 266200
    assert report.layers == {"0": left[0] / 235200, "1": left[1] / 30000, "2": left[2] / 1000}
    assert report.layers["0"] == pytest.approx(0.875**34, rel=1e-3)  # half a weight a level, of 2500


def test_only_the_layers_given_and_never_segments_or_biases():
    model = lenet()
    prune([model[3], model[5]], 0.5)
    assert densities(model).layers == {"0": 1, "3": 0.5, "5": 0.5}
    assert densities([model[5]]) == ({"0": 0.5}, 0.5) and densities(model[5]) == ({"": 0.5}, 0.5)
    dendritic = dnn.DendriticMLP(20, (16,), 4, 3, 8, weight_sparsity=0.5)
    before = copy.deepcopy(dendritic.state_dict())
    prune(dendritic, 0.5)
    assert densities(dendritic).layers == {"layers.0": 0.25, "output": 0.25}
    for name in ("layers.0.segments.weights", "layers.0.bias", "output.bias"):
        assert_same_bits(dendritic.state_dict()[name], before[name])
    assert (dendritic.layers[0].weight_mask <= before["layers.0.weight_mask"]).all()


def test_what_was_pruned_stays_so_in_training():
    for make in (lambda m: dk.optim.Adam(m, 0.05), lambda m: torch.optim.AdamW(m.parameters(), 0.05)):
        model = lenet()
        optimizer = make(model)
        train(model, 2, optimizer)
        prune(model, 0.5)
        train(model, 3, optimizer)
        for layer in (model[0], model[3], model[5]):
            assert (layer.weight[~layer.weight_mask] == 0).all() and (layer.weight[layer.weight_mask] != 0).all()


def test_a_pruned_checkpoint_loads_into_a_dense_model():
    first, second = lenet().eval(), lenet().eval()
    prune(first, 0.5)
    second.load_state_dict(first.state_dict())
    x = torch.randn(2, 1, 6, 6)
    assert_same_bits(second(x), first(x))
    assert torch.equal(second[3].weight_mask, first[3].weight_mask)


# ---- rewind and random tickets --------------------------------------------------------------------------------------


def test_rewinding_restores_what_is_kept_and_zeroes_the_rest():
    model = lenet()
    initial = copy.deepcopy(model.state_dict())
    for _ in range(3):
        train(model)
        prune(model, 0.3)
        rewind(model, initial)
    for layer, name in ((model[0], "0"), (model[3], "3"), (model[5], "5")):
        assert_same_bits(layer.weight.detach(), initial[f"{name}.weight"].masked_fill(~layer.weight_mask, 0))
        assert_same_bits(layer.bias.detach(), initial[f"{name}.bias"])
        assert (layer.weight_mask.sum() < 0.4 * layer.weight_mask.numel()) and layer.weight_mask.any()
    for name in ("1.weight", "1.running_mean", "1.running_var", "1.num_batches_tracked"):
        assert_same_bits(model.state_dict()[name], initial[name])
    train(model)  # on from there
    assert (model[3].weight[~model[3].weight_mask] == 0).all()


def test_random_tickets_have_the_density_of_each_layer_at_fresh_places():
    model = lenet()
    initial = copy.deepcopy(model.state_dict())
    train(model)
    prune(model, 0.6)
    winning, report = copy.deepcopy(model.state_dict()), densities(model)
    masks = []
    for seed in (1, 1, 2):
        random_ticket(model, initial, generator=torch.Generator().manual_seed(seed))
        assert densities(model) == report
        for name in ("0", "3", "5"):
            mask = model.state_dict()[f"{name}.weight_mask"]
            assert_same_bits(model.state_dict()[f"{name}.weight"], initial[f"{name}.weight"].masked_fill(~mask, 0))
        masks.append(model[3].weight_mask.clone())
    assert torch.equal(masks[0], masks[1])
    for other in (masks[2], winning["3.weight_mask"]):
        # two masks of 256 of 640 share 102.4 places on average, with a standard deviation of 6.1
        assert abs(int((masks[0] & other).sum()) - 102.4) < 5 * 6.1


def test_random_tickets_of_some_layers():
    model = lenet()
    initial = copy.deepcopy(model.state_dict())
    prune(model, 0.5)
    before = copy.deepcopy(model.state_dict())
    random_ticket(model, initial, [model[3]])
    assert not torch.equal(model[3].weight_mask, before["3.weight_mask"])
    for name in ("0", "5"):
        assert_same_bits(model.state_dict()[f"{name}.weight"], before[f"{name}.weight"])


def test_misuse_is_named():
    model = lenet()
    initial = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"fraction: expected a fraction in \[0, 1\), got 1"):
        prune(model, 1)
    with pytest.raises(ValueError, match="modules: expected at least one SparseLinear"):
        prune(torch.nn.Linear(2, 2), 0.5)
    for wrong in ([], [torch.ones(2)]):
        with pytest.raises(TypeError, match="modules: expected a module or several"):
            prune(wrong, 0.5)
    with pytest.raises(ValueError, match=r"initial: expected a copy .* the model's own '0.weight'"):
        rewind(model, model.state_dict())
    with pytest.raises(ValueError, match=r"initial: expected '5.weight' of shape \(3, 10\), got none"):
        rewind(model, {n: t for n, t in initial.items() if n != "5.weight"})
    with pytest.raises(ValueError, match=r"initial: expected '0.bias' of shape \(4,\), got \(1,\)"):
        rewind(model, {**initial, "0.bias": torch.zeros(1)})
    with pytest.raises(ValueError, match="layers: expected layers of the model, got another SparseLinear"):
        random_ticket(model, initial, dnn.SparseLinear(2, 2))
    prune(model, 0.5)
    with pytest.raises(ValueError, match="initial: expected dense layers, but '0' has masked weights"):
        random_ticket(model, copy.deepcopy(model.state_dict()))
