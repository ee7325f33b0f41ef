"""Kernels with k-sparse rows."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def gather_product_of_row(
    values, indices, weight, bias, y, b, o, O, K, stride_o, stride_i,
    BIAS: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """y[b, o] = sum over row b's entries of value times the weight's column; weight by its strides."""
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


@triton.jit
def gather_product(
    values, indices, weight, bias, y, O, K, stride_o, stride_i,
    BIAS: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A row and a block of units a program."""
    b = tl.program_id(0).to(tl.int64)
    o = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    gather_product_of_row(values, indices, weight, bias, y, b, o, O, K, stride_o, stride_i, BIAS, WIDE, BLOCK)


@triton.jit
def spread(values, indices, out, K, stride_b, stride_i, BLOCK: tl.constexpr):
    """Writes a k-sparse row into zeros; out by its strides. Where indices repeat (they ascend), entries are added."""
    b = tl.program_id(0).to(tl.int64)
    start = b * 0
    while start < K:
        j = start + tl.arange(0, BLOCK)
        inside = j < K
        i = tl.load(indices + b * K + j, mask=inside, other=-1)
        before = tl.load(indices + b * K + j - 1, mask=inside & (j > 0), other=-2)
        if tl.max((inside & (i == before)).to(tl.int32), 0) == 0:
            v = tl.load(values + b * K + j, mask=inside, other=0)
            tl.store(out + b * stride_b + i.to(tl.int64) * stride_i, v.to(out.dtype.element_ty), mask=inside)
        else:  # one after the other: what one thread has stored it reads back, and the block before stored as a whole
            tl.debug_barrier()
            one = start
            while one < tl.minimum(start + BLOCK, K):
                to = out + b * stride_b + tl.load(indices + b * K + one).to(tl.int64) * stride_i
                v = tl.load(values + b * K + one).to(out.dtype.element_ty)
                tl.store(to, tl.load(to) + v)
                one += 1
        start += BLOCK


@triton.jit
def spread_gradient(
    grad_values, values, pre, indices, grad, kept, pre_out, O, K, RELU: tl.constexpr, BLOCK: tl.constexpr
):
    """What `winners.columns` reads of a row, from its winners: grad, kept (zeros so far) and pre_out, all [B, O]."""
    b = tl.program_id(0).to(tl.int64)
    start = b * 0
    while start < K:
        j = start + tl.arange(0, BLOCK)
        inside = j < K
        i = tl.load(indices + b * K + j, mask=inside, other=0)
        passing = inside
        if RELU:
            passing = inside & ~(tl.load(values + b * K + j, mask=inside, other=0).to(tl.float32) <= 0)
        d = tl.load(grad_values + b * K + j, mask=inside, other=0)
        tl.store(grad + b * O + i, d, mask=inside)
        tl.store(pre_out + b * O + i, tl.load(pre + b * K + j, mask=inside, other=0), mask=inside)
        tl.store(kept + b * O + i, passing.to(tl.int8), mask=inside)
        start += BLOCK


@triton.jit
def weight_gradient(x, dy, grad, B, O, stride_o, stride_i, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """grad[a block of units, input i] = sum over the samples, in order, that have input i. x [I, B], dy [B, O]."""
    i = tl.program_id(0).to(tl.int64)
    o = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    inside = o < O
    total = tl.zeros((BLOCK,), WIDE)
    b = i * 0
    while b < B:
        v = tl.load(x + i * B + b)
        if v != 0:
            total += v * tl.load(dy + b * O + o, mask=inside, other=0).to(WIDE)
        b += 1
    tl.store(grad + o * stride_o + i * stride_i, total.to(grad.dtype.element_ty), mask=inside)


@triton.jit
def values_gradient(
    dy, units, indices, weight, grad, L, K, stride_o, stride_i,
    SPARSE: tl.constexpr, WIDE: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """grad[b, j] = sum over dy's L entries of row b (at `units` where SPARSE, else all units) of dy * W[unit, i_j]."""
    b = tl.program_id(0).to(tl.int64)
    j = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    here = j < K
    i = tl.load(indices + b * K + j, mask=here, other=0).to(tl.int64)
    total = tl.zeros((BLOCK_K, BLOCK_L), WIDE)
    start = b * 0
    while start < L:
        at = start + tl.arange(0, BLOCK_L)
        inside = at < L
        d = tl.load(dy + b * L + at, mask=inside, other=0).to(WIDE)
        o = at
        if SPARSE:
            o = tl.load(units + b * L + at, mask=inside, other=0).to(tl.int64)
        where = o[None, :] * stride_o + i[:, None] * stride_i
        w = tl.load(weight + where, mask=here[:, None] & inside[None, :], other=0).to(WIDE)
        total += w * d[None, :]
        start += BLOCK_L
    tl.store(grad + b * K + j, tl.sum(total, 1).to(grad.dtype.element_ty), mask=here)
