"""Fused kernels for active dendrites networks, as PyTorch ops and layers.

`segment_gate`, `gated_kwinners`, `sparse_linear` and `dendritic_linear` are the ops; `nn` has the modules;
`reference` says in plain PyTorch what each of them computes. `python -m dendrite_kernels` reports what runs where.
"""

from . import compat, distributed, nn, optim, reference, sparsity
from .backend import BackendUnavailable, use_backend
from .known import invalidate
from .ops import (
    KSparse,
    dendritic_linear,
    gated_kwinners,
    gated_kwinners_sparse,
    kwinners,
    kwinners2d,
    linear_kwinners,
    rezero_,
    segment_gate,
    sparse_linear,
)

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailable",
    "KSparse",
    "compat",
    "dendritic_linear",
    "distributed",
    "gated_kwinners",
    "gated_kwinners_sparse",
    "invalidate",
    "kwinners",
    "kwinners2d",
    "linear_kwinners",
    "nn",
    "optim",
    "reference",
    "rezero_",
    "segment_gate",
    "sparse_linear",
    "sparsity",
    "use_backend",
]
