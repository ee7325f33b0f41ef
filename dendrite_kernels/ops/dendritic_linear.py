"""dendritic_linear: the whole layer."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from .. import backend, factored
from ..reference import compute_dtype
from . import _checks as check
from ._register import define
from .ksparse import KSparse
from .kwinners import allocate_winners, gated_kwinners
from .linear_kwinners import checked, linear_gradients, linear_kwinners, winning_units
from .segment_gate import allocate_gates, check_segments, gate_of, segment_gate, segment_gradients
from .sparse_linear import sparse_linear


def dendritic_linear(
    x: Tensor | KSparse,
    weight: Tensor,
    bias: Tensor | None,
    context: Tensor,
    segments: Tensor,
    segment_bias: Tensor | None = None,
    context_index: Tensor | None = None,
    k: int | None = None,
    *,
    select: str = "abs_max",
    activation: str = "sigmoid",
    combine: str = "mul",
    boost: Tensor | None = None,
    relu: bool = False,
    ties: str = "lowest",
    sparse: bool = False,
) -> Tensor | KSparse:
    """The active dendrites layer: a linear layer whose units are gated by their strongest segment, then k winners.

    Args:
        x: [B, I], dense or KSparse.
        weight, bias: [O, I] and [O] or None, of x's dtype. Masked weights are zeros in it.
        context: [G, C]; G is 1, B, or the number of distinct contexts that context_index [B] names.
        segments, segment_bias: [O, S, C] and [O, S] or None.
        k: winners a row; None keeps all (no kWTA).
        select, activation: as in segment_gate. combine, boost, relu, ties: as in gated_kwinners.
        sparse: return KSparse (k given, ties "lowest"), for the next layer to use.

    Returns:
        z [B, O], or KSparse(values [B, k], indices [B, k], O), of x's dtype. Gradients reach x, weight, bias, context,
        segments and segment_bias. Under torch.autocast x W^T is of autocast's dtype, and all else, z too, float32.

    Raises:
        as segment_gate, sparse_linear and gated_kwinners.

    Equivalent to::

        a = torch.einsum("gc,osc->gos", context, segments)
        gate = a.gather(2, a.abs().argmax(2, keepdim=True)).squeeze(2).sigmoid()
        z = kwinners(torch.nn.functional.linear(x, weight, bias) * gate[context_index], k)

    Source: Grewal et al. 2021, eq. 1 to 4.
    """
    if context_index is None and isinstance(context, Tensor):
        context = check.shared_row(context, x.shape[0])
    options = {"combine": combine, "boost": boost, "relu": relu}
    if ties == "lowest" and k is not None and in_one_launch(x, weight, context):
        arguments = (x, weight, bias, context, segments, segment_bias, context_index, k)
        winners = dendritic_layer(*arguments, select=select, activation=activation, **options)
        return winners if sparse else winners.to_dense()
    gate, _ = segment_gate(context, segments, segment_bias, select=select, activation=activation)
    return gated_linear(x, weight, bias, gate, context_index, k, **options, ties=ties, sparse=sparse)


def in_one_launch(x, weight, context) -> bool:
    """Whether the backend would rather have the whole layer in one launch than a launch a stage."""
    if torch.compiler.is_compiling() or not all(isinstance(t, Tensor) and t.dim() == 2 for t in (weight, context)):
        return False
    return backend.choose(weight.device).one_launch(x.shape[0], weight.shape[0], len(context), weight.dtype)


def gated_linear(x, weight, bias, gate, context_index, k, *, combine, boost, relu, ties, sparse):
    """The layer once its gate [G, O] is known (None: no dendrites), dense or sparse, with or without kWTA."""
    if ties == "lowest" and k is not None:
        winners = linear_kwinners(x, weight, bias, gate, context_index, k, combine=combine, boost=boost, relu=relu)
        return winners if sparse else winners.to_dense()
    if sparse:
        raise ValueError(f"sparse: expected False with k = {k} and ties = {ties!r}: a KSparse has exactly k a row")
    y = sparse_linear(x, weight)
    k = weight.shape[0] if k is None else k
    return gated_kwinners(y, gate, bias, context_index, k, combine=combine, boost=boost, relu=relu, ties=ties)


# ---- the whole layer as one op --------------------------------------------------------------------------------------


def dendritic_layer(
    x, weight, bias, context, segments, segment_bias, context_index, k,
    *, select="abs_max", activation="sigmoid", combine="mul", boost=None, relu=False,
) -> KSparse:  # fmt: skip
    """dendritic_linear(..., sparse=True) as one op, whatever the backend's plan is."""
    check_segments(context, segments, segment_bias, select, activation)
    check.tensor("weight", weight, (segments.shape[0], None), "[O, I]")
    check.same("segments", segments, "weight", weight)
    # what the checks want to know of a gate that is yet to be made
    gate = context.new_empty(1, dtype=compute_dtype(context.dtype)).expand(context.shape[0], weight.shape[0])
    values, indices = checked(x, weight, bias, gate, context_index, k, combine, boost)
    _, _, out, winners, _ = _dendritic_layer(
        values, indices, weight, bias, context, segments, segment_bias, context_index, k, select, activation, combine,
        boost, relu,
    )  # fmt: skip
    return KSparse(out, winners, weight.shape[0])


