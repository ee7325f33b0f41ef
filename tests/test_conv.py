"""SparseConv2d and DendriticConv2d against torch's convolution and the papers' equations."""

import copy
import math

import pytest
import torch
from torch.nn.functional import conv2d, cross_entropy

import dendrite_kernels as dk
from dendrite_kernels import nn as dnn
from dendrite_kernels.sparsity import rezero_weights
from dendrite_kernels.testing import assert_close, assert_same_bits

TERMS = 3 * 9  # of a convolution


def plain_gate(layer, context):
    """Grewal et al. 2021, eq. 2 and 3: the segment of largest magnitude, with its sign."""
    a = torch.einsum("gc,osc->gos", context, layer.segments.weights)
    ranked = a.abs() if layer.dendrite == "abs_max_gate" else a
    strongest = a.gather(2, ranked.argmax(2, keepdim=True)).squeeze(2)
    return strongest if layer.dendrite == "bias" else strongest.sigmoid()


@pytest.mark.parametrize("dendrite", ["abs_max_gate", "max_gate", "bias", "none"])
@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients(implementation, dendrite, local, dtype):
    winners = dnn.KWinners2d(8, 0.25, local=local)
    layer = dnn.DendriticConv2d(
        3, 8, 3, 4, 6, stride=2, padding=1, dendrite=dendrite, kwinners=winners, sparsity=0.5
    ).to(dtype)
    x, contexts = torch.randn(5, 3, 9, 7, dtype=dtype, requires_grad=True), torch.randn(3, 6, dtype=dtype)
    index = torch.tensor([2, 0, 1, 0, 2])
    z = layer(x, contexts, index)
    leaves = [x, *layer.parameters()]
    grad = torch.randn_like(z)

    y = conv2d(x, layer.weight, layer.bias, stride=2, padding=1)
    if dendrite != "none":
        gate = plain_gate(layer, contexts)[index][:, :, None, None]
        y = y + gate if dendrite == "bias" else y * gate
    k = 2 if local else round(0.25 * y[0].numel())
    rows = y.movedim(1, 3) if local else y.flatten(1)
    kept = rows >= rows.topk(k, dim=-1).values[..., -1:]
    want = torch.where(kept.movedim(3, 1) if local else kept.view(y.shape), y, 0)
    assert torch.equal(z != 0, want != 0)
    assert_close(z, want, terms=TERMS)
    exact = torch.autograd.grad(want, leaves, grad)
    for mine, theirs in zip(torch.autograd.grad(z, leaves, grad), exact, strict=True):
        assert_close(mine, theirs, terms=TERMS * 5 * 20, dtype=dtype)


@pytest.mark.parametrize("groups", [1, "each"])
def test_a_gate_without_winners(groups):
    for relu in (False, True):
        layer = dnn.DendriticConv2d(3, 8, 3, 4, 6, relu=relu)
        x, context = torch.randn(2, 3, 5, 5), torch.randn(2 if groups == "each" else 1, 6)
        want = conv2d(x, layer.weight, layer.bias) * plain_gate(layer, context)[:, :, None, None]
        assert_close(layer(x, context), want.relu() if relu else want, terms=TERMS)


def test_gradcheck(one_thread):
    layer = dnn.DendriticConv2d(2, 3, 2, 3, 4, kwinners=dnn.KWinners2d(3, 0.5)).double().eval()
    x, context = torch.randn(2, 2, 3, 3, dtype=torch.float64), torch.randn(1, 4, dtype=torch.float64)
    parameters = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    names = [n for n, _ in layer.named_parameters()]

    def run(x, context, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x, context))

    assert torch.autograd.gradcheck(run, (x.requires_grad_(), context.requires_grad_(), *parameters))


@pytest.mark.parametrize("local", [False, True])
def test_compiled_in_one_graph_once(local):
    torch._dynamo.reset()
    layer = dnn.DendriticConv2d(3, 8, 3, 4, 6, kwinners=dnn.KWinners2d(8, 0.25, local=local, boost_strength=1.0))
    plain = copy.deepcopy(layer)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    contexts, index = torch.randn(3, 6), torch.tensor([2, 0, 1, 2])
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            x = torch.randn(4, 3, 6, 6)
            z, want = compiled(x, contexts, index), plain(x, contexts, index)
            assert_close(z, want, terms=TERMS)
            z.square().sum().backward()
    torch.testing.assert_close(layer.kwinners.duty_cycle, plain.kwinners.duty_cycle)
    assert int(layer.kwinners.learning_iterations) == 12 and (layer.weight.grad != 0).any()


def test_gates_computed_once_give_the_same_bits():
    layer = dnn.DendriticConv2d(3, 8, 3, 4, 6, kwinners=dnn.KWinners2d(8, 0.25)).eval()
    x, contexts, index = torch.randn(5, 3, 6, 6), torch.randn(3, 6), torch.randint(0, 3, (5,))
    with torch.no_grad():
        assert_same_bits(layer.forward_gated(x, layer.gate(contexts), index), layer(x, contexts, index))


