"""Launchers of the native CPU kernels (csrc/cpu): functions of the ops' names that fill what ops/ allocated.

float32 and float64 run as they are; bfloat16 and float16 are widened to float32 here and rounded back, which is
the contract's arithmetic at a copy's cost. Dense matrix products are torch's, but for those that products.py knows.
"""

from __future__ import annotations

import torch

from ... import known
from ...reference import channel_gate, combine_gate, compute_dtype
from ..reference import in_stages, one_launch
from . import products
from .adam import adam_dense, adam_outer, adam_segments, outer, rezero_, touch_segments, update_duty_cycle_
from .native import (
    SUFFIX,
    Outputs,
    _cpu,
    call,
    checked_index,
    gradient_like,
    group_count,
    import_error,
    release_memory,
    strided,
    widened,
)

__all__ = [
    "adam_dense",
    "adam_outer",
    "adam_segments",
    "counts_on_device",
    "dendritic_layer",
    "gated_kwinners",
    "gated_kwinners_backward",
    "gated_kwinners_sparse",
    "gated_kwinners_sparse_backward",
    "gradient_like",
    "kept_activations",
    "known_gate",
    "ksparse_gather",
    "ksparse_to_dense",
    "kwinners2d",
    "kwinners2d_backward",
    "linear_kwinners",
    "linear_kwinners_backward",
    "moved",
    "one_launch",
    "outer",
    "release_memory",
    "rezero_",
    "segment_gate",
    "segment_gate_backward",
    "sparse_linear",
    "sparse_linear_backward",
    "touch_segments",
    "update_duty_cycle_",
    "why_not",
]


counts_on_device = False  # step counts are ints


def why_not(device: torch.device) -> str | None:
    if _cpu is None:
        return (
            f"dendrite_kernels._cpu is not built ({import_error}); "
            "install a C++ compiler and the Python headers, then reinstall with `pip install -v .`"
        )
    return None if device.type == "cpu" else "its kernels run on CPU tensors only"


# ---- segments -------------------------------------------------------------------------------------------------------


def segment_gate(out, context, segments, bias, select, activation):
    options = (select, activation, _cpu.isa())
    ready = known.gates(context, segments, bias, *options)
    if ready is not None and not known.checking():
        for to, value in zip(out, ready, strict=True):
            to.copy_(value)
        return
    kept = kept_activations(context, segments)
    if kept is not None and known.checking():
        known.check_same(kept, _activations(context, segments), "the activations that were kept")
    fresh = None
    if kept is None and segments.dtype in SUFFIX and known.followed(context, segments):  # no optimizer moves halves
        fresh = segments.new_empty(segments.shape[:2])
    _segment_gate(out, context, segments, bias, select, activation, kept, fresh)
    if ready is not None:
        known.check_same(ready[0], out[0], "the gates that were kept")
    if fresh is not None:
        known.keep_activations(fresh, context, segments, _cpu.isa())
    elif kept is None:
        known.keep_gates(*out, context, segments, bias, *options)


def known_gate(context, segments, bias, select, activation):
    """The gate that is kept of these arguments, not to be written to; None: not known."""
    ready = None if known.checking() else known.gates(context, segments, bias, select, activation, _cpu.isa())
    return None if ready is None else ready[0]


def _activations(context, segments):
    """The activations [O, S] of the one context, computed afresh."""
    gate, fresh = segments.new_empty(1, len(segments)), segments.new_empty(segments.shape[:2])
    _segment_gate((gate, gate.int()), context, segments, None, "max", "none", None, fresh)
    return fresh


def _segment_gate(out, context, segments, bias, select, activation, kept, fresh):
    """kept: activations [O, S] of the one context, known already; fresh: takes them. Either may be None."""
    wide, shape = compute_dtype(segments.dtype), (len(context), *segments.shape)
    with Outputs(out, wide) as (gate, winner):
        context, segments, bias = widened(context), None if kept is not None else widened(segments), widened(bias)
        flags = (select == "abs_max", activation == "sigmoid")
        call("segment_gate", wide, context, segments, bias, *shape, *flags, gate, winner, kept, fresh)


