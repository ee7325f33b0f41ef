"""The Triton kernels in Triton's interpreter, against the oracle. It takes milliseconds an operation: sizes are small.

Its bfloat16 is cut off rather than rounded, so that dtype is left to the GPU (tests/test_gpu.py), as are races.
"""

import pytest
import torch

import dendrite_kernels as dk
from dendrite_kernels import reference as ref
from dendrite_kernels.reference import compute_dtype
from dendrite_kernels.testing import assert_close, assert_same_bits, small_integers, special_rows

DTYPES = [torch.float32, torch.float64, torch.float16]
pytestmark = pytest.mark.usefixtures("interpreted")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("select", ["abs_max", "max"])
@pytest.mark.parametrize("shape", [(1, 5, 3, 7), (1, 9, 4, 300), (3, 6, 3, 33), (17, 18, 2, 70), (2, 1, 1, 1)])
def test_exact_activations_give_exact_winners(dtype, select, shape):
    contexts, units, per_unit, width = shape
    context = small_integers(contexts, width, dtype=dtype, high=2)
    segments = small_integers(units, per_unit, width, dtype=dtype, high=2)
    bias = small_integers(units, per_unit, dtype=dtype)
    gate, winner = dk.segment_gate(context, segments, bias, select=select, activation="none")
    want_gate, want_winner = ref.segment_gate(context, segments, bias, select, "none")
    assert_same_bits(winner, want_winner)
    assert_same_bits(gate + 0.0, want_gate + 0.0)
    assert_close(dk.segment_gate(context, segments, bias, select=select)[0], want_gate.sigmoid(), terms=2)


@pytest.mark.parametrize("contexts", [1, 2])
@pytest.mark.parametrize("values", [[float("nan"), 3.0, float("inf")], [1.0, float("-inf"), 5.0], [2.0, -2.0, 2.0]])
def test_strange_segments(contexts, values):
    context, segments = torch.ones(contexts, 1), torch.tensor(values)[None, :, None].repeat(3, 1, 1)
    for select in ("abs_max", "max"):
        gate, winner = dk.segment_gate(context, segments, select=select)
        want_gate, want_winner = ref.segment_gate(context, segments, None, select)
        assert_same_bits(winner, want_winner)
        assert_close(gate, want_gate)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("contexts", [1, 3])
def test_segment_gate_gradients(dtype, contexts):
    shapes = ((contexts, 21), (6, 3, 21), (6, 3))
    leaves = [torch.randn(*shape).to(dtype).requires_grad_() for shape in shapes]
    gate, winner = dk.segment_gate(*leaves)
    grad = torch.randn_like(gate)
    got = torch.autograd.grad(gate, leaves, grad)
    wide = [t.detach().to(compute_dtype(dtype)) for t in leaves[:2]]
    want = ref.segment_gate_backward(grad, *wide, gate.detach(), winner, "sigmoid", (True, True, True))
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, terms=21, dtype=dtype)


def gates(kind, batch, units, wide):
    """gate and index"""
    if kind == "none":
        return None, None
    gate = torch.rand({"one": 1, "each": batch, "index": 3}[kind], units, dtype=wide)
    return gate, torch.randint(0, 3, (batch,)) if kind == "index" else None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["none", "one", "each", "index"])
@pytest.mark.parametrize("units, k", [(1, 1), (5, 2), (17, 3), (100, 99), (257, 12)])
def test_winners_have_the_oracles_bits(dtype, kind, units, k):
    wide = compute_dtype(dtype)
    y, bias = torch.randn(3, units).to(dtype), torch.randn(units).to(dtype)
    gate, index = gates(kind, 3, units, wide)
    for options in ({}, {"combine": "add", "relu": True, "boost": torch.rand(units, dtype=wide)}):
        got = dk.gated_kwinners_sparse(y, gate, bias, index, k, **options)
        values, indices, _ = ref.gated_kwinners_sparse(y, gate, bias, index, k, **options)
        assert_same_bits(got.indices, indices)
        assert_same_bits(got.values, values)
        dense = dk.gated_kwinners(y, gate, bias, index, k, ties="keep", **options)
        assert_same_bits(dense, ref.gated_kwinners(y, gate, bias, index, k, ties="keep", **options)[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ties", ["lowest", "keep"])
def test_special_rows(dtype, ties):
    rows = special_rows(21, dtype)
    for k in (0, 1, 10, 20, 21, 30):
        got = dk.gated_kwinners(rows, None, None, None, k, ties=ties)
        assert_same_bits(got, ref.gated_kwinners(rows, k=k, ties=ties)[0])


def test_the_papers_row():
    y, gate, bias = torch.randn(2, 2048), torch.rand(1, 2048), torch.randn(2048)
    got = dk.gated_kwinners_sparse(y, gate, bias, None, 102)
    values, indices, _ = ref.gated_kwinners_sparse(y, gate, bias, None, 102)
    assert_same_bits(got.indices, indices)
    assert_same_bits(got.values, values)


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("kind", ["one", "each", "index"])
@pytest.mark.parametrize("combine", ["mul", "add"])
def test_gradients(sparse, kind, combine):
    gate, index = gates(kind, 5, 40, torch.float64)
    leaves = [t.requires_grad_() for t in (torch.randn(5, 40).double(), gate, torch.randn(40).double())]

    def run(z):
        return torch.autograd.grad(z, leaves, torch.arange(1.0, 1 + z.numel()).double().view_as(z))

    def op():
        if sparse:
            return dk.gated_kwinners_sparse(*leaves, index, 7, combine=combine).to_dense()
        return dk.gated_kwinners(*leaves, index, 7, combine=combine)

    got = run(op())
    with dk.use_backend("reference"):
        want = run(op())
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, terms=5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("by_input", [True, False])
@pytest.mark.parametrize("batch", [2, 30])
def test_k_sparse_products(dtype, by_input, batch):
    x = dk.kwinners(torch.randn(batch, 60), 4)
    indices = x.ne(0).nonzero()[:, 1].view(batch, 4).int()
    x = dk.KSparse(x.gather(1, indices.long()).to(dtype), indices, 60)
    weight, bias = torch.randn(37, 60).to(dtype), torch.randn(37).to(dtype)
    weight = weight.T.contiguous().T if by_input else weight
    got = dk.sparse_linear(x, weight, bias)
    assert_close(got, x.to_dense().double() @ weight.double().T + bias.double(), terms=6, dtype=dtype)


def test_empty_batches_and_no_winners():
    gate, winner = dk.segment_gate(torch.zeros(0, 5), torch.randn(3, 2, 5))
    assert gate.shape == winner.shape == (0, 3)
    assert dk.kwinners(torch.zeros(0, 8), 2).shape == (0, 8)
    assert dk.gated_kwinners_sparse(torch.randn(2, 8), None, None, None, 0).values.shape == (2, 0)
    assert not dk.kwinners(torch.randn(2, 8), 0).any()


def test_bad_indices_are_named():
    with pytest.raises(IndexError, match=r"context_index: expected values in \[0, 2\), got 5"):
        dk.gated_kwinners(torch.randn(1, 8), torch.rand(2, 8), None, torch.tensor([5]), 2)
