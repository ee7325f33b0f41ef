"""What the kernels share of numbers: dtypes, and the order in which floats rank."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

TYPES = {torch.float32: tl.float32, torch.float64: tl.float64, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit
def ranks_above(a, b):
    """NaN above all."""
    return (a > b) | ((a != a) & (b == b))


@triton.jit
def finite_keys(WIDE: tl.constexpr):
    """The key of -inf, and one above that of +inf. Keys are unsigned and ordered as their floats; NaN has none."""
    if tl.float32 == WIDE:
        low = tl.full((), 0x007FFFFF, tl.uint32)
        high = tl.full((), 0xFF800001, tl.uint32)
    else:
        low = tl.full((), 0x000FFFFFFFFFFFFF, tl.uint64)
        high = tl.full((), 0xFFF0000000000001, tl.uint64)
    return low, high


@triton.jit
def float_of(key, WIDE: tl.constexpr):
    """The float of a key."""
    if tl.float32 == WIDE:
        bits = key.to(tl.int32, bitcast=True)
        value = (bits ^ tl.where(bits < 0, -2147483648, -1)).to(tl.float32, bitcast=True)
    else:
        bits = key.to(tl.int64, bitcast=True)
        flip = tl.where(bits < 0, tl.full((), 1, tl.int64) << 63, tl.full((), -1, tl.int64))
        value = (bits ^ flip).to(tl.float64, bitcast=True)
    return value
