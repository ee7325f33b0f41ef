"""The whole layer in one launch: gates and products, a barrier across the grid, then the winners of each row."""

from __future__ import annotations

import triton
import triton.language as tl

from .ksparse import gather_product_of_row
from .segments import gate_of_units
from .winners import winners_of_row

# The interpreter runs programs one after the other, so that a barrier would hang: there each phase is a launch.
ALL_PHASES, BEFORE_BARRIER, AFTER_BARRIER = 0, 1, 2


@triton.jit
def meet(arrived, programs):
    """Returns once every program has come here, and what they wrote before can be read."""
    tl.debug_barrier()
    tl.atomic_add(arrived, 1, sem="acq_rel", scope="gpu")
    while tl.atomic_add(arrived, 0, sem="acquire", scope="gpu") < programs:
        pass
    tl.debug_barrier()


@triton.jit
def leave(arrived, programs):
    """The last program to leave sets the counter back for the next launch."""
    if tl.atomic_add(arrived, 1, sem="acq_rel", scope="gpu") == 2 * programs - 1:
        tl.store(arrived, 0)


@triton.jit
def product_of_rows(
    x, weight, y, b, o, B, O, I, stride_o, stride_i,
    WIDE: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y[b, o] = x W^T for a block of rows and one of units; x [B, I] is dense."""
    there, here = b < B, o < O
    total = tl.zeros((BLOCK_O, BLOCK_B), WIDE)
    start = I * 0
    while start < I:
        i = start + tl.arange(0, BLOCK_I)
        inside = i < I
        where = o[:, None] * stride_o + i[None, :] * stride_i
        w = tl.load(weight + where, mask=here[:, None] & inside[None, :], other=0).to(WIDE)
        where = b[None, :] * I + i[:, None]
        rows = tl.load(x + where, mask=there[None, :] & inside[:, None], other=0).to(WIDE)
        total = tl.dot(w, rows, total, input_precision=PRECISION)
        start += BLOCK_I
    where = b[None, :] * O + o[:, None]
    tl.store(y + where, total.to(y.dtype.element_ty), mask=there[None, :] & here[:, None])


@triton.jit
def layer(
    x, x_indices, weight, bias, context, segments, segment_bias, boost, index, gate, winner, y, values, pre, indices,
    arrived, B, O, I, X, G, K, stride_o, stride_i,
    S: tl.constexpr, C: tl.constexpr, ABS: tl.constexpr, SIGMOID: tl.constexpr, SEGMENT_BIAS: tl.constexpr,
    SPARSE_X: tl.constexpr, GATE: tl.constexpr, BIAS: tl.constexpr, ADD: tl.constexpr, BOOST: tl.constexpr,
    RELU: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr, PHASE: tl.constexpr,
    BLOCK_GATE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr, BLOCK_ROW: tl.constexpr,
):  # fmt: skip
    """Each program takes every programs-th piece of work. X: entries of x in a row (I, or those of a k-sparse row)."""
    first = tl.program_id(0)
    programs = tl.num_programs(0)
    if PHASE != 2:
        gate_blocks = tl.cdiv(O, BLOCK_GATE)
        unit_blocks = tl.cdiv(O, BLOCK_O)
        gates = G * gate_blocks
        row_blocks = B if SPARSE_X else tl.cdiv(B, BLOCK_B)
        piece = first
        while piece < gates + row_blocks * unit_blocks:
            if piece < gates:
                g = (piece // gate_blocks).to(tl.int64)
                o = ((piece % gate_blocks) * BLOCK_GATE + tl.arange(0, BLOCK_GATE)).to(tl.int64)
                gate_of_units(
                    context, segments, segment_bias, gate, winner, g, o, O,
                    S, C, ABS, SIGMOID, SEGMENT_BIAS, WIDE, BLOCK_GATE, BLOCK_C,
                )  # fmt: skip
            else:
                row = ((piece - gates) // unit_blocks).to(tl.int64)
                units = (((piece - gates) % unit_blocks) * BLOCK_O + tl.arange(0, BLOCK_O)).to(tl.int64)
                if SPARSE_X:
                    gather_product_of_row(
                        x, x_indices, weight, bias, y, row, units, O, X, stride_o, stride_i, False, WIDE, BLOCK_O
                    )  # fmt: skip
                else:
                    rows = row * BLOCK_B + tl.arange(0, BLOCK_B)
                    product_of_rows(
                        x, weight, y, rows, units, B, O, I, stride_o, stride_i,
                        WIDE, BLOCK_B, BLOCK_O, BLOCK_I, PRECISION,
                    )  # fmt: skip
            piece += programs
    if PHASE == 0:
        meet(arrived, programs)
    if PHASE != 1:
        b = first.to(tl.int64)
        while b < B:
            winners_of_row(
                y, gate, bias, boost, index, y, y, values, pre, indices, b, O, K,
                GATE, BIAS, ADD, BOOST, RELU, False, True, WIDE, BLOCK_ROW,
            )  # fmt: skip
            b += programs
    if PHASE == 0:
        leave(arrived, programs)
