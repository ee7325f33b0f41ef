"""sparse_linear: x W^T + bias, where x may be k-sparse."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import backend, factored
from . import _checks as check
from ._register import define, given, wanted
from .ksparse import KSparse


def sparse_linear(x: Tensor | KSparse, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x W^T + bias; a k-sparse x reads only the columns of W that its entries name.

    Args:
        x: [..., I], or KSparse [B, I].
        weight: [O, I], of x's dtype. Masked entries are zeros in it. Any strides; with a k-sparse x, the transpose of
            a contiguous [I, O] is read fastest.
        bias: [O] or None.

    Returns:
        y [..., O], of x's dtype. Under torch.autocast, as torch.nn.functional.linear: all are cast to autocast's dtype.

    Raises:
        TypeError, ValueError: a dtype, device or shape is not as above. IndexError: an index of x outside [0, I).

    Equivalent to: torch.nn.functional.linear(x.to_dense(), weight, bias)

    Source: Ahmad & Scheinkman 2019, section 3.
    """
    if isinstance(x, KSparse):
        check_weight(x, weight, bias)
        return sparse_product(x.values, x.indices, weight, bias)
    rows = x.reshape(-1, x.shape[-1]) if isinstance(x, Tensor) and x.dim() not in (0, 2) else x
    check_weight(rows, weight, bias)
    return torch.nn.functional.linear(x, weight, bias)


def check_weight(x, weight, bias):
    check.tensor("weight", weight, (None, None), "[O, I]")
    units, inputs = weight.shape
    if isinstance(x, KSparse):
        check.ksparse("x", *x)
        if x.size != inputs:
            raise ValueError(f"x.size: expected I = {inputs} (the columns of weight), got {x.size}")
        values = x.values
    else:
        check.tensor("x", x, (None, inputs), "[B, I]")
        check.floating("x", x)
        values = x
    check.same("weight", weight, "x", values)
    if bias is not None:
        check.tensor("bias", bias, (units,), "[O]")
        check.same("bias", bias, "x", values)


def _allocate(values, indices, weight, bias):
    check.sizes("x", values.numel())
    return values.new_empty(values.shape[0], weight.shape[0])


def _save(ctx, args, outputs):
    values, indices, weight, bias = args
    ctx.save_for_backward(values, indices, weight)
    ctx.needs = [t is not None and t.requires_grad for t in (values, weight, bias)]
    ctx.factored = ctx.needs[1] and factored.wanted(weight)


def _backward(ctx, grad_y):
    values, indices, weight = ctx.saved_tensors
    as_factors = factored.leaves(ctx, grad_y)
    needs = [ctx.needs[0], ctx.needs[1] and not as_factors, ctx.needs[2]]
    args = (grad_y, values, indices, weight, needs)
    if as_factors and not torch.is_grad_enabled():
        outputs = _allocate_backward(*args)
        sums = _launch_backward(backend.choose(weight.device), outputs, *args, keep_sums=True)
    else:
        outputs, sums = _sparse_linear_backward(*args), None
    grad_values, grad_weight, grad_bias = given(needs, outputs)
    if as_factors:
        x = KSparse(values.detach(), indices, weight.shape[1])
        factor = factored.OuterFactor(x, grad_y.detach(), by_input=True, sums=sums)
        grad_weight = factored.FactoredGrad(weight, [factor])
    return grad_values, None, grad_weight, grad_bias


def _allocate_backward(grad_y, values, indices, weight, needs):
    grad_values, grad_weight = wanted(needs[:2], [values, weight], weight)
    return grad_values, grad_weight, weight.new_empty(weight.shape[0] if needs[2] else 0)


def _launch_backward(module, out, *args, **options):
    return module.sparse_linear_backward(given(args[-1], out), *args[:-1], **options)


_sparse_linear_backward = define(
    "sparse_linear_backward",
    "(Tensor grad_y, Tensor values, Tensor indices, Tensor weight, bool[3] needs) -> (Tensor, Tensor, Tensor)",
    _allocate_backward,
    _launch_backward,
)

sparse_product = define(
    "sparse_linear",
    "(Tensor values, Tensor indices, Tensor weight, Tensor? bias) -> Tensor",
    _allocate,
    lambda module, out, *args: module.sparse_linear(out, *args),
    save=_save,
    backward=_backward,
    autocast="half",
    by_row=(0, 1),
)
