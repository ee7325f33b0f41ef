"""One benchmark an op, at the sizes of the papers' network: ours, the reference, and what a user would pick instead."""

import pytest
import torch
from baselines import (
    gate_by_product,
    gather_product,
    plain_gate,
    plain_kwinners,
    topk_kwinners,
    winning_gate,
)

import dendrite_kernels as dk
from dendrite_kernels import reference as ref
from dendrite_kernels.testing import assert_close

BATCH, INPUTS, UNITS, CONTEXT, K = 256, 784, 2048, 784, 102


def compiled(function):
    torch._dynamo.reset()
    return torch.compile(function)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


# ---- segment_gate ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("segments, contexts", [(10, 1), (10, 10), (100, 1), (100, 10)])
@pytest.mark.parametrize("label", ["ours", "reference", "compiled reference", "one product"])
def bench_segment_gate(benchmark, race, label, segments, contexts):
    benchmark.group = f"segment_gate, S = {segments}, G = {contexts}"
    context, weights = torch.randn(contexts, CONTEXT), torch.randn(UNITS, segments, CONTEXT) / 28
    want = ref.segment_gate(context.double(), weights.double())[0]
    functions = {
        "ours": lambda *args: dk.segment_gate(*args)[0],
        "reference": lambda *args: ref.segment_gate(*args)[0],
        "one product": gate_by_product,
    }
    function = functions.get(label) or compiled(functions["reference"])
    race(
        label,
        lambda: function(context, weights),
        lambda out: assert_close(out, want, terms=CONTEXT),
        shape=f"O = {UNITS}, C = {CONTEXT}",
        bytes_=weights.numel() * 4,
        rounds=7,
    )


@pytest.mark.parametrize("segments", [10, 100])
@pytest.mark.parametrize("label", ["ours", "reference", "winners' rows"])
def bench_segment_gate_backward(benchmark, race, label, segments):
    benchmark.group = f"segment_gate, forward and dense backward, S = {segments}, G = 1"
    context = torch.randn(1, CONTEXT)
    weights = (torch.randn(UNITS, segments, CONTEXT) / 28).requires_grad_()
    wide = weights.detach().double()
    gate, winner = ref.segment_gate(context.double(), wide)
    ones = torch.ones_like(gate)
    want = ref.segment_gate_backward(ones, context.double(), wide, gate, winner, "sigmoid", (False, True, False))[1]
    gates = {"ours": lambda *args: dk.segment_gate(*args)[0], "winners' rows": winning_gate}
    function = gates.get(label, lambda *args: ref.segment_gate(*args)[0])
    race(
        label,
        lambda: torch.autograd.grad(function(context, weights).sum(), weights)[0],
        lambda grad: assert_close(grad, want, terms=CONTEXT),
        shape=f"O = {UNITS}, C = {CONTEXT}",
        bytes_=2 * weights.numel() * 4,
        rounds=5,
    )


# ---- gate and k winners ---------------------------------------------------------------------------------------------


def torch_gated(kwinners):
    return lambda y, gate, bias: kwinners((y + bias) * gate, K)


GATED = {
    "ours": lambda y, gate, bias: dk.gated_kwinners(y, gate, bias, None, K),
    "reference": lambda y, gate, bias: ref.gated_kwinners(y, gate, bias, None, K)[0],
    "torch.kthvalue": torch_gated(plain_kwinners),
    "torch.topk + scatter": torch_gated(topk_kwinners),
}


@pytest.mark.parametrize("label", [*GATED, "compiled topk + scatter"])
def bench_gated_kwinners(benchmark, race, label):
    benchmark.group = "gated_kwinners"
    y, gate, bias = torch.randn(BATCH, UNITS), torch.rand(1, UNITS), torch.randn(UNITS)
    want = ref.gated_kwinners(y, gate, bias, None, K)[0]
    function = GATED.get(label) or compiled(torch_gated(topk_kwinners))
    race(
        label,
        lambda: function(y, gate, bias),
        lambda z: torch.testing.assert_close(z, want, rtol=0, atol=0),
        shape=f"B = {BATCH}, O = {UNITS}, k = {K}",
    )


