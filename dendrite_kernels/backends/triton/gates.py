"""Launchers of the segment gate and of gate and k winners. They never wait for the device.

On a GPU an index out of range is not found, for to look would be to wait: what comes of it is undefined, as of torch's
own.
"""

from __future__ import annotations

import torch

from ...reference import check_range, compute_dtype
from ..reference import fill
from . import ksparse, segments, settings, winners
from .memory import contiguous, ready
from .numbers import TYPES

# ---- segments -------------------------------------------------------------------------------------------------------


def segment_gate(out, context, weights, bias, select, activation):
    (gate, winner), wide = (ready(t) for t in out), compute_dtype(weights.dtype)
    (contexts, width), (units, per_unit, _) = context.shape, weights.shape
    if not contexts or not units:
        return
    many = contexts > 1 and wide == torch.float32
    how = settings.segments(contexts, width, weights.dtype, many)
    unit_blocks, context_blocks = -(-units // how.block_units), -(-contexts // how.block_contexts)
    flags = {"ABS": select == "abs_max", "SIGMOID": activation == "sigmoid", "BIAS": bias is not None}
    blocks = {"BLOCK_O": how.block_units, "BLOCK_C": how.block_width, "num_warps": how.warps}
    context, weights, bias = contiguous(context, weights, bias)
    tensors = (context, weights, weights if bias is None else bias, gate, winner)
    if many:
        segments.many_contexts[(unit_blocks, context_blocks)](
            *tensors, contexts, units, S=per_unit, C=width, **flags, **blocks, BLOCK_G=how.block_contexts
        )
    else:
        segments.one_context[(context_blocks * unit_blocks,)](
            *tensors, units, S=per_unit, C=width, **flags, **blocks, WIDE=TYPES[wide], maxnreg=settings.REGISTERS
        )
    fill(out, (gate, winner))


def segment_gate_backward(out, grad_gate, context, weights, gate, winner, activation):
    grad_context, grad_segments, grad_bias = out
    (contexts, width), (units, per_unit, _) = context.shape, weights.shape
    wide = compute_dtype(weights.dtype)
    grad = (grad_gate * gate * (1 - gate) if activation == "sigmoid" else grad_gate).contiguous()
    winner, block = winner.contiguous(), min(1024, settings.power_of_2(max(16, width)))
    blocks = -(-width // block)
    to_segments, to_bias = (ready(t, wide) for t in (grad_segments, grad_bias))
    for t in (to_segments, to_bias):
        if t is not None:
            t.zero_()
    if (to_segments is not None or to_bias is not None) and units:
        some = to_segments if to_segments is not None else to_bias
        segments.segments_gradient[(units, max(1, blocks))](
            grad, winner, context.to(wide).contiguous(), some, some if to_bias is None else to_bias, contexts, units,
            S=per_unit, C=width, WANT_SEGMENTS=to_segments is not None, WANT_BIAS=to_bias is not None, BLOCK_C=block,
        )  # fmt: skip
    to_context = ready(grad_context)
    if to_context is not None and contexts and blocks:
        segments.context_gradient[(contexts, blocks)](
            grad, winner, weights.contiguous(), to_context, units,
            S=per_unit, C=width, WIDE=TYPES[wide], BLOCK_O=4, BLOCK_C=block,
        )  # fmt: skip
    fill(out, (to_context, to_segments, to_bias))


# ---- gate and k winners ---------------------------------------------------------------------------------------------


def gate_kind(gate, context_index, batch: int) -> int:
    if gate is None:
        return winners.NO_GATE
    if context_index is not None:
        return winners.GATE_BY_INDEX
    return winners.ONE_GATE if len(gate) == 1 else winners.GATE_EACH


def _winners(y, gate, bias, context_index, k, combine, boost, relu, keep_ties, z, kept, values, pre, indices):
    check_range(context_index, 0 if gate is None else len(gate), "context_index")
    (batch, units), wide = y.shape, compute_dtype(y.dtype)
    if not batch or not units:
        return
    kind = gate_kind(gate, context_index, batch)
    held = settings.held(units, y.dtype)
    kernel, how = (winners.rows, settings.rows(units)) if held else (winners.long_rows, settings.LONG_ROWS)
    y, gate, bias, boost, context_index = contiguous(y, gate, bias, boost, context_index)
    # an absent tensor's place is taken by y; its flag keeps the kernel from reading it
    tensors = (y if t is None else t for t in (y, gate, bias, boost, context_index, z, kept, values, pre, indices))
    kernel[(batch,)](
        *tensors, units, min(k, units), GATE=kind, BIAS=bias is not None, ADD=combine == "add", BOOST=boost is not None,
        RELU=relu, KEEP_TIES=keep_ties, SPARSE=values is not None, WIDE=TYPES[wide], BLOCK=how.block,
        num_warps=how.warps, maxnreg=how.registers,
    )  # fmt: skip


def winners_launchers(start):
    """A backend's gated_kwinners and gated_kwinners_sparse around what starts its kernels."""

    def gated_kwinners(out, y, gate, bias, context_index, k, combine, boost, relu, ties):
        z, kept = (ready(t) for t in out)
        if k == 0:
            z.zero_(), kept.zero_()
        else:
            args = (y, gate, bias, context_index, k, combine, boost, relu, ties == "keep")
            start(*args, z, kept.view(torch.int8), None, None, None)
        fill(out, (z, kept))

    def gated_kwinners_sparse(out, y, gate, bias, context_index, k, combine, boost, relu):
        values, indices, pre = (ready(t) for t in out)
        if k:
            args = (y, gate, bias, context_index, k, combine, boost, relu, False)
            start(*args, None, None, values, pre, indices)
        fill(out, (values, indices, pre))

    return gated_kwinners, gated_kwinners_sparse


gated_kwinners, gated_kwinners_sparse = winners_launchers(_winners)


def gated_kwinners_backward(out, grad_z, kept, y, gate, bias, context_index, combine):
    grad_z, kept, y, bias = contiguous(grad_z, kept, y, bias)
    _columns(out, grad_z, kept.view(torch.int8), y, gate, bias, context_index, combine)


def _columns(out, grad, kept, y, gate, bias, context_index, combine):
    """Gradients of y [B, O], gate and bias from dense rows; y's is zero wherever nothing was kept."""
    (batch, units), wide = y.shape, compute_dtype(y.dtype)
    grad_y, _, grad_bias = out
    contexts, how = 1 if gate is None else len(gate), settings.columns(batch, units)
    to_y = ready(grad_y)
    to_gate, by_context = (torch.empty(contexts, units, dtype=wide, device=y.device) for _ in range(2))
    kind = gate_kind(gate, context_index, batch)
    gate, context_index = contiguous(gate, context_index)
    tensors = (grad, kept, y, *(y if t is None else t for t in (gate, bias, context_index, to_y)))
    if units and contexts:
        blocks = -(-units // how.block_units)
        winners.columns[(contexts, min(blocks, settings.MOST_BLOCKS), -(-blocks // settings.MOST_BLOCKS))](
            *tensors, to_gate, by_context, batch, units, GATE=kind, BIAS=bias is not None, ADD=combine == "add",
            WANT_Y=grad_y is not None, WIDE=TYPES[wide], BLOCK_B=how.block_batch, BLOCK_O=how.block_units,
            num_warps=how.warps,
        )  # fmt: skip
    fill(out, (to_y, to_gate, by_context.sum(0) if grad_bias is not None else None))


def gated_kwinners_sparse_backward(out, grad_values, values, indices, pre, gate, context_index, units, combine, relu):
    grad_y, grad_gate, grad_bias = out
    grad_values, values, indices, pre = contiguous(grad_values, values, indices, pre)
    (batch, k), shape = values.shape, (len(values), units)
    kept = torch.zeros(shape, dtype=torch.int8, device=values.device)
    grad, pre_rows = values.new_empty(shape), pre.new_empty(shape)
    if batch and k:
        ksparse.spread_gradient[(batch,)](
            grad_values, values, pre, indices, grad, kept, pre_rows, units, k, RELU=relu, BLOCK=128
        )  # fmt: skip
    _columns((grad_y, grad_gate, grad_bias), grad, kept, pre_rows, gate, None, context_index, combine)
