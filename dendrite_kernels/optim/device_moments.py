"""Adam's moments of dendritic segments on a device that the host does not wait for."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import backend
from ..factored import SegmentFactor

# More contexts in a step than this, and the gradient is written out.
MOST_CONTEXTS = 64


class DeviceSegmentMoments:
    """First and second moments of segments [O, S, C] and which rows were ever touched, in tensors of fixed size.

    As long as all gradients have come from one context, the moments of a row are multiples of it and of its square: m
    and v are [O, S]. Else they are [O, S, C]. To compare contexts would be to wait for the device, so the one context
    is one tensor that nobody has written to since: keep it through a task.
    """

    def __init__(self, segments: Tensor, mask: Tensor | None):
        self.keep, shape, self.width = mask, segments.shape[:2], segments.shape[2]
        self.touched = torch.zeros(shape, dtype=torch.int8, device=segments.device)
        self.m, self.v = (torch.zeros(shape, dtype=segments.dtype, device=segments.device) for _ in range(2))
        self.seen = None  # the one context so far, as it was given, and its version
        self.context = None  # and a copy of it

    @property
    def count(self) -> int:
        """Rows ever touched; to read it is to wait."""
        return int(self.touched.sum())

    @property
    def rank1(self) -> bool:
        return self.m.dim() == 2

    @classmethod
    def for_factor(cls, segments: Tensor, mask: Tensor | None, factor: SegmentFactor, dense=None):
        """New moments: zero, or from torch.optim.Adam's `dense` (exp_avg, exp_avg_sq)."""
        out = cls(segments, mask)
        if dense is not None:
            out.m, out.v = (t.contiguous() for t in dense)
            out.touched = (out.m.ne(0) | out.v.ne(0)).any(2).to(torch.int8)
        return out

    def fits(self, mask: Tensor | None, factor: SegmentFactor) -> bool:
        """Whether these moments can take the factor."""
        return mask is self.keep

    @staticmethod
    def steppable(segments: Tensor, factor: SegmentFactor) -> bool:
        return segments.is_contiguous() and len(factor.context) <= MOST_CONTEXTS

    def step(self, segments: Tensor, factor: SegmentFactor, rule: tuple[Tensor, Tensor]) -> None:
        """One step of Adam on the touched rows, in place. rule: as DeviceClock.rule gives it."""
        if self.rank1 and not self._one_context(factor.context):
            self._write_out()
        given = (factor.grad.contiguous(), factor.context.contiguous(), factor.winner.contiguous())
        keep = None if self.keep is None else self.keep.contiguous()
        module = backend.choose(segments.device)
        module.adam_segments(segments.detach(), *given, self.touched, self.m, self.v, keep, *rule)
        torch.autograd.graph.increment_version(segments)

    def _one_context(self, context: Tensor) -> bool:
        if len(context) != 1 or context.is_inference():
            return False
        if self.seen is None:
            self.seen, self.context = (context, context._version), context.clone()
        first, version = self.seen
        # the first is held, so that its memory can't have become another's
        same = first.data_ptr() == context.data_ptr() and first.stride() == context.stride()
        return same and context._version == version

    def _write_out(self) -> None:
        self.m, self.v = self._written_out()
        self.seen = self.context = None

    def _written_out(self) -> tuple[Tensor, Tensor]:
        if not self.rank1:
            return self.m, self.v
        if self.context is None:  # no step yet
            return tuple(t.new_zeros(*t.shape, self.width) for t in (self.m, self.v))
        context = self.context if self.keep is None else self.context * self.keep
        return self.m[..., None] * context, self.v[..., None] * context.square()

    def to_dense(self, like: Tensor, now, betas) -> tuple[Tensor, Tensor]:
        """exp_avg and exp_avg_sq as torch.optim.Adam has them, like the segments."""
        return tuple(torch.zeros_like(like).copy_(t) for t in self._written_out())

    def state_dict(self, segments: Tensor) -> dict:
        context = None if self.context is None else self.context.clone()
        return {"touched": self.touched.clone(), "context": context, "m": self.m.clone(), "v": self.v.clone()}

    @classmethod
    def from_state_dict(cls, segments: Tensor, mask: Tensor | None, saved: dict):
        """The context is known again by its values only, so that moments are written out when it is next given."""
        out = cls(segments, mask)
        out.touched, out.m, out.v = (saved[key].to(segments.device).clone() for key in ("touched", "m", "v"))
        if saved["context"] is not None:
            out.context = saved["context"].to(segments.device)
            out.seen = (out.context, -1)
        return out
