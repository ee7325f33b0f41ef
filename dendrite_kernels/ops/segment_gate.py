"""segment_gate: each unit's strongest dendritic segment, and the gate that it makes."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import backend, factored
from ..reference import compute_dtype
from . import _checks as check
from ._register import define, given, only_autograd_sees, wanted

_sigmoid_backward = torch.ops.aten.sigmoid_backward.default


def segment_gate(
    context: Tensor,
    segments: Tensor,
    bias: Tensor | None = None,
    *,
    select: str = "abs_max",
    activation: str = "sigmoid",
) -> tuple[Tensor, Tensor]:
    """The gate of each unit for each context, and the number of the segment that made it.

    Args:
        context: [G, C], one row for each distinct context. A row expanded over the batch (stride 0) costs one.
        segments: [O, S, C], S segments for each of O units; same dtype as context.
        bias: [O, S] or None, added to the segments' activations.
        select: "abs_max" (the winner keeps its sign) or "max".
        activation: "sigmoid" or "none".

    Returns:
        gate [G, O], float32 (float64 for float64 inputs), and winner [G, O], int32, with no gradient. NaN wins over
        all; equal segments go to the lowest. Winners are chosen in full float32 whatever torch's TF32 switch and
        torch.autocast say.

    Raises:
        TypeError, ValueError: a dtype, device, shape or option is not as above; no segment (S = 0).

    Equivalent to::

        a = torch.einsum("gc,osc->gos", context, segments)
        winner = a.abs().argmax(2)
        gate = a.gather(2, winner.unsqueeze(2)).squeeze(2).sigmoid()

    Source: Grewal et al. 2021, eq. 2 and 3.
    """
    check_segments(context, segments, bias, select, activation)
    row = check.shared_row(context)
    gate, winner = gate_of(row, segments, bias, select, activation)
    if row is not context:
        return gate.expand(context.shape[0], -1), winner.expand(context.shape[0], -1)
    return gate, winner


def check_segments(context, segments, bias, select, activation) -> None:
    check.tensor("segments", segments, (None, None, None), "[O, S, C]")
    check.floating("segments", segments)
    units, per_unit, width = segments.shape
    if per_unit == 0:
        raise ValueError("segments: expected at least one segment a unit, got shape [O, 0, C]")
    check.tensor("context", context, (None, width), "[G, C]")
    check.same("context", context, "segments", segments)
    if bias is not None:
        check.tensor("bias", bias, (units, per_unit), "[O, S]")
        check.same("bias", bias, "segments", segments)
    check.choice("select", select, ("abs_max", "max"))
    check.choice("activation", activation, ("sigmoid", "none"))


def gate_to_read(context, segments, bias, select, activation) -> Tensor:
    """segment_gate's gate for code that will not write to it: without grad, the backend may give what it keeps."""
    alike = isinstance(context, Tensor) and context.dtype == segments.dtype and context.device == segments.device
    if alike and not torch.is_grad_enabled() and only_autograd_sees((context, segments, bias)):
        gate = backend.choose(segments.device).known_gate(context, segments, bias, select, activation)
        if gate is not None:
            return gate
    return segment_gate(context, segments, bias, select=select, activation=activation)[0]


def allocate_gates(context, segments, bias, select, activation):
    shape = (context.shape[0], segments.shape[0])
    gate = segments.new_empty(shape, dtype=compute_dtype(segments.dtype))
    return gate, segments.new_empty(shape, dtype=torch.int32)


def _save(ctx, args, outputs):
    context, segments, bias, _select, activation = args
    gate, winner = outputs
    ctx.mark_non_differentiable(winner)
    ctx.save_for_backward(context, segments, gate, winner)
    ctx.activation = activation
    ctx.needs = [t is not None and t.requires_grad for t in (context, segments, bias)]
    ctx.factored = ctx.needs[1] and factored.wanted(segments)


def segment_gradients(ctx, grad_gate, _grad_winner=None):
    """Gradients of the op's arguments; ctx as _save leaves it."""
    context, segments, gate, winner = ctx.saved_tensors
    if not factored.leaves(ctx, grad_gate):
        grads = _segment_gate_backward(grad_gate, context, segments, gate, winner, ctx.activation, ctx.needs)
        return (*given(ctx.needs, grads), None, None)
    grad = _sigmoid_backward(grad_gate, gate) if ctx.activation == "sigmoid" else grad_gate
    needs, rest = [ctx.needs[0], False, ctx.needs[2]], (None, None, None)
    if any(needs):
        rest = given(needs, _segment_gate_backward(grad, context, segments, gate, winner, "none", needs))
    left = factored.FactoredGrad(segments, [factored.SegmentFactor(grad.detach(), winner, context.detach())])
    return rest[0], left, rest[2], None, None


def _allocate_backward(grad_gate, context, segments, gate, winner, activation, needs):
    grad_context, grad_segments = wanted(needs[:2], [context, segments], segments)
    grad_bias = segments.new_empty(segments.shape[:2] if needs[2] else 0)
    return grad_context, grad_segments, grad_bias


_segment_gate_backward = define(
    "segment_gate_backward",
    "(Tensor grad_gate, Tensor context, Tensor segments, Tensor gate, Tensor winner, str activation, bool[3] needs)"
    " -> (Tensor, Tensor, Tensor)",
    _allocate_backward,
    lambda module, out, *args: module.segment_gate_backward(given(args[-1], out), *args[:-1]),
)

gate_of = define(
    "segment_gate",
    "(Tensor context, Tensor segments, Tensor? bias, str select, str activation) -> (Tensor gate, Tensor winner)",
    allocate_gates,
    lambda module, out, *args: module.segment_gate(out, *args),
    save=_save,
    backward=segment_gradients,
    autocast="float32",
    by_row=(0,),
)
