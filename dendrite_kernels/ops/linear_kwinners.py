"""linear_kwinners: the layer after its gate."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import backend, factored
from . import _checks as check
from ._register import define, given, wanted
from .ksparse import KSparse
from .kwinners import allocate_winners, winners_of
from .sparse_linear import check_weight, sparse_product


def linear_kwinners(
    x: Tensor | KSparse,
    weight: Tensor,
    bias: Tensor | None,
    gate: Tensor | None,
    context_index: Tensor | None,
    k: int,
    *,
    combine: str = "mul",
    boost: Tensor | None = None,
    relu: bool = False,
) -> KSparse:
    """kWTA of (x W^T + bias) combined with a gate that is known: one op, so that backward stays k-sparse.

    Args, rules and errors as in sparse_linear and gated_kwinners_sparse. Under torch.autocast it is these two ops.

    Equivalent to: gated_kwinners_sparse(sparse_linear(x, weight), gate, bias, context_index, k)
    """
    if isinstance(gate, Tensor) and context_index is None:
        gate = check.shared_row(gate, x.shape[0])
    values, indices = checked(x, weight, bias, gate, context_index, k, combine, boost)
    out, winners, _ = winning_units(
        values, indices, weight, bias, gate, context_index, k, combine, boost, relu
    )  # fmt: skip
    return KSparse(out, winners, weight.shape[0])


def checked(x, weight, bias, gate, context_index, k, combine, boost):
    """x's values [B, I] and None, or of k-sparse rows values and indices."""
    check_weight(x, weight, bias)
    values, indices = (x.values, x.indices) if isinstance(x, KSparse) else (x, None)
    check.winners_arguments("x", values, weight.shape[0], gate, bias, context_index, k, combine, boost)
    return values, indices


def _allocate(x, x_indices, weight, bias, gate, context_index, k, combine, boost, relu):
    if x_indices is not None:
        check.sizes("x", x.numel())
    return allocate_winners(x, weight.shape[0], k)


def _save(ctx, args, outputs):
    x, x_indices, weight, bias, gate, context_index, _k, combine, _boost, relu = args
    values, indices, pre = outputs
    ctx.mark_non_differentiable(indices, pre)
    ctx.save_for_backward(values, indices, pre, x, x_indices, weight, gate, context_index)
    ctx.rest = (combine, relu)
    ctx.needs = [t is not None and t.requires_grad for t in (x, weight, bias, gate)]
    ctx.factored = ctx.needs[1] and factored.wanted(weight)


def linear_gradients(ctx, grad_values, *_):
    """Gradients of linear_kwinners' arguments; ctx as _save leaves it."""
    saved = ctx.saved_tensors
    _, indices, _, x, x_indices, weight, _, _ = saved
    as_factors = factored.leaves(ctx, grad_values)
    needs = [ctx.needs[0], ctx.needs[1] and not as_factors, *ctx.needs[2:]]
    args = (grad_values, *saved, *ctx.rest, needs)
    if as_factors and x_indices is not None and not torch.is_grad_enabled():
        outputs = _allocate_backward(*args)
        sums = _launch_backward(backend.choose(weight.device), outputs, *args, keep_sums=True)
    else:
        outputs, sums = _linear_kwinners_backward(*args), None
    *grads, grad_y = outputs
    grad_x, grad_weight, grad_bias, grad_gate = given(needs, grads)
    if as_factors:
        dy, dense_x = KSparse(grad_y.detach(), indices, weight.shape[0]), x.detach()
        if x_indices is None:
            factor = factored.OuterFactor(dy, dense_x, by_input=False)
        else:
            factor = factored.OuterFactor(KSparse(dense_x, x_indices, weight.shape[1]), dy, by_input=True, sums=sums)
        grad_weight = factored.FactoredGrad(weight, [factor])
    return (grad_x, None, grad_weight, grad_bias, grad_gate, *[None] * 5)


def _allocate_backward(
    grad_values, values, indices, pre, x, x_indices, weight, gate, context_index, combine, relu, needs
):
    grad_x, grad_weight, grad_gate = wanted([needs[0], needs[1], needs[3]], [x, weight, gate], weight)
    grad_bias = weight.new_empty(weight.shape[0] if needs[2] else 0)
    return grad_x, grad_weight, grad_bias, grad_gate, torch.empty_like(values)


def _launch_backward(module, out, *args, **options):
    return module.linear_kwinners_backward([*given(args[-1], out[:4]), out[4]], *args[:-1], **options)


# The last result is the gradient of y at the winners, from which the weight's follows.
_linear_kwinners_backward = define(
    "linear_kwinners_backward",
    "(Tensor grad_values, Tensor values, Tensor indices, Tensor pre, Tensor x, Tensor? x_indices, Tensor weight,"
    " Tensor? gate, Tensor? context_index, str combine, bool relu, bool[4] needs)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _allocate_backward,
    _launch_backward,
)


def _two_ops(x, x_indices, weight, bias, gate, context_index, k, combine, boost, relu):
    """The op under autocast: a half product, and winners chosen in float32."""
    y = torch.nn.functional.linear(x, weight) if x_indices is None else sparse_product(x, x_indices, weight, None)
    return winners_of(y, gate, bias, context_index, k, combine, boost, relu)


winning_units = define(
    "linear_kwinners",
    "(Tensor x, Tensor? x_indices, Tensor weight, Tensor? bias, Tensor? gate, Tensor? context_index, SymInt k,"
    " str combine, Tensor? boost, bool relu) -> (Tensor values, Tensor indices, Tensor pre)",
    _allocate,
    lambda module, out, *args: module.linear_kwinners(out, *args),
    save=_save,
    backward=linear_gradients,
    autocast=_two_ops,
    by_row=(0, 1),
    gate=(4, 5),
)