def segment_gate_backward(out, grad_gate, context, segments, gate, winner, activation):
    wide = compute_dtype(segments.dtype)
    units, per_unit, width = segments.shape
    with Outputs(out, wide) as grads:
        read_segments = out[0] is not None  # only the context's gradient reads them
        call(
            "segment_gate_backward",
            wide,
            widened(grad_gate),
            widened(context),
            widened(segments) if read_segments else None,
            gate.contiguous(),
            winner.contiguous(),
            len(context),
            units,
            per_unit,
            width,
            activation == "sigmoid",
            *grads,
        )


# ---- gate and k winners ---------------------------------------------------------------------------------------------


def _kwinners(y, gate, bias, context_index, k, combine, boost, relu, keep, z, kept, values, pre, indices):
    """The row kernel. Halves are combined and rounded by torch first, so that ranks are those of rounded values."""
    wide = compute_dtype(y.dtype)
    context_index = checked_index(context_index, group_count(gate), "context_index")
    rows, gate, bias = widened(y), widened(gate), widened(bias)
    if y.dtype != wide:
        if pre is not None:
            unrounded = rows if bias is None else rows + bias
        rows, gate, bias, context_index = widened(combine_gate(y, gate, bias, context_index, combine)), None, None, None
    call(
        "kwinners", wide, rows, bias, gate, widened(boost), context_index, group_count(gate), combine == "add",
        *y.shape, min(k, y.shape[1]), relu, keep, z, kept, values, pre, indices,
    )  # fmt: skip
    if y.dtype != wide and pre is not None:
        pre.copy_(unrounded.gather(1, indices.long()))


def gated_kwinners(out, y, gate, bias, context_index, k, combine, boost, relu, ties):
    with Outputs(out, compute_dtype(y.dtype)) as (z, kept):
        _kwinners(
            y, gate, bias, context_index, k, combine, boost, relu, ties == "keep", z, kept, None, None, None
        )  # fmt: skip


def gated_kwinners_sparse(out, y, gate, bias, context_index, k, combine, boost, relu):
    with Outputs(out, compute_dtype(y.dtype)) as (values, indices, pre):
        _kwinners(
            y, gate, bias, context_index, k, combine, boost, relu, False, None, None, values, pre, indices
        )  # fmt: skip


def gated_kwinners_backward(out, grad_z, kept, y, gate, bias, context_index, combine):
    wide = compute_dtype(y.dtype)
    with Outputs(out, wide) as grads:
        index = checked_index(context_index, group_count(gate), "context_index")
        call(
            "kwinners_backward", wide, widened(grad_z), widened(y), kept.contiguous(), widened(bias), widened(gate),
            index, group_count(gate), combine == "add", *y.shape, *grads,
        )  # fmt: skip


def kwinners2d(out, y, gate, context_index, k, local, combine, boost, relu, ties):
    wide, index = compute_dtype(y.dtype), checked_index(context_index, group_count(gate), "context_index")
    batch, channels, height, width = y.shape
    if y.dtype != wide:  # combined and rounded by torch first, as in _kwinners
        y, gate, index = combine_gate(y, channel_gate(gate, index), combine=combine), None, None
    most = channels if local else channels * height * width
    with Outputs(out, wide) as (z, kept):
        call(
            "kwinners2d", wide, widened(y), widened(gate), widened(boost), index, group_count(gate), combine == "add",
            batch, channels, height * width, min(k, most), local, relu, ties == "keep", z, kept,
        )  # fmt: skip


def kwinners2d_backward(out, grad_z, kept, y, gate, context_index, combine):
    wide, index = compute_dtype(y.dtype), checked_index(context_index, group_count(gate), "context_index")
    batch, channels, height, width = y.shape
    with Outputs(out, wide) as grads:
        call(
            "kwinners2d_backward", wide, widened(grad_z), widened(y), kept.contiguous(), widened(gate), index,
            group_count(gate), combine == "add", batch, channels, height * width, *grads,
        )  # fmt: skip


