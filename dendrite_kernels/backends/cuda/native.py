"""The native module, and what every call of it needs."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path

import torch

from .. import triton

_cuda, import_error = None, ""
try:
    _cuda = importlib.import_module("dendrite_kernels._cuda")
except ModuleNotFoundError:  # the note says why
    pass
except ImportError as error:
    import_error = f"{error}; "

SUFFIX = {torch.float32: "_f32", torch.float64: "_f64", torch.bfloat16: "_bf16", torch.float16: "_f16"}


def build_note() -> str:
    """What setup.py did."""
    note = Path(__file__).parents[2] / "_cuda_build.txt"
    return " ".join(note.read_text().split()) if note.exists() else "setup.py left no note"


def why_not(device: torch.device) -> str | None:
    """Why the module can't run on this CUDA device: no driver, one too old, no code for the chip."""
    known = torch.cuda.is_initialized()  # without a driver there is no current device to ask for
    current = torch.cuda.current_device() if known and device.index is None else 0
    return _why_not(current if device.index is None else device.index)


@functools.cache
def _why_not(index: int) -> str | None:
    return _cuda.why_not(index) or None


def call(name: str, dtype: torch.dtype, *args):
    """Starts the kernel for a dtype on the current stream. RuntimeError with the cause where it can't be."""
    return getattr(_cuda, name + SUFFIX[dtype])(*args, stream())


def stream() -> int:
    return torch.cuda.current_stream().cuda_stream


def else_triton(takes):
    """A launcher that is called where takes(its arguments) holds, and whose namesake of Triton's is elsewhere."""

    def decorate(launcher):
        @functools.wraps(launcher)
        def call(*args, **options):
            chosen = launcher if takes(*args) else getattr(triton, launcher.__name__)
            return chosen(*args, **options)

        return call

    return decorate
