"""The Triton backend: its kernels on CUDA tensors, or on CPU tensors in Triton's interpreter.

Nothing here imports Triton before a kernel is asked for: it takes a second, and CPU-only machines may not have it.
"""

from __future__ import annotations

import importlib
import os

import torch

OLDEST, OLDEST_CHIP = (3, 6), (8, 0)


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


def __getattr__(name: str):
    """The launchers, once one is asked for."""
    if name.startswith("__"):
        raise AttributeError(name)
    return getattr(importlib.import_module(".launchers", __name__), name)
