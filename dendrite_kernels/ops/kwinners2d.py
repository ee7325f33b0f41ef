"""kwinners2d: gate and k-winner-take-all of images, by gated_kwinners on their rows."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _checks as check
from .kwinners import gated_kwinners


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
    batch, channels, height, width = y.shape
    area, options = height * width, {"combine": combine, "relu": relu, "ties": ties}
    if local:
        rows, index = y.permute(0, 2, 3, 1).reshape(batch * area, channels), _of_locations(gate, context_index, y)
        z = gated_kwinners(rows, gate, None, index, k, boost=boost, **options)
        return z.view(batch, height, width, channels).permute(0, 3, 1, 2).contiguous()
    gate, boost = (None if t is None else t.repeat_interleave(area, -1) for t in (gate, boost))
    rows = y.reshape(batch, channels * area)
    return gated_kwinners(rows, gate, None, context_index, k, boost=boost, **options).view(y.shape)


def _of_locations(gate: Tensor | None, context_index: Tensor | None, y: Tensor) -> Tensor | None:
    """The gate's row for each location [B * H * W] of each sample."""
    if gate is None or (context_index is None and gate.shape[0] == 1):
        return None
    if context_index is None:
        context_index = torch.arange(y.shape[0], dtype=torch.int32, device=y.device)
    return context_index.repeat_interleave(y.shape[2] * y.shape[3])
