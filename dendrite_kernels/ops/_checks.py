"""Argument checks. The native kernels check index ranges and widths alone, so these are the guard: keep them complete.

Each error names the argument, what was given and what was expected.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..reference import compute_dtype
from . import _autocast

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _shape(t: Tensor) -> str:
    return "[" + ", ".join(str(s) for s in t.shape) + "]"


def tensor(name: str, t, shape: tuple[int | None, ...], letters: str) -> None:
    """A tensor of this shape; None leaves a size free. `letters` is the shape as the documentation writes it."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{name}: expected a tensor {letters}, got {type(t).__name__}")
    if t.layout is not torch.strided:
        raise TypeError(f"{name}: expected a strided tensor, got layout {t.layout}; use .to_dense()")
    fits = len(t.shape) == len(shape)
    if fits:
        for have, want in zip(t.shape, shape):  # noqa: B905 - a dozen a step: kept quick
            fits = fits and (want is None or have == want)
    if not fits:
        sizes = ", ".join("any" if s is None else str(s) for s in shape)
        raise ValueError(f"{name}: expected shape {letters} = [{sizes}], got {_shape(t)}")


def floating(name: str, t: Tensor) -> None:
    if t.dtype not in FLOATS:
        raise TypeError(f"{name}: expected float32, float64, bfloat16 or float16, got {t.dtype}")


def same(name: str, t: Tensor | None, as_name: str, other: Tensor, dtype: torch.dtype | None = None) -> None:
    """On the device of `other`, and of its dtype (or the one given), or autocast will see to that."""
    if t is None:
        return
    want = dtype or other.dtype
    if t.dtype != want and not _autocast.casts(t, want):
        raise TypeError(f"{name}: expected {want} to go with {as_name} ({other.dtype}), got {t.dtype}")
    on_device(name, t, as_name, other)


def on_device(name: str, t: Tensor, as_name: str, other: Tensor) -> None:
    if t.device != other.device:
        raise ValueError(f"{name}: expected device {other.device} as {as_name}, got {t.device}")


def choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, allowed))}, got {value!r}")


def count(name: str, value: int) -> None:
    a_number = isinstance(value, (int, torch.SymInt)) or torch.jit.is_tracing()  # which makes tensors of sizes
    if isinstance(value, bool) or not a_number:
        raise TypeError(f"{name}: expected an int, got {type(value).__name__} ({value!r})")
    if value < 0:
        raise ValueError(f"{name}: expected 0 or more, got {value}")


def context_index(t: Tensor | None, batch: int, gate: Tensor | None, y: Tensor) -> None:
    if t is None:
        if gate is not None and gate.shape[0] not in (1, batch):
            raise ValueError(
                f"context_index: expected one, as there are {gate.shape[0]} contexts for {batch} rows "
                "(without an index there must be 1, or one a row)"
            )
        return
    if gate is None:
        raise ValueError("context_index: expected None without a gate, got a tensor")
    tensor("context_index", t, (batch,), "[B]")
    if t.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"context_index: expected int32 or int64, got {t.dtype}")
    on_device("context_index", t, "y", y)


def winners_arguments(y_name, y, units, gate, bias, index, k, combine, boost, letter="O") -> None:
    """What every op with a gate and k winners takes; y only lends its batch size, dtype and device."""
    wide = compute_dtype(y.dtype)
    if gate is not None:
        tensor("gate", gate, (None, units), f"[G, {letter}]")
        same("gate", gate, y_name, y, wide)
    if bias is not None:
        tensor("bias", bias, (units,), "[O]")
        same("bias", bias, y_name, y)
    if boost is not None:
        tensor("boost", boost, (units,), f"[{letter}]")
        same("boost", boost, y_name, y, wide)
    context_index(index, y.shape[0], gate, y)
    count("k", k)
    choice("combine", combine, ("mul", "add"))


def sizes(name: str, *numbers: int) -> None:
    """The native kernels number entries, units and columns in 32 bits. Allocation asks, once sizes are no symbols."""
    if any(isinstance(number, int) and number >= 2**31 for number in numbers):
        raise ValueError(f"{name}: expected fewer than 2^31 entries, units and columns, got sizes {numbers}")


def ksparse(name: str, values: Tensor, indices: Tensor, size: int) -> None:
    tensor(f"{name}.values", values, (None, None), "[B, k]")
    floating(f"{name}.values", values)
    tensor(f"{name}.indices", indices, tuple(values.shape), "[B, k]")
    if indices.dtype != torch.int32:
        raise TypeError(f"{name}.indices: expected int32, got {indices.dtype}")
    on_device(f"{name}.indices", indices, f"{name}.values", values)
    count(f"{name}.size", size)
    sizes(name, size)


def shared_row(t: Tensor, batch: int | None = None) -> Tensor:
    """A row expanded over the batch (of this size) with stride 0 is one context: that row."""
    expanded = t.dim() > 1 and t.shape[0] > 1 and t.stride(0) == 0
    return t[:1] if expanded and batch in (None, t.shape[0]) else t
