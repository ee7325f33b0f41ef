"""A weight's gradient and Adam's step in one pass of the CUDA backend, emulated on the host, against torch's Adam."""

import pytest
import torch

import dendrite_kernels as dk
from dendrite_kernels import reference as ref
from dendrite_kernels.backends.cuda import products
from dendrite_kernels.factored import FactoredGrad
from dendrite_kernels.nn import DendriticMLP
from dendrite_kernels.optim import SynapticIntelligence
from dendrite_kernels.sparsity import rezero_weights

BETAS, LR, EPS, STEPS = (0.9, 0.999), 0.01, 1e-8, 3


def rule_of(step):
    """As backends/triton/adam.py's `advance` leaves it on the device, and hyper."""
    rule = [LR / (1 - BETAS[0] ** step), (1 - BETAS[1] ** step) ** 0.5]
    return torch.tensor(rule, dtype=torch.float64), torch.tensor([LR, *BETAS, EPS], dtype=torch.float64)


def factors(batch, rows, columns, dtype, sparse_other):
    dy = torch.randn(batch, rows).to(dtype)
    dy = dk.KSparse(*ref.gated_kwinners_sparse(dy, k=max(1, rows // 12))[:2], rows)
    other = torch.randn(batch, columns).to(dtype)
    if sparse_other:
        other = dk.KSparse(*ref.gated_kwinners_sparse(other, k=max(1, columns // 9))[:2], columns)
    return dy, other


def dense(rows):
    return ref.ksparse_to_dense(*rows) if isinstance(rows, dk.KSparse) else rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("masked", [False, True], ids=["unmasked", "masked"])
@pytest.mark.parametrize("sparse_other", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("batch, rows, columns", [(1, 24, 1), (5, 130, 33), (40, 26, 1100)])
def test_steps(emulated, called, batch, rows, columns, sparse_other, masked, dtype):
    """Weight and both moments, those of rows without gradient too, over steps of different samples."""
    weight = torch.randn(rows, columns).to(dtype)
    keep = torch.rand(rows, columns) < 0.5 if masked else None
    weight = weight if keep is None else weight * keep
    plain = torch.nn.Parameter(weight.double())
    theirs = torch.optim.Adam([plain], LR, BETAS, EPS)
    m, v = torch.zeros_like(weight), torch.zeros_like(weight)
    for step in range(1, STEPS + 1):
        emulated(step - 1)
        sparse, other = factors(batch, rows, columns, dtype, sparse_other)
        assert products.adam_outer(weight, sparse, other, m, v, keep, *rule_of(step))
        plain.grad = dense(sparse).double().T @ dense(other).double()
        if masked:
            plain.grad *= keep
        theirs.step()
        # the gradient's rounding is of its largest term; Adam divides by its size, and moves by LR at most
        loose = 1e-12 if dtype == torch.float64 else 2e-5
        state = theirs.state[plain]
        torch.testing.assert_close(m.double(), state["exp_avg"], rtol=0, atol=loose)
        torch.testing.assert_close(v.double(), state["exp_avg_sq"], rtol=loose, atol=loose)
        torch.testing.assert_close(weight.double(), plain.detach(), rtol=loose, atol=loose * 10)
        if masked:
            assert all(t[~keep].eq(0).all() for t in (weight, m, v))
    assert called == ["adam_outer"] * STEPS


@pytest.mark.parametrize("counts_penalty", [False, True])
@pytest.mark.parametrize("sparse_other", [False, True], ids=["dense", "sparse"])
def test_steps_with_synapses(emulated, sparse_other, counts_penalty):
    rows, columns, strength = 30, 20, 3.0
    p, m, v, omega, importance, reference = torch.rand(6, rows, columns, dtype=torch.float64).unbind()
    was = [t.clone() for t in (p, m, v, omega)]
    sparse, other = factors(4, rows, columns, torch.float64, sparse_other)
    synapses = (omega, importance, reference, strength, counts_penalty)
    assert products.adam_outer(p, sparse, other, m, v, None, *rule_of(2), synapses)
    grad = dense(sparse).T @ dense(other)
    pulled = grad + strength * importance * (was[0] - reference)
    want_m, want_v = 0.9 * was[1] + 0.1 * pulled, 0.999 * was[2] + 0.001 * pulled**2
    rate, root = rule_of(2)[0]
    want = was[0] - rate * want_m / (want_v.sqrt() / root + EPS)
    want_omega = was[3] - (pulled if counts_penalty else grad) * (want - was[0])
    for got, wanted in zip((m, v, p, omega), (want_m, want_v, want, want_omega), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def test_no_winners_at_all(emulated):
    """Five units of which 5 % win, none: their gradient is zero, and the next layer's too."""
    ours, plain = (DendriticMLP(30, (60, 5), 4, 3, 20, percent_on=0.05).double() for _ in range(2))
    plain.load_state_dict(ours.state_dict())
    mine, theirs = dk.optim.Adam(ours, LR), torch.optim.Adam(plain.parameters(), LR)
    for batch in batches(torch.float64, 2):
        backward(ours, mine, *batch)
        backward(plain, theirs, *batch)
        mine.step()
        theirs.step()
        rezero_weights(plain)
    for p, q in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-10)


def test_what_it_does_not_take(emulated, called):
    """Nothing is touched then."""
    rule, (sparse, other) = rule_of(1), factors(3, 40, 8, torch.float32, False)
    p = torch.randn(40, 8)
    m, v, wide, keep = torch.zeros(40, 8), torch.zeros(40, 8), torch.zeros(40, 8).double(), torch.ones(8, 40).bool().T
    many = dk.KSparse(*ref.gated_kwinners_sparse(torch.randn(3, 40), k=20)[:2], 40)
    before = p.clone()
    assert not products.adam_outer(p, sparse, other, wide, v, None, *rule)
    assert not products.adam_outer(p, sparse, other, m, v, keep, *rule)
    assert not products.adam_outer(p, sparse, other, m, v, torch.ones(40, 8), *rule)  # a mask of floats
    assert not products.adam_outer(p, many, other, m, v, None, *rule)
    strided = torch.randn(8, 40).T
    assert not products.adam_outer(strided, sparse, other, strided * 0, strided * 0, None, *rule)
    half = p.half()
    sparse = dk.KSparse(sparse.values.half(), sparse.indices, 40)
    assert not products.adam_outer(half, sparse, other.half(), half * 0, half * 0, None, *rule)
    assert torch.equal(p, before) and m.eq(0).all() and called == []


# ---- the optimizer --------------------------------------------------------------------------------------------------


def networks(dtype, percent_on=0.1):
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        model = DendriticMLP(30, (60, 50), 4, 3, 20, weight_sparsity=0.5, percent_on=percent_on)
        models.append(model.to(dtype))
    return models


def batches(dtype, count):
    context = torch.randn(1, 20, dtype=dtype)
    for _ in range(count):
        yield torch.randn(6, 30, dtype=dtype), torch.randint(0, 4, (6,)), context


def backward(model, optimizer, x, labels, context):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(x, context), labels).backward()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("percent_on", [0.1, 0.4], ids=["few", "many"])
def test_adam_agrees_with_torch(emulated, called, percent_on, dtype):
    """Where many win the gradient is written out, and its step is Triton's."""
    ours, plain = networks(dtype, percent_on)
    mine, theirs = dk.optim.Adam(ours, LR), torch.optim.Adam(plain.parameters(), LR)
    for batch in batches(dtype, STEPS):
        backward(ours, mine, *batch)
        backward(plain, theirs, *batch)
        factored = [p for p in ours.parameters() if isinstance(p.grad, FactoredGrad)]
        assert {p.dim() for p in factored} == {2, 3}
        mine.step()
        theirs.step()
        rezero_weights(plain)
        for p, q in zip(ours.parameters(), plain.parameters(), strict=True):
            # Adam divides by the gradient's own size: its rounding shows as a share of the step
            assert (p - q).abs().max() < (1e-10 if dtype == torch.float64 else 0.02 * LR)
        with torch.no_grad():
            for p, q in zip(ours.parameters(), plain.parameters(), strict=True):
                q.copy_(p)
    weights = [*(layer.weight for layer in ours.layers), ours.output.weight]
    assert called.count("adam_outer") == (STEPS * len(weights) if percent_on == 0.1 else 0)
    assert all(mine.state[p].keys() == {"step", "exp_avg", "exp_avg_sq"} for p in weights)


def test_accumulated_gradients_are_one_step(emulated, called):
    ours, plain = networks(torch.float64)
    mine, theirs = dk.optim.Adam(ours, LR), torch.optim.Adam(plain.parameters(), LR)
    for model in (ours, plain):
        torch.manual_seed(1)
        for x, labels, context in batches(torch.float64, 2):
            torch.nn.functional.cross_entropy(model(x, context), labels).backward()
    mine.step()
    theirs.step()
    rezero_weights(plain)
    for p, q in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-10)
    assert called.count("adam_outer") == 3


@pytest.mark.parametrize("form", ["ours", "torch's"])
def test_checkpoints(emulated, form):
    model, other = networks(torch.float64)
    optimizer = dk.optim.Adam(model, LR)
    *before, last = batches(torch.float64, 3)
    for batch in before:
        backward(model, optimizer, *batch)
        optimizer.step()
    other.load_state_dict(model.state_dict())
    loaded = dk.optim.Adam(other, LR)
    loaded.load_state_dict(optimizer.state_dict() if form == "ours" else optimizer.torch_state_dict())
    for m, o in ((model, optimizer), (other, loaded)):
        backward(m, o, *last)
        o.step()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12)


@pytest.mark.parametrize("percent_on", [0.1, 0.4], ids=["few", "many"])
@pytest.mark.parametrize("variant", ["zenke", "adn"])
def test_synaptic_intelligence_rides_in_the_pass(emulated, called, variant, percent_on):
    """As around torch's Adam, which tests/test_synaptic_intelligence.py holds to the formulas."""
    ours, plain = networks(torch.float64, percent_on)
    mine = SynapticIntelligence(ours, dk.optim.Adam(ours, LR), c=30.0, xi=1e-3, variant=variant)
    theirs = SynapticIntelligence(plain, torch.optim.Adam(plain.parameters(), LR), c=30.0, xi=1e-3, variant=variant)
    for _task in range(3):
        for batch in batches(torch.float64, 2):
            for model, si in ((ours, mine), (plain, theirs)):
                backward(model, si.optimizer, *batch)
                if si is mine:
                    weight = ours.layers[1].weight
                    assert isinstance(weight.grad, FactoredGrad) and mine.optimizer.carries_synapses(weight)
                si.step()
            for p, q in zip(ours.parameters(), plain.parameters(), strict=True):
                torch.testing.assert_close(p, q, rtol=0, atol=1e-10)
            for name in mine.parameters:
                torch.testing.assert_close(mine.omega[name], theirs.omega[name], rtol=0, atol=1e-10)
        mine.end_task(), theirs.end_task()
    assert ("adam_outer" in called) == (percent_on == 0.1)
