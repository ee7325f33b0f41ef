"""The networks of the experiments, drawn from a seed."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from dendrite_kernels.nn import DendriticMLP

from .experiment import Experiment
from .permuted import PIXELS

CLASSES = 10


class PlainMLP(nn.Sequential):
    """torch's dense layers with ReLU, called as DendriticMLP is; contexts are not used."""

    def __init__(self, sizes: tuple[int, ...]):
        layers = []
        for inputs, outputs in pairwise(sizes[:-1]):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        super().__init__(*layers, nn.Linear(*sizes[-2:]))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return super().forward(x)

    def gates(self, context: Tensor | None) -> list:
        return []

    def forward_gated(self, x: Tensor, gates: list, context_index: Tensor | None = None) -> Tensor:
        return self(x)


def build_model(config: Experiment, seed: int) -> DendriticMLP | PlainMLP:
    """The network of the experiment, drawn from the seed."""
    torch.manual_seed(seed)
    if config.plain:
        return PlainMLP((PIXELS, *config.hidden, CLASSES))
    return DendriticMLP(
        PIXELS,
        config.hidden,
        CLASSES,
        config.segments,
        config.dim_context,
        dendrite="abs_max_gate" if config.segments else "none",
        weight_sparsity=config.weight_sparsity,
        percent_on=config.percent_on if config.activation == "kwinners" else None,
        context_density=config.context_density,
    )
