"""What training needs of the Triton backend, in its interpreter: gradients, the optimizer, a layer in one launch."""

import pytest
import torch

import dendrite_kernels as dk
from dendrite_kernels import reference as ref
from dendrite_kernels.backends import triton
from dendrite_kernels.backends.triton import plan, settings
from dendrite_kernels.factored import FactoredGrad
from dendrite_kernels.nn import DendriticMLP
from dendrite_kernels.ops.dendritic_linear import dendritic_layer
from dendrite_kernels.optim import SynapticIntelligence
from dendrite_kernels.reference import compute_dtype
from dendrite_kernels.sparsity import rezero_weights
from dendrite_kernels.testing import assert_close, assert_same_bits, special_rows

DTYPES = [torch.float32, torch.float64, torch.float16]
pytestmark = pytest.mark.usefixtures("interpreted")


# ---- rows that no program holds -------------------------------------------------------------------------------------


@pytest.fixture
def short_programs(monkeypatch):
    monkeypatch.setattr(settings, "LONGEST_ROW", 4)
    monkeypatch.setattr(settings, "LONG_ROWS", settings.Rows(32, 1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ties", ["lowest", "keep"])
def test_long_special_rows(short_programs, dtype, ties):
    rows = special_rows(37, dtype)
    for k in (1, 18) if dtype == torch.float32 else (18,):
        got = dk.gated_kwinners(rows, None, None, None, k, ties=ties)
        assert_same_bits(got, ref.gated_kwinners(rows, k=k, ties=ties)[0])


@pytest.mark.parametrize("units, k", [(16, 3), (17, 9), (70, 11)])
def test_long_rows_have_the_oracles_bits(short_programs, units, k):
    y, bias, gate, index = torch.randn(3, units), torch.randn(units), torch.rand(2, units), torch.tensor([1, 0, 1])
    options = {"boost": torch.rand(units), "relu": True, "combine": "add"}
    got = dk.gated_kwinners_sparse(y, gate, bias, index, k, **options)
    values, indices, _ = ref.gated_kwinners_sparse(y, gate, bias, index, k, **options)
    assert_same_bits(got.indices, indices)
    assert_same_bits(got.values, values)


# ---- gradients of k-sparse layers -----------------------------------------------------------------------------------


@pytest.fixture(params=["gathered", "dense"])
def products(request, monkeypatch):
    """Whether k-sparse gradients are gathered or written out for torch's products."""
    share, units = (1.0, 10**6) if request.param == "gathered" else (0.0, 0)
    monkeypatch.setattr(settings, "MOST_GATHERED_SHARE", share)
    monkeypatch.setattr(settings, "MOST_GATHERED_UNITS", units)


def k_sparse(batch, k, size, dtype):
    indices = torch.stack([torch.randperm(size)[:k].sort().values for _ in range(batch)]).int()
    return torch.randn(batch, k).to(dtype), indices


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("by_input", [True, False])
def test_gradients_of_a_k_sparse_product(products, dtype, by_input):
    values, indices = k_sparse(5, 4, 33, dtype)
    weight = torch.randn(33, 18).T if by_input else torch.randn(18, 33)
    leaves = [t.to(dtype).requires_grad_() for t in (values, weight, torch.randn(18))]
    grad = torch.randn(5, 18).to(dtype)
    got = torch.autograd.grad(dk.sparse_linear(dk.KSparse(leaves[0], indices, 33), *leaves[1:]), leaves, grad)
    wide = compute_dtype(dtype)
    grad, values, weight = (t.detach().to(wide) for t in (grad, *leaves[:2]))
    want = ref.sparse_linear_backward(grad, values, indices, weight, [True] * 3)
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, terms=18, dtype=dtype)


def test_repeated_indices_add(products):
    indices = torch.tensor([[1, 1, 4], [0, 2, 2], [3, 3, 3]], dtype=torch.int32)
    values, weight = torch.randn(3, 3, requires_grad=True), torch.randn(7, 5, requires_grad=True)
    x = dk.KSparse(values, indices, 5)
    dense = torch.zeros(3, 5).scatter_add(1, indices.long(), values.detach())
    assert_close(x.to_dense(), dense)
    grad = torch.randn(3, 7)
    got = torch.autograd.grad(dk.sparse_linear(x, weight), (values, weight), grad)
    assert_close(got[0], (grad @ weight.detach()).gather(1, indices.long()), terms=7)
    assert_close(got[1], grad.T @ dense, terms=9)


def layer_leaves(batch, contexts, dtype=torch.float32):
    shapes = ((batch, 21), (34, 21), (34,), (contexts, 9), (34, 3, 9), (34, 3))
    return [torch.randn(*shape).to(dtype).requires_grad_() for shape in shapes]


def layer_and_gradients(leaves, layer, index, sparse, **options):
    x, *rest = leaves
    if sparse:
        top = x.detach().topk(4, 1).indices.sort(1).values
        x = dk.KSparse(x.gather(1, top), top.int(), x.shape[1])
    z = layer(x, *rest, index, 5, **options)
    weights = torch.arange(1.0, 1 + z.values.numel()).view_as(z.values).to(z.values.dtype)
    return z, torch.autograd.grad(z.values, leaves, weights)


def agree(got, want, terms):
    assert_same_bits(got[0].indices, want[0].indices)
    assert_close(got[0].values, want[0].values, terms=terms)
    for a, b in zip(got[1], want[1], strict=True):
        assert_close(a, b, terms=terms)


def in_stages(*args, **options):
    return dk.dendritic_linear(*args, sparse=True, **options)


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("combine, relu", [("mul", True), ("add", False)])
def test_gradients_of_a_layer(products, sparse, combine, relu):
    leaves, index = layer_leaves(5, 3, torch.float64), torch.tensor([2, 0, 0, 1, 2])
    got = layer_and_gradients(leaves, in_stages, index, sparse, combine=combine, relu=relu)
    with dk.use_backend("reference"):
        want = layer_and_gradients(leaves, in_stages, index, sparse, combine=combine, relu=relu)
    agree(got, want, terms=34 * 5)


# ---- the whole layer in one launch ----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch, contexts, sparse", [(3, 1, False), (18, 2, False), (4, 4, True), (1, 1, True)])
def test_a_layer_in_one_launch(batch, contexts, sparse):
    leaves = layer_leaves(batch, contexts)
    index = torch.randint(0, contexts, (batch,)) if contexts == 2 else None
    options = {"combine": "add", "relu": True, "boost": torch.rand(34)} if sparse else {}
    got = layer_and_gradients(leaves, dendritic_layer, index, sparse, **options)
    with dk.use_backend("reference"):
        want = layer_and_gradients(leaves, in_stages, index, sparse, **options)
    agree(got, want, terms=34 * batch)


@pytest.mark.parametrize("training", [True, False])
def test_a_module_in_one_launch(monkeypatch, training):
    model = DendriticMLP(20, (40,), 5, 3, 13, percent_on=0.2, boost_strength=1.0).train(training)
    x, context = torch.randn(3, 20), torch.randn(1, 13)
    want = model(x, context)
    duty_cycle = model.layers[0].kwinners.duty_cycle.clone()
    monkeypatch.setenv("DENDRITE_PLAN", "one")
    model.layers[0].kwinners.duty_cycle.zero_()
    model.layers[0].kwinners.learning_iterations.zero_()
    launched = []
    launch = triton.dendritic_layer
    monkeypatch.setattr(triton, "dendritic_layer", lambda *args: launched.append(launch(*args)), raising=False)
    assert_close(model(x, context), want, terms=20 * 40)
    assert len(launched) == 1
    assert_same_bits(model.layers[0].kwinners.duty_cycle, duty_cycle)


def test_the_plan_gives_its_reason(monkeypatch):
    small = (4, 2048, 1, torch.float32)
    assert plan.choose(*small) == (False, "no GPU has run the barrier of its grid yet (DENDRITE_PLAN=one asks for it)")
    monkeypatch.setattr(plan, "BARRIER_HAS_RUN", True)
    assert plan.choose(*small)[0] and "launches cost more" in plan.choose(*small)[1]
    assert "more than 16 rows" in plan.choose(17, 2048, 1, torch.float32)[1]
    monkeypatch.setenv("DENDRITE_PLAN", "one")
    assert plan.choose(300, 2048, 1, torch.float32) == (True, "DENDRITE_PLAN=one")
    assert plan.choose(4, 2048, 1, torch.float64) == (False, "its product is of float32")
    assert not plan.choose(4, settings.LONGEST_ROW + 1, 1, torch.float32)[0]
    monkeypatch.setenv("DENDRITE_PLAN", "two")
    with pytest.raises(ValueError, match="DENDRITE_PLAN: expected one or many, got 'two'"):
        plan.choose(*small)


# ---- the optimizer --------------------------------------------------------------------------------------------------


def make_model(dtype, **options):
    torch.manual_seed(0)
    return DendriticMLP(12, (16, 14), 4, 3, 9, weight_sparsity=0.5, percent_on=0.2, **options).to(dtype)


def a_batch():
    return torch.randn(3, 12).double(), torch.randint(0, 4, (3,)), torch.randn(1, 9).double()


def gradients_of(model, optimizer, x, labels, context, index=None):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(x, context, index), labels).backward()