def _winners_backward(grads, grad_values, values, indices, pre, gate, context_index, units, combine, relu):
    """grads: grad of y at the winners [B, k], of gate and of bias, all wide and contiguous."""
    index = checked_index(context_index, group_count(gate), "context_index")
    bad = call(
        "winners_backward", pre.dtype, widened(grad_values), widened(values), pre.contiguous(), indices.contiguous(),
        widened(gate), index, group_count(gate), combine == "add", len(values), units, values.shape[1], relu, *grads,
    )  # fmt: skip
    products.indices_error(bad, indices, units)


def gated_kwinners_sparse_backward(out, grad_values, values, indices, pre, gate, context_index, units, combine, relu):
    indices = indices.contiguous()
    with Outputs(out, pre.dtype) as (grad_y, grad_gate, grad_bias):
        grad_winners = torch.empty(pre.shape, dtype=pre.dtype)
        _winners_backward(
            (grad_winners, grad_gate, grad_bias),
            grad_values, values, indices, pre, gate, context_index, units, combine, relu,
        )  # fmt: skip
        if grad_y is not None:
            products.densify(grad_winners, indices, grad_y, gather=False)


# ---- linear layers ---


def sparse_linear(out, values, indices, weight, bias):
    with Outputs([out], compute_dtype(out.dtype)) as (y,):
        products.matmul(y, widened(values), indices.contiguous(), strided(weight).T, widened(bias))


def sparse_linear_backward(out, grad_y, values, indices, weight, keep_sums=False):
    wide = compute_dtype(values.dtype)
    grad_values, grad_weight, grad_bias = out
    if grad_bias is not None:
        torch.sum(grad_y, 0, out=grad_bias)
    with Outputs([grad_values], wide) as (gv,), Outputs([grad_weight], wide, any_strides=True) as (gw,):
        return products.outer(widened(values), indices, widened(grad_y), None, strided(weight), gw, gv, keep_sums)


def linear_kwinners(out, x, x_indices, weight, bias, gate, context_index, k, combine, boost, relu):
    if x_indices is None:
        y = products.dense_matmul(x, weight)
    else:
        y = torch.empty(len(x), len(weight), dtype=x.dtype)
        sparse_linear(y, x, x_indices, weight, None)
    gated_kwinners_sparse(out, y, gate, bias, context_index, k, combine, boost, relu)


dendritic_layer = in_stages(segment_gate, linear_kwinners)


def linear_kwinners_backward(
    out, grad_values, values, indices, pre, x, x_indices, weight, gate, context_index, combine, relu, keep_sums=False
):
    wide, units = pre.dtype, len(weight)
    grad_x, grad_weight, grad_bias, grad_gate, grad_winners = out
    with (
        Outputs([grad_x, grad_bias, grad_gate, grad_winners], wide) as (gx, gb, gg, grad_y),
        Outputs([grad_weight], wide, any_strides=True) as (gw,),
    ):
        _winners_backward(
            (grad_y, gg, gb), grad_values, values, indices, pre, gate, context_index, units, combine, relu
        )
        if x_indices is None:
            products.gradients_of_dense_x(grad_y, indices, widened(x), strided(weight), gx, gw)
            return None
        used, compact = products.compacted(grad_y, indices, units)
        return products.outer(widened(x), x_indices, compact, used, strided(weight), gw, gx, keep_sums)


def ksparse_to_dense(out, values, indices):
    with Outputs([out], compute_dtype(out.dtype)) as (z,):
        products.densify(widened(values), indices.contiguous(), z, gather=False)


def ksparse_gather(out, dense, indices):
    with Outputs([out], compute_dtype(out.dtype)) as (values,):
        products.densify(values, indices.contiguous(), widened(dense), gather=True)


def kept_activations(context, segments):
    """The known activations [O, S] of one context [1, C], for adam_segments to move; None: not known."""
    return known.activations(context, segments, _cpu.isa())


def moved(segments):
    """Adam has written the segments, and their known activations with them."""
    known.moved(segments, _cpu.isa())
