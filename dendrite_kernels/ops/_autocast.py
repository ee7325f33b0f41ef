"""What torch.autocast does to an op: matrix products in its dtype, gates and the choice of winners in float32.

A rule takes an op's place while autocast is on for the device of its tensors. float64 stays as it is, as in torch's own
rules. Composed of two ops, a layer of k winners rounds its product to autocast's dtype and goes on in float32.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

CASTABLE = (torch.float32, torch.bfloat16, torch.float16)
_KEYS = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}


def casts(t: Tensor, dtype: torch.dtype) -> bool:
    """Whether autocast is on and settles how t and another tensor of this dtype go together."""
    on = t.device.type in _KEYS and torch.is_autocast_enabled(t.device.type)  # torch knows no autocast for meta
    return on and t.dtype in CASTABLE and dtype in CASTABLE


def register(library, name: str, op, rule: str | Callable) -> None:
    """rule: "half" (autocast's dtype) or "float32", which all floats are cast to; or what to call instead of the op."""
    for device, key in _KEYS.items():
        library.impl(name, rule if callable(rule) else _cast_all(op, rule, device, key), key)


def _cast_all(op, rule, device, key):
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def kernel(*args):
        dtype = torch.float32 if rule == "float32" else torch.get_autocast_dtype(device)
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return op(*(_cast(a, dtype, device) for a in args))

    return kernel


def _cast(a, dtype, device):
    eligible = isinstance(a, Tensor) and a.dtype in CASTABLE and a.device.type == device
    return a.to(dtype) if eligible else a
