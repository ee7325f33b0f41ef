"""Modules: the layers of active dendrites networks, and the network of the papers."""

from .conv import DendriticConv2d, SparseConv2d
from .dendritic import DendriteSegments, DendriticLinear
from .kwinners import KWinners, KWinners2d
from .mlp import DendriticMLP, nearest_prototype
from .sparse_linear import SparseLinear

__all__ = [
    "DendriteSegments",
    "DendriticConv2d",
    "DendriticLinear",
    "DendriticMLP",
    "KWinners",
    "KWinners2d",
    "SparseConv2d",
    "SparseLinear",
    "nearest_prototype",
]
