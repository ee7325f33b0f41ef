"""Adam's moments of a weight under a mask, kept for the entries that are not masked."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..backends import cpu
from ..factored import OuterFactor
from .moments import MOVING, UNTOUCHED, Clock, Synapses, awake


class WeightMoments:
    """First and second moments of a weight [O, I] that is stored by unit, or by input.

    Its rows in memory (units, or inputs) are what is touched and rests. start [rows + 1]: where the moments of each
    row's unmasked entries begin in m and v; bits: which those are. since [rows]: see moments.py.
    """

    def __init__(self, weight: Tensor, mask: Tensor | None, by_input: bool):
        self.by_input, self.mask_seen, self.clock = by_input, _seen(mask), Clock()
        self.mask = None if mask is None else mask.detach()  # held, so that no other mask gets its address
        rows, width = (weight.T if by_input else weight).shape
        self.rows, self.width = rows, width
        counts = torch.full((rows,), width)
        self.keep = self.bits = None
        if mask is not None:
            self.keep = (mask.T if by_input else mask).contiguous()
            self.bits = _packed(self.keep)
            counts = self.keep.sum(1)
        self.start = torch.zeros(rows + 1, dtype=torch.int64)
        self.start[1:] = counts.cumsum(0)
        self.since = torch.full((rows,), UNTOUCHED, dtype=torch.int32)
        self.m, self.v = (weight.detach().new_zeros(int(self.start[-1])) for _ in range(2))

    @classmethod
    def for_factor(cls, weight: Tensor, mask: Tensor | None, factor: OuterFactor, dense=None) -> WeightMoments:
        """New moments: zero, or from torch.optim.Adam's `dense` (exp_avg, exp_avg_sq)."""
        out = cls(weight, mask, factor.by_input)
        if dense is not None:
            m, v = (out._by_row(t) for t in dense)
            out.since[(m.ne(0) | v.ne(0)).any(1)] = MOVING
            out.m, out.v = out._squeezed(m), out._squeezed(v)
        return out

    def wake_pulled(self, weight: Tensor, synapses: Synapses) -> None:
        """Rows that a penalty pulls move, though they never had gradient since these moments were made."""
        pulled = synapses.importance * (weight.detach() - synapses.reference)
        rows = self._by_row(pulled).ne(0).any(1)
        self.since[rows & (self.since == UNTOUCHED)] = MOVING

    def fits(self, mask: Tensor | None, factor: OuterFactor) -> bool:
        """Whether these moments can take the factor."""
        return self.by_input == factor.by_input and self.mask_seen == _seen(mask)

    @staticmethod
    def steppable(weight: Tensor, factor: OuterFactor) -> bool:
        """Whether the weight lies in memory as the factor's rows do."""
        return factor.by_row(weight).is_contiguous()

    def step(
        self, weight: Tensor, factor: OuterFactor, group: dict, now: int, synapses: Synapses | None = None
    ) -> None:
        """One step of Adam on the touched rows, in place."""
        *rule, may_rest = self.clock.rule(weight, group, now)
        by_row = self._by_row(weight.detach())
        moments = (self.m, self.v, self.start, self.bits, self.since)
        if synapses is not None:
            may_rest = may_rest and not synapses.strength  # the penalty goes on pulling
            synapses = (*(self._by_row(t) for t in synapses[:3]), *synapses[3:])
        cpu.adam_outer(by_row, factor.sparse, factor.other, factor.sums, (*rule, may_rest), *moments, synapses)
        torch.autograd.graph.increment_version(weight)
        self.clock.stepped(weight, group)

    def _by_row(self, t: Tensor) -> Tensor:
        return t.T if self.by_input else t

    def _squeezed(self, by_row: Tensor) -> Tensor:
        return by_row.reshape(-1).clone() if self.keep is None else by_row[self.keep]

    def to_dense(self, like: Tensor, now: int, betas: tuple[float, float]) -> tuple[Tensor, Tensor]:
        """exp_avg and exp_avg_sq as torch.optim.Adam has them, like the weight."""
        since = self.since.repeat_interleave(self.start.diff())
        out = []
        for squeezed in awake(self.m, self.v, since, now, betas):
            dense = torch.zeros_like(like)
            if self.keep is None:
                self._by_row(dense).copy_(squeezed.view(self.rows, self.width))
            else:
                self._by_row(dense)[self.keep] = squeezed
            out.append(dense)
        return out[0], out[1]

    def _resting(self, weight: Tensor) -> Tensor:
        return self._by_row(weight.detach())[self.since > 0]

    def state_dict(self, weight: Tensor) -> dict:
        kept = {"by_input": self.by_input, "m": self.m.clone(), "v": self.v.clone(), "since": self.since.clone()}
        return {**kept, "clock": self.clock.state_dict(weight, self._resting(weight))}

    @classmethod
    def from_state_dict(cls, weight: Tensor, mask: Tensor | None, saved: dict) -> WeightMoments:
        out = cls(weight, mask, saved["by_input"])
        for name in ("m", "v", "since"):
            mine = getattr(out, name)
            if mine.shape != saved[name].shape:
                raise ValueError(
                    f"state_dict: expected {name} of {len(mine)} entries (the weight's mask), got {len(saved[name])}"
                )
            mine.copy_(saved[name])
        out.clock.load_state_dict(saved.get("clock"), weight, out._resting(weight))
        return out


def _seen(mask: Tensor | None) -> tuple:
    return () if mask is None else (mask.data_ptr(), mask._version)


def _packed(keep: Tensor) -> Tensor:
    """bool [rows, n] as bits, the rows padded to whole words; int16 [rows, words]."""
    padded = torch.nn.functional.pad(keep, (0, -keep.shape[1] % 16))
    return torch.from_numpy(np.packbits(padded.numpy(), axis=1, bitorder="little").view("<i2"))
