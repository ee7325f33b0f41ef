"""Kernels of the optimizer's step. Step counts lie on the device, so that a captured graph goes on counting.

hyper: lr, beta1, beta2 and eps in float64.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def advance(steps, moving, hyper, rules):
    """Counts a step of the parameter program_id(0) if it moves; rules [P, 2]: lr / (1 - beta1^t), sqrt(1 - beta2^t)."""
    n = tl.program_id(0)
    step = tl.load(steps + n) + tl.load(moving + n).to(tl.float64)
    tl.store(steps + n, step)
    power1 = step * 0 + 1.0
    power2 = power1
    factor1 = tl.load(hyper + 1)
    factor2 = tl.load(hyper + 2)
    t = step.to(tl.int64)
    while t > 0:  # by squares: exp and log of float64 would spill
        if t % 2 == 1:
            power1 *= factor1
            power2 *= factor2
        factor1 *= factor1
        factor2 *= factor2
        t = t // 2
    tl.store(rules + 2 * n, tl.load(hyper) / (1.0 - power1))
    tl.store(rules + 2 * n + 1, tl.sqrt(1.0 - power2))


@triton.jit
def root_of(a):
    """The rounded one: tl.sqrt of float32 takes denormal second moments for 0, by which all is divided if eps is 0."""
    if a.dtype == tl.float32:
        return tl.sqrt_rn(a)
    return tl.sqrt(a)


@triton.jit
def loaded(rule, hyper, WIDE: tl.constexpr):
    """A row of rules, 1 - beta1, 1 - beta2 and eps."""
    rest1 = (1.0 - tl.load(hyper + 1)).to(WIDE)
    rest2 = (1.0 - tl.load(hyper + 2)).to(WIDE)
    return tl.load(rule).to(WIDE), tl.load(rule + 1).to(WIDE), rest1, rest2, tl.load(hyper + 3).to(WIDE)


@triton.jit
def dense(
    p, m, v, grad, keep, omega, importance, reference, rule, hyper, N,
    MASK: tl.constexpr, SYNAPSES: tl.constexpr, STRENGTH: tl.constexpr, COUNTS_PENALTY: tl.constexpr,
    WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adam on N entries in place; a masked entry, its moments too, becomes zero.

    SYNAPSES: for Synaptic Intelligence, STRENGTH * importance * (p - reference) joins the gradient, and omega falls by
    the gradient (COUNTS_PENALTY: with that in it) times what p moved.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < N
    rate, root, rest1, rest2, eps = loaded(rule, hyper, WIDE)
    g = tl.load(grad + at, mask=inside, other=0)
    first = tl.load(m + at, mask=inside, other=0)
    second = tl.load(v + at, mask=inside, other=0)
    old = tl.load(p + at, mask=inside, other=0)
    seen = g
    if SYNAPSES:
        pull = tl.full((), STRENGTH, WIDE) * tl.load(importance + at, mask=inside, other=0)
        g += pull * (old - tl.load(reference + at, mask=inside, other=0))
        if COUNTS_PENALTY:
            seen = g
    first += (g - first) * rest1
    second += (g * g - second) * rest2
    new = old - rate * first / (root_of(second) / root + eps)
    if MASK:
        unmasked = tl.load(keep + at, mask=inside, other=0) != 0
        new = tl.where(unmasked, new, 0.0)
        first = tl.where(unmasked, first, 0.0)
        second = tl.where(unmasked, second, 0.0)
    if SYNAPSES:
        moved = tl.load(omega + at, mask=inside, other=0) - seen * (new - old)
        tl.store(omega + at, moved, mask=inside)
    tl.store(p + at, new, mask=inside)
    tl.store(m + at, first, mask=inside)
    tl.store(v + at, second, mask=inside)


@triton.jit
def segments(
    p, grad, context, winner, touched, m, v, keep, rule, hyper, G, O,
    S: tl.constexpr, C: tl.constexpr, RANK1: tl.constexpr, MASK: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Adam on the rows of unit o that have, or ever had, gradient. RANK1: all of it was a number times the one context,
    so m and v [O, S] are the moments' factors of c and c * c; else m and v are [O, S, C].
    """
    o = tl.program_id(0).to(tl.int64)
    g = tl.arange(0, BLOCK_G)
    there = g < G
    won = tl.load(winner + g * O + o, mask=there, other=-1)
    d = tl.load(grad + g * O + o, mask=there, other=0)
    rate, root, rest1, rest2, eps = loaded(rule, hyper, WIDE)
    at = tl.arange(0, BLOCK_C)
    for s in range(0, S):
        row = o * S + s
        mine = tl.where(won == s, d, 0.0)
        moving = tl.load(touched + row).to(tl.int32) | tl.max((mine != 0).to(tl.int32), 0)
        if moving != 0:
            tl.store(touched + row, 1)
            if RANK1:
                slope = tl.sum(mine, 0)
                factor1 = tl.load(m + row)
                factor2 = tl.load(v + row)
                tl.debug_barrier()  # one thread stores what all have loaded: not before a slow warp has
                factor1 += (slope - factor1) * rest1
                factor2 += (slope * slope - factor2) * rest2
                tl.store(m + row, factor1)
                tl.store(v + row, factor2)
            for c0 in range(0, C, BLOCK_C):
                inside = c0 + at < C
                where = row * C + c0 + at
                if RANK1:
                    c = tl.load(context + c0 + at, mask=inside, other=0)
                    first = factor1 * c
                    second = factor2 * c * c
                else:
                    tile = g[:, None] * C + c0 + at[None, :]
                    c = tl.load(context + tile, mask=there[:, None] & inside[None, :], other=0)
                    slopes = tl.sum(mine[:, None] * c, 0)
                    first = tl.load(m + where, mask=inside, other=0)
                    second = tl.load(v + where, mask=inside, other=0)
                    first += (slopes - first) * rest1
                    second += (slopes * slopes - second) * rest2
                change = rate * first / (root_of(second) / root + eps)
                if MASK:
                    unmasked = tl.load(keep + where, mask=inside, other=0) != 0
                    change = tl.where(unmasked, change, 0.0)
                    first = tl.where(unmasked, first, 0.0)
                    second = tl.where(unmasked, second, 0.0)
                if not RANK1:
                    tl.store(m + where, first, mask=inside)
                    tl.store(v + where, second, mask=inside)
                tl.store(p + where, tl.load(p + where, mask=inside, other=0) - change, mask=inside)
