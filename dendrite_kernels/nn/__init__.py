"""Modules: the layers of active dendrites networks, and the network of the papers."""

from .dendritic import DendriteSegments, DendriticLinear
from .kwinners import KWinners
from .mlp import DendriticMLP, nearest_prototype
from .sparse_linear import SparseLinear

__all__ = ["DendriteSegments", "DendriticLinear", "DendriticMLP", "KWinners", "SparseLinear", "nearest_prototype"]
