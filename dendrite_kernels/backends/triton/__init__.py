"""The Triton backend: its kernels on CUDA tensors, or on CPU tensors in Triton's interpreter.

Nothing here imports Triton before a kernel is asked for: it takes a second, and CPU-only machines may not have it.
"""

from __future__ import annotations

import importlib
import os

import torch

from .. import reference as plain

OLDEST, OLDEST_CHIP = (3, 6), (8, 0)

counts_on_device = True  # step counts are tensors there: the host never waits, and a captured graph counts on


def why_not(device: torch.device) -> str | None:
    problem = _no_triton()
    if problem is not None:
        return problem
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "its kernels run on CUDA tensors (on CPU tensors only where TRITON_INTERPRET=1 was set at the start)"
    if device.type == "cuda" and not torch.cuda.is_available():
        return "torch finds no CUDA GPU here"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < OLDEST_CHIP:
        chip = "sm_{}{}".format(*torch.cuda.get_device_capability(device))
        return f"its kernels need a GPU of sm_80 or newer; {torch.cuda.get_device_name(device)} is {chip}"
    return None if device.type in ("cpu", "cuda") else f"its kernels run on CUDA tensors, not on {device.type}"


def _no_triton() -> str | None:
    try:
        triton = importlib.import_module("triton")
    except ImportError as error:
        return f"Triton can't be imported ({error}); pip install triton"
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    return None if version >= OLDEST else f"Triton 3.6 or newer is needed; {triton.__version__} is installed"


# What no kernel here does better than torch's own.
known_gate, ksparse_gather, outer = plain.known_gate, plain.ksparse_gather, plain.outer
rezero_, update_duty_cycle_ = plain.rezero_, plain.update_duty_cycle_


# Where the launchers are, and what chooses among them.
_LAUNCHERS = {
    "plan": ("one_launch",),
    "gates": (
        "segment_gate",
        "segment_gate_backward",
        "gated_kwinners",
        "gated_kwinners_backward",
        "gated_kwinners_sparse",
        "gated_kwinners_sparse_backward",
    ),
    "images": ("kwinners2d", "kwinners2d_backward"),
    "linear": (
        "dendritic_layer",
        "ksparse_to_dense",
        "linear_kwinners",
        "linear_kwinners_backward",
        "sparse_linear",
        "sparse_linear_backward",
    ),
    "steps": ("adam_dense", "adam_segments", "advance", "steppable"),
}


def __getattr__(name: str):
    """A launcher, once it is asked for."""
    for module, names in _LAUNCHERS.items():
        if name in names:
            return getattr(importlib.import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
