"""Frozen networks: one sample and many, ten contexts whose gates are known, the module called with an index."""

import pytest
import torch
from baselines import PlainNetwork
from dendrite_lab.permuted import PIXELS
from workload import make_model

from dendrite_kernels.nn import nearest_prototype

CONTEXTS = 10


@pytest.fixture(scope="module")
def networks():
    ours = make_model(segments=10).eval()
    return ours, PlainNetwork(ours).eval()


@pytest.mark.parametrize("batch", [1, 256])
@pytest.mark.parametrize("label", ["ours", "plain", "ours, choosing the prototype too", "plain, choosing it too"])
@torch.no_grad()
def bench_inference(benchmark, race, label, batch, networks):
    benchmark.group = f"inference, S = 10, {CONTEXTS} contexts, B = {batch}"
    ours, plain = networks
    ink = torch.rand(batch, PIXELS) < 0.19  # as MNIST: the rest is background
    x = torch.where(ink, torch.rand(batch, PIXELS), torch.zeros(()))
    prototypes = torch.rand(CONTEXTS, PIXELS)
    index = nearest_prototype(x, prototypes)

    def run():
        if "ours" in label:
            return ours(x, prototypes, nearest_prototype(x, prototypes) if "choosing" in label else index)
        chosen = torch.cdist(x, prototypes).argmin(1) if "choosing" in label else index
        return plain(x, prototypes[chosen.long()])

    want = plain(x, prototypes[index.long()])

    def check(out):
        differing = (out - want).abs().amax(1) > 1e-4 * want.abs().max()
        assert differing.float().mean() <= 0.02  # a winner on an edge changes its sample

    race(label, run, check, shape="784-2048-2048-10", rounds=200 if batch == 1 else 15, warmup=5)
