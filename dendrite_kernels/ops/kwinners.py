"""kwinners, gated_kwinners and gated_kwinners_sparse: bias, gate and k-winner-take-all in one pass over y."""

from __future__ import annotations

import torch
from torch import Tensor

from ..reference import compute_dtype
from . import _checks as check
from ._register import define, given, wanted
from .ksparse import KSparse


def gated_kwinners(
    y: Tensor,
    gate: Tensor | None,
    bias: Tensor | None,
    context_index: Tensor | None,
    k: int,
    *,
    combine: str = "mul",
    boost: Tensor | None = None,
    relu: bool = False,
    ties: str = "lowest",
) -> Tensor:
    """The k largest of each row of (y + bias) combined with its gate; the rest become 0.

    Args:
        y: [B, O], float32, float64, bfloat16 or float16.
        gate: [G, O] or None, float32 (float64 for float64 y). A row expanded over the batch (stride 0) is G = 1.
        bias: [O] or None, of y's dtype.
        context_index: [B], int32 or int64, the gate's row for each row of y; None where G is 1 or B.
        k: winners a row. k >= O keeps all; k = 0 none.
        combine: "mul" (the gate) or "add" (dendrites as a bias).
        boost: [O] or None, in the gate's dtype: winners are ranked by value * boost, the value is passed on.
        relu: winners that are not positive become 0 too.
        ties: "lowest" (exactly k, equal values to the lowest index) or "keep" (all that equal the k-th stay).

    Returns:
        z [B, O], of y's dtype. The combination is computed in float32 (float64), rounded to y's dtype and then ranked.
        NaN ranks above +inf; -0.0 equals 0.0. Under torch.autocast all are cast to float32, and z is float32.

    Raises:
        TypeError, ValueError: a dtype, device, shape or option is not as above.
        IndexError: context_index outside [0, G) (CPU tensors).

    Equivalent to (without ties)::

        a = (y + bias) * gate[context_index]
        i = a.topk(k, dim=1).indices
        z = torch.zeros_like(a).scatter(1, i, a.gather(1, i))

    Source: Grewal et al. 2021, eq. 1 and 4; boosting: Ahmad & Scheinkman 2019, eq. 6.
    """
    gate = _check(y, gate, bias, context_index, k, combine, boost)
    check.choice("ties", ties, ("lowest", "keep"))
    return _gated_kwinners(y, gate, bias, context_index, k, combine, boost, relu, ties)[0]


def gated_kwinners_sparse(
    y: Tensor,
    gate: Tensor | None,
    bias: Tensor | None,
    context_index: Tensor | None,
    k: int,
    *,
    combine: str = "mul",
    boost: Tensor | None = None,
    relu: bool = False,
) -> KSparse:
    """gated_kwinners with the winners alone: KSparse(values [B, min(k, O)], ascending int32 indices, O).

    With relu, winners that are not positive keep their place with value 0. Arguments, rules and errors as there.

    Equivalent to: gated_kwinners(...) as values and indices.
    """
    gate = _check(y, gate, bias, context_index, k, combine, boost)
    values, indices, _ = winners_of(y, gate, bias, context_index, k, combine, boost, relu)
    return KSparse(values, indices, y.shape[1])


def kwinners(y: Tensor, k: int, *, boost: Tensor | None = None, relu: bool = False, ties: str = "lowest") -> Tensor:
    """The k largest of each row of y [B, O]; the rest become 0. Arguments and errors as gated_kwinners.

    Equivalent to: torch.zeros_like(y).scatter(1, (t := y.topk(k)).indices, t.values)

    Source: Ahmad & Scheinkman 2019, algorithm 1.
    """
    return gated_kwinners(y, None, None, None, k, boost=boost, relu=relu, ties=ties)


def _check(y, gate, bias, context_index, k, combine, boost):
    """Checks all, and returns the gate with a row shared by stride 0 taken once."""
    check.tensor("y", y, (None, None), "[B, O]")
    check.floating("y", y)
    if isinstance(gate, Tensor) and context_index is None:
        gate = check.shared_row(gate, y.shape[0])
    check.winners_arguments("y", y, y.shape[1], gate, bias, context_index, k, combine, boost)
    return gate


# ---- dense result ---------------------------------------------------------------------------------------------------


def _allocate(y, gate, bias, context_index, k, combine, boost, relu, ties):
    check.sizes("y", y.shape[0] * y.shape[1])
    return y.new_empty(y.shape), y.new_empty(y.shape, dtype=torch.bool)


def save_kept(ctx, kept, combine, y, gate, *others):
    """Keeps what the gradients of a dense result read: y only where a gate multiplied it and wants its own."""
    ctx.mark_non_differentiable(kept)
    multiplied = combine == "mul" and gate is not None and gate.requires_grad
    ctx.save_for_backward(kept, y if multiplied else None, gate, *others)
    ctx.combine = combine


