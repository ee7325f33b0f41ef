"""The CUDA backend's kernels and launchers, emulated on the host (tests/emulator), against the oracle.

Each value is asked for with the threads of a block run warp by warp, backwards and shuffled: where a synchronisation is
missing, one of them differs.
"""

import pytest
import torch

import dendrite_kernels as dk
from dendrite_kernels import factored
from dendrite_kernels import reference as ref
from dendrite_kernels.backends.cuda import native, plan, products
from dendrite_kernels.nn import DendriticMLP
from dendrite_kernels.reference import compute_dtype
from dendrite_kernels.testing import DTYPES, assert_close, assert_same_bits, special_rows

ORDERS = [0, 1, 2]


@pytest.fixture(params=ORDERS, ids=["by_warp", "backwards", "shuffled"])
def ordered(request, emulated):
    emulated(request.param)


def split_everything(monkeypatch, tile):
    monkeypatch.setattr(plan, "winners", lambda *_: plan.Winners("split", tile))


def one_block(monkeypatch):
    monkeypatch.setattr(plan, "winners", lambda *_: plan.Winners("block"))


def assert_winners(y, gate, bias, index, k, combine="mul", boost=None, relu=False):
    """Every output of both ops: values, what gradients need of them, and the mask of a dense row."""
    ops, options = torch.ops.dendrite_kernels, {"combine": combine, "boost": boost, "relu": relu}
    want = ref.gated_kwinners_sparse(y, gate, bias, index, k, **options)
    for a, b in zip(ops.gated_kwinners_sparse(y, gate, bias, index, k, *options.values()), want, strict=True):
        assert_same_bits(a, b)
    for ties in ("lowest", "keep"):
        want = ref.gated_kwinners(y, gate, bias, index, k, ties=ties, **options)
        for a, b in zip(ops.gated_kwinners(y, gate, bias, index, k, *options.values(), ties), want, strict=True):
            assert_same_bits(a, b)


def gates_of(batch, units, wide):
    one, each, some = (torch.rand(rows, units, dtype=wide) for rows in (1, batch, 3))
    index = torch.randint(0, 3, (batch,))
    return [(None, None), (one, None), (each, None), (some, index), (some, index.int())]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("units", [1, 5, 100, 257, 1024, 2000])
