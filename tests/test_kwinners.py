"""kwinners, gated_kwinners and its sparse twin on every backend and instruction set, against the oracle."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dendrite_kernels as dk
from dendrite_kernels import reference as ref
from dendrite_kernels.reference import compute_dtype
from dendrite_kernels.testing import DTYPES, assert_close, assert_same_bits, small_integers, special_rows

WIDTHS = [(1, 1), (5, 2), (16, 16), (17, 3), (100, 5), (257, 128), (2048, 102), (2049, 1)]  # O, k


def check_forward(y, gate, bias, index, k, **options):
    """Dense and sparse results equal the oracle's bit for bit."""
    want, _ = ref.gated_kwinners(y, gate, bias, index, k, **options)
    assert_same_bits(dk.gated_kwinners(y, gate, bias, index, k, **options), want)
    if options.pop("ties", "lowest") == "lowest":
        values, indices, size = dk.gated_kwinners_sparse(y, gate, bias, index, k, **options)
        want_values, want_indices, _ = ref.gated_kwinners_sparse(y, gate, bias, index, k, **options)
        assert size == y.shape[1]
        assert_same_bits(indices, want_indices)
        assert_same_bits(values, want_values)


def arguments(batch, units, dtype, groups, seed=0):
    """y, gate, bias and index with random values; groups: "none", "one", "each" or "index"."""
    wide = compute_dtype(dtype)
    y, bias = torch.randn(batch, units).to(dtype), torch.randn(units).to(dtype)
    if groups == "none":
        return y, None, bias, None
    contexts = {"one": 1, "each": batch, "index": 3}[groups]
    index = torch.randint(0, 3, (batch,)) if groups == "index" else None
    return y, torch.rand(contexts, units, dtype=wide), bias, index


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("units, k", WIDTHS)
def test_values_and_winners_have_the_oracles_bits(implementation, dtype, units, k):
    for groups in ("none", "one", "each", "index"):
        args = arguments(7, units, dtype, groups)
        check_forward(*args, k)
        check_forward(*args, k, combine="add", relu=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ties", ["lowest", "keep"])
@pytest.mark.parametrize("units", [16, 50, 301])
def test_special_rows(implementation, dtype, ties, units):
    rows = special_rows(units, dtype)
    for k in (0, 1, 7, units // 2, units - 1, units, units + 5):
        check_forward(rows, None, None, None, k, ties=ties)
        check_forward(rows, None, None, None, k, ties=ties, relu=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_ties_everywhere(implementation, dtype):
    y = small_integers(40, 130, dtype=dtype)
    for k in (1, 13, 64, 129):
        check_forward(y, None, None, None, k)
        check_forward(y, None, None, None, k, ties="keep")


@pytest.mark.parametrize("dtype", DTYPES)
def test_boost_ranks_but_is_not_passed_on(implementation, dtype):
    y, boost = torch.randn(9, 200).to(dtype), torch.rand(200, dtype=compute_dtype(dtype))
    check_forward(y, None, None, None, 20, boost=boost)
    check_forward(*arguments(9, 200, dtype, "one"), 20, boost=boost)
    z = dk.kwinners(y, 20, boost=boost)
    assert (z[z != 0] == y[z != 0]).all()


def test_half_products_are_rounded_before_they_are_ranked(implementation):
    # in float32 the second is larger; rounded to bfloat16 they tie, and the tie goes to the first
    y, gate = torch.ones(1, 2).bfloat16(), torch.tensor([[1.0, 1.0001]])
    assert dk.gated_kwinners(y, gate, None, None, 1).tolist() == [[1.0, 0.0]]


def test_strides(implementation):
    y, gate = torch.randn(300, 6).T, torch.rand(300, 2).T
    index = torch.tensor([0, 9, 1, 9, 1, 9, 0, 9, 0, 9, 1, 9])[::2]
    check_forward(y, gate, torch.randn(600)[::2], index, 30)
    check_forward(y.flip(1), gate, None, index.int(), 30)
    check_forward(torch.randn(1, 300).expand(6, -1), gate[:1].expand(6, -1), None, None, 30)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_empty(implementation, shape):
    y = torch.randn(shape, requires_grad=True)
    z = dk.gated_kwinners(y, torch.rand(1, shape[1]), torch.zeros(shape[1]), None, 2)
    assert z.shape == shape
    sparse = dk.gated_kwinners_sparse(y, None, None, None, 2)
    assert sparse.values.shape == (shape[0], min(2, shape[1])) and sparse.shape == shape
    (z.sum() + sparse.values.sum()).backward()
    assert y.grad.shape == shape


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("groups", ["none", "one", "each", "index"])
@pytest.mark.parametrize("options", [{}, {"combine": "add"}, {"relu": True}, {"ties": "keep"}])
def test_gradients(implementation, dtype, groups, options):
    batch, units, k = 13, 130, 11
    y, gate, bias, index = arguments(batch, units, dtype, groups)
    leaves = [t.requires_grad_() for t in (y, gate, bias) if t is not None]
    z = dk.gated_kwinners(y, gate, bias, index, k, **options)
    grad = torch.randn_like(z)
    wide = [None if t is None else t.detach().double() for t in (y, gate, bias)]
    kept = ref.gated_kwinners(y, gate, bias, index, k, **options)[1]
    combine = options.get("combine", "mul")
    exact = ref.gated_kwinners_backward(grad.double(), kept, *wide, index, combine, (True, gate is not None, True))
    exact = [g for g in exact if g is not None]
    for mine, want in zip(torch.autograd.grad(z, leaves, grad), exact, strict=True):
        assert_close(mine, want, terms=batch, dtype=dtype)
    if "ties" not in options:
        dense = dk.gated_kwinners_sparse(y, gate, bias, index, k, **options).to_dense()
        for mine, want in zip(torch.autograd.grad(dense, leaves, grad), exact, strict=True):
            assert_close(mine, want, terms=batch, dtype=dtype)


def test_relu_winners_that_are_not_positive_get_no_gradient(implementation):
    y = torch.tensor([[-1.0, -2, -3, 0, 5, -0.5]], requires_grad=True)
    z = dk.kwinners(y, 4, relu=True)
    assert z.tolist() == [[0, 0, 0, 0, 5, 0]]
    z.sum().backward()
    assert y.grad.tolist() == [[0, 0, 0, 0, 1, 0]]
    sparse = dk.gated_kwinners_sparse(y, None, None, None, 4, relu=True)
    assert sparse.indices.tolist() == [[0, 3, 4, 5]] and sparse.values.tolist() == [[0, 0, 5, 0]]
    y.grad = None
    sparse.values.sum().backward()
    assert y.grad.tolist() == [[0, 0, 0, 0, 1, 0]]


def test_gradients_of_losers_are_zero_even_beside_nan(implementation):
    y = torch.tensor([[1.0, 5.0, 2.0]], requires_grad=True)
    gate = torch.tensor([[float("nan"), 1.0, float("inf")]])
    z = dk.gated_kwinners(y, gate, None, None, 1)
    z.backward(torch.tensor([[1.0, float("nan"), float("inf")]]))
    assert z.isnan().tolist() == [[True, False, False]]
    assert y.grad[0, 1:].tolist() == [0, 0] and y.grad[0, 0].isnan()


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 5), st.integers(1, 400), st.integers(0, 420), st.integers(0, 1 << 30), st.booleans())
def test_any_shape(implementation, batch, units, k, seed, whole):
    torch.manual_seed(seed)
    y = small_integers(batch, units) if whole else torch.randn(batch, units)
    check_forward(y, torch.rand(1, units), torch.randn(units), None, k)


def test_heavy_tails(implementation):
    """Rows whose moments mislead the first guess of the threshold."""
    y = torch.randn(20, 1000)
    y[:, 0] = 1e20
    y[10:] = y[10:].abs().log().exp() ** 4
    y[15:, ::3] = -1e30
    check_forward(y, None, None, None, 50)
    check_forward(-y, None, None, None, 50)


@pytest.mark.parametrize("combine", ["mul", "add"])
def test_gradcheck(implementation, combine):
    args = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in [(4, 9), (2, 9), (9,)]]
    index = torch.tensor([0, 1, 1, 0])

    def dense(y, gate, bias):
        return dk.gated_kwinners(y, gate, bias, index, 3, combine=combine)

    def sparse(y, gate, bias):
        return dk.gated_kwinners_sparse(y, gate, bias, index, 3, combine=combine).values

    assert torch.autograd.gradcheck(dense, args)
    assert torch.autograd.gradcheck(sparse, args)


