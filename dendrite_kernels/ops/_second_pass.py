"""second_pass: whether torch.utils.checkpoint runs a forward pass again, asked when a compiled program runs."""

from __future__ import annotations

import torch
from torch import Tensor

from ._register import define

CHOOSES_OTHERS = (
    "{}: torch.utils.checkpoint would choose other winners in its second pass than in the first, which moved the duty "
    "cycles that boost them; leave layers with boosting out of it"
)


def runs_again() -> bool:
    """Whether this runs inside a backward pass, as checkpoint's second pass does; not for code that is traced."""
    return torch._C._current_graph_task_id() != -1


def _answer(out: Tensor, boosted: str) -> None:
    if runs_again() and boosted:
        raise RuntimeError(CHOOSES_OTHERS.format(boosted))
    out.fill_(runs_again())


# (any tensor of the device, the name of a layer that boosts or "") -> bool [], or the refusal for that layer
second_pass = define(
    "second_pass",
    "(Tensor like, str boosted) -> Tensor",
    lambda like, boosted: like.new_empty((), dtype=torch.bool),
    lambda module, out, like, boosted: _answer(out, boosted),
)
