"""Frozen networks: one sample and many, ten contexts whose gates are known, the module called with an index."""

import pytest
import torch
from baselines import PlainNetwork, gather_product, plain_gate, topk_kwinners
from dendrite_lab.permuted import PIXELS
from torch.nn.functional import linear
from workload import make_model

from dendrite_kernels.nn import nearest_prototype

CONTEXTS = 10


class KeptGates:
    """The network rewritten for one set of contexts: gates made once, and layers that read what they need."""

    def __init__(self, plain: PlainNetwork, contexts: torch.Tensor):
        self.layers, self.output = plain.layers, (plain.weight, plain.bias)
        self.gates = [plain_gate(contexts, layer.segments) for layer in plain.layers]
        self.columns = plain.layers[1].weight.T.contiguous()

    def dense(self, x, index):
        for layer, gates in zip(self.layers, self.gates, strict=True):
            x = topk_kwinners(linear(x, layer.weight, layer.bias) * gates[index], layer.k)
        return linear(x, *self.output)

    def by_columns(self, x, index):
        """The second layer reads its inputs' columns alone."""
        first, second = self.layers
        winners = (linear(x, first.weight, first.bias) * self.gates[0][index]).topk(first.k, 1, sorted=False)
        y = gather_product(winners.values, winners.indices, self.columns.T)
        return linear(topk_kwinners((y + second.bias) * self.gates[1][index], second.k), *self.output)


@pytest.fixture(scope="module")
def networks():
    ours, prototypes = make_model(segments=10).eval(), torch.rand(CONTEXTS, PIXELS)
    plain = PlainNetwork(ours).eval()
    with torch.no_grad():
        return ours, plain, KeptGates(plain, prototypes), prototypes


CALLS = {  # label: its call with an index, which "choosing" finds too
    "ours": lambda ours, plain, kept, x, prototypes, index: ours(x, prototypes, index),
    "gates made for each sample": lambda ours, plain, kept, x, prototypes, index: plain(x, prototypes[index]),
    "gates kept": lambda ours, plain, kept, x, prototypes, index: kept.dense(x, index),
    "gates kept, embedding_bag": lambda ours, plain, kept, x, prototypes, index: kept.by_columns(x, index),
}


@pytest.mark.parametrize("batch", [1, 256])
@pytest.mark.parametrize("choosing", [False, True], ids=["known", "choosing"])
@pytest.mark.parametrize("label", CALLS)
@torch.no_grad()
def bench_inference(benchmark, race, label, choosing, batch, networks):
    which = "choosing the prototype" if choosing else "contexts known"
    benchmark.group = f"inference, S = 10, {CONTEXTS} contexts, {which}, B = {batch}"
    ours, plain, kept, prototypes = networks
    ink = torch.rand(batch, PIXELS) < 0.19  # as MNIST: the rest is background
    x = torch.where(ink, torch.rand(batch, PIXELS), torch.zeros(()))
    choose = nearest_prototype if label == "ours" else lambda x, prototypes: torch.cdist(x, prototypes).argmin(1)
    index = choose(x, prototypes)

    def run():
        return CALLS[label](ours, plain, kept, x, prototypes, choose(x, prototypes) if choosing else index)

    want = plain(x, prototypes[index.long()])

    def check(out):
        differing = (out - want).abs().amax(1) > 1e-4 * want.abs().max()
        assert differing.float().mean() <= 0.02  # a winner on an edge changes its sample

    race(label, run, check, shape="784-2048-2048-10", rounds=200 if batch == 1 else 15, warmup=5)
