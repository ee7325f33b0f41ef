"""The native module and what every call of it needs: memory, dtypes and layouts as its kernels want them."""

from __future__ import annotations

import torch

from ...reference import check_range, compute_dtype

try:
    from ... import _cpu

    import_error = None
except ImportError as error:  # built without a compiler: the report and why_not say so
    _cpu = None
    import_error = str(error)

SUFFIX = {torch.float32: "_f32", torch.float64: "_f64"}


def call(name: str, dtype: torch.dtype, *args):
    """Calls the kernel for a dtype, with as many threads as torch uses."""
    return getattr(_cpu, name + SUFFIX[dtype])(*args, torch.get_num_threads())


# Smaller tensors come from torch's allocator, which reuses them anyway.
POOLED_BYTES = 1 << 20


def gradient_like(t: torch.Tensor) -> torch.Tensor:
    """Uninitialised memory like t's (shape, dtype, strides where dense), from the pool if it is large."""
    plain = type(t) in (torch.Tensor, torch.nn.Parameter) and not t.is_meta  # no fake of torch.compile's
    if _cpu is None or not plain or t.numel() * t.element_size() < POOLED_BYTES:
        return torch.empty_like(t)
    bytes_ = t.numel() * t.element_size()
    flat = torch.frombuffer(_cpu.Block(bytes_), dtype=t.dtype)
    # empty_like's strides, worked out on a tensor without memory
    strides = torch.empty_like(t, device="meta").stride()
    return flat.as_strided(t.shape, strides)


def release_memory() -> None:
    """Gives the memory that the pool keeps for the next gradients back to the system."""
    if _cpu is not None:
        _cpu.pool_release()


def widened(t: torch.Tensor | None) -> torch.Tensor | None:
    """Contiguous, in the compute dtype."""
    if t is None or (t.dtype in SUFFIX and t.is_contiguous()):
        return t
    return t.to(compute_dtype(t.dtype)).contiguous()


def checked_index(t: torch.Tensor | None, size: int, name: str) -> torch.Tensor | None:
    """An int32 contiguous index whose entries are known to lie in [0, size)."""
    if t is None:
        return None
    check_range(t, size, name)
    return t.to(torch.int32).contiguous()


class Outputs:
    """Buffers that the kernels can write: the outputs themselves where possible, else stand-ins copied back."""

    def __init__(self, outputs, wide: torch.dtype, any_strides: bool = False):
        self.pairs, self.buffers = [], []
        for out in outputs:
            buffer = out
            if out is not None:
                dtype = wide if out.is_floating_point() else out.dtype
                if out.dtype != dtype or not (any_strides or out.is_contiguous()):
                    buffer = torch.empty_like(out, dtype=dtype) if any_strides else torch.empty(out.shape, dtype=dtype)
                    self.pairs.append((out, buffer))
            self.buffers.append(buffer)

    def __enter__(self):
        return self.buffers

    def __exit__(self, failed, *_):
        if not failed:
            for out, buffer in self.pairs:
                out.copy_(buffer)


def group_count(gate) -> int:
    return 0 if gate is None else gate.shape[0]


def strided(t):
    """In the compute dtype, with its own strides: weights may be stored either way round."""
    return t.to(compute_dtype(t.dtype))
