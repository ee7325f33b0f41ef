"""The whole layer on every backend and instruction set, against the oracle in float64."""

import pytest
import torch

import dendrite_kernels as dk
from dendrite_kernels import reference as ref
from dendrite_kernels.ops.dendritic_linear import dendritic_layer
from dendrite_kernels.testing import DTYPES, assert_close, assert_same_bits, small_integers

BATCH, INPUTS, UNITS, SEGMENTS, WIDTH, K = 20, 30, 50, 4, 12, 7


def layer_inputs(dtype, sparse_x, groups):
    """x's leaf and x itself, then the parameters; whole numbers, so that all backends choose the same winners."""
    x = small_integers(BATCH, INPUTS, dtype=dtype).requires_grad_()
    layer_x = dk.gated_kwinners_sparse(x, None, None, None, 9) if sparse_x else x
    contexts = {"one": 1, "each": BATCH, "index": 3}[groups]
    index = torch.randint(0, 3, (BATCH,), dtype=torch.int32) if groups == "index" else None
    shapes = {"weight": (UNITS, INPUTS), "bias": (UNITS,), "context": (contexts, WIDTH)}
    shapes |= {"segments": (UNITS, SEGMENTS, WIDTH), "segment_bias": (UNITS, SEGMENTS)}
    leaves = {name: small_integers(*shape, dtype=dtype).requires_grad_() for name, shape in shapes.items()}
    return x, layer_x, leaves, index


def plain_layer(x, leaves, index, k, relu, combine):
    """The layer as the equations say it, in float64, by autograd."""
    x, *rest = (t.detach().double().requires_grad_() for t in (x, *leaves.values()))
    weight, bias, context, segments, segment_bias = rest
    gate, _ = ref.segment_gate(context, segments, segment_bias, activation="none")
    z, _ = ref.gated_kwinners(ref.linear(x, weight), gate, bias, index, k, combine, relu=relu)
    return z, (x, *rest)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sparse_x", [False, True])
@pytest.mark.parametrize("groups", ["one", "each", "index"])
@pytest.mark.parametrize("options", [{}, {"combine": "add", "relu": True}])
@pytest.mark.parametrize("k", [K, 30])
def test_values_and_gradients(implementation, dtype, sparse_x, groups, options, k):
    x, layer_x, leaves, index = layer_inputs(dtype, sparse_x, groups)
    out = dk.dendritic_linear(layer_x, **leaves, context_index=index, k=k, activation="none", **options)
    plain_x = layer_x.to_dense() if sparse_x else x
    want, plain = plain_layer(plain_x, leaves, index, k, options.get("relu", False), options.get("combine", "mul"))
    assert_close(out, want, terms=1)
    grad = small_integers(BATCH, UNITS, dtype=dtype)
    mine = torch.autograd.grad(out, (x, *leaves.values()), grad)
    exact = list(torch.autograd.grad(want, plain, grad.double()))
    if sparse_x:  # only x's winners take a gradient
        winners = torch.zeros_like(exact[0]).scatter_(1, layer_x.indices.long(), 1)
        exact[0] = exact[0] * winners
    for ours, theirs in zip(mine, exact, strict=True):
        # half inputs: sums of products of halves, each rounded at most once on the way
        assert_close(ours, theirs, terms=BATCH * UNITS if dtype in (torch.float32, torch.float64) else 1, dtype=dtype)


@pytest.mark.parametrize("sparse_x", [False, True])
def test_sparse_and_dense_results_agree(implementation, sparse_x):
    _, x, leaves, index = layer_inputs(torch.float32, sparse_x, "index")
    sparse = dk.dendritic_linear(x, **leaves, context_index=index, k=K, sparse=True)
    assert sparse.values.shape == (BATCH, K) and sparse.size == UNITS
    assert_same_bits(sparse.to_dense(), dk.dendritic_linear(x, **leaves, context_index=index, k=K))


def test_without_kwta(implementation):
    _, x, leaves, index = layer_inputs(torch.float64, False, "index")
    options = {"context_index": index, "activation": "none"}
    everything = dk.dendritic_linear(x, **leaves, **options)
    want, _ = plain_layer(x, leaves, index, UNITS, False, "mul")
    assert_close(everything, want)


def test_kept_ties(implementation):
    # a gate of 1 and no input: z is the bias, whose 7 values tie often among 50 units
    _, x, leaves, _ = layer_inputs(torch.float64, False, "one")
    with torch.no_grad():
        leaves["weight"].zero_()
        leaves["context"].zero_()
        leaves["segment_bias"].fill_(1)
    kept = dk.dendritic_linear(x, **leaves, k=K, activation="none", ties="keep")
    bias = leaves["bias"]
    want = torch.where(bias >= bias.sort(descending=True).values[K - 1], bias, 0)
    assert (want != 0).sum() > K
    assert_close(kept, want.expand(BATCH, -1))


