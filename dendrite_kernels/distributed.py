"""Training in several processes: gradients averaged over a process group, factored ones by sending their factors.

DistributedDataParallel copies every gradient into a bucket, which is right for dense ones and can't be done to factors.
`optim.Adam(model, process_group=True)` on the bare model takes its place. Tried with gloo on CPUs; NCCL would be called
in the same way and is unverified.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, distributed, nn

from .factored import FactoredGrad, OuterFactor, SegmentFactor
from .ops.ksparse import KSparse
from .sparsity import as_one

# What a process has of a parameter's gradient. To _OUTER add 1 where the factor is by input, 2 where both of its sides
# are k-sparse.
_NOTHING, _DENSE, _SEGMENTS, _OUTER = 0, 1, 2, 4

_MOST_PARTS = 4
_ALIGNMENT = 16  # bytes: a tensor of any dtype may begin there


def default_group() -> distributed.ProcessGroup:
    """The group of all processes; RuntimeError before torch.distributed.init_process_group."""
    ready = distributed.is_available() and distributed.is_initialized()
    everyone = distributed.group.WORLD if ready else None
    if everyone is None:
        raise RuntimeError("process_group: expected torch.distributed.init_process_group() to have been called first")
    return everyone


def checked_group(given: distributed.ProcessGroup | bool) -> distributed.ProcessGroup | None:
    """The process group that an argument names: True all processes, False none."""
    if isinstance(given, bool):
        return default_group() if given else None
    if not isinstance(given, distributed.ProcessGroup):
        raise TypeError(
            f"process_group: expected True (all processes), a torch.distributed.ProcessGroup or False, got {given!r} "
            "(group.WORLD is None before torch.distributed.init_process_group)"
        )
    return given


def refuse_wrapped(modules: Iterable[nn.Module]) -> None:
    """Raises TypeError where DistributedDataParallel is among the modules: it needs dense gradients."""
    if any(isinstance(m, nn.parallel.DistributedDataParallel) for top in modules for m in top.modules()):
        raise TypeError(
            "modules: expected the bare model, got DistributedDataParallel, which needs dense gradients: use "
            "Adam(model, process_group=True) without it, or keep it and use torch.optim.Adam"
        )


@torch.no_grad()
def broadcast_module(modules: nn.Module | Iterable[nn.Module], group: distributed.ProcessGroup | None = None) -> None:
    """Gives the modules of all processes the parameters and buffers (masks, duty cycles) of the group's first.

    Raises, on every process: ValueError where names, shapes, dtypes or their order differ between processes, or where
    a process has them on several devices.

    Equivalent to: what torch.nn.parallel.DistributedDataParallel(model) does when it is made
    """
    group, module = group or default_group(), as_one(modules)
    tensors = dict([*module.named_parameters(), *module.named_buffers()])
    entries = [f"{name} {tuple(t.shape)} {str(t.dtype)[6:]}" for name, t in tensors.items()]
    _check_alike(entries, sorted({str(t.device) for t in tensors.values()}), group)
    first = distributed.get_global_rank(group, 0)
    for t in tensors.values():
        sent = t.detach().contiguous()  # a weight may be stored by input
        distributed.broadcast(sent, first, group=group)
        t.copy_(sent)


def _check_alike(entries: list[str], devices: list[str], group: distributed.ProcessGroup) -> None:
    """Raises on all processes alike: one that went on alone would wait for the others in vain."""
    given: list[Any] = [None] * group.size()
    distributed.all_gather_object(given, (entries, devices), group=group)
    for rank, (theirs, on) in enumerate(given):
        if len(on) > 1:
            raise ValueError(f"modules: expected one device in each process, got {', '.join(on)} on rank {rank}")
        for place, (found, expected) in enumerate(zip_longest(theirs, given[0][0], fillvalue="absent")):
            if found != expected:
                raise ValueError(
                    "modules: expected the same parameters and buffers in the same order in every process, but "
                    f"number {place} is {found} on rank {rank} and {expected} on rank 0"
                )


@torch.no_grad()
def average_gradients(
    parameters: Iterable[Tensor], group: distributed.ProcessGroup | None = None, beside: Sequence[Tensor] = ()
) -> None:
    """Sets each parameter's `.grad` to the mean over the processes of the group, the same bits on all of them.

    Args:
        parameters: the same ones in the same order on every process, on one device.
        group: the process group (None: all processes).
        beside: other tensors to average in place, in the same messages.

    Factored gradients are sent as factors and joined in rank order, as if one process had had all the batches: none is
    written out, unless its factors have different forms on different processes. A process without a gradient of a
    parameter counts as zero; where none has any, it stays None. As with DistributedDataParallel every process counts
    alike, so losses that are means over batches want batches of one size. All processes must call it, and on a GPU it
    waits for the device.

    Equivalent to (dense gradients): torch.distributed.all_reduce(p.grad); p.grad /= torch.distributed.get_world_size()
    """
    group, parameters = group or default_group(), list(parameters)
    own = [_factor_to_send(p) for p in parameters]
    everywhere = _gather_descriptions(parameters, own, group)
    in_factors, whole = [], list(beside)
    for p, factor, descriptions in zip(parameters, own, everywhere, strict=True):
        forms = {(kind, *widths) for kind, _, *widths in descriptions if kind != _NOTHING}
        if not forms:
            continue
        kind, *widths = min(forms)
        if len(forms) == 1 and kind != _DENSE:
            in_factors.append(_Shared(p, factor, kind, widths, [rows for _, rows, *_ in descriptions]))
        else:
            p.grad = _written_out(p)
            whole.append(p.grad)
    _average_factors(in_factors, group)
    _average_whole(whole, group)


# ---- what each process has ------------------------------------------------------------------------------------------


def _factor_to_send(p: Tensor) -> OuterFactor | SegmentFactor | None:
    """The one factor of p's gradient; None where there is no gradient, or it has to be sent whole."""
    factor = p.grad.one_factor() if isinstance(p.grad, FactoredGrad) else None
    if factor is None or any(t.dtype != _dtype(p, place) for place, t in enumerate(_parts(factor))):
        return None
    return factor


