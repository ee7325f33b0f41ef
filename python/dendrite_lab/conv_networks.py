"""The convolutional networks of Bain 2022: one shape as a plain CNN, with sparsity, and with active dendrites."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from dendrite_kernels.nn import DendriticConv2d, DendriticLinear, KWinners, KWinners2d, SparseLinear

CHANNELS, SIDE = (3, 64, 32), 32
HIDDEN = (256, 128)
FLAT = CHANNELS[-1] * (SIDE // 4) ** 2  # 2048: each convolution keeps the size, each pooling halves it


class PlainConvNet(nn.Sequential):
    """torch's layers with ReLU: conv 3->64, pool, conv 64->32, pool, fc 2048->256->128->classes. No contexts."""

    def __init__(self, classes: int):
        layers = []
        for inputs, outputs in pairwise(CHANNELS):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        layers.append(nn.Flatten())
        for inputs, outputs in pairwise((FLAT, *HIDDEN)):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        super().__init__(*layers, nn.Linear(HIDDEN[-1], classes))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return super().forward(x)


class SparseConvNet(nn.Module):
    """The same shape with k winners for ReLU and masked weights in its linear layers; with dendrites if asked for.

    Args:
        classes: width of the head. conv_percent_on: share of winners among all C * H * W values of a convolution;
        fc_percent_on: in the hidden linear layers. weight_density: of the linear layers, the head too.
        segments, dim_context: of each unit and channel; segments = 0 for no dendrites. context_density: for the
        segments' initialisation.

    forward(x [B, 3, 32, 32], context [1, dim_context]?) -> logits [B, classes].

    Source: Bain 2022, section 3.3 and appendix A.3.
    """

    def __init__(
        self,
        classes: int,
        conv_percent_on: float,
        fc_percent_on: float,
        weight_density: float,
        segments: int = 0,
        dim_context: int = 0,
        context_density: float = 1.0,
    ):
        super().__init__()
        dendrites = {"dendrite": "abs_max_gate" if segments else "none", "context_density": context_density}
        self.convolutions, self.linear = nn.ModuleList(), nn.ModuleList()
        density, sparsity = 1.0, 1 - weight_density
        for inputs, outputs in pairwise(CHANNELS):
            winners = KWinners2d(outputs, conv_percent_on)
            shape = (inputs, outputs, 3, segments, dim_context)
            options = {"padding": 1, "kwinners": winners, "input_density": density, **dendrites}
            self.convolutions.append(DendriticConv2d(*shape, **options))
            density = conv_percent_on
        for inputs, outputs in pairwise((FLAT, *HIDDEN)):
            options = {"kwinners": KWinners(outputs, fc_percent_on), "sparsity": sparsity, "input_density": density}
            self.linear.append(DendriticLinear(inputs, outputs, segments, dim_context, **options, **dendrites))
            density = fc_percent_on
        self.output = SparseLinear(HIDDEN[-1], classes, sparsity=sparsity, input_density=density)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        for layer in self.convolutions:
            x = max_pool2d(layer(x, context), 2)
        x = x.flatten(1)
        for layer in self.linear:
            x = layer(x, context)
        return self.output(x)


def build_conv_net(config, seed: int) -> PlainConvNet | SparseConvNet:
    """The network of a SplitCIFAR configuration, drawn from the seed."""
    torch.manual_seed(seed)
    if config.plain:
        return PlainConvNet(config.classes_per_task)
    shares = (config.conv_percent_on, config.fc_percent_on, config.weight_density)
    return SparseConvNet(config.classes_per_task, *shares, config.segments, config.dim_context, config.context_density)