@pytest.mark.parametrize("groups", [1, 4])
def test_sparse_weights_start_as_the_papers_say(groups):
    layer = dnn.SparseConv2d(16, 60, (3, 5), groups=groups, sparsity=0.7, input_density=0.2)
    fan_in = 16 // groups * 15
    assert (layer.weight != 0).flatten(1).sum(1).tolist() == [round(0.3 * fan_in)] * 60
    assert (layer.weight[~layer.weight_mask] == 0).all()
    bound = 1 / math.sqrt(0.2 * 0.3 * fan_in)
    assert 0.99 * bound < layer.weight.abs().max() <= bound
    assert layer.bias.abs().max() <= 1 / math.sqrt(fan_in)
    assert dnn.SparseConv2d(3, 4, 3).weight_mask is None


def test_the_convolution_is_torchs():
    options = {"stride": 2, "padding": (1, 2), "dilation": 2, "groups": 2}
    layer, plain = dnn.SparseConv2d(4, 6, 3, sparsity=0.5, **options), torch.nn.Conv2d(4, 6, 3, **options)
    plain.load_state_dict(layer.state_dict(), strict=False)
    x = torch.randn(2, 4, 9, 9)
    assert_same_bits(layer(x), plain(x))
    same = dnn.SparseConv2d(4, 6, 3, padding="same", bias=False)
    assert same(x).shape == (2, 6, 9, 9)


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        options = {"sparsity": 0.5, "segment_sparsity": 0.3}
        self.first = dnn.DendriticConv2d(1, 8, 3, 4, 6, kwinners=dnn.KWinners2d(8, 0.2), **options)
        self.second = dnn.SparseConv2d(8, 4, 3, sparsity=0.6)
        self.last = dnn.SparseLinear(4 * 4 * 4, 3, sparsity=0.5)

    def forward(self, x, context):
        return self.last(self.second(self.first(x, context)).relu().flatten(1))


def train(model, optimizer, steps=5):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x, context = (torch.randn(s, generator=generator) for s in ((6, 1, 8, 8), (1, 6)))
        labels = torch.randint(0, 3, (6,), generator=generator)
        optimizer.zero_grad()
        cross_entropy(model(x.to(model.last.weight.dtype), context.to(model.last.weight.dtype)), labels).backward()
        optimizer.step()
        if not isinstance(optimizer, dk.optim.Adam):
            rezero_weights(model)


def networks(count, dtype=torch.float64):
    for _ in range(count):
        torch.manual_seed(4)
        yield Network().to(dtype)


def assert_masks_kept(model):
    for module in (model.first, model.first.segments, model.second, model.last):
        weight = getattr(module, module.masked_name)
        assert (weight[~module.weight_mask] == 0).all() and (weight[module.weight_mask] != 0).any()


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.SGD, torch.optim.AdamW])
def test_masks_are_kept_through_torchs_optimizers(make):
    (model,) = networks(1)
    before = model.second.weight.detach().clone()
    train(model, make(model.parameters(), lr=0.05, weight_decay=0.1))
    assert_masks_kept(model)
    assert not torch.equal(model.second.weight, before)


def test_our_adam_gives_torchs_numbers_and_keeps_the_masks():
    ours, plain = networks(2)
    train(ours, dk.optim.Adam(ours, lr=0.05))
    train(plain, torch.optim.Adam(plain.parameters(), lr=0.05))
    assert_masks_kept(ours)
    for (name, p), q in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-10, msg=name)


def test_a_checkpoint_keeps_masks_and_function():
    first, second = Network().eval(), Network().eval()
    second.load_state_dict(first.state_dict())
    x, context = torch.randn(2, 1, 8, 8), torch.randn(1, 6)
    assert_same_bits(second(x, context), first(x, context))
    assert torch.equal(second.first.weight_mask, first.first.weight_mask)


@pytest.mark.parametrize(
    "make, error, words",
    [
        (lambda: dnn.SparseConv2d(3, 4, 3, sparsity=1), ValueError, r"sparsity: expected a fraction in \[0, 1\)"),
        (lambda: dnn.SparseConv2d(3, 4, 3, input_density=0), ValueError, "input_density: expected a fraction"),
        (lambda: dnn.DendriticConv2d(3, 4, 3, 2, 5, dendrite="soma"), ValueError, "dendrite: expected one of"),
        (
            lambda: dnn.DendriticConv2d(3, 4, 3, 2, 5, kwinners=dnn.KWinners(4, 0.5)),
            TypeError,
            "kwinners: expected KWinners2d, got KWinners",
        ),
        (
            lambda: dnn.DendriticLinear(3, 4, 2, 5, kwinners=dnn.KWinners2d(4, 0.5)),
            TypeError,
            "kwinners: expected KWinners, got KWinners2d",
        ),
        (
            lambda: dnn.DendriticConv2d(3, 4, 3, 2, 5, kwinners=dnn.KWinners2d(5, 0.5)),
            ValueError,
            "kwinners: expected n = 4",
        ),
        (
            lambda: dnn.DendriticConv2d(3, 4, 3, 2, 5)(torch.zeros(1, 3, 4, 4)),
            ValueError,
            r"context: expected \[G, C\] for a layer with dendrites",
        ),
    ],
)
def test_bad_arguments_are_named(make, error, words):
    with pytest.raises(error, match=words):
        make()
