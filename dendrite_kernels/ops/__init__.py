"""The public functions, one file an op: checks, allocation, registration and autograd."""

from .dendritic_linear import dendritic_linear
from .ksparse import KSparse
from .kwinners import gated_kwinners, gated_kwinners_sparse, kwinners
from .kwinners2d import kwinners2d
from .linear_kwinners import linear_kwinners
from .rezero import rezero_
from .segment_gate import segment_gate
from .sparse_linear import sparse_linear

__all__ = [
    "KSparse",
    "dendritic_linear",
    "gated_kwinners",
    "gated_kwinners_sparse",
    "kwinners",
    "kwinners2d",
    "linear_kwinners",
    "rezero_",
    "segment_gate",
    "sparse_linear",
]
