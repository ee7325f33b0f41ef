"""Whether an op runs as part of a differentiable call: inside one, torch's own grad mode is always off."""

from __future__ import annotations

from contextvars import ContextVar

differentiating: ContextVar[bool] = ContextVar("dendrite_differentiating", default=False)