@pytest.mark.parametrize("label", ["ours", "torch.topk"])
def bench_gated_kwinners_sparse(benchmark, race, label):
    benchmark.group = "gated_kwinners_sparse"
    y, gate, bias = torch.randn(BATCH, UNITS), torch.rand(1, UNITS), torch.randn(UNITS)
    want = ref.gated_kwinners_sparse(y, gate, bias, None, K)
    ours = label == "ours"

    def topk():
        return ((y + bias) * gate).topk(K, dim=1, sorted=False)

    def check(out):
        values, indices = out[:2]
        order = indices.sort(1).indices
        torch.testing.assert_close(values.gather(1, order), want[0], rtol=0, atol=0)
        assert torch.equal(indices.gather(1, order).int(), want[1])

    function = (lambda: dk.gated_kwinners_sparse(y, gate, bias, None, K)) if ours else topk
    race(label, function, check, shape=f"B = {BATCH}, O = {UNITS}, k = {K}")


@pytest.mark.parametrize(
    "batch, units, k", [(1, 256, 13), (1, 2048, 102), (256, 2048, 102), (256, 2048, 1024), (64, 32768, 1638)]
)
@pytest.mark.parametrize("label", ["ours", "torch.kthvalue", "torch.topk + scatter"])
def bench_kwinners(benchmark, race, label, batch, units, k):
    benchmark.group = f"kwinners, B = {batch}, O = {units}, k = {k}"
    y = torch.randn(batch, units)
    want = topk_kwinners(y, k)
    function = {"ours": dk.kwinners, "torch.kthvalue": plain_kwinners}.get(label, topk_kwinners)
    race(
        label,
        lambda: function(y, k),
        lambda z: torch.testing.assert_close(z, want, rtol=0, atol=0),
        shape=f"B = {batch}, O = {units}, k = {k}",
    )


@pytest.mark.parametrize("label", ["ours", "torch.kthvalue", "torch.topk + scatter"])
def bench_kwinners_bfloat16(benchmark, race, label):
    benchmark.group = "kwinners, bfloat16"
    y = torch.randn(BATCH, UNITS).bfloat16()
    want = ref.gated_kwinners(y, k=K, ties="keep")[0]
    function = {
        "ours": lambda y, k: dk.kwinners(y, k, ties="keep"),  # halves tie often, and kthvalue's rule keeps ties
        "torch.kthvalue": plain_kwinners,
        "torch.topk + scatter": topk_kwinners,
    }[label]

    def check(z):  # topk breaks ties its own way
        assert torch.equal(z.sort(1, descending=True).values[:, :K], want.sort(1, descending=True).values[:, :K])

    race(label, lambda: function(y, K), check, shape=f"B = {BATCH}, O = {UNITS}, k = {K}", dtype=torch.bfloat16)


def topk_kwinners2d(y, k, gate, local):
    """As kwinners2d's docstring has it."""
    a = y * gate[:, :, None, None]
    values = a if local else a.flatten(1)
    winners = values.topk(k, dim=1, sorted=False)
    return torch.zeros_like(values).scatter(1, winners.indices, winners.values).view(y.shape)


@pytest.mark.parametrize("local", [False, True], ids=["global", "local"])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("label", ["ours", "torch.topk + scatter", "compiled topk + scatter"])
def bench_kwinners2d(benchmark, race, label, backward, local):
    """The second convolution of Bain's network has 32 channels of 16 x 16; the first 64 of 32 x 32."""
    batch, channels, side = 64, 64, 32
    k = 6 if local else channels * side * side // 10
    benchmark.group = f"kwinners2d, {'local' if local else 'global'}, " + ("both ways" if backward else "forward")
    y, gate = torch.randn(batch, channels, side, side, requires_grad=backward), torch.rand(1, channels)
    grad = torch.randn_like(y)
    want = topk_kwinners2d(y, k, gate, local)
    wants = torch.autograd.grad(want, y, grad)[0] if backward else want
    plain = compiled(topk_kwinners2d) if label.startswith("compiled") else topk_kwinners2d

    def forward():
        return dk.kwinners2d(y, k, gate, local=local) if label == "ours" else plain(y, k, gate, local)

    race(
        label,
        (lambda: torch.autograd.grad(forward(), y, grad)[0]) if backward else forward,
        lambda out: torch.testing.assert_close(out, wants, rtol=0, atol=0),
        shape=f"B = {batch}, C = {channels}, H = W = {side}, k = {k}",
        rounds=5,
    )