def test_opcheck(implementation):
    y, gate, bias = (torch.randn(s, requires_grad=True) for s in [(4, 9), (2, 9), (9,)])
    index = torch.tensor([0, 1, 1, 0])
    ops = torch.ops.dendrite_kernels
    torch.library.opcheck(ops.gated_kwinners.default, (y, gate, bias, index, 3, "mul", None, False, "lowest"))
    torch.library.opcheck(ops.gated_kwinners_sparse.default, (y, gate, bias, index, 3, "mul", None, True))
    values, indices, _ = ref.gated_kwinners_sparse(y.detach(), None, None, None, 3)
    torch.library.opcheck(ops.ksparse_to_dense.default, (values.requires_grad_(), indices, 9))


def test_second_derivative_raises(implementation):
    y = torch.randn(2, 6, requires_grad=True)
    for z in (dk.kwinners(y, 2), dk.gated_kwinners_sparse(y, None, None, None, 2).values):
        (grad,) = torch.autograd.grad(z.square().sum(), y, create_graph=True)
        with pytest.raises(RuntimeError, match="second derivatives"):
            grad.sum().backward()


def test_context_index_out_of_range(implementation):
    for bad in (-1, 2):
        with pytest.raises(IndexError, match=rf"context_index: expected values in \[0, 2\), got {bad}"):
            dk.gated_kwinners(torch.zeros(3, 4), torch.zeros(2, 4), None, torch.tensor([0, bad, 1]), 1)


