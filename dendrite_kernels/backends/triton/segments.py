"""Kernels of the segment gate. No [G, O, S] tensor is ever written."""

from __future__ import annotations

import triton
import triton.language as tl

from .numbers import ranks_above


@triton.jit
def activate(value, SIGMOID: tl.constexpr):
    if SIGMOID:
        value = 1.0 / (1.0 + tl.exp(-value))
    return value


@triton.jit
def stronger(value, s, best, strongest, number, ABS: tl.constexpr):
    """The best rank, its value and its segment's number once segment s is counted in."""
    rank = value
    if ABS:
        rank = tl.abs(value)
    better = ranks_above(rank, best) | (s == 0)
    return tl.where(better, rank, best), tl.where(better, value, strongest), tl.where(better, s, number)


@triton.jit
def gate_of_units(
    context, segments, bias, gate, winner, g, o, O,
    S: tl.constexpr, C: tl.constexpr, ABS: tl.constexpr, SIGMOID: tl.constexpr, BIAS: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Units o for the context g, one segment after the other: a running strongest in registers."""
    here = o < O
    strongest = tl.zeros((BLOCK_O,), WIDE)
    best = tl.zeros((BLOCK_O,), WIDE)
    number = tl.zeros((BLOCK_O,), tl.int32)
    at = tl.arange(0, BLOCK_C)
    for s in range(0, S):
        products = tl.zeros((BLOCK_O, BLOCK_C), WIDE)
        for c0 in range(0, C, BLOCK_C):
            inside = c0 + at < C
            c = tl.load(context + g * C + c0 + at, mask=inside, other=0).to(WIDE)
            where = o[:, None] * (S * C) + s * C + c0 + at[None, :]
            u = tl.load(segments + where, mask=here[:, None] & inside[None, :], other=0).to(WIDE)
            products += u * c[None, :]
        value = tl.sum(products, 1)
        if BIAS:
            value += tl.load(bias + o * S + s, mask=here, other=0).to(WIDE)
        best, strongest, number = stronger(value, s, best, strongest, number, ABS)
    tl.store(gate + g * O + o, activate(strongest, SIGMOID), mask=here)
    tl.store(winner + g * O + o, number, mask=here)


@triton.jit
def one_context(
    context, segments, bias, gate, winner, O,
    S: tl.constexpr, C: tl.constexpr, ABS: tl.constexpr, SIGMOID: tl.constexpr, BIAS: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """BLOCK_O units for one context a program, all along one axis: the others are short."""
    blocks = tl.cdiv(O, BLOCK_O)
    g = (tl.program_id(0) // blocks).to(tl.int64)
    o = ((tl.program_id(0) % blocks) * BLOCK_O + tl.arange(0, BLOCK_O)).to(tl.int64)
    gate_of_units(
        context, segments, bias, gate, winner, g, o, O,
        S, C, ABS, SIGMOID, BIAS, WIDE, BLOCK_O, BLOCK_C,
    )  # fmt: skip


@triton.jit
def many_contexts(
    context, segments, bias, gate, winner, G, O,
    S: tl.constexpr, C: tl.constexpr, ABS: tl.constexpr, SIGMOID: tl.constexpr, BIAS: tl.constexpr,
    BLOCK_O: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """BLOCK_O units for BLOCK_G contexts: each segment is read once for all of them. Full float32 ("ieee") products:
    TF32 would flip winners.
    """
    o = (tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)).to(tl.int64)
    g = (tl.program_id(1) * BLOCK_G + tl.arange(0, BLOCK_G)).to(tl.int64)
    here, there = o < O, g < G
    strongest = tl.zeros((BLOCK_O, BLOCK_G), tl.float32)
    best = tl.zeros((BLOCK_O, BLOCK_G), tl.float32)
    number = tl.zeros((BLOCK_O, BLOCK_G), tl.int32)
    at = tl.arange(0, BLOCK_C)
    for s in range(0, S):
        value = tl.zeros((BLOCK_O, BLOCK_G), tl.float32)
        for c0 in range(0, C, BLOCK_C):
            inside = c0 + at < C
            where = o[:, None] * (S * C) + s * C + c0 + at[None, :]
            u = tl.load(segments + where, mask=here[:, None] & inside[None, :], other=0).to(tl.float32)
            where = g[None, :] * C + c0 + at[:, None]
            c = tl.load(context + where, mask=inside[:, None] & there[None, :], other=0).to(tl.float32)
            value = tl.dot(u, c, value, input_precision="ieee")
        if BIAS:
            value += tl.load(bias + o * S + s, mask=here, other=0).to(tl.float32)[:, None]
        best, strongest, number = stronger(value, s, best, strongest, number, ABS)
    to = g[None, :] * O + o[:, None]
    both = here[:, None] & there[None, :]
    tl.store(gate + to, activate(strongest, SIGMOID), mask=both)
    tl.store(winner + to, number, mask=both)


@triton.jit
def segments_gradient(
    grad, winner, context, grad_segments, grad_bias, G, O,
    S: tl.constexpr, C: tl.constexpr, WANT_SEGMENTS: tl.constexpr, WANT_BIAS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Adds to the rows of one unit, a block of columns, what each context's winner gets, in the order of contexts.

    grad_segments [O, S, C] and grad_bias [O, S] start at zero; no other program writes this unit's columns.
    """
    o = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = c < C
    g = o * 0
    while g < G:
        s = tl.load(winner + g * O + o)
        d = tl.load(grad + g * O + o)
        if WANT_SEGMENTS:
            row = grad_segments + (o * S + s) * C + c
            added = d * tl.load(context + g * C + c, mask=inside, other=0)
            tl.store(row, tl.load(row, mask=inside, other=0) + added, mask=inside)
        if WANT_BIAS:
            if tl.program_id(1) == 0:
                entry = grad_bias + o * S + s
                tl.store(entry, tl.load(entry) + d)
        g += 1


@triton.jit
def context_gradient(
    grad, winner, segments, grad_context, O,
    S: tl.constexpr, C: tl.constexpr, WIDE: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """grad_context[g, a block of columns]: the sum over units of their winner's row times its gradient."""
    g = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = c < C
    total = tl.zeros((BLOCK_O, BLOCK_C), WIDE)
    o0 = g * 0
    while o0 < O:
        o = o0 + tl.arange(0, BLOCK_O)
        here = o < O
        s = tl.load(winner + g * O + o, mask=here, other=0)
        d = tl.load(grad + g * O + o, mask=here, other=0)
        where = (o * S + s)[:, None] * C + c[None, :]
        u = tl.load(segments + where, mask=here[:, None] & inside[None, :], other=0).to(WIDE)
        total += d[:, None] * u
        o0 += BLOCK_O
    tl.store(grad_context + g * C + c, tl.sum(total, 0).to(grad_context.dtype.element_ty), mask=inside)
