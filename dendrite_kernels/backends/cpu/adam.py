"""The optimizer's passes."""

from __future__ import annotations

import torch

from ... import reference
from ...reference import is_dense
from . import products
from .native import SUFFIX, _cpu, call
from .products import UnitLists


def outer(out, sparse, other):
    """out [I, O] = sparse^T other, any strides; other: a tensor [B, O] or KSparse."""
    used, other = _dense_side(other)
    products.outer(sparse.values.contiguous(), sparse.indices, other, used, out.T, out.T, None)


def _dense_side(other):
    """(columns in use or None, the rows over them)."""
    if isinstance(other, torch.Tensor):
        return None, other.contiguous()
    return products.compacted(other.values.contiguous(), other.indices, other.size)


def adam_outer(weight, sparse, other, sums, rule, m, v, start, bits, since, synapses):
    """Adam on a contiguous weight [I, O] whose gradient is sparse^T other [B, O] (a tensor or KSparse).

    sums: the gradient as products.outer left it with keep_sums; None: it is made. synapses: omega, importance,
    reference [I, O], strength and counts_penalty of Synaptic Intelligence, or None.
    """
    lists = UnitLists.of(sparse.indices, len(weight))
    if sums is None:
        used, other = _dense_side(other)
    else:
        used = None if isinstance(other, torch.Tensor) else UnitLists.of(other.indices, other.size).used
    width = other.shape[1] if used is None else len(used)
    call(
        "adam_outer", weight.dtype, sparse.values.contiguous(), *lists.arguments(), *weight.shape,
        other if sums is None else None, width, used, *products.sums_arguments(sums, lists), *rule,
        weight, m, v, start, bits, since, *(synapses or (None, None, None, 0.0, False)),
    )  # fmt: skip


def adam_dense(p, m, v, grad, rule) -> bool:
    """Adam in place, where dtypes and memory order allow; whether they did."""
    native = p.dtype in SUFFIX and p.dtype == grad.dtype == m.dtype == v.dtype
    if not native or not (p.stride() == grad.stride() == m.stride() == v.stride() and is_dense(p)):
        return False
    call("adam_dense", p.dtype, p, m, v, grad, p.numel(), *rule)
    return True


def touch_segments(grad, winner, per_unit, place, rows, since, count):
    """Gives segments that won with gradient a place among the touched rows; returns their number."""
    # no thread count in this one: it walks the winners once
    kernel = getattr(_cpu, "touch_segments" + SUFFIX[grad.dtype])
    return kernel(grad, winner, *grad.shape, per_unit, place, rows, since, count)


def adam_segments(segments, grad, context, winner, rule, rows, since, count, rank1, m, v, keep, activations):
    """Adam on the touched rows of segments [O, S, C]; `activations` [O, S] of one context follow where given."""
    shape = (len(context), *segments.shape)
    call(
        "adam_segments", segments.dtype, grad, context, winner, *shape, *rule, rows, since, count, rank1, segments,
        m, v, keep, activations,
    )  # fmt: skip


def update_duty_cycle_(duty_cycle, seen, values, indices, longest):
    native = indices is not None and duty_cycle.dtype == values.dtype in SUFFIX and duty_cycle.is_contiguous()
    if not native:
        reference.update_duty_cycle_(duty_cycle, seen, values, indices, longest)
        return
    kernel = getattr(_cpu, "duty_cycle" + SUFFIX[values.dtype])  # in one thread: it walks the winners once
    kernel(duty_cycle, values.contiguous(), indices.contiguous(), seen, duty_cycle.shape[0], *values.shape, longest)
    torch.autograd.graph.increment_version((duty_cycle, seen))


def rezero_(weight, keep):
    in_order = weight.stride() == keep.stride() and is_dense(weight)
    if weight.dtype in SUFFIX and in_order:
        call("rezero", weight.dtype, weight, keep, weight.numel())
    else:
        weight.masked_fill_(~keep, 0)
