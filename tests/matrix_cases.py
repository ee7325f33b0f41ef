"""The rows of the feature matrix: each public op and module with an example of its arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import dendrite_kernels as dk
from dendrite_kernels import KSparse, nn
from dendrite_kernels.ops.dendritic_linear import dendritic_layer


@dataclass(frozen=True)
class Case:
    """make(): a function of tensors, or a module. example(batch): its arguments, float32 or integers.

    by_row: which arguments have a row for each of the batch. autocast: dtype of the results under it.
    """

    name: str
    make: Callable
    example: Callable[[int], list[Tensor]]
    by_row: tuple[int, ...] = (0,)
    autocast: torch.dtype = torch.float32
    is_module: bool = False


def function(f):
    return lambda: f


def module(make):
    """The module as it runs in training, boosted by duty cycles that it has seen, but not counting them on."""

    def seeded():
        torch.manual_seed(7)
        built = make()
        for m in built.modules():
            if isinstance(m, nn.KWinners | nn.KWinners2d):
                m.duty_cycle.uniform_()
        return built.eval()

    return seeded


def index_of(batch: int, groups: int = 3) -> Tensor:
    return torch.randint(0, groups, (batch,))


def some_ksparse(batch: int, inputs: int = 12, k: int = 4) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, k), torch.rand(batch, inputs).argsort(1)[:, :k].sort(1).values.int()


def winners_of(sparse: KSparse) -> tuple[Tensor, Tensor]:
    return sparse.values, sparse.indices


def gates(batch):
    return [torch.randn(batch, 20), torch.rand(3, 20), torch.randn(20), index_of(batch)]


def layer(batch):
    return [torch.randn(batch, 12), torch.randn(20, 12), torch.randn(20), torch.rand(3, 20), index_of(batch)]


def whole_layer(batch):
    return [*layer(batch)[:3], torch.randn(3, 7), torch.randn(20, 4, 7), index_of(batch)]


OPS = [
    Case(
        "segment_gate",
        function(dk.segment_gate),
        lambda b: [torch.randn(b, 7), torch.randn(20, 4, 7), torch.randn(20, 4)],
    ),
    Case("kwinners", function(lambda y: dk.kwinners(y, 5)), lambda b: [torch.randn(b, 20)]),
    Case(
        "kwinners2d",
        function(lambda y, gate, index: dk.kwinners2d(y, 9, gate, index)),
        lambda b: [torch.randn(b, 5, 3, 2), torch.rand(3, 5), index_of(b)],
        by_row=(0, 2),
    ),
    Case(
        "kwinners2d, local",
        function(lambda y, gate, index: dk.kwinners2d(y, 2, gate, index, local=True)),
        lambda b: [torch.randn(b, 5, 3, 2), torch.rand(3, 5), index_of(b)],
        by_row=(0, 2),
    ),
    Case(
        "gated_kwinners",
        function(lambda y, gate, bias, index: dk.gated_kwinners(y, gate, bias, index, 5)),
        gates,
        by_row=(0, 3),
    ),
    Case(
        "gated_kwinners_sparse",
        function(lambda y, gate, bias, index: winners_of(dk.gated_kwinners_sparse(y, gate, bias, index, 5))),
        gates,
        by_row=(0, 3),
    ),
    Case(
        "sparse_linear, dense",
        function(dk.sparse_linear),
        lambda b: [torch.randn(b, 12), torch.randn(9, 12), torch.randn(9)],
        autocast=torch.bfloat16,
    ),
    Case(
        "sparse_linear, KSparse",
        function(lambda v, i, weight, bias: dk.sparse_linear(KSparse(v, i, 12), weight, bias)),
        lambda b: [*some_ksparse(b), torch.randn(9, 12), torch.randn(9)],
        by_row=(0, 1),
        autocast=torch.bfloat16,
    ),
    Case(
        "KSparse.to_dense",
        function(lambda v, i: KSparse(v, i, 12).to_dense()),
        lambda b: [*some_ksparse(b)],
        by_row=(0, 1),
    ),
    Case(
        "linear_kwinners",
        function(lambda x, weight, bias, gate, index: winners_of(dk.linear_kwinners(x, weight, bias, gate, index, 5))),
        layer,
        by_row=(0, 4),
    ),
    Case(
        "linear_kwinners, KSparse",
        function(lambda v, i, weight: winners_of(dk.linear_kwinners(KSparse(v, i, 12), weight, None, None, None, 5))),
        lambda b: [*some_ksparse(b), torch.randn(20, 12)],
        by_row=(0, 1),
    ),
    Case(
        "dendritic_linear",
        function(lambda x, w, b, context, segments, i: dk.dendritic_linear(x, w, b, context, segments, None, i, 5)),
        whole_layer,
        by_row=(0, 5),
    ),
    Case(
        "dendritic_linear, one op",  # as a GPU may be given it
        function(
            lambda x, w, b, context, segments, i: winners_of(dendritic_layer(x, w, b, context, segments, None, i, 5))
        ),
        whole_layer,
        by_row=(0, 5),
    ),
    Case(
        "rezero_",
        function(lambda weight, keep: dk.rezero_(weight.clone(), keep)),
        lambda b: [torch.randn(b, 12), torch.rand(b, 12) < 0.5],
        by_row=(0, 1),
    ),
]

BOOSTED = {"boost_strength": 1.0}

MODULES = [
    Case(
        "SparseLinear",
        module(lambda: nn.SparseLinear(12, 9, sparsity=0.5)),
        lambda b: [torch.randn(b, 12)],
        autocast=torch.bfloat16,
        is_module=True,
    ),
    Case(
        "DendriteSegments",
        module(lambda: nn.DendriteSegments(20, 4, 7, sparsity=0.5, bias=True)),
        lambda b: [torch.randn(b, 7)],
        is_module=True,
    ),
    Case(
        "DendriticLinear",
        module(lambda: nn.DendriticLinear(12, 20, 4, 7, kwinners=nn.KWinners(20, 0.3, **BOOSTED), sparsity=0.5)),
        lambda b: [torch.randn(b, 12), torch.randn(3, 7), index_of(b)],
        by_row=(0, 2),
        is_module=True,
    ),
    Case("KWinners", module(lambda: nn.KWinners(20, 0.3, **BOOSTED)), lambda b: [torch.randn(b, 20)], is_module=True),
    Case(
        "KWinners2d",
        module(lambda: nn.KWinners2d(5, 0.3, **BOOSTED)),
        lambda b: [torch.randn(b, 5, 3, 2)],
        is_module=True,
    ),
    Case(
        "SparseConv2d",
        module(lambda: nn.SparseConv2d(2, 5, 3, sparsity=0.5)),
        lambda b: [torch.randn(b, 2, 6, 5)],
        autocast=torch.bfloat16,
        is_module=True,
    ),
    Case(
        "DendriticConv2d",
        module(lambda: nn.DendriticConv2d(2, 5, 3, 4, 7, kwinners=nn.KWinners2d(5, 0.3, **BOOSTED))),
        lambda b: [torch.randn(b, 2, 6, 5), torch.randn(3, 7), index_of(b)],
        by_row=(0, 2),
        is_module=True,
    ),
    Case(
        "DendriticMLP",
        module(lambda: nn.DendriticMLP(12, (20, 16), 5, 4, 7, percent_on=0.3, **BOOSTED)),
        lambda b: [torch.randn(b, 12), torch.randn(3, 7), index_of(b)],
        by_row=(0, 2),
        autocast=torch.bfloat16,
        is_module=True,
    ),
]
