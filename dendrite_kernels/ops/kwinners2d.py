"""kwinners2d: gates of channels and k-winner-take-all of images in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _checks as check
from ._register import define, given, wanted
from .kwinners import kept_gradients, save_kept


def kwinners2d(
    y: Tensor,
    k: int,
    gate: Tensor | None = None,
    context_index: Tensor | None = None,
    *,
    local: bool = False,
    combine: str = "mul",
    boost: Tensor | None = None,
    relu: bool = False,
    ties: str = "lowest",
) -> Tensor:
    """The k largest of each sample of y, or of each location of it, after whole channels were gated; the rest become 0.

    Args:
        y: [B, C, H, W], float32, float64, bfloat16 or float16.
        k: winners of a sample's C * H * W values or, with local, of a location's C. As many or more keep all.
        gate: [G, C] or None, float32 (float64 for float64 y): one number for a whole channel.
        context_index: [B], int32 or int64, the gate's row for each sample; None where G is 1 or B.
        local: choose the winners of each location among its channels.
        boost: [C] or None, in the gate's dtype: winners are ranked by value * boost, the value is passed on.
        combine, relu, ties: as in gated_kwinners. The lowest index is that of the first channel, then of the first row,
            then of the first column.

    Returns:
        z [B, C, H, W], contiguous, of y's dtype. Rounding, NaN, -0.0 and torch.autocast are as in gated_kwinners.

    Raises:
        TypeError, ValueError: a dtype, device, shape or option is not as above.
        IndexError: context_index outside [0, G) (CPU tensors).

    Equivalent to (without ties)::

        a = y * gate[context_index][:, :, None, None]
        i = a.flatten(1).topk(k, dim=1).indices  # local: a.topk(k, dim=1).indices, scattered along dim 1
        z = torch.zeros_like(a).flatten(1).scatter(1, i, a.flatten(1).gather(1, i)).view_as(a)

    Source: Grewal et al. 2021, eq. 1 and 4; gates of whole channels: Bain 2022 (convolutional ADNs).
    """
    check.tensor("y", y, (None, None, None, None), "[B, C, H, W]")
    check.floating("y", y)
    if isinstance(gate, Tensor) and context_index is None:
        gate = check.shared_row(gate, y.shape[0])
    check.winners_arguments("y", y, y.shape[1], gate, None, context_index, k, combine, boost, letter="C")
    check.choice("ties", ties, ("lowest", "keep"))
    return _kwinners2d(y, gate, context_index, k, local, combine, boost, relu, ties)[0]


def _allocate(y, *_):
    check.sizes("y", y.numel())
    return y.new_empty(y.shape), y.new_empty(y.shape, dtype=torch.bool)


def _save(ctx, args, outputs):
    y, gate, context_index, _k, _local, combine, *_ = args
    save_kept(ctx, outputs[1], combine, y, gate, context_index)
    ctx.needs = [t is not None and t.requires_grad for t in (y, gate)]


def _backward(ctx, grad_z, _grad_kept):
    return (*kept_gradients(ctx, _kwinners2d_backward, grad_z), *[None] * 7)


_kwinners2d_backward = define(
    "kwinners2d_backward",
    "(Tensor grad_z, Tensor kept, Tensor y, Tensor? gate, Tensor? context_index, str combine, bool[2] needs)"
    " -> (Tensor, Tensor)",
    lambda grad_z, kept, y, gate, context_index, combine, needs: tuple(wanted(needs, [y, gate], y)),
    lambda module, out, *args: module.kwinners2d_backward(given(args[-1], out), *args[:-1]),
)

_kwinners2d = define(
    "kwinners2d",
    "(Tensor y, Tensor? gate, Tensor? context_index, SymInt k, bool local, str combine, Tensor? boost, bool relu,"
    " str ties) -> (Tensor z, Tensor kept)",
    _allocate,
    lambda module, out, *args: module.kwinners2d(out, *args),
    save=_save,
    backward=_backward,
    autocast="float32",
    by_row=(0,),
    gate=(1, 2),
)
