"""Tensors as the kernels want them."""

from __future__ import annotations

import torch
from torch import Tensor


def contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.contiguous() for t in tensors]


def ready(out: Tensor | None, dtype: torch.dtype | None = None) -> Tensor | None:
    """The output where a kernel can write it, else a stand-in."""
    if out is None or (out.is_contiguous() and dtype in (None, out.dtype)):
        return out
    return torch.empty(out.shape, dtype=dtype or out.dtype, device=out.device)
