"""Launchers of linear layers with k-sparse rows. They never wait for the device."""

from __future__ import annotations

import torch

from ... import reference as ref
from ...ops.ksparse import KSparse
from .. import triton
from ..reference import fill
from ..triton import settings
from ..triton.memory import contiguous, ready
from . import native, plan
from .winners import gated_kwinners_sparse


def _takes_product(out, values, indices, weight, bias):
    return len(values) <= settings.MOST_GATHERED_ROWS and 1 in weight.stride()


@native.else_triton(_takes_product)
def sparse_linear(out, values, indices, weight, bias):
    ref.check_range(indices, weight.shape[1], "indices")
    y = ready(out)
    if y.numel():
        values, indices, bias = contiguous(values, indices, bias)
        native.call(
            "gather_product", y.dtype, values, indices, *values.shape, len(weight), weight, *weight.stride(), bias, y
        )
    fill([out], [y])


def linear_kwinners(out, x, x_indices, weight, bias, gate, context_index, k, combine, boost, relu):
    if x_indices is None:
        y = ref.linear(x, weight)
    else:
        y = x.new_empty(len(x), len(weight))
        sparse_linear(y, x, x_indices, weight, None)
    gated_kwinners_sparse(out, y, gate, bias, context_index, k, combine, boost, relu)


# ---- gradients ------------------------------------------------------------------------------------------------------


def _takes_outer(out, sparse, other):
    """Few enough entries that a dense product has more to do, of one dtype, for rows that lie one after the other."""
    if sparse.values.shape[1] > settings.MOST_GATHERED_SHARE * sparse.size or not out.is_contiguous():
        return False
    others = other.values if isinstance(other, KSparse) else other
    if isinstance(other, KSparse):
        fits = plan.outer_warps(other.size, out.dtype) > 0 and others.shape[1] > 0
    else:
        fits = other.shape[1] <= plan.MOST_COLUMNS
    return fits and out.dtype == sparse.values.dtype == others.dtype and out.dtype in native.SUFFIX


def _outer_arguments(sparse, other, width, dtype):
    """What the kernels take of sparse [B, rows] and other [B, width], and how many rows they sum a block."""
    values, indices = contiguous(sparse.values, sparse.indices)
    others, columns, entries, warps = other, None, 0, 4
    if isinstance(other, KSparse):
        others, columns, entries = *contiguous(other.values, other.indices), other.values.shape[1]
        warps = plan.outer_warps(other.size, dtype)
    return (values, indices, *values.shape, sparse.size, others.contiguous(), columns, width, entries), warps


@native.else_triton(_takes_outer)
def outer(out, sparse, other):
    """out [I, O] = sparse^T other; other: a tensor [B, O], or KSparse with different indices in a sample."""
    ref.check_range(sparse.indices, sparse.size, "indices")
    if out.numel():
        factors, warps = _outer_arguments(sparse, other, out.shape[1], out.dtype)
        with torch.cuda.device_of(out):
            native.call("outer", out.dtype, *factors, out, warps)


def adam_outer(p, sparse, other, m, v, keep, rule, hyper, synapses=None) -> bool:
    """Adam in place on p [rows, n] by the gradient sparse^T other, which is never written; whether it could.

    m, v, keep, rule, hyper and synapses: as adam_dense takes them, laid out as p.
    """
    kept = synapses[:3] if synapses else ()
    laid_out = all(t.dtype == p.dtype and t.stride() == p.stride() for t in (m, v, *kept))
    masked = keep is None or (keep.dtype == torch.bool and keep.stride() == p.stride())
    if not (laid_out and masked) or p.dtype not in (torch.float32, torch.float64) or not _takes_outer(p, sparse, other):
        return False
    ref.check_range(sparse.indices, sparse.size, "indices")
    if p.numel():
        factors, warps = _outer_arguments(sparse, other, p.shape[1], p.dtype)
        protected = (*kept, float(synapses[3]), bool(synapses[4])) if synapses else (None, None, None, 0.0, False)
        with torch.cuda.device_of(p):
            native.call("adam_outer", p.dtype, *factors, p, m, v, keep, rule, hyper, *protected, warps)
    return True


def _by_row(grad_weight, sparse_x):
    """The gradient with the rows that the k-sparse side names."""
    return grad_weight.T if sparse_x else grad_weight


def sparse_linear_backward(out, grad_y, values, indices, weight, keep_sums=False):
    grad_values, grad_weight, grad_bias = out
    x = KSparse(values, indices, weight.shape[1])
    own = grad_weight is not None and _takes_outer(_by_row(grad_weight, True), x, grad_y)
    rest = (grad_values, None if own else grad_weight, grad_bias)
    triton.sparse_linear_backward(rest, grad_y, values, indices, weight)
    if own:
        outer(grad_weight.T, x, grad_y)


def linear_kwinners_backward(
    out, grad_values, values, indices, pre, x, x_indices, weight, gate, context_index, combine, relu, keep_sums=False
):
    grad_x, grad_weight, grad_bias, grad_gate, grad_winners = out
    dy = KSparse(grad_winners, indices, len(weight))
    sparse, other = (dy, x) if x_indices is None else (KSparse(x, x_indices, weight.shape[1]), dy)
    own = grad_weight is not None and _takes_outer(_by_row(grad_weight, x_indices is not None), sparse, other)
    triton.linear_kwinners_backward(
        (grad_x, None if own else grad_weight, grad_bias, grad_gate, grad_winners),
        grad_values, values, indices, pre, x, x_indices, weight, gate, context_index, combine, relu,
    )  # fmt: skip
    if own:
        outer(_by_row(grad_weight, x_indices is not None), sparse, other)
