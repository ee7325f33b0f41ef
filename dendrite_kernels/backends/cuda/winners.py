"""Launchers of gate and k winners. They never wait for the device."""

from __future__ import annotations

import torch

from ..triton.gates import gate_kind, winners_launchers
from ..triton.memory import contiguous
from . import native, plan


def _winners(y, gate, bias, context_index, k, combine, boost, relu, keep_ties, z, kept, values, pre, indices):
    (batch, units), memory = y.shape, None
    if not batch or not units:
        return
    how = plan.winners(batch, units, y.dtype)
    if how.how == "split":
        bytes_ = getattr(native._cuda, "split_bytes" + native.SUFFIX[y.dtype])(batch, -(-units // how.size))
        memory = torch.zeros(bytes_, dtype=torch.uint8, device=y.device)
    kind = gate_kind(gate, context_index, batch)
    y, gate, bias, boost, index = contiguous(y, gate, bias, boost, context_index)
    native.call(
        "kwinners", y.dtype, y, bias, gate, boost, index, kind, index is not None and index.dtype == torch.int64,
        combine == "add", batch, units, min(k, units), relu, keep_ties, z, kept, values, pre, indices,
        how.how, how.size, how.warps, memory,
    )  # fmt: skip


def _takes(out, y, *_):
    return y.shape[1] <= plan.LONGEST_ROW


gated_kwinners, gated_kwinners_sparse = map(native.else_triton(_takes), winners_launchers(_winners))
