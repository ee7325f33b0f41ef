"""Launchers of the ops on images: those on rows, on rows made of images."""

from __future__ import annotations

import torch
from torch import Tensor

from .gates import gated_kwinners, gated_kwinners_backward


def kwinners2d(out, y, gate, context_index, k, local, combine, boost, relu, ties):
    options = (k, combine, boost, relu, ties)
    if not local:
        gate, boost = _of_each_value(gate, y), _of_each_value(boost, y)
        rows = tuple(t.flatten(1) for t in out)
        return gated_kwinners(rows, y.flatten(1), gate, None, context_index, k, combine, boost, relu, ties)
    by_location = y.permute(0, 2, 3, 1)
    rows = by_location.flatten(0, 2)
    found = torch.empty_like(rows), torch.empty_like(rows, dtype=torch.bool)
    gated_kwinners(found, rows, gate, None, _of_each_location(context_index, gate, y), *options)
    for to, value in zip(out, found, strict=True):
        to.copy_(value.view(by_location.shape).permute(0, 3, 1, 2))


def kwinners2d_backward(out, grad_z, kept, y, gate, context_index, combine):
    grad_y, grad_gate = out
    rows = [t.flatten(1) for t in (grad_z, kept, y)]
    of_values = None if grad_gate is None else grad_gate.new_empty(len(gate), rows[0].shape[1])
    grads = (None if grad_y is None else torch.empty_like(rows[2])), of_values, None
    gated_kwinners_backward(grads, *rows, _of_each_value(gate, y), None, context_index, combine)
    if grad_y is not None:
        grad_y.copy_(grads[0].view(y.shape))
    if grad_gate is not None:
        grad_gate.copy_(of_values.view(*gate.shape, -1).sum(2))


def _of_each_value(of_channels: Tensor | None, y: Tensor) -> Tensor | None:
    """A gate [G, C] or boost [C] for each of the C * H * W values of a sample."""
    return None if of_channels is None else of_channels.repeat_interleave(y.shape[2] * y.shape[3], -1)


def _of_each_location(context_index: Tensor | None, gate: Tensor | None, y: Tensor) -> Tensor | None:
    """The gate's row for each location [B * H * W] of each sample."""
    if gate is None or (context_index is None and len(gate) == 1):
        return None
    if context_index is None:
        context_index = torch.arange(len(y), dtype=torch.int32, device=y.device)
    return context_index.repeat_interleave(y.shape[2] * y.shape[3])
