"""A whole training step of the papers' network (bench/step.py times it in full)."""

from itertools import count

import pytest
import torch
from baselines import PlainNetwork
from dendrite_lab.permuted import PermutedMNIST
from workload import LR, Ours, check_agreement, load_data


@pytest.fixture(scope="module")
def data():
    return load_data(None)


@pytest.mark.parametrize("segments", [10, 100])
@pytest.mark.parametrize("label", ["ours", "ours, dense gradients", "plain, fused Adam"])
def bench_training_step(benchmark, race, label, segments, data):
    mnist, source = data
    benchmark.group = f"training step, S = {segments}, {source} data"
    ours = Ours(segments, PermutedMNIST(mnist, 2), 256, dense="dense" in label)
    for _ in range(20):
        ours.step(ours.next_batch())
    plain = PlainNetwork(ours.model)
    check_agreement(ours.model, plain, ours.next_batch())
    rounds, optimizer, turns = 3 if "plain" in label else 15, None, count()

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
        return plain.train_step(optimizer, *batch) if "plain" in label else ours.step(batch)

    race(label, step, lambda _: None, shape="784-2048-2048-10, B = 256", inputs=next_batch, rounds=rounds, warmup=1)
