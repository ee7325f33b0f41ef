"""The CUDA C++ backend (csrc/cuda): launchers for what it has kernels for; all else is the Triton backend's.

An op that has no launcher here is Triton's altogether, and a launcher leaves it what its kernels don't take
(native.else_triton), so that this backend runs wherever Triton's does.
"""

from __future__ import annotations

import importlib
from types import ModuleType

import torch

from .. import triton
from . import native


def why_not(device: torch.device) -> str | None:
    if native._cuda is None:
        return (
            f"dendrite_kernels._cuda is not built ({native.import_error}{native.build_note()}); "
            "install nvcc, then reinstall with `DENDRITE_CUDA=1 pip install -v .`"
        )
    if device.type != "cuda":
        return "its kernels run on CUDA tensors only"
    return triton.why_not(device) or native.why_not(device)  # a chip too old is said to be that


_LAUNCHERS = {
    "winners": ("gated_kwinners", "gated_kwinners_sparse"),
    "products": (
        "adam_outer",
        "linear_kwinners",
        "linear_kwinners_backward",
        "outer",
        "sparse_linear",
        "sparse_linear_backward",
    ),
}


def __getattr__(name: str):
    """A launcher, once it is asked for; what is not here is Triton's."""
    for module, names in _LAUNCHERS.items():
        if name in names:
            return getattr(importlib.import_module(f".{module}", __name__), name)
    found = getattr(triton, name)
    if isinstance(found, ModuleType):  # `from . import plan` asks here first, and must not be given Triton's
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return found
