"""Kernels of gate and k winners: a row a program forward, a block of units a program backward."""

from __future__ import annotations

import triton
import triton.language as tl

from .numbers import finite_keys, float_of

# How rows of y find their gate: no gate, one for all, by context_index, one each.
NO_GATE, ONE_GATE, GATE_BY_INDEX, GATE_EACH = 0, 1, 2, 3


@triton.jit
def _count(mask):
    # as floats: LLVM turns integer counts of comparisons into bit packing
    return tl.sum(mask.to(tl.float32), 0).to(tl.int32)


@triton.jit
def above_and_equal(x, nan, inside, t, only_nan):
    """Which entries win for sure, and which tie for the places that are left. x has +inf for NaN."""
    top = t == float("inf")  # where NaN, which ranks above +inf, wins for sure
    above = inside & ((x > t) | (nan & top)) & ~only_nan
    equal = (nan & only_nan) | (inside & (x == t) & ~(nan & top) & ~only_nan)
    return above, equal


@triton.jit
def choose_winners(rank, inside, O, K, KEEP_TIES: tl.constexpr, WIDE: tl.constexpr):
    """The K largest of the O entries inside (KEEP_TIES: and all that equal the K-th): a mask.

    Bisects the floats between -inf and +inf for the largest threshold that K entries reach.
    """
    nan = inside & (rank != rank)
    x = tl.where(nan, float("inf"), rank)
    low, high = finite_keys(WIDE)
    reached = O
    while (reached != K) & (high - low > 1):
        middle = low + ((high - low) >> 1)
        count = _count(inside & (x >= float_of(middle, WIDE)))
        enough = count >= K
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle)
        reached = tl.where(enough, count, reached)
    t = tl.zeros_like(rank) + float_of(low, WIDE)  # a row of it: the interpreter can't spread a scalar's bools
    nans = inside.to(tl.int32) * 0 + _count(nan)
    above, equal = above_and_equal(x, nan, inside, t, (t == float("inf")) & (nans >= K))
    if KEEP_TIES:
        chosen = above | equal
    else:
        chosen = above | (equal & (tl.cumsum(equal.to(tl.int32), 0) <= K - _count(above)))
    return chosen


