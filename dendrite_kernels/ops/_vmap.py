"""The ops under torch.vmap: one call on the rows of all samples where these share the rest, else a call a sample."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference


def register(library, op, by_row: tuple[int, ...], gate: tuple[int, int] | None) -> None:
    """by_row: positions of the arguments that have a row for each row of the results; none: always a call a sample.

    gate: positions of gate [G, O] and context_index [B]; the contexts of all samples are numbered on.
    """
    foldable = {*by_row, *(gate or ())}
    tensors = [i for i, argument in enumerate(op._schema.arguments) if "Tensor" in str(argument.type)]
    assert foldable <= set(tensors), f"{op}: by_row and gate are positions of tensors"

    def rule(info, in_dims, *args):
        size = info.batch_size
        mapped = [isinstance(a, Tensor) and d is not None for a, d in zip(args, in_dims, strict=True)]
        args = [a.movedim(d, 0) if m else a for a, d, m in zip(args, in_dims, mapped, strict=True)]
        if by_row and all(i in foldable for i, m in enumerate(mapped) if m):
            batch = args[by_row[0]].shape[int(mapped[by_row[0]])]
            outputs = op(*_folded(size, batch, mapped, args, by_row, gate))
            return _each(lambda t: t.unflatten(0, (size, batch)), outputs)
        samples = [op(*(a[i] if m else a for a, m in zip(args, mapped, strict=True))) for i in range(size)]
        return _each(lambda *t: torch.stack(t), *samples)

    torch.library.register_vmap(op._schema.name, rule, lib=library)


def _each(change, *outputs):
    """`change` of the one result of each of these outputs, or of each of several, and that samples are dim 0 of it."""
    if isinstance(outputs[0], Tensor):
        return change(*outputs), 0
    changed = tuple(change(*same) for same in zip(*outputs, strict=True))
    return changed, (0,) * len(changed)


def _folded(size, batch, mapped, args, by_row, gate):
    """The arguments with the rows of all samples one after the other."""
    args = list(args)
    for i in by_row:
        if args[i] is not None:
            args[i] = (args[i] if mapped[i] else args[i].expand(size, *args[i].shape)).flatten(0, 1)
    if gate is not None and args[gate[0]] is not None:
        at, index_at = gate
        args[at], args[index_at] = _contexts(size, batch, args[at], mapped[at], args[index_at], mapped[index_at])
    return args


def _contexts(size, batch, gate, gate_mapped, index, index_mapped):
    """The gates of all samples, and which of them belongs to each row."""
    groups = gate.shape[int(gate_mapped)]
    if index is None and groups == 1 and not gate_mapped:
        return gate, None
    if index is None:
        one_each = torch.arange(batch, device=gate.device)
        index, index_mapped = one_each if groups == batch else torch.zeros_like(one_each), False
    if type(index) is Tensor:  # its values can be asked
        reference.check_range(index, groups, "context_index")
    index = index.long() if index_mapped else index.long().expand(size, batch)
    if gate_mapped:
        gate = gate.flatten(0, 1)
        index = torch.where((index >= 0) & (index < groups), index, -1 - groups * size)  # else another sample's
        index = index + groups * torch.arange(size, device=gate.device).unsqueeze(1)
    return gate, index.flatten()
