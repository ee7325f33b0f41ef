"""A user's training script, written plainly, with its layers swapped for ours: the same losses, compiled, under
autocast, or both.

Both networks start each step from the same parameters, as winners that rounding flips would drive them apart. Under
autocast our DendriticLinear adds its bias in float32 where nn.Linear adds it in half, so the layers here have none.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dendrite_kernels.nn import DendriticLinear, KWinners, SparseLinear
from dendrite_kernels.testing import assert_close

INPUTS, UNITS, K, CLASSES, BATCH, STEPS, SEGMENTS, DIM = 30, 80, 8, 5, 64, 12, 4, 7


class PlainKWinners(nn.Module):
    def forward(self, y):
        threshold = y.topk(K, dim=1).values[:, -1:]
        return torch.where(y >= threshold, y, 0)


class PlainDendrites(nn.Module):
    """Linear, gate and winners; a careful user keeps the gate out of autocast, as a flipped segment moves it by far."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(UNITS, INPUTS))
        self.segments = nn.Parameter(torch.empty(UNITS, SEGMENTS, DIM))
        self.winners = PlainKWinners()

    def forward(self, x, context):
        with torch.autocast("cpu", enabled=False):
            activations = torch.einsum("gc,osc->gos", context, self.segments)
            strongest = activations.gather(2, activations.abs().argmax(2, keepdim=True)).squeeze(2)
        return self.winners(F.linear(x, self.weight) * strongest.sigmoid())


class Network(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x, context):
        for layer in self.layers:
            x = layer(x, context) if isinstance(layer, PlainDendrites | DendriticLinear) else layer(x)
        return x


def winners(**options):
    return KWinners(UNITS, K / UNITS, **options)


# name: the plain network, and ours
SCRIPTS = {
    "nn.Linear": (
        lambda: Network(nn.Linear(INPUTS, UNITS), PlainKWinners(), nn.Linear(UNITS, CLASSES)),
        lambda: Network(SparseLinear(INPUTS, UNITS), PlainKWinners(), SparseLinear(UNITS, CLASSES)),
    ),
    "and the activation": (
        lambda: Network(nn.Linear(INPUTS, UNITS), PlainKWinners(), nn.Linear(UNITS, CLASSES)),
        lambda: Network(SparseLinear(INPUTS, UNITS), winners(ties="keep"), SparseLinear(UNITS, CLASSES)),
    ),
    "both as one layer": (
        lambda: Network(nn.Linear(INPUTS, UNITS, bias=False), PlainKWinners(), nn.Linear(UNITS, CLASSES)),
        lambda: Network(
            DendriticLinear(INPUTS, UNITS, 1, 1, bias=False, dendrite="none", kwinners=winners(ties="keep")),
            SparseLinear(UNITS, CLASSES),
        ),
    ),
    "with dendrites, k-sparse": (
        lambda: Network(PlainDendrites(), nn.Linear(UNITS, CLASSES)),
        lambda: Network(
            DendriticLinear(INPUTS, UNITS, SEGMENTS, DIM, bias=False, kwinners=winners(sparse=True)),
            SparseLinear(UNITS, CLASSES, input_major=True),
        ),
    ),
}


def copy_parameters(to, source):
    with torch.no_grad():
        for mine, theirs in zip(to.parameters(), source.parameters(), strict=True):
            mine.copy_(theirs)


def train_side_by_side(plain, ours, half, compiled, dtype):
    """Losses of both, step by step; gradients agree to this dtype."""
    centres, context = torch.randn(CLASSES, INPUTS), torch.randn(1, DIM)
    optimizer, losses = torch.optim.Adam(ours.parameters(), lr=0.01), []
    forward = torch.compile(ours, fullgraph=True) if compiled else ours
    for _ in range(STEPS):
        copy_parameters(plain, ours)
        labels = torch.randint(0, CLASSES, (BATCH,))
        x = centres[labels] + torch.randn(BATCH, INPUTS)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            losses.append([F.cross_entropy(model(x, context), labels) for model in (forward, plain)])
        losses[-1][0].backward()
        gradients = [p.grad for p in ours.parameters()], torch.autograd.grad(losses[-1][1], list(plain.parameters()))
        for mine, theirs in zip(*gradients, strict=True):
            assert_close(mine, theirs, terms=BATCH, dtype=dtype)
        optimizer.step()
    return losses


def cell(name, half, compiled):
    # inductor takes its time: once with autocast for the layer that has everything, the others by hand
    quick = not compiled or name == "with dendrites, k-sparse"
    return pytest.param(name, half, compiled, marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize(
    "name, half, compiled", [cell(n, half, compiled) for n in SCRIPTS for half in (False, True) for compiled in (0, 1)]
)
def test_the_same_losses(name, half, compiled):
    torch._dynamo.reset()
    plain, ours = (make() for make in SCRIPTS[name])
    # where sums are taken in another order or inductor leaves out casts, a half may be rounded the other way
    dtype = torch.bfloat16 if half and (compiled or "k-sparse" in name) else torch.float32
    losses = train_side_by_side(plain, ours, half, compiled, dtype)
    for mine, theirs in losses:
        assert mine.dtype == theirs.dtype == torch.float32  # cross_entropy is in autocast's list of float32
        assert_close(mine, theirs, terms=UNITS, dtype=dtype)
    assert losses[-1][0] < 0.8 * losses[0][0]  # it learns
