"""dendrite_kernels.optim.Adam against torch.optim.Adam with dense gradients, and everything that may come between."""

import pytest
import torch

import dendrite_kernels as dk
from dendrite_kernels.backends import cpu
from dendrite_kernels.factored import FactoredGrad
from dendrite_kernels.nn import DendriticMLP
from dendrite_kernels.sparsity import rezero_weights
from dendrite_kernels.testing import assert_close, assert_same_bits

pytestmark = pytest.mark.skipif(
    cpu._cpu is None, reason="factored gradients need the native module: no C++ compiler here"
)

BATCH, LR = 24, 0.01


def make_model(dtype=torch.float64, **options):
    torch.manual_seed(0)
    sizes = {"input_size": 20, "hidden_sizes": (40, 37), "output_size": 5, "num_segments": 4, "dim_context": 13}
    return DendriticMLP(**{**sizes, "weight_sparsity": 0.5, "percent_on": 0.2, **options}).to(dtype)


def some_batch(kind, dtype, step=0):
    """x, labels, context and index: one context, several, or one that changes at the fourth step."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(BATCH, 20, generator=generator).to(dtype)
    labels = torch.randint(0, 5, (BATCH,), generator=generator)
    contexts = torch.randn(3, 13, generator=torch.Generator().manual_seed(99)).to(dtype)
    if kind == "several":
        return x, labels, contexts, torch.randint(0, 3, (BATCH,), generator=generator)
    return x, labels, contexts[int(kind == "changing" and step >= 3)][None], None


def backward(model, batch):
    x, labels, context, index = batch
    loss = torch.nn.functional.cross_entropy(model(x, context, index), labels)
    loss.backward()
    return loss.detach()


def one_step(model, optimizer, batch):
    optimizer.zero_grad()
    backward(model, batch)
    optimizer.step()


def parameters_agree(mine, theirs, dtype, terms=BATCH * 40):
    for (name, p), q in zip(mine.named_parameters(), theirs.parameters(), strict=True):
        if dtype == torch.float64:
            torch.testing.assert_close(p, q, rtol=0, atol=1e-10, msg=name)
        else:
            # Adam divides by the gradient's own size: its rounding error shows as a share of the step, not of p
            assert (p - q).abs().max() < 0.02 * LR, name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", ["one", "several", "changing"])
@pytest.mark.parametrize("segment_sparsity", [0.0, 0.5])
def test_twenty_steps_resynchronised_agree_with_torch(isa, dtype, kind, segment_sparsity):
    ours, plain = (make_model(dtype, segment_sparsity=segment_sparsity) for _ in range(2))
    mine, theirs = dk.optim.Adam(ours, LR), torch.optim.Adam(plain.parameters(), LR)
    start = {name: p.detach().clone() for name, p in ours.named_parameters()}
    for step in range(20):
        batch = some_batch(kind, dtype, step)
        for model, optimizer in ((ours, mine), (plain, theirs)):
            optimizer.zero_grad()
            backward(model, batch)
        grads = [p.grad.to_dense() if isinstance(p.grad, FactoredGrad) else p.grad for p in ours.parameters()]
        assert sum(isinstance(p.grad, FactoredGrad) for p in ours.parameters()) == 5
        for q, dense in zip(plain.parameters(), grads, strict=True):
            assert_close(dense, q.grad, terms=BATCH * 40, dtype=dtype)
        mine.step()
        theirs.step()
        rezero_weights(plain)
        parameters_agree(ours, plain, dtype)
        with torch.no_grad():
            for p, q in zip(ours.parameters(), plain.parameters(), strict=True):
                q.copy_(p)
    # rows that never had gradient are as they were, bit for bit
    for i, layer in enumerate(ours.layers):
        moments = mine.state[layer.segments.weights]["moments"]
        untouched = torch.ones(layer.segments.weights[..., 0].numel(), dtype=torch.bool)
        untouched[moments.touched().long()] = False
        assert untouched.any() and not untouched.all()
        rows = layer.segments.weights.detach().flatten(0, 1)
        assert_same_bits(rows[untouched], start[f"layers.{i}.segments.weights"].flatten(0, 1)[untouched])


def divides_by_the_smallest_moments(device):
    """Gradients of 1e-20 have second moments of 1e-43, below the least normal float32: no root may take that for 0."""
    layer = torch.nn.Linear(7, 5, device=device)
    before = [p.detach().clone() for p in layer.parameters()]
    optimizer = dk.optim.Adam(layer, lr=1e-3, eps=0.0)
    for p in layer.parameters():
        p.grad = torch.full_like(p, 1e-20)
    optimizer.step()
    for p, old in zip(layer.parameters(), before, strict=True):
        torch.testing.assert_close(old - p, torch.full_like(p, 1e-3), rtol=0.02, atol=0)


def test_without_eps(isa):
    divides_by_the_smallest_moments("cpu")


def test_the_same_bits_for_any_number_of_threads(threads):
    runs = []
    for count in (1, 2, 3):
        threads(count)
        model = make_model(torch.float32)
        optimizer = dk.optim.Adam(model, LR)
        for step in range(6):
            optimizer.zero_grad()
            x, labels, context, index = some_batch("changing", torch.float32, step)
            with torch.no_grad():  # k-sparse input, so that no product is torch's
                x = dk.gated_kwinners_sparse(x, None, None, None, 7)
            torch.nn.functional.cross_entropy(model(x, context, index), labels).backward()
            optimizer.step()
        runs.append([p.detach().clone() for p in model.parameters()])
    for run in runs[1:]:
        for mine, first in zip(run, runs[0], strict=True):
            assert_same_bits(mine, first)