def same_step(ours, plain, mine, theirs, batch, dtype):
    """One step of both from the same parameters ends at the same ones."""
    for model, optimizer in ((ours, mine), (plain, theirs)):
        gradients_of(model, optimizer, *batch)
    assert sum(isinstance(p.grad, FactoredGrad) for p in ours.parameters()) == 2  # the segments'
    mine.step()
    theirs.step()
    rezero_weights(plain)
    for p, q in zip(ours.parameters(), plain.parameters(), strict=True):
        if dtype == torch.float64:
            torch.testing.assert_close(p, q, rtol=0, atol=1e-10)
        else:  # Adam divides by the gradient's own size: its rounding shows as a share of the step
            assert (p - q).abs().max() < 0.02 * 0.01
    with torch.no_grad():
        for p, q in zip(ours.parameters(), plain.parameters(), strict=True):
            q.copy_(p)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("segment_sparsity", [0.0, 0.5])
def test_adam_agrees_with_torch(dtype, segment_sparsity):
    """One context, then several, then the one again."""
    ours, plain = (make_model(dtype, segment_sparsity=segment_sparsity) for _ in range(2))
    mine, theirs = dk.optim.Adam(ours, 0.01), torch.optim.Adam(plain.parameters(), 0.01)
    start = [layer.segments.weights.detach().clone() for layer in ours.layers]
    x, labels, contexts = torch.randn(4, 12).to(dtype), torch.randint(0, 4, (4,)), torch.randn(2, 9).to(dtype)
    moments, one = [], contexts[:1].clone()
    for step in range(3):
        mixed = step == 1
        batch = (x + step, labels, contexts, torch.tensor([0, 1, 1, 0])) if mixed else (x + step, labels, one)
        same_step(ours, plain, mine, theirs, batch, dtype)
        moments.append([mine.state[layer.segments.weights]["moments"] for layer in ours.layers])
        assert all(m.rank1 == (step < 1) for m in moments[-1])
    for layer, before, m in zip(ours.layers, start, moments[-1], strict=True):
        untouched = m.touched == 0
        assert untouched.any() and not untouched.all()
        assert_same_bits(layer.segments.weights.detach()[untouched], before[untouched])