# ---- sparse_linear --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch, k", [(256, K), (1, K), (256, 1024)])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize(
    "label", ["ours", "ours, weight by unit", "torch dense", "torch sparse CSR", "torch embedding_bag"]
)
def bench_sparse_linear(benchmark, race, label, backward, batch, k):
    benchmark.group = f"sparse_linear, B = {batch}, k = {k}, " + ("forward and backward" if backward else "forward")
    if backward and label == "torch sparse CSR":
        pytest.skip("torch has no gradient of a CSR x for this product")
    x = dk.gated_kwinners_sparse(torch.randn(batch, UNITS), None, None, None, k)
    mask = torch.rand(UNITS, UNITS) < 0.5
    weight = torch.randn(UNITS, UNITS) * mask
    if label in ("ours", "torch embedding_bag"):
        weight = weight.T.contiguous().T
    weight.requires_grad_(backward)
    dense = x.to_dense().requires_grad_(backward)
    values = x.values.requires_grad_(backward)
    csr = dense.detach().to_sparse_csr()
    wide_x, wide_weight, grad = dense.detach().double(), weight.detach().double(), torch.randn(batch, UNITS)
    ours, indices = label.startswith("ours"), x.indices.long()
    sparse = ours or "embedding" in label

    def forward():
        if ours:
            return dk.sparse_linear(dk.KSparse(values, x.indices, UNITS), weight)
        if sparse:
            return gather_product(values, indices, weight)
        return csr @ weight.T if "CSR" in label else torch.nn.functional.linear(dense, weight)

    def both():
        return torch.autograd.grad(forward(), (values if sparse else dense, weight), grad)

    def check(out):
        assert_close(out, wide_x @ wide_weight.T, terms=k)

    def check_both(grads):
        want = grad.double() @ wide_weight
        assert_close(grads[0], want.gather(1, indices) if sparse else want, terms=UNITS)
        assert_close(grads[1], grad.double().T @ wide_x, terms=batch)

    race(
        label,
        both if backward else forward,
        check_both if backward else check,
        shape=f"B = {batch}, I = O = {UNITS}, k = {k}",
        rounds=9,
    )


# ---- the whole layer ------------------------------------------------------------------------------------------------


def plain_layer(x, weight, bias, context, segments):
    gate = plain_gate(context.expand(len(x), -1), segments)
    return plain_kwinners(torch.nn.functional.linear(x, weight, bias) * gate, K)


def plain_layer_shared(x, weight, bias, context, segments):
    return plain_kwinners(torch.nn.functional.linear(x, weight, bias) * plain_gate(context, segments), K)


def rewritten_layer(x, weight, bias, context, segments):
    return topk_kwinners(torch.nn.functional.linear(x, weight, bias) * winning_gate(context, segments), K)


LAYERS = {
    "ours": lambda *args: dk.dendritic_linear(*args, k=K),
    "rewritten": rewritten_layer,
    "plain": plain_layer,
    "plain, one context": plain_layer_shared,
}


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("label", [*LAYERS, "compiled plain, one context"])
def bench_dendritic_linear(benchmark, race, label, backward):
    benchmark.group = "dendritic_linear, S = 10, one context, " + ("forward and backward" if backward else "forward")
    x, context = torch.randn(BATCH, INPUTS), torch.randn(1, CONTEXT)
    parameters = [torch.randn(UNITS, INPUTS) / 28, torch.randn(UNITS) / 28, torch.randn(UNITS, 10, CONTEXT) / 28]
    weight, bias, segments = (p.requires_grad_(backward) for p in parameters)
    function = LAYERS.get(label) or compiled(plain_layer_shared)
    grad = torch.randn(BATCH, UNITS)

    def forward():
        return function(x, weight, bias, context, segments)

    def both():
        return torch.autograd.grad(forward(), (weight, bias, segments), grad)

    def distance(mine, want):  # a winner on the edge may differ: 1 of 26,112
        return float((mine.double() - want).norm() / want.norm())

    wide = [t.detach().double().requires_grad_(backward) for t in (x, weight, bias, context, segments)]
    z = plain_layer_shared(*wide)
    wants = torch.autograd.grad(z, (wide[1], wide[2], wide[4]), grad.double()) if backward else (z,)

    def check(out):
        for mine, want in zip(out if backward else (out,), wants, strict=True):
            assert distance(mine, want) < 0.02

    race(
        label, both if backward else forward, check, shape=f"B = {BATCH}, I = {INPUTS}, O = {UNITS}, k = {K}", rounds=7
    )
