"""Adam's moments of dendritic segments, kept for the segments that have had gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends import cpu
from ..factored import SegmentFactor
from .moments import MOVING, UNTOUCHED, Clock, awake


class SegmentMoments:
    """First and second moments of the touched rows of segments [O, S, C].

    place [O * S]: each segment's number among the touched ones, -1 where it has had no gradient; rows: the reverse.
    As long as all gradients have come from one context c, those of a segment are multiples of c, and so are its moments
    (of c and c * c): one number each. At the first other context, every touched row gets its C entries written out.
    """

    def __init__(self, segments: Tensor, mask: Tensor | None):
        units, per_unit, self.width = segments.shape
        self.per_unit, self.count, self.clock = per_unit, 0, Clock()
        self.keep = None if mask is None else mask.contiguous()
        self.place = torch.full((units * per_unit,), -1, dtype=torch.int32)
        self.rows = torch.zeros(units * per_unit, dtype=torch.int32)
        self.since = torch.full((units * per_unit,), UNTOUCHED, dtype=torch.int32)  # of rows[i], see moments.py
        self.context = None  # [1, C]: the one context so far; None with written-out moments too
        self.rank1 = True
        self.m, self.v = (segments.detach().new_zeros(units * per_unit) for _ in range(2))

    @classmethod
    def for_factor(cls, segments: Tensor, mask: Tensor | None, factor: SegmentFactor, dense=None) -> SegmentMoments:
        """New moments: zero, or from torch.optim.Adam's `dense` (exp_avg, exp_avg_sq)."""
        out = cls(segments, mask)
        if dense is not None:
            m, v = (t.reshape(-1, out.width) for t in dense)
            touched = (m.ne(0) | v.ne(0)).any(1).nonzero()[:, 0]
            out._number(touched.int())
            out.rank1, out.m, out.v = False, m[touched], v[touched]
        return out

    def _number(self, rows: Tensor) -> None:
        self.count = len(rows)
        self.rows[: self.count], self.since[: self.count] = rows, MOVING
        self.place[rows.long()] = torch.arange(self.count, dtype=torch.int32)

    def fits(self, mask: Tensor | None, factor: SegmentFactor) -> bool:
        """Whether these moments can take the factor."""
        return mask is self.keep or (mask is not None and self.keep is not None and torch.equal(mask, self.keep))

    @staticmethod
    def steppable(segments: Tensor, factor: SegmentFactor) -> bool:
        return segments.is_contiguous()

    def step(self, segments: Tensor, factor: SegmentFactor, group: dict, now: int) -> None:
        """One step of Adam on the touched rows, in place, and on the activations that are known of the one context."""
        grad, winner = factor.grad.contiguous(), factor.winner.contiguous()
        context = factor.context.contiguous()
        rule, activations = self.clock.rule(segments, group, now), cpu.kept_activations(context, segments)
        if self.rank1 and not self._one_context(context):
            self._write_out()
        self.count = cpu.touch_segments(grad, winner, self.per_unit, self.place, self.rows, self.since, self.count)
        if not self.rank1:
            self._make_room()
        touched = (self.rows, self.since, self.count)
        moments = (self.rank1, self.m, self.v, self.keep)
        cpu.adam_segments(segments.detach(), grad, context, winner, rule, *touched, *moments, activations)
        torch.autograd.graph.increment_version(segments)
        self.clock.stepped(segments, group)
        if activations is not None:
            cpu.moved(segments)

    def _one_context(self, context: Tensor) -> bool:
        if len(context) != 1:
            return False
        if self.context is None and self.count == 0:
            self.context = context.clone()
        return self.context is not None and torch.equal(self.context, context)

    def _write_out(self) -> None:
        """From one number a row to C of them; a masked weight has no moments."""
        m, v = self.m[: self.count, None], self.v[: self.count, None]
        if self.context is None:
            self.m, self.v = (t.new_zeros(0, self.width) for t in (m, v))
        else:
            context = self.context
            if self.keep is not None:
                context = context * self.keep.reshape(-1, self.width)[self.touched().long()]
            self.m, self.v = m * context, v * context.square()
        self.rank1, self.context = False, None

    def _make_room(self) -> None:
        if len(self.m) < self.count:
            capacity = max(self.count, 2 * len(self.m))
            self.m, self.v = (_grown(t, capacity) for t in (self.m, self.v))

    def touched(self) -> Tensor:
        """The numbers o * S + s of the segments that have had gradient, in the order in which they first had it."""
        return self.rows[: self.count]

    def to_dense(self, like: Tensor, now: int, betas: tuple[float, float]) -> tuple[Tensor, Tensor]:
        """exp_avg and exp_avg_sq as torch.optim.Adam has them, like the segments."""
        written = SegmentMoments.from_state_dict(like, self.keep, self.state_dict(like))
        if written.rank1:
            written._write_out()
        used = slice(self.count)
        out = []
        for moments in awake(written.m[used], written.v[used], written.since[used], now, betas):
            dense = torch.zeros_like(like, memory_format=torch.contiguous_format)
            dense.view(-1, self.width)[self.touched().long()] = moments
            out.append(dense)
        return out[0], out[1]

    def _resting(self, segments: Tensor) -> Tensor:
        rows = self.touched()[self.since[: self.count] > 0]
        return segments.detach().reshape(-1, self.width)[rows.long()]

    def state_dict(self, segments: Tensor) -> dict:
        used = slice(self.count)
        return {
            "clock": self.clock.state_dict(segments, self._resting(segments)),
            "rows": self.rows[used].clone(),
            "since": self.since[used].clone(),
            "rank1": self.rank1,
            "context": None if self.context is None else self.context.clone(),
            "m": self.m[used].clone(),
            "v": self.v[used].clone(),
        }

    @classmethod
    def from_state_dict(cls, segments: Tensor, mask: Tensor | None, saved: dict) -> SegmentMoments:
        out = cls(segments, mask)
        out._number(saved["rows"])
        out.since[: out.count] = saved["since"]
        out.rank1, out.context = saved["rank1"], saved["context"]
        if out.rank1:
            out.m[: out.count], out.v[: out.count] = saved["m"], saved["v"]
        else:
            out.m, out.v = saved["m"].clone(), saved["v"].clone()
        out.clock.load_state_dict(saved.get("clock"), segments, out._resting(segments))
        return out


def _grown(t: Tensor, capacity: int) -> Tensor:
    out = t.new_zeros(capacity, t.shape[1])
    out[: len(t)] = t
    return out
