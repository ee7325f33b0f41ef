"""A whole training step of the papers' network, torch's fused Adam on both sides (bench/step.py times it in full)."""

import pytest
import torch
from baselines import PlainNetwork
from dendrite_lab.permuted import PermutedMNIST
from workload import LR, Ours, check_agreement, load_data


@pytest.fixture(scope="module")
def data():
    return load_data(None)


@pytest.mark.parametrize("segments", [10, 100])
@pytest.mark.parametrize("label", ["ours", "plain"])
def bench_training_step(benchmark, race, label, segments, data):
    mnist, source = data
    benchmark.group = f"training step, S = {segments}, fused Adam, {source} data"
    ours = Ours(segments, PermutedMNIST(mnist, 1), 256)
    for _ in range(20):
        ours.step(ours.next_batch())
    plain = PlainNetwork(ours.model)
    check_agreement(ours.model, plain, ours.next_batch())
    optimizer = torch.optim.Adam(plain.parameters(), lr=LR, fused=True)
    batch = ours.next_batch()
    step = (lambda: ours.step(batch)) if label == "ours" else (lambda: plain.train_step(optimizer, *batch))
    race(label, step, lambda _: None, shape="784-2048-2048-10, B = 256", rounds=15 if label == "ours" else 3, warmup=1)