GOOD = {
    "y": torch.zeros(3, 4),
    "gate": torch.zeros(2, 4),
    "bias": torch.zeros(4),
    "context_index": torch.tensor([0, 1, 1]),
    "k": 2,
}


@pytest.mark.parametrize("function", [dk.gated_kwinners, dk.gated_kwinners_sparse])
@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"y": torch.zeros(4)}, ValueError, r"y: expected shape \[B, O\] = \[any, any\], got \[4\]"),
        ({"y": torch.zeros(3, 4).int()}, TypeError, "y: expected float32, float64"),
        ({"gate": torch.zeros(2, 5)}, ValueError, r"gate: expected shape \[G, O\] = \[any, 4\], got \[2, 5\]"),
        ({"gate": torch.zeros(2, 4).half()}, TypeError, "gate: expected torch.float32"),
        ({"gate": torch.zeros(2, 4, device="meta")}, ValueError, "gate: expected device cpu"),
        ({"gate": None}, ValueError, "context_index: expected None without a gate"),
        ({"bias": torch.zeros(3)}, ValueError, "bias: expected shape"),
        ({"bias": torch.zeros(4).double()}, TypeError, "bias: expected torch.float32"),
        ({"context_index": torch.zeros(2).long()}, ValueError, "context_index: expected shape"),
        ({"context_index": torch.zeros(3)}, TypeError, "context_index: expected int32 or int64"),
        ({"context_index": None}, ValueError, "context_index: expected one, as there are 2 contexts for 3 rows"),
        ({"k": -1}, ValueError, "k: expected 0 or more, got -1"),
        ({"k": 1.5}, TypeError, "k: expected an int, got float"),
        ({"combine": "div"}, ValueError, "combine: expected one of 'mul', 'add'"),
        ({"boost": torch.zeros(3)}, ValueError, "boost: expected shape"),
        ({"boost": torch.zeros(4).double()}, TypeError, "boost: expected torch.float32"),
    ],
)
def test_bad_arguments_are_named(function, change, error, words):
    with pytest.raises(error, match=words):
        function(**{**GOOD, **change})


def test_an_expanded_gate_must_fit_the_batch():
    with pytest.raises(ValueError, match="as there are 7 contexts for 3 rows"):
        dk.gated_kwinners(torch.zeros(3, 4), torch.zeros(4).expand(7, 4), None, None, 2)


def test_forward_mode_raises_rather_than_passing_zero():
    y = torch.randn(2, 6)
    with pytest.raises(RuntimeError, match="forward-mode derivatives are not implemented"):
        torch.func.jvp(lambda y: dk.kwinners(y, 2), (y,), (torch.ones(2, 6),))


def test_unknown_ties():
    with pytest.raises(ValueError, match="ties: expected one of 'lowest', 'keep', got 'drop'"):
        dk.kwinners(torch.zeros(1, 2), 1, ties="drop")
