"""Kernels with k-sparse rows."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def gather_product(
    values, indices, weight, bias, y, O, K, stride_o, stride_i,
    BIAS: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """y[b, a block of units] = sum over a row's entries of value times the weight's column; weight by its strides."""
    b = tl.program_id(0).to(tl.int64)
    o = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    inside = o < O
    total = tl.zeros((BLOCK,), WIDE)
    j = b * 0
    while j < K:
        i = tl.load(indices + b * K + j).to(tl.int64)
        x = tl.load(values + b * K + j).to(WIDE)
        total += x * tl.load(weight + o * stride_o + i * stride_i, mask=inside, other=0).to(WIDE)
        j += 1
    if BIAS:
        total += tl.load(bias + o, mask=inside, other=0).to(WIDE)
    tl.store(y + b * O + o, total.to(y.dtype.element_ty), mask=inside)
