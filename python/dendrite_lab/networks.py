"""The networks of the experiments, drawn from a seed."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from dendrite_kernels.nn import DendriticMLP

from .experiment import Experiment
from .permuted import PIXELS

CLASSES = 10


class PlainMLP(nn.Sequential):
    """torch's dense layers with ReLU, called as DendriticMLP is; contexts are not used.

    init: "public" is the public code's, weights U(-b, b) with b = 1 / sqrt(density * inputs), where the images' density
    is 1 and that of ReLU's results taken as a half, and torch's biases; "torch".
    """

    def __init__(self, sizes: tuple[int, ...], init: str = "public"):
        layers = []
        for inputs, outputs in pairwise(sizes[:-1]):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        super().__init__(*layers, nn.Linear(*sizes[-2:]))
        if init == "public":
            for number, layer in enumerate(m for m in self if isinstance(m, nn.Linear)):
                bound = 1 / math.sqrt((0.5 if number else 1.0) * layer.in_features)
                nn.init.uniform_(layer.weight, -bound, bound)

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
        return PlainMLP((PIXELS, *config.hidden, CLASSES), config.init)
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


def draw_as_keras(model: nn.Module) -> None:
    """Redraws a body and its `heads` as the code of Zenke et al. does: Glorot's uniform, biases 0, several heads 0."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    if len(model.heads) > 1:
        for p in model.heads.parameters():
            nn.init.zeros_(p)