def _allocate_layer(
    x, x_indices, weight, bias, context, segments, segment_bias, context_index, k, select, activation, *_
):
    gates = allocate_gates(context, segments, segment_bias, select, activation)
    return *gates, *allocate_winners(x, weight.shape[0], k)


def _save_layer(ctx, args, outputs):
    x, x_indices, weight, bias, context, segments, segment_bias, context_index = args[:8]
    activation, combine, relu = args[10], args[11], args[13]
    gate, winner, _, indices, pre = outputs
    ctx.mark_non_differentiable(gate, winner, indices, pre)
    ctx.save_for_backward(*outputs, x, x_indices, weight, context, segments, context_index)
    needs = [t is not None and t.requires_grad for t in (x, weight, bias, context, segments, segment_bias)]
    ctx.linear = {"rest": (combine, relu), "needs": [*needs[:3], any(needs[3:])]}
    ctx.linear["factored"] = needs[1] and factored.wanted(weight)
    ctx.gate = {"activation": activation, "needs": needs[3:], "factored": needs[4] and factored.wanted(segments)}


def _layer_gradients(ctx, _gate, _winner, grad_values, *_):
    gate, winner, values, indices, pre, x, x_indices, weight, context, segments, context_index = ctx.saved_tensors
    saved = (values, indices, pre, x, x_indices, weight, gate, context_index)
    grads = linear_gradients(SimpleNamespace(saved_tensors=saved, **ctx.linear), grad_values)
    grad_x, _, grad_weight, grad_bias, grad_gate, *_ = grads
    of_gate = (None, None, None)
    if any(ctx.gate["needs"]):
        saved = (context, segments, gate, winner)
        of_gate = segment_gradients(SimpleNamespace(saved_tensors=saved, **ctx.gate), grad_gate)[:3]
    return (grad_x, None, grad_weight, grad_bias, *of_gate, *[None] * 7)


def _stages(
    x, x_indices, weight, bias, context, segments, segment_bias, context_index, k, select, activation, *options
):
    """The op under autocast."""
    gate, winner = gate_of(context, segments, segment_bias, select, activation)
    return gate, winner, *winning_units(x, x_indices, weight, bias, gate, context_index, k, *options)


_dendritic_layer = define(
    "dendritic_layer",
    "(Tensor x, Tensor? x_indices, Tensor weight, Tensor? bias, Tensor context, Tensor segments, Tensor? segment_bias,"
    " Tensor? context_index, SymInt k, str select, str activation, str combine, Tensor? boost, bool relu)"
    " -> (Tensor gate, Tensor winner, Tensor values, Tensor indices, Tensor pre)",
    _allocate_layer,
    lambda module, out, *args: module.dendritic_layer(out, *args),
    save=_save_layer,
    backward=_layer_gradients,
    autocast=_stages,
)