def test_a_warp_a_row(ordered, called, units, dtype):
    wide, batch = compute_dtype(dtype), 3
    y, bias, boost = torch.randn(batch, units).to(dtype), torch.randn(units).to(dtype), torch.rand(units, dtype=wide)
    kinds = [{}, {"combine": "add", "relu": True, "boost": boost}]
    for place, (gate, index) in enumerate(gates_of(batch, units, wide)):
        assert_winners(y, gate, bias if place % 2 else None, index, units // 20 + 1, **kinds[place % 2])
    assert set(called) == {"kwinners"}


@pytest.mark.parametrize("units", [2050, 3000, 4096])
def test_the_longest_rows_of_a_warp(ordered, units):
    """2050 units can't be read four at a time, so that a block takes them."""
    y, gate = torch.randn(2, units), torch.rand(1, units)
    for k in (40, units // 2):
        assert_winners(y, gate, None, None, k, boost=torch.rand(units))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("how", ["warp", "block", "split"])
def test_special_rows(emulated, monkeypatch, how, dtype):
    """Ties, signed zeros, NaN, infinities, denormals and constants, by each kernel."""
    if how == "block":
        one_block(monkeypatch)
    if how == "split":
        split_everything(monkeypatch, 200)
    rows = special_rows(301, dtype)
    for order, k in zip((2, 1, 0), (400, 30, 300), strict=True):
        emulated(order)
        assert_winners(rows, None, None, None, k, relu=k == 400)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("how", ["block", "split"])
def test_radix(ordered, monkeypatch, how, dtype):
    """More entries than a block has threads, tiles that end within and at the end of the row, ties across tiles."""
    (one_block if how == "block" else lambda m: split_everything(m, 600))(monkeypatch)
    y = torch.cat([torch.randn(1, 1800), torch.randn(1, 1800).round()]).to(dtype)
    index, gate = torch.tensor([2, 0]), torch.rand(3, 1800, dtype=compute_dtype(dtype))
    assert_winners(y, gate, torch.randn(1800).to(dtype), index, 90, boost=torch.rand_like(gate[0]), relu=True)
    assert_winners(y[1:, :1701], None, None, None, 700)


def test_degenerate_winners(emulated):
    for y, k in ((torch.randn(0, 7), 3), (torch.randn(2, 7), 0), (torch.randn(2, 7), 9), (torch.randn(3, 0), 2)):
        assert_winners(y, None, None, None, k)
    strided = torch.randn(64, 6).T
    assert_winners(strided[:, ::2], torch.rand(1, 32), None, None, 5)
    unaligned = torch.randn(2 * 64 + 1)[1:].view(2, 64)  # rows of fours that lie beside their boundaries
    assert_winners(unaligned, None, torch.randn(65)[1:], None, 5)


# ---- products and gradients -----------------------------------------------------------------------------------------


def ksparse_rows(batch, size, k, dtype):
    values, indices, _ = ref.gated_kwinners_sparse(torch.randn(batch, size).to(dtype), k=k)
    return dk.KSparse(values, indices, size)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("by_input", [True, False])
@pytest.mark.parametrize("batch, units, k", [(1, 33, 1), (3, 70, 9), (24, 8, 40)])
def test_product(ordered, called, batch, units, k, by_input, dtype):
    x, bias = ksparse_rows(batch, 90, k, dtype), torch.randn(units).to(dtype)
    weight = torch.randn(90, units).to(dtype).T if by_input else torch.randn(units, 90).to(dtype)
    want = ref.sparse_linear(x.values, x.indices, weight, bias)
    assert_close(dk.sparse_linear(x, weight, bias), want, terms=k + 1)
    assert called == ["gather_product"]


def test_a_repeated_index_adds(ordered):
    values, indices = torch.randn(4, 6), torch.tensor([[0, 3, 3, 3, 9, 9]] * 4, dtype=torch.int32)
    x, weight, grad = dk.KSparse(values, indices, 80), torch.randn(80, 7).T, torch.randn(4, 7)
    assert_close(dk.sparse_linear(x, weight), x.to_dense() @ weight.T, terms=6)
    out = torch.empty(80, 7)
    products.outer(out, x, grad)
    assert_close(out, x.to_dense().T @ grad, terms=6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch, rows, columns", [(1, 40, 1), (5, 130, 33), (70, 50, 1100)])
def test_outer(ordered, called, batch, rows, columns, dtype):
    """Exact: each sum is made in the order of the batch, as here."""
    sparse, wide = ksparse_rows(batch, rows, rows // 20 + 1, dtype), compute_dtype(dtype)
    others = [torch.randn(batch, columns).to(dtype), ksparse_rows(batch, columns, columns // 20 + 1, dtype)]
    for other in others:
        out = torch.empty(rows, columns, dtype=dtype)
        products.outer(out, sparse, other)
        dense = other if isinstance(other, torch.Tensor) else ref.ksparse_to_dense(*other)
        x, want = ref.ksparse_to_dense(*sparse).double(), torch.zeros(rows, columns, dtype=torch.float64)
        for b in range(batch):  # as fma rounds: the product is exact, the sum is rounded to the compute dtype
            want = (want + x[b, :, None] * dense[b].double()).to(wide).double() if dtype != torch.float64 else (
                torch.addcmul(want, x[b, :, None], dense[b])
            )  # fmt: skip
        (assert_close if dtype == torch.float64 else assert_same_bits)(out, want.to(dtype))
    assert called == ["outer", "outer"]


def test_gradients_without_entries(emulated):
    x, weight = ksparse_rows(3, 40, 4, torch.float32), torch.randn(9, 40, requires_grad=True)
    dk.linear_kwinners(x, weight, None, None, None, 0).values.sum().backward()
    assert torch.equal(weight.grad, torch.zeros(9, 40))


def test_what_outer_leaves_to_triton(emulated, called):
    dense, sparse = torch.randn(3, 8), ksparse_rows(3, 40, 3, torch.float32)
    cases = [
        (torch.empty(8, 40).T, sparse, dense),  # rows apart
        (torch.empty(40, 8), ksparse_rows(3, 40, 20, torch.float32), dense),  # many entries
        (torch.empty(40, 13_000), sparse, ksparse_rows(3, 13_000, 2, torch.float32)),  # a row too long to share
    ]
    for case in cases:
        products.outer(*case)
        other = case[2] if isinstance(case[2], torch.Tensor) else ref.ksparse_to_dense(*case[2])
        assert_close(case[0], ref.ksparse_to_dense(*case[1]).T @ other, terms=3)
    assert called == []


def test_columns_that_no_grid_takes_are_tritons():
    sparse = ksparse_rows(1, 40, 3, torch.float32)
    for columns, takes in ((plan.MOST_COLUMNS, True), (plan.MOST_COLUMNS + 1, False)):
        out, dense = (torch.empty(rows, columns, device="meta") for rows in (40, 1))
        assert products._takes_outer(out, sparse, dense) is takes


def test_an_unknown_kernel_is_an_error(emulated):
    y, z, kept = torch.zeros(1, 8), torch.zeros(1, 8), torch.zeros(1, 8, dtype=torch.bool)
    flags = (None, None, None, None, 0, False, False, 1, 8, 3, False, False, z, kept, None, None, None)
    for dtype, how, size in ((torch.float32, "warp", 16), (torch.float64, "warp", 128), (torch.float32, "wrap", 8)):
        with pytest.raises(ValueError, match="no kernel"):
            given = [t.to(dtype) if t is y or t is z else t for t in (y, *flags)]
            native.call("kwinners", dtype, *given, how, size, 1, None)


def test_what_the_others_leave_to_triton(emulated, called, monkeypatch):
    monkeypatch.setattr(plan, "LONGEST_ROW", 50)
    assert_winners(torch.randn(2, 51), None, None, None, 5)
    x, weight = ksparse_rows(30, 40, 4, torch.float32), torch.randn(9, 40)
    assert_close(dk.sparse_linear(x, weight), x.to_dense() @ weight.T, terms=40)
    gate, winner = dk.segment_gate(torch.randn(1, 20), torch.randn(9, 3, 20))
    assert gate.shape == winner.shape == (1, 9)
    assert called == []


@pytest.mark.parametrize("contexts", [1, 3])
def test_a_network_trains_as_on_the_reference(ordered, called, contexts):
    """Gradients of every parameter, two hidden layers: dense x, then k-sparse x, weights stored by input."""
    torch.manual_seed(1)
    model = DendriticMLP(30, (60, 50), 4, 3, 20, weight_sparsity=0.5, percent_on=0.1).double()
    x, labels, context = torch.randn(6, 30).double(), torch.randint(0, 4, (6,)), torch.randn(contexts, 20).double()
    index = torch.randint(0, contexts, (6,)) if contexts > 1 else None

    def gradients():
        loss = torch.nn.functional.cross_entropy(model(x, context, index), labels)
        return [loss, *torch.autograd.grad(loss, list(model.parameters()))]

    got = gradients()
    with dk.use_backend("reference"):
        want = gradients()
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    assert {"kwinners", "gather_product", "outer"} == set(called)


def test_a_factor_written_out(emulated, called):
    """What a factored gradient stands for comes from `outer`."""
    dy, x = ksparse_rows(7, 40, 3, torch.float32), torch.randn(7, 12)
    dense = factored.OuterFactor(dy, x, by_input=False).to_dense(torch.empty(40, 12))
    assert_close(dense, ref.ksparse_to_dense(*dy).T @ x, terms=7)
    assert called == ["outer"]


def test_the_emulator_sees_a_missing_synchronisation(emulator_path):
    """A warp that reads what its neighbours wrote, with and without __syncwarp between."""
    import ctypes

    library = ctypes.CDLL(str(emulator_path))
    results = {}
    for synchronised in (0, 1):
        for order in ORDERS:
            library.set_order(order)
            results[synchronised, order] = library.neighbours(synchronised)
    library.set_order(0)
    assert [results[1, order] for order in ORDERS] == [32, 32, 32]
    assert min(results[0, order] for order in ORDERS) < 32