def _description(p: Tensor, factor: OuterFactor | SegmentFactor | None) -> list[int]:
    """Kind, rows, and the widths of the parts."""
    if factor is None:
        return [_NOTHING if p.grad is None else _DENSE] + [0] * (1 + _MOST_PARTS)
    kind = _SEGMENTS
    if isinstance(factor, OuterFactor):
        kind = _OUTER + factor.by_input + 2 * isinstance(factor.other, KSparse)
    parts = _parts(factor)
    return [kind, len(parts[0]), *(t.shape[1] for t in parts), *[0] * (_MOST_PARTS - len(parts))]


def _gather_descriptions(parameters, own, group) -> list[list[list[int]]]:
    """For each parameter, the descriptions of all processes in rank order."""
    if not parameters:
        return []
    mine = [_description(p, factor) for p, factor in zip(parameters, own, strict=True)]
    return torch.stack(_gather(torch.tensor(mine, device=parameters[0].device), group), 1).tolist()


def _written_out(p: Tensor) -> Tensor:
    if p.grad is None:
        return torch.zeros_like(p)
    return p.grad.to_dense() if isinstance(p.grad, FactoredGrad) else p.grad


# ---- factors as matrices with one row a sample (or context) ---------------------------------------------------------


def _parts(factor: OuterFactor | SegmentFactor) -> list[Tensor]:
    """Values and int32 indices in turn."""
    if isinstance(factor, SegmentFactor):
        return [factor.grad, factor.winner, factor.context]
    other = [factor.other.values, factor.other.indices] if isinstance(factor.other, KSparse) else [factor.other]
    return [factor.sparse.values, factor.sparse.indices, *other]


def _dtype(p: Tensor, place: int) -> torch.dtype:
    return torch.int32 if place % 2 else p.dtype


