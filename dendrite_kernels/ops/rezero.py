"""rezero_: the mask of a sparse weight, applied in place."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import backend
from . import _checks as check
from ._register import only_autograd_sees


def rezero_(weight: Tensor, keep: Tensor) -> Tensor:
    """Sets weight to 0 where keep is False, in place and outside autograd; returns weight.

    Args: weight, any shape; keep, bool, of the same shape and device.

    Equivalent to: weight.data.masked_fill_(~keep, 0)
    """
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight: expected a tensor, got {type(weight).__name__}")
    check.tensor("keep", keep, tuple(weight.shape), "weight's shape")
    if keep.dtype != torch.bool:
        raise TypeError(f"keep: expected bool, got {keep.dtype}")
    check.on_device("keep", keep, "weight", weight)
    with torch.no_grad():
        if only_autograd_sees((weight, keep)):
            backend.choose(weight.device).rezero_(weight, keep)
            torch.autograd.graph.increment_version(weight)
        else:  # a compiler makes one pass of it as well
            weight.masked_fill_(~keep, 0)
    return weight