def test_another_tensor_is_another_context():
    """To compare them would be to wait; and one that was written to since is not the same either."""
    model, (x, labels, context) = make_model(torch.float64), a_batch()
    for change in (lambda c: c.clone(), lambda c: c.mul_(2)):
        optimizer = dk.optim.Adam(model, 0.01)
        gradients_of(model, optimizer, x, labels, context)
        optimizer.step()
        moments = optimizer.state[model.layers[0].segments.weights]["moments"]
        before = [t.clone() for t in moments._written_out()]
        assert moments.rank1
        gradients_of(model, optimizer, x, labels, change(context))
        factor = model.layers[0].segments.weights.grad.one_factor()
        optimizer.step()
        assert not moments.rank1
        rows = torch.arange(16), factor.winner[0].long()
        dense = torch.zeros(16, 3, 9).double().index_put_(rows, factor.grad[0, :, None] * factor.context)
        torch.testing.assert_close(moments.m, 0.9 * before[0] + 0.1 * dense, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", ["ours", "torch's"])
def test_checkpoints(form):
    model, (x, labels, context) = make_model(torch.float64), a_batch()
    optimizer = dk.optim.Adam(model, 0.01)
    for _ in range(2):
        gradients_of(model, optimizer, x, labels, context)
        optimizer.step()
    other = make_model(torch.float64)
    other.load_state_dict(model.state_dict())
    loaded = dk.optim.Adam(other, 0.01)
    loaded.load_state_dict(optimizer.state_dict() if form == "ours" else optimizer.torch_state_dict())
    for m, o in ((model, optimizer), (other, loaded)):
        gradients_of(m, o, x, labels, context)
        o.step()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12)


def test_a_checkpoint_of_another_device_is_refused():
    model = make_model(torch.float64)
    with dk.use_backend("cpu"):
        optimizer = dk.optim.Adam(model, 0.01)
        gradients_of(model, optimizer, *a_batch())
        optimizer.step()
    saved = optimizer.state_dict()
    with pytest.raises(ValueError, match="another device; save torch_state_dict"):
        dk.optim.Adam(model, 0.01).load_state_dict(saved)


@pytest.mark.parametrize("variant", ["zenke", "adn"])
def test_synaptic_intelligence_rides_in_the_pass(variant):
    """As around torch's Adam, which tests/test_synaptic_intelligence.py holds to the formulas."""
    ours, plain = make_model(torch.float64), make_model(torch.float64)
    mine = SynapticIntelligence(ours, dk.optim.Adam(ours, 0.01), c=30.0, xi=1e-3, variant=variant)
    theirs = SynapticIntelligence(plain, torch.optim.Adam(plain.parameters(), 0.01), c=30.0, xi=1e-3, variant=variant)
    for _task in range(3):
        batch = a_batch()
        for _step in range(2):
            for model, si in ((ours, mine), (plain, theirs)):
                gradients_of(model, si.optimizer, *batch)
                si.step()
            for p, q in zip(ours.parameters(), plain.parameters(), strict=True):
                torch.testing.assert_close(p, q, rtol=0, atol=1e-10)
            for name in mine.parameters:
                torch.testing.assert_close(mine.omega[name], theirs.omega[name], rtol=0, atol=1e-10)
        gradients_of(ours, mine.optimizer, *batch)
        assert mine.optimizer.carries_synapses(ours.layers[0].weight)
        assert not mine.optimizer.carries_synapses(ours.layers[0].segments.weights)
        mine.end_task(), theirs.end_task()
    assert float(mine.penalty()) == 0 and max(float(t.max()) for t in mine.importance.values()) > 0