@dataclass(frozen=True)
class _Shared:
    """A parameter whose gradient goes as factors of one form; rows: how many each process has."""

    p: Tensor
    own: OuterFactor | SegmentFactor | None
    kind: int
    widths: list[int]
    rows: list[int]

    @property
    def by_input(self) -> bool:
        return self.kind >= _OUTER and bool(self.kind & 1)

    @property
    def both_sparse(self) -> bool:
        return self.kind >= _OUTER and bool(self.kind & 2)

    def layout(self, rank: int) -> list[tuple[int, int, torch.dtype]]:
        """Rows, width and dtype of each part that this rank sends."""
        widths = self.widths if self.both_sparse else self.widths[:3]
        return [(self.rows[rank], width, _dtype(self.p, place)) for place, width in enumerate(widths)]

    def to_send(self, processes: int) -> list[Tensor]:
        """This process' share of the mean."""
        if self.own is None:
            return []
        parts, place = _parts(self.own), 2 if self.by_input else 0  # by input, the gradient is on the other side
        parts[place] = parts[place] / processes
        return parts

    def joined(self, parts_by_rank: list[list[Tensor]]) -> FactoredGrad:
        if self.kind == _SEGMENTS:
            own = self.own.context if isinstance(self.own, SegmentFactor) else None
            return FactoredGrad(self.p, [_joined_segments(parts_by_rank, own)])
        first, second, third, *fourth = (torch.cat(parts) for parts in zip(*parts_by_rank, strict=True))
        units, inputs = self.p.shape
        rows, columns = (inputs, units) if self.by_input else (units, inputs)
        other = KSparse(third, fourth[0], columns) if self.both_sparse else third
        return FactoredGrad(self.p, [OuterFactor(KSparse(first, second, rows), other, self.by_input)])


def _joined_segments(parts_by_rank: list[list[Tensor]], own: Tensor | None) -> SegmentFactor:
    """All contexts, one rank's after another's; the gradients added where contexts and winners are equal on all."""
    filled = [parts for parts in parts_by_rank if len(parts[0])] or parts_by_rank[:1]  # no rank may have any rows
    grads, winners, contexts = zip(*filled, strict=True)
    if all(_same_bits(ts[0], t) for ts in (contexts, winners) for t in ts[1:]):
        # this process' own context: moments on a device know a context by its identity
        return SegmentFactor(reduce(torch.add, grads), winners[0], contexts[0] if own is None else own)
    return SegmentFactor(torch.cat(grads), torch.cat(winners), torch.cat(contexts))


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


# ---- messages -------------------------------------------------------------------------------------------------------


def _average_factors(chosen: list[_Shared], group: distributed.ProcessGroup) -> None:
    """Sets the gradients of these parameters from the factors of all processes, in one message from each."""
    if not chosen:
        return
    sent = [t for shared in chosen for t in shared.to_send(group.size())]
    layouts = [[part for shared in chosen for part in shared.layout(rank)] for rank in range(group.size())]
    blocks = _gather(_packed(sent, max(map(_size, layouts)), chosen[0].p.device), group)
    received = [iter(_unpacked(block, layout)) for block, layout in zip(blocks, layouts, strict=True)]
    for shared in chosen:
        count = len(shared.layout(0))
        shared.p.grad = shared.joined([[next(parts) for _ in range(count)] for parts in received])


def _size(layout: list[tuple[int, int, torch.dtype]]) -> int:
    return sum(_padded(rows * width * dtype.itemsize) for rows, width, dtype in layout)


def _padded(length: int) -> int:
    return -(-length // _ALIGNMENT) * _ALIGNMENT


def _packed(tensors: list[Tensor], length: int, device: torch.device) -> Tensor:
    """The bytes of these tensors in a block of this length; messages of a group have to be equally long."""
    block, place = torch.zeros(length, dtype=torch.uint8, device=device), 0
    for t in tensors:
        raw = t.detach().contiguous().view(-1).view(torch.uint8)
        block[place : place + len(raw)] = raw
        place += _padded(len(raw))
    return block


def _unpacked(block: Tensor, layout: list[tuple[int, int, torch.dtype]]) -> list[Tensor]:
    """Views of the block."""
    out, place = [], 0
    for rows, width, dtype in layout:
        length = rows * width * dtype.itemsize
        out.append(block[place : place + length].view(dtype).view(rows, width))
        place += _padded(length)
    return out


def _gather(t: Tensor, group: distributed.ProcessGroup) -> list[Tensor]:
    out = [torch.empty_like(t) for _ in range(group.size())]
    distributed.all_gather(out, t, group=group)
    return out


def _average_whole(tensors: list[Tensor], group: distributed.ProcessGroup) -> None:
    """The mean over the processes, in place, in one message a dtype."""
    for dtype in dict.fromkeys(t.dtype for t in tensors):
        alike = [t for t in tensors if t.dtype == dtype]
        flat = torch.cat([t.reshape(-1) for t in alike])
        distributed.all_reduce(flat, group=group)
        flat /= group.size()
        for t, mean in zip(alike, flat.split([t.numel() for t in alike]), strict=True):
            t.copy_(mean.view(t.shape))
