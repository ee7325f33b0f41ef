"""A whole training step of the papers' network (bench/step.py times it in full), and of a small one."""

from itertools import count

import pytest
import torch
from baselines import PlainNetwork
from dendrite_lab.permuted import PermutedMNIST
from workload import LR, Ours, check_agreement, load_data

from dendrite_kernels.nn import DendriticMLP
from dendrite_kernels.optim import Adam

RIVALS = ["ours", "ours, dense gradients", "sources' way, fused Adam", "rewritten, fused Adam"]


@pytest.fixture(scope="module")
def data():
    return load_data(None)


@pytest.mark.parametrize("segments", [10, 100])
@pytest.mark.parametrize("label", RIVALS)
def bench_training_step(benchmark, race, label, segments, data):
    mnist, source = data
    benchmark.group = f"training step, S = {segments}, {source} data"
    ours = Ours(segments, PermutedMNIST(mnist, 2), 256, dense="dense" in label)
    for _ in range(20):
        ours.step(ours.next_batch())
    plain = PlainNetwork(ours.model, rewritten="rewritten" in label)
    check_agreement(ours.model, plain, ours.next_batch())
    rounds, optimizer, turns = 15 if "ours" in label else 5, None, count()

    def next_batch():
        """A new batch a step. In the middle a new task starts: with its context, and a new Adam on either side."""
        nonlocal optimizer
        turn = next(turns)
        if turn == rounds // 2 + 2:  # after the step that is checked, and the one that warms up
            ours.start_task(1)
        if turn in (0, rounds // 2 + 2):
            optimizer = torch.optim.Adam(plain.parameters(), lr=LR, fused=True)
        return ours.next_batch()

    def step(*batch):
        return ours.step(batch) if "ours" in label else plain.train_step(optimizer, *batch)

    race(label, step, lambda _: None, shape="784-2048-2048-10, B = 256", inputs=next_batch, rounds=rounds, warmup=1)


@pytest.mark.parametrize("label", ["ours", "rewritten, fused Adam"])
def bench_small_training_step(benchmark, race, label):
    """Where calls, not sums, take the time."""
    benchmark.group = "training step of a small network, S = 5"
    torch.manual_seed(0)
    model = DendriticMLP(64, (128, 128), 10, num_segments=5, dim_context=64, weight_sparsity=0.5, percent_on=0.05)
    plain = PlainNetwork(model, rewritten=True)
    batch = torch.randn(32, 64), torch.randint(0, 10, (32,)), torch.randn(1, 64)
    check_agreement(model, plain, batch)
    mine, theirs = Adam(model, lr=LR), torch.optim.Adam(plain.parameters(), lr=LR, fused=True)

    def ours():
        x, labels, context = batch
        mine.zero_grad()
        torch.nn.functional.cross_entropy(model(x, context), labels).backward()
        mine.step()

    step = ours if label == "ours" else lambda: plain.train_step(theirs, *batch)
    race(label, step, lambda _: None, shape="64-128-128-10, B = 32", rounds=200, warmup=20)
