"""Adam's moments of dendritic segments, kept for the segments that have had gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends import cpu
from ..factored import SegmentFactor


class SegmentMoments:
    """First and second moments of the touched rows of segments [O, S, C].

    place [O * S]: each segment's number among the touched ones, -1 where it has had no gradient; rows: the reverse.
    As long as all gradients have come from one context c, those of a segment are multiples of c, and so are its moments
    (of c and c * c): one number each. At the first other context, every touched row gets its C entries written out.
    """

    def __init__(self, segments: Tensor):
        units, per_unit, self.width = segments.shape
        self.per_unit, self.count = per_unit, 0
        self.place = torch.full((units * per_unit,), -1, dtype=torch.int32)
        self.rows = torch.zeros(units * per_unit, dtype=torch.int32)
        self.context = None  # [1, C]: the one context so far; None with written-out moments too
        self.rank1 = True
        self.m = segments.new_zeros(units * per_unit)
        self.v = segments.new_zeros(units * per_unit)

    def step(self, segments: Tensor, factor: SegmentFactor, keep: Tensor | None, rule: tuple, activations=None) -> None:
        """One step of Adam on the touched rows, in place, and on the activations [O, S] of the factor's one context."""
        grad, winner = factor.grad.contiguous(), factor.winner.contiguous()
        context = factor.context.contiguous()
        if self.rank1 and not self._one_context(context):
            self._write_out(keep)
        self.count = cpu.touch_segments(grad, winner, self.per_unit, self.place, self.rows, self.count)
        if not self.rank1:
            self._make_room()
        keep = None if keep is None else keep.contiguous()
        moments = (self.m, self.v)
        cpu.adam_segments(
            segments, grad, context, winner, rule, self.rows, self.count, self.rank1, *moments, keep, activations
        )  # fmt: skip

    def _one_context(self, context: Tensor) -> bool:
        if len(context) != 1:
            return False
        if self.context is None and self.count == 0:
            self.context = context.clone()
        return self.context is not None and torch.equal(self.context, context)

    def _write_out(self, keep: Tensor | None) -> None:
        """From one number a row to C of them; a masked weight has no moments."""
        m, v = self.m[: self.count, None], self.v[: self.count, None]
        if self.context is None:
            self.m, self.v = (t.new_zeros(0, self.width) for t in (m, v))
        else:
            context = self.context
            if keep is not None:
                context = context * keep.reshape(-1, self.width)[self.touched().long()]
            self.m, self.v = m * context, v * context.square()
        self.rank1, self.context = False, None

    def _make_room(self) -> None:
        if len(self.m) < self.count:
            capacity = max(self.count, 2 * len(self.m))
            self.m, self.v = (_grown(t, capacity) for t in (self.m, self.v))

    def touched(self) -> Tensor:
        """The numbers o * S + s of the segments that have had gradient, in the order in which they first had it."""
        return self.rows[: self.count]

    def to_dense(self, like: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        """exp_avg and exp_avg_sq as torch.optim.Adam has them, like the segments."""
        written = SegmentMoments.from_state_dict(like, self.state_dict())
        if written.rank1:
            written._write_out(keep)
        out = []
        for moments in (written.m, written.v):
            dense = torch.zeros_like(like, memory_format=torch.contiguous_format)
            dense.view(-1, self.width)[self.touched().long()] = moments[: self.count]
            out.append(dense)
        return out[0], out[1]

    @classmethod
    def from_dense(cls, segments: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor) -> SegmentMoments:
        """From torch.optim.Adam's: rows with moments that are not 0 have been touched."""
        out = cls(segments.detach())
        m, v = (t.reshape(-1, out.width) for t in (exp_avg, exp_avg_sq))
        touched = (m.ne(0) | v.ne(0)).any(1).nonzero()[:, 0]
        out.rank1, out.count = False, len(touched)
        out.rows[: out.count] = touched.int()
        out.place[touched] = torch.arange(out.count, dtype=torch.int32)
        out.m, out.v = m[touched].clone(), v[touched].clone()
        return out

    def state_dict(self) -> dict:
        used = slice(self.count)
        return {
            "rows": self.rows[used].clone(),
            "rank1": self.rank1,
            "context": None if self.context is None else self.context.clone(),
            "m": self.m[used].clone(),
            "v": self.v[used].clone(),
        }

    @classmethod
    def from_state_dict(cls, segments: Tensor, saved: dict) -> SegmentMoments:
        out = cls(segments.detach())
        out.count, out.rank1, out.context = len(saved["rows"]), saved["rank1"], saved["context"]
        out.rows[: out.count] = saved["rows"]
        out.place[saved["rows"].long()] = torch.arange(out.count, dtype=torch.int32)
        if out.rank1:
            out.m[: out.count], out.v[: out.count] = saved["m"], saved["v"]
        else:
            out.m, out.v = saved["m"].clone(), saved["v"].clone()
        return out


def _grown(t: Tensor, capacity: int) -> Tensor:
    out = t.new_zeros(capacity, t.shape[1])
    out[: len(t)] = t
    return out
