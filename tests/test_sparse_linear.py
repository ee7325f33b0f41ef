"""KSparse and sparse_linear on every backend and instruction set, against the dense product."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dendrite_kernels as dk
from dendrite_kernels import KSparse
from dendrite_kernels import reference as ref
from dendrite_kernels.testing import DTYPES, assert_close, assert_same_bits, small_integers

SHAPES = [
    (1, 5, 7, 3),
    (4, 33, 1, 1),
    (8, 20, 33, 20),
    (3, 64, 10, 4),
    (40, 100, 70, 9),
    (2, 300, 96, 15),
]  # B, I, O, k


def some_ksparse(batch, size, k, dtype=torch.float32):
    indices = torch.rand(batch, size).argsort(1)[:, :k].sort(1).values.int()
    return KSparse(small_integers(batch, k, dtype=dtype), indices, size)


def weight_stored(layout, units, inputs, dtype):
    """An [O, I] weight in each way that it may lie in memory."""
    values = small_integers(units, inputs, dtype=dtype)
    if layout == "input":
        return values.T.contiguous().T
    if layout == "strided":
        return torch.stack([values, values], 2).repeat(2, 1, 1)[:units, :, 1]
    return values


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", ["output", "input", "strided"])
def test_products_and_gradients(implementation, dtype, shape, layout):
    batch, inputs, units, k = shape
    x = some_ksparse(batch, inputs, k, dtype)
    weight = weight_stored(layout, units, inputs, dtype).requires_grad_()
    bias = small_integers(units, dtype=dtype).requires_grad_()
    values = x.values.requires_grad_()
    y = dk.sparse_linear(x, weight, bias)
    dense = ref.ksparse_to_dense(values.detach().double(), x.indices, inputs)
    assert_close(y, dense @ weight.detach().double().T + bias.detach().double())
    grad = small_integers(batch, units, dtype=dtype)
    mine = torch.autograd.grad(y, (values, weight, bias), grad)
    exact = ref.sparse_linear_backward(
        grad.double(), values.detach().double(), x.indices, weight.detach().double(), (True,) * 3
    )
    for ours, want in zip(mine, exact, strict=True):
        assert_close(ours, want)
    if layout != "strided":
        assert mine[1].stride() == weight.stride()  # or fused optimizers would pair the wrong entries


@pytest.mark.parametrize("dtype, terms", [(torch.bfloat16, 300), (torch.float16, 2100)])
def test_halves_accumulate_in_float32(implementation, dtype, terms):
    # in bfloat16 a running sum of ones stops at 256, in float16 at 2048
    x = KSparse(torch.ones(1, terms, dtype=dtype), torch.arange(terms, dtype=torch.int32)[None], terms)
    weight = torch.ones(3, terms, dtype=dtype, requires_grad=True)
    y = dk.sparse_linear(x, weight)
    assert (y == torch.tensor(float(terms)).to(dtype)).all()
    batch = KSparse(torch.ones(terms, 1, dtype=dtype), torch.zeros(terms, 1, dtype=torch.int32), 1)
    weight = torch.ones(2, 1, dtype=dtype, requires_grad=True)
    dk.sparse_linear(batch, weight).backward(torch.ones(terms, 2, dtype=dtype))
    assert (weight.grad == torch.tensor(float(terms)).to(dtype)).all()


def test_random_values_to_rounding(implementation):
    x = KSparse(torch.randn(50, 30), some_ksparse(50, 400, 30).indices, 400)
    weight = torch.randn(333, 400)
    assert_close(dk.sparse_linear(x, weight), x.to_dense().double() @ weight.double().T, terms=30)


def test_dense_x_is_torchs_linear(implementation):
    x, weight, bias = torch.randn(3, 5), torch.randn(4, 5), torch.randn(4)
    assert_same_bits(dk.sparse_linear(x, weight, bias), torch.nn.functional.linear(x, weight, bias))


@pytest.mark.parametrize("dtype", DTYPES)
def test_to_dense(implementation, dtype):
    x = some_ksparse(6, 50, 7, dtype)
    values = x.values.requires_grad_()
    z = x.to_dense()
    assert_same_bits(z, ref.ksparse_to_dense(values.detach(), x.indices, 50))
    grad = torch.randn(6, 50).to(dtype)
    (mine,) = torch.autograd.grad(z, values, grad)
    assert_same_bits(mine, grad.gather(1, x.indices.long()))


def test_repeated_indices_add(implementation):
    x = KSparse(torch.tensor([[1.0, 2.0, 4.0]], requires_grad=True), torch.tensor([[1, 1, 0]], dtype=torch.int32), 2)
    weight = torch.tensor([[1.0, 10.0]], requires_grad=True)
    y = dk.sparse_linear(x, weight)
    assert y.tolist() == [[34.0]] and x.to_dense().tolist() == [[4.0, 3.0]]
    y.backward()
    assert x.values.grad.tolist() == [[10, 10, 1]] and weight.grad.tolist() == [[4, 3]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", ["output", "input"])
@pytest.mark.parametrize(
    "shape",
    [
        (1, 90, 600, 9),  # few uses of a row, which is read in place where it can be
        (7, 48, 352, 12),
        (3, 30, 40, 4),
        (40, 50, 600, 12),  # many
        (64, 30, 200, 7),
        (50, 500, 8500, 60),  # more rows than a cache holds
    ],
)
def test_random_values_in_wide_rows_with_any_number_of_threads(isa, threads, dtype, layout, shape):
    batch, inputs, units, k = shape
    indices = some_ksparse(batch, inputs, k).indices
    x, weight = KSparse(torch.randn(batch, k, dtype=dtype), indices, inputs), torch.randn(units, inputs, dtype=dtype)
    bias, runs = torch.randn(units, dtype=dtype), []
    stored = weight.T.contiguous().T if layout == "input" else weight
    for count in (1, 2, 3):
        threads(count)
        runs.append(dk.sparse_linear(x, stored, bias))
    for run in runs[1:]:
        assert_same_bits(run, runs[0])
    assert_close(runs[0], x.to_dense().double() @ weight.double().T + bias.double(), terms=k + 1, dtype=dtype)


@pytest.mark.parametrize("shape", [(0, 5, 3, 2), (2, 5, 0, 2), (2, 5, 3, 0), (2, 0, 3, 0)])
def test_empty(implementation, shape):
    batch, inputs, units, k = shape
    x = some_ksparse(batch, inputs, k)
    weight, bias = torch.randn(units, inputs, requires_grad=True), torch.randn(units, requires_grad=True)
    y = dk.sparse_linear(KSparse(x.values.requires_grad_(), x.indices, inputs), weight, bias)
    assert y.shape == (batch, units) and (k != 0 or (y == bias).all())
    y.sum().backward()
    assert weight.grad.shape == weight.shape and (k != 0 or (weight.grad == 0).all())
    assert (bias.grad == batch).all() and x.values.grad.shape == (batch, k)
    assert units != 0 or (x.values.grad == 0).all()


def test_nan_and_infinity_reach_only_their_rows(implementation):
    x = KSparse(torch.tensor([[1.0, 2], [1, 2]]), torch.tensor([[0, 1], [2, 3]], dtype=torch.int32), 4)
    weight = torch.tensor([[1.0, 1, 1, float("nan")], [1, 1, float("inf"), 1]])
    y = dk.sparse_linear(x, weight)
    assert y[0].tolist() == [3, 3] and y[1, 0].isnan() and y[1, 1].isinf()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 12), st.integers(1, 80), st.integers(1, 80), st.data())
def test_any_shape(implementation, batch, inputs, units, data):
    k = data.draw(st.integers(0, inputs))
    x, weight = some_ksparse(batch, inputs, k), small_integers(units, inputs)
    assert_close(dk.sparse_linear(x, weight), x.to_dense().double() @ weight.double().T)


def test_gradcheck(implementation):
    indices = some_ksparse(4, 7, 3).indices
    args = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in [(4, 3), (5, 7), (5,)]]
    assert torch.autograd.gradcheck(lambda v, w, b: dk.sparse_linear(KSparse(v, indices, 7), w, b), args)
    assert torch.autograd.gradcheck(lambda v: KSparse(v, indices, 7).to_dense(), args[:1])


def test_opcheck(implementation):
    indices = some_ksparse(4, 7, 3).indices
    values, weight, bias = (torch.randn(s, requires_grad=True) for s in [(4, 3), (5, 7), (5,)])
    torch.library.opcheck(torch.ops.dendrite_kernels.sparse_linear.default, (values, indices, weight, bias))


def test_second_derivative_raises(implementation):
    x, weight = some_ksparse(4, 7, 3), torch.randn(5, 7, requires_grad=True)
    (grad,) = torch.autograd.grad(dk.sparse_linear(x, weight).square().sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives"):
        grad.sum().backward()


@pytest.mark.parametrize("bad", [-1, 7, 1 << 30])
def test_index_out_of_range(implementation, bad):
    x = KSparse(torch.ones(2, 2), torch.tensor([[0, 1], [2, bad]], dtype=torch.int32), 7)
    words = rf"indices: expected values in \[0, 7\), got {bad}"
    with pytest.raises(IndexError, match=words):
        dk.sparse_linear(x, torch.zeros(3, 7))
    with pytest.raises(IndexError, match=words):
        x.to_dense()


def test_indices_written_out_of_range_behind_our_back():
    x = dk.gated_kwinners_sparse(torch.randn(4, 9, requires_grad=True), None, None, None, 3)
    z = dk.linear_kwinners(x, torch.randn(6, 9), None, None, None, 2)
    z.indices.data.fill_(2_000_000_000)
    with pytest.raises(IndexError, match=r"indices: expected values in \[0, 6\), got 2000000000"):
        z.values.sum().backward()


@pytest.mark.parametrize("sparse_x", [False, True])
def test_saved_tensors_may_come_back_with_other_strides(implementation, sparse_x):
    def gradients():
        torch.manual_seed(1)
        y, weight = torch.randn(8, 20, requires_grad=True), torch.randn(30, 20, requires_grad=True)
        x = dk.gated_kwinners_sparse(y, None, None, None, 5) if sparse_x else y
        return torch.autograd.grad(
            dk.linear_kwinners(x, weight, None, None, None, 4).values.square().sum(), (y, weight)
        )

    want = gradients()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.T.contiguous(), lambda t: t.T):
        got = gradients()
    for mine, theirs in zip(got, want, strict=True):
        assert_close(mine, theirs, terms=20)


X = some_ksparse(2, 7, 3)


@pytest.mark.parametrize(
    "x, weight, bias, error, words",
    [
        (X, torch.zeros(4, 6), None, ValueError, r"x.size: expected I = 6 \(the columns of weight\), got 7"),
        (X, torch.zeros(4), None, ValueError, r"weight: expected shape \[O, I\]"),
        (X, torch.zeros(4, 7).double(), None, TypeError, "weight: expected torch.float32 to go with x"),
        (X, torch.zeros(4, 7), torch.zeros(3), ValueError, r"bias: expected shape \[O\] = \[4\], got \[3\]"),
        (X, torch.zeros(4, 7, device="meta"), None, ValueError, "weight: expected device cpu"),
        (X._replace(indices=X.indices.long()), torch.zeros(4, 7), None, TypeError, "x.indices: expected int32"),
        (X._replace(indices=X.indices[:1]), torch.zeros(4, 7), None, ValueError, r"x.indices: expected shape \[B, k\]"),
        (X._replace(size=-1), torch.zeros(4, 7), None, ValueError, "x.size: expected 0 or more"),
        (
            torch.zeros(2, 6),
            torch.zeros(4, 7),
            None,
            ValueError,
            r"x: expected shape \[B, I\] = \[any, 7\], got \[2, 6\]",
        ),
        ("x", torch.zeros(4, 7), None, TypeError, "x: expected a tensor"),
        (X, torch.zeros(4, 7).to_sparse(), None, TypeError, "weight: expected a strided tensor, got layout"),
        (X._replace(size=2**31), torch.zeros(4, 7), None, ValueError, "x: expected fewer than 2\\^31 entries"),
    ],
)
def test_bad_arguments_are_named(x, weight, bias, error, words):
    with pytest.raises(error, match=words):
        dk.sparse_linear(x, weight, bias)