def kept_gradients(ctx, op, grad_z):
    """What op makes of what save_kept has kept; None for what needs no gradient (ctx.needs)."""
    kept, y, *rest = ctx.saved_tensors
    like = grad_z if y is None else y  # a tensor of its shape and dtype
    return given(ctx.needs, op(grad_z, kept, like, *rest, ctx.combine, ctx.needs))


def _save(ctx, args, outputs):
    y, gate, bias, context_index, _k, combine, *_ = args
    save_kept(ctx, outputs[1], combine, y, gate, bias, context_index)
    ctx.needs = [t is not None and t.requires_grad for t in (y, gate, bias)]


def _backward(ctx, grad_z, _grad_kept):
    return (*kept_gradients(ctx, _gated_kwinners_backward, grad_z), *[None] * 6)


def _allocate_backward(grad_z, kept, y, gate, bias, context_index, combine, needs):
    grad_y = y.new_empty(y.shape if needs[0] else 0)
    return grad_y, *wanted(needs[1:], [gate, bias], y)


_gated_kwinners_backward = define(
    "gated_kwinners_backward",
    "(Tensor grad_z, Tensor kept, Tensor y, Tensor? gate, Tensor? bias, Tensor? context_index, str combine,"
    " bool[3] needs) -> (Tensor, Tensor, Tensor)",
    _allocate_backward,
    lambda module, out, *args: module.gated_kwinners_backward(given(args[-1], out), *args[:-1]),
)

_gated_kwinners = define(
    "gated_kwinners",
    "(Tensor y, Tensor? gate, Tensor? bias, Tensor? context_index, SymInt k, str combine, Tensor? boost, bool relu,"
    " str ties) -> (Tensor z, Tensor kept)",
    _allocate,
    lambda module, out, *args: module.gated_kwinners(out, *args),
    save=_save,
    backward=_backward,
    autocast="float32",
    by_row=(0,),
    gate=(1, 3),
)


# ---- k-sparse result ------------------------------------------------------------------------------------------------


def allocate_winners(like: Tensor, units: int, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """values, indices and pre [B, min(k, units)]."""
    check.sizes("y", like.shape[0] * units, units)
    shape = (like.shape[0], min(k, units))
    pre = like.new_empty(shape, dtype=compute_dtype(like.dtype))
    return like.new_empty(shape), like.new_empty(shape, dtype=torch.int32), pre


def _allocate_sparse(y, gate, bias, context_index, k, combine, boost, relu):
    return allocate_winners(y, y.shape[1], k)


def _save_sparse(ctx, args, outputs):
    y, gate, bias, context_index, _k, combine, _boost, relu = args
    values, indices, pre = outputs
    ctx.mark_non_differentiable(indices, pre)
    ctx.save_for_backward(values, indices, pre, gate, context_index)
    ctx.rest = (y.shape[1], combine, relu)
    ctx.needs = [t is not None and t.requires_grad for t in (y, gate, bias)]


def _backward_sparse(ctx, grad_values, *_):
    grads = _gated_kwinners_sparse_backward(grad_values, *ctx.saved_tensors, *ctx.rest, ctx.needs)
    return (*given(ctx.needs, grads), *[None] * 5)


def _allocate_sparse_backward(grad_values, values, indices, pre, gate, context_index, units, combine, relu, needs):
    grad_y = values.new_empty((values.shape[0], units) if needs[0] else 0)
    grad_gate = torch.empty_like(gate) if needs[1] else values.new_empty(0)
    return grad_y, grad_gate, values.new_empty(units if needs[2] else 0)


_gated_kwinners_sparse_backward = define(
    "gated_kwinners_sparse_backward",
    "(Tensor grad_values, Tensor values, Tensor indices, Tensor pre, Tensor? gate, Tensor? context_index, SymInt units,"
    " str combine, bool relu, bool[3] needs) -> (Tensor, Tensor, Tensor)",
    _allocate_sparse_backward,
    lambda module, out, *args: module.gated_kwinners_sparse_backward(given(args[-1], out), *args[:-1]),
)

winners_of = define(
    "gated_kwinners_sparse",
    "(Tensor y, Tensor? gate, Tensor? bias, Tensor? context_index, SymInt k, str combine, Tensor? boost, bool relu)"
    " -> (Tensor values, Tensor indices, Tensor pre)",
    _allocate_sparse,
    lambda module, out, *args: module.gated_kwinners_sparse(out, *args),
    save=_save_sparse,
    backward=_backward_sparse,
    autocast="float32",
    by_row=(0,),
    gate=(1, 3),
)
