"""Checkpoints carry the number of their format, and reprs say what a thing is."""

import io

import pytest
import torch

import dendrite_kernels as dk
from dendrite_kernels import formats
from dendrite_kernels.nn import DendriteSegments, DendriticConv2d, DendriticMLP, KWinners, KWinners2d, SparseLinear
from dendrite_kernels.testing import assert_same_bits


def trained():
    model = DendriticMLP(6, (8,), 3, 2, 4, percent_on=0.25, boost_strength=0.5)
    optimizer = dk.optim.Adam(model, 0.01)
    si = dk.optim.SynapticIntelligence(model, optimizer)
    model(torch.randn(5, 6), torch.randn(1, 4)).square().sum().backward()
    si.step()
    return model, optimizer, si


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def same(a, b):
    if isinstance(a, torch.Tensor):
        assert_same_bits(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            same(a[key], b[key])
    else:
        assert a == b


def test_every_part_says_its_format_and_comes_back_from_a_file():
    parts, others = trained(), trained()
    for part, other in zip(parts, others, strict=True):
        state = through_a_file(part.state_dict())
        other.load_state_dict(state)
        same(other.state_dict(), part.state_dict())
    versions = parts[0].state_dict()._metadata
    ours = ["", "layers.0", "layers.0.segments", "layers.0.kwinners", "output"]
    assert {name: versions[name]["version"] for name in ours} == dict.fromkeys(ours, formats.FORMAT)
    assert [part.state_dict()["format"] for part in parts[1:]] == [formats.FORMAT] * 2


@pytest.mark.parametrize("path", ["", "layers.0", "layers.0.segments", "layers.0.kwinners", "output"])
def test_modules_refuse_a_newer_format(path):
    model, _, _ = trained()
    state = model.state_dict()
    kind = type(model.get_submodule(path)).__name__
    state._metadata[path]["version"] = formats.FORMAT + 1
    with pytest.raises(
        ValueError, match=rf"expected {kind} '{path}' in format 1 or before, got format 2, which a newer"
    ):
        model.load_state_dict(state)


@pytest.mark.parametrize("part, name", [(1, "Adam"), (2, "SynapticIntelligence")])
@pytest.mark.parametrize("found", [formats.FORMAT + 1, "two"])
def test_optimizers_refuse_a_newer_format_and_stay_as_they_were(part, name, found):
    mine = trained()[part]
    before = mine.state_dict()
    with pytest.raises(ValueError, match=f"expected {name} in format 1 or before, got format {found}"):
        mine.load_state_dict({**trained()[part].state_dict(), "format": found})
    same(mine.state_dict(), before)


def test_checkpoints_from_before_there_were_numbers_are_read():
    parts, others = trained(), trained()
    for part, other in zip(parts, others, strict=True):
        state = {key: value for key, value in part.state_dict().items() if key != "format"}  # and no metadata
        other.load_state_dict(state)
        same(other.state_dict(), part.state_dict())


def test_torchs_adam_takes_the_state_that_is_written_out_for_it():
    model, optimizer, _ = trained()
    state = optimizer.torch_state_dict()
    assert state.keys() == torch.optim.Adam(model.parameters()).state_dict().keys()


def test_layers_say_what_they_are():
    model = DendriticMLP(784, (64, 32), 10, 10, 20, percent_on=0.05, segment_sparsity=0.3, boost_strength=1.5)
    text = str(model)
    assert "784 -> 64 -> 32 -> 10" in text
    assert "784, 64, bias=True, sparsity=0.5, dendrite='abs_max_gate'" in text
    assert "64, 32, bias=True, sparsity=0.5, input_major, dendrite='abs_max_gate'" in text
    assert "DendriteSegments(64 units x 10 segments x 20, sparsity=0.3, bias=False)" in text
    winners = "percent_on=0.05, ties='lowest', boost_strength=1.5, boost_strength_factor=1, duty_cycle_period=1000"
    assert f"KWinners(64, {winners}, k=3, sparse=True)" in text
    assert "relu=True" in str(DendriticMLP(4, (4,), 2, 1, 2, percent_on=None))
    some = KWinners(10, 0.3, k_inference_factor=1.5, relu=True, ties="keep")
    options = "percent_on=0.3, ties='keep', k_inference_factor=1.5, duty_cycle_period=1000, relu=True"
    assert str(some) == f"KWinners(10, {options}, k=3, sparse=False)"
    assert "k=4" in str(some.eval())
    assert str(KWinners2d(8, 0.2, local=True)).endswith("duty_cycle_period=1000, local=True)")
    conv = DendriticConv2d(3, 8, 3, 4, 5, sparsity=0.5, dendrite="max_gate")
    assert "3, 8, kernel_size=(3, 3), stride=(1, 1), sparsity=0.5, dendrite='max_gate'" in str(conv)


def test_a_layer_says_how_sparse_pruning_has_left_it():
    layer = SparseLinear(40, 10)
    assert str(layer) == "SparseLinear(40, 10, bias=True, sparsity=0)"
    dk.sparsity.prune(layer, 0.125)
    assert str(layer) == "SparseLinear(40, 10, bias=True, sparsity=0.125)"
    assert SparseLinear(7, 3, sparsity=0.5).masked_share == 0.5  # 4 of 7 stay: what was asked for, up to rounding
    assert DendriteSegments(2, 3, 7, sparsity=0.5).masked_share == 0.5


def test_a_layer_without_memory_or_units_says_what_it_is():
    with torch.device("meta"):
        assert "boost_strength=on meta" in str(DendriticMLP(4, (4,), 2, 1, 2, boost_strength=1.0))
    assert str(SparseLinear(0, 3, sparsity=0.5)) == "SparseLinear(0, 3, bias=True, sparsity=0.5)"


def test_sparse_results_gradients_and_optimizers_say_what_they_are():
    model, optimizer, si = trained()
    z = model.layers[0](torch.randn(5, 6), torch.randn(1, 4))
    assert repr(z) == "KSparse(shape=(5, 8), k=2, dtype=torch.float32, device=cpu, requires_grad=True)"
    assert repr(z.detach()) == "KSparse(shape=(5, 8), k=2, dtype=torch.float32, device=cpu)"
    optimizer.zero_grad()
    z.values.sum().backward()
    grad = model.layers[0].weight.grad
    if not isinstance(grad, dk.factored.FactoredGrad):
        pytest.skip("the CPU kernels are not here: no gradient comes as factors")
    assert repr(grad) == "FactoredGrad(shape=(8, 6), dtype=torch.float32, made of OuterFactor)"
    grad.add_(torch.ones(8, 6))
    assert repr(grad) == "FactoredGrad(shape=(8, 6), dtype=torch.float32, made of OuterFactor + a dense part)"
    assert repr(grad.zero_()) == "FactoredGrad(shape=(8, 6), dtype=torch.float32, made of zeros)"
    assert repr(optimizer).endswith("gradients as factors: 3 of 5 parameters") and "lr: 0.01" in repr(optimizer)
    newer = dk.optim.Adam(model, 0.01)
    assert repr(optimizer).endswith("3 of 5 parameters (3 of them belong to a newer Adam)")
    assert repr(newer).endswith("3 of 5 parameters")
    assert repr(si) == "SynapticIntelligence(variant='zenke', c=0.1, xi=0.1, tasks=0, optimizer=Adam, 5 parameters)"


class _Numbered(dk.nn.SparseLinear):
    _version = 2


def test_a_subclass_may_number_its_own_format():
    layers = [_Numbered(3, 4), _Numbered(3, 4)]
    layers[1].load_state_dict(layers[0].state_dict())
    assert torch.equal(layers[0].weight, layers[1].weight)


def test_a_version_of_none_is_none():
    layers = [dk.nn.SparseLinear(3, 4), dk.nn.SparseLinear(3, 4)]
    state = layers[0].state_dict()
    state._metadata[""]["version"] = None
    layers[1].load_state_dict(state)
    assert torch.equal(layers[0].weight, layers[1].weight)
