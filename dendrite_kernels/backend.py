"""The one place where a backend is chosen.

An op asks `choose(device)` for the module whose function of the op's name fills the outputs; each backend has all of
them, its own or another's. In order: the `use_backend` context, the DENDRITE_BACKEND environment variable, then the
first of DEVICE_ORDER that can run there. A backend of GPUs that the variable names is for tensors there: those on the
CPU, where models are made, keep their own.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType

import torch

from .backends import cpu as _cpu_backend
from .backends import cuda as _cuda_backend
from .backends import reference as _reference_backend
from .backends import triton as _triton_backend

BACKENDS: dict[str, ModuleType] = {
    "cpu": _cpu_backend,
    "cuda": _cuda_backend,
    "triton": _triton_backend,
    "reference": _reference_backend,
}

# No GPU has run csrc/cuda yet: until make gpu-check has, and its table says where it is the faster, Triton comes first.
CUDA_HAS_RUN = False
ASKED_FOR = "no GPU has run its kernels yet, so that it must be asked for"

# Fastest first; whatever is not listed runs on the reference.
DEVICE_ORDER = {
    "cpu": ("cpu", "reference"),
    "cuda": ("cuda", "triton", "reference") if CUDA_HAS_RUN else ("triton", "reference"),
}

_override: ContextVar[str | None] = ContextVar("dendrite_backend", default=None)


class BackendUnavailable(RuntimeError):
    """The backend that was asked for can't run here; the message says why."""


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Runs the ops called inside on the named backend: "cpu", "cuda", "triton" or "reference".

    A backward pass takes the backend in force when it runs, not the one of its forward pass. That of CUDA tensors has a
    thread of its own, which DENDRITE_BACKEND reaches and this does not.
    """
    _check_name(name, "use_backend")
    token = _override.set(name)
    try:
        yield
    finally:
        _override.reset(token)


def choose(device: torch.device) -> ModuleType:
    """The backend module for tensors on this device. Raises BackendUnavailable if a forced one can't run there."""
    override = _override.get()
    forced = override or os.environ.get("DENDRITE_BACKEND")
    if forced:
        _check_name(forced, "DENDRITE_BACKEND")
        reason = BACKENDS[forced].why_not(device)
        if reason is None:
            return BACKENDS[forced]
        if override or device.type != "cpu" or not _runs_on_a_gpu_here(forced):
            raise BackendUnavailable(f"backend {forced!r} was asked for but can't run on {device}: {reason}")
    for name in DEVICE_ORDER.get(device.type, ()):
        if BACKENDS[name].why_not(device) is None:
            return BACKENDS[name]
    return _reference_backend


@functools.cache  # asked of every op on the CPU, also in forked processes, which may not ask CUDA
def _runs_on_a_gpu_here(name: str) -> bool:
    return BACKENDS[name].why_not(torch.device("cuda", 0)) is None


def explain(device: torch.device) -> list[tuple[str, str]]:
    """(backend, "used" | "available" | why not) for each backend, for the environment report."""
    chosen, rows = choose(device), []
    for name, module in BACKENDS.items():
        reason = module.why_not(device)
        unproved = module is _cuda_backend and not CUDA_HAS_RUN
        available = f"available; {ASKED_FOR}" if unproved else "available"
        rows.append((name, "used" if module is chosen else reason or available))
    return rows


def _check_name(name: str, where: str) -> None:
    if name not in BACKENDS:
        raise ValueError(f"{where}: expected one of {sorted(BACKENDS)}, got {name!r}")