@triton.jit
def gated_row(
    y, gate, bias, index, b, at, inside, O,
    GATE: tl.constexpr, BIAS: tl.constexpr, ADD: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """y + bias (wide), and that combined with the row's gate and rounded to y's dtype."""
    pre = tl.load(y + b * O + at, mask=inside, other=0).to(WIDE)
    if BIAS:
        pre += tl.load(bias + at, mask=inside, other=0).to(WIDE)
    a = pre
    if GATE != 0:
        row = b * 0
        if GATE == 2:
            row = tl.load(index + b).to(tl.int64)
        if GATE == 3:
            row = b
        g = tl.load(gate + row * O + at, mask=inside, other=0)
        if ADD:
            a = pre + g
        else:
            a = pre * g
    return pre, a.to(y.dtype.element_ty)


@triton.jit
def winners_of_row(
    y, gate, bias, boost, index, z, kept, values, pre_out, indices, b, O, K,
    GATE: tl.constexpr, BIAS: tl.constexpr, ADD: tl.constexpr, BOOST: tl.constexpr, RELU: tl.constexpr,
    KEEP_TIES: tl.constexpr, SPARSE: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """kWTA of row b: z and kept [B, O], or values, pre_out and indices [B, K]."""
    at = tl.arange(0, BLOCK)
    inside = at < O
    pre, a, rank = ranked(y, gate, bias, boost, index, b, at, inside, O, GATE, BIAS, ADD, BOOST, WIDE)
    chosen = choose_winners(rank, inside, O, K, KEEP_TIES, WIDE)
    place = b * K + tl.cumsum(chosen.to(tl.int32), 0) - 1
    put(z, kept, values, pre_out, indices, b, at, inside, chosen, place, pre, a, O, RELU, SPARSE, WIDE)


@triton.jit
def ranked(
    y, gate, bias, boost, index, b, at, inside, O,
    GATE: tl.constexpr, BIAS: tl.constexpr, ADD: tl.constexpr, BOOST: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """gated_row, and what its entries are ranked by."""
    pre, a = gated_row(y, gate, bias, index, b, at, inside, O, GATE, BIAS, ADD, WIDE)
    rank = a.to(WIDE)
    if BOOST:
        rank = rank * tl.load(boost + at, mask=inside, other=0)
    return pre, a, rank


@triton.jit
def put(
    z, kept, values, pre_out, indices, b, at, inside, chosen, place, pre, a, O,
    RELU: tl.constexpr, SPARSE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Writes the entries `at` of row b; SPARSE: the chosen ones, at their places."""
    passing = chosen
    if RELU:
        passing = chosen & ~(a.to(WIDE) <= 0)
    out = tl.where(passing, a, 0.0).to(a.dtype)
    if SPARSE:
        tl.store(values + place, out, mask=chosen)
        tl.store(pre_out + place, pre, mask=chosen)
        tl.store(indices + place, at, mask=chosen)
    else:
        tl.store(z + b * O + at, out, mask=inside)
        tl.store(kept + b * O + at, passing.to(tl.int8), mask=inside)


@triton.jit
def rows(
    y, gate, bias, boost, index, z, kept, values, pre_out, indices, O, K,
    GATE: tl.constexpr, BIAS: tl.constexpr, ADD: tl.constexpr, BOOST: tl.constexpr, RELU: tl.constexpr,
    KEEP_TIES: tl.constexpr, SPARSE: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A row a program, held in registers."""
    winners_of_row(
        y, gate, bias, boost, index, z, kept, values, pre_out, indices, tl.program_id(0).to(tl.int64), O, K,
        GATE, BIAS, ADD, BOOST, RELU, KEEP_TIES, SPARSE, WIDE, BLOCK,
    )  # fmt: skip


@triton.jit
def long_rows(
    y, gate, bias, boost, index, z, kept, values, pre_out, indices, O, K,
    GATE: tl.constexpr, BIAS: tl.constexpr, ADD: tl.constexpr, BOOST: tl.constexpr, RELU: tl.constexpr,
    KEEP_TIES: tl.constexpr, SPARSE: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """As `rows`, for rows that no program holds: each pass reads the row again, BLOCK entries at a time."""
    b = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    low, high = finite_keys(WIDE)
    reached = O
    while (reached != K) & (high - low > 1):
        middle = low + ((high - low) >> 1)
        count = O * 0
        start = O * 0
        while start < O:
            j = start + at
            pre, a, rank = ranked(y, gate, bias, boost, index, b, j, j < O, O, GATE, BIAS, ADD, BOOST, WIDE)
            count += _count((j < O) & ((rank >= float_of(middle, WIDE)) | (rank != rank)))
            start += BLOCK
        enough = count >= K
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle)
        reached = tl.where(enough, count, reached)
    t = tl.zeros((BLOCK,), WIDE) + float_of(low, WIDE)
    nans = O * 0
    larger = O * 0
    start = O * 0
    while start < O:
        j = start + at
        pre, a, rank = ranked(y, gate, bias, boost, index, b, j, j < O, O, GATE, BIAS, ADD, BOOST, WIDE)
        nans += _count((j < O) & (rank != rank))
        larger += _count((j < O) & ((rank > t) | (rank != rank)))
        start += BLOCK
    only_nan = (t == float("inf")) & (at * 0 + nans >= K)
    # places for ties: where NaN are all that counts, K; else what the larger leave (NaN count as +inf below the top)
    free = K - tl.where(tl.max(only_nan.to(tl.int32), 0) != 0, 0, larger)
    ties = O * 0
    written = O * 0
    start = O * 0
    while start < O:
        j = start + at
        inside = j < O
        pre, a, rank = ranked(y, gate, bias, boost, index, b, j, inside, O, GATE, BIAS, ADD, BOOST, WIDE)
        nan = inside & (rank != rank)
        above, equal = above_and_equal(tl.where(nan, float("inf"), rank), nan, inside, t, only_nan)
        chosen = above | equal
        if not KEEP_TIES:
            chosen = above | (equal & (ties + tl.cumsum(equal.to(tl.int32), 0) <= free))
        place = b * K + written + tl.cumsum(chosen.to(tl.int32), 0) - 1
        put(z, kept, values, pre_out, indices, b, j, inside, chosen, place, pre, a, O, RELU, SPARSE, WIDE)
        ties += _count(equal)
        written += _count(chosen)
        start += BLOCK


@triton.jit
def columns(
    grad_z, kept, y, gate, bias, index, grad_y, grad_gate, grad_bias, B, O,
    GATE: tl.constexpr, BIAS: tl.constexpr, ADD: tl.constexpr, WANT_Y: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of units from the dense z's, over the rows of one context g: grad_y [B, O], grad_gate [G, O]
    and grad_bias [G, O], to be summed over g. A program walks the batch in order, so sums have one order.
    """
    g = tl.program_id(0).to(tl.int64)  # the axis that may be long: the others end at 65,535
    o = (tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)) * BLOCK_O + tl.arange(0, BLOCK_O)
    here = o < O
    to_gate = tl.zeros((BLOCK_B, BLOCK_O), WIDE)
    to_bias = tl.zeros((BLOCK_B, BLOCK_O), WIDE)
    if GATE != 0:
        gate_row = tl.load(gate + g * O + o, mask=here, other=0)
    if BIAS:
        bias_row = tl.load(bias + o, mask=here, other=0).to(WIDE)
    b0 = g * 0
    end = b0 + B
    if GATE == 3:
        b0 = g
        end = g + 1
    while b0 < end:
        b = b0 + tl.arange(0, BLOCK_B)
        mine = b < end
        if GATE == 2:
            mine = mine & (tl.load(index + b, mask=mine, other=-1) == g)
        at = b[:, None] * O + o[None, :]
        inside = mine[:, None] & here[None, :]
        live = tl.load(kept + at, mask=inside, other=0) != 0
        grad = tl.where(live, tl.load(grad_z + at, mask=inside, other=0).to(WIDE), 0.0)
        grad_pre = grad
        if GATE != 0:
            if ADD:
                to_gate += grad
            else:
                pre = tl.load(y + at, mask=inside, other=0).to(WIDE)
                if BIAS:
                    pre += bias_row[None, :]
                to_gate += tl.where(live, grad * pre, 0.0)
                grad_pre = tl.where(live, grad * gate_row[None, :], 0.0)
        to_bias += grad_pre
        if WANT_Y:
            tl.store(grad_y + at, grad_pre.to(grad_y.dtype.element_ty), mask=inside)
        b0 += BLOCK_B
    if GATE != 0:
        tl.store(grad_gate + g * O + o, tl.sum(to_gate, 0), mask=here)
    tl.store(grad_bias + g * O + o, tl.sum(to_bias, 0), mask=here)