def test_expanded_context_is_one_context(implementation):
    _, x, leaves, _ = layer_inputs(torch.float32, False, "one")
    want = dk.dendritic_linear(x, **leaves, k=K)
    leaves["context"] = leaves["context"].expand(BATCH, -1)
    assert_same_bits(dk.dendritic_linear(x, **leaves, k=K), want)


@pytest.mark.parametrize("sparse_x", [False, True])
def test_gradcheck(implementation, sparse_x):
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    shapes = [(7, 6), (7,), (2, 5), (7, 3, 5), (7, 3)]
    leaves = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    index = torch.tensor([0, 1, 1, 0])

    def layer(x, *leaves):
        layer_x = dk.gated_kwinners_sparse(x, None, None, None, 3) if sparse_x else x
        return dk.dendritic_linear(layer_x, *leaves, context_index=index, k=3)

    assert torch.autograd.gradcheck(layer, (x, *leaves))


@pytest.mark.parametrize("sparse_x", [False, True])
def test_opcheck(implementation, sparse_x):
    x = dk.gated_kwinners_sparse(torch.randn(4, 6), None, None, None, 3)
    values, indices = (x.values, x.indices) if sparse_x else (torch.randn(4, 6), None)
    weight, bias, gate = (torch.randn(s, requires_grad=True) for s in [(7, 6), (7,), (2, 7)])
    index = torch.tensor([0, 1, 1, 0])
    torch.library.opcheck(
        torch.ops.dendrite_kernels.linear_kwinners.default,
        (values.requires_grad_(), indices, weight, bias, gate, index, 3, "mul", None, False),
    )


@pytest.mark.parametrize("sparse_x", [False, True])
def test_the_layer_as_one_op(implementation, sparse_x):
    """opcheck, and the values and gradients of the ops that it stands for."""
    x = dk.gated_kwinners_sparse(torch.randn(4, 6, dtype=torch.float64), None, None, None, 3)
    values, indices = (x.values, x.indices) if sparse_x else (torch.randn(4, 6, dtype=torch.float64), None)
    shapes = [(7, 6), (7,), (2, 5), (7, 3, 5), (7, 3)]
    leaves = [values.requires_grad_(), *(torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes)]
    index = torch.tensor([0, 1, 1, 0])
    args = (leaves[0], indices, *leaves[1:], index, 3, "abs_max", "sigmoid", "mul", None, False)
    torch.library.opcheck(torch.ops.dendrite_kernels.dendritic_layer.default, args)
    given = dk.KSparse(leaves[0], indices, 6) if sparse_x else leaves[0]
    one = dendritic_layer(given, *leaves[1:], index, 3)
    several = dk.dendritic_linear(given, *leaves[1:], index, 3, sparse=True)
    assert_same_bits(one.indices, several.indices)
    assert_same_bits(one.values, several.values)
    grad = torch.randn_like(one.values)
    for a, b in zip(*(torch.autograd.grad(z.values, leaves, grad) for z in (one, several)), strict=True):
        assert_same_bits(a, b)


def test_the_layer_as_one_op_names_what_is_wrong():
    shapes = [(4, 6), (7, 6), (7,), (2, 5), (7, 3, 5), (7, 3)]
    x, weight, bias, context, segments, segment_bias = (torch.randn(s) for s in shapes)
    with pytest.raises(ValueError, match=r"weight: expected shape \[O, I\] = \[7, any\], got \[8, 6\]"):
        dendritic_layer(x, torch.randn(8, 6), bias, context, segments, segment_bias, torch.zeros(4).int(), 3)
    with pytest.raises(ValueError, match="context_index: expected one, as there are 2 contexts for 4 rows"):
        dendritic_layer(x, weight, bias, context, segments, segment_bias, None, 3)
    with pytest.raises(TypeError, match=r"segments: expected torch\.float32 to go with weight"):
        wide = context.double(), segments.double()
        dendritic_layer(x, weight, bias, *wide, None, torch.zeros(4).int(), 3)


def test_second_derivative_raises(implementation):
    x, weight = torch.randn(4, 6), torch.randn(7, 6, requires_grad=True)
    out = dk.linear_kwinners(x, weight, None, None, None, 3)
    (grad,) = torch.autograd.grad(out.values.square().sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives"):
        grad.sum().backward()


def test_sparse_needs_exactly_k():
    _, x, leaves, _ = layer_inputs(torch.float32, False, "one")
    with pytest.raises(ValueError, match="sparse: expected False with k = None"):
        dk.dendritic_linear(x, **leaves, sparse=True)
    with pytest.raises(ValueError, match="ties = 'keep'"):
        dk.dendritic_linear(x, **leaves, k=3, ties="keep", sparse=True)


def test_too_many_contexts():
    _, x, leaves, _ = layer_inputs(torch.float32, False, "index")
    with pytest.raises(ValueError, match=r"context_index: expected one, as there are 3 contexts for 20 rows"):
        dk.dendritic_linear(x, **leaves, k=3)
