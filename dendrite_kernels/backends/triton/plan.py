"""Chooses between the whole layer in one launch and a launch a stage."""

from __future__ import annotations

import os

import torch

from . import settings

# One launch saves the host three, of some 20 us each, and reads the weight without cuBLAS's tiles: for few rows.
MOST_ROWS = 16
# The grid's barrier can't run in the interpreter, and no GPU has run it yet: until one has, it must be asked for.
BARRIER_HAS_RUN = False


def one_launch(batch: int, units: int, contexts: int, dtype: torch.dtype) -> bool:
    return choose(batch, units, contexts, dtype)[0]


def choose(batch: int, units: int, contexts: int, dtype: torch.dtype) -> tuple[bool, str]:
    """Whether the layer is one launch, and why. DENDRITE_PLAN=one or many overrules all but what is impossible."""
    asked = os.environ.get("DENDRITE_PLAN", "")
    if asked not in ("", "one", "many"):
        raise ValueError(f"DENDRITE_PLAN: expected one or many, got {asked!r}")
    if dtype == torch.float64:
        return False, "its product is of float32"
    if units > settings.LONGEST_ROW:
        return False, f"rows are longer than the {settings.LONGEST_ROW} that a program holds"
    if asked:
        return asked == "one", f"DENDRITE_PLAN={asked}"
    if not BARRIER_HAS_RUN:
        return False, "no GPU has run the barrier of its grid yet (DENDRITE_PLAN=one asks for it)"
    if batch > MOST_ROWS or contexts > MOST_ROWS:
        return False, f"more than {MOST_ROWS} rows or contexts: the work costs more than the launches"
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        return False, "in a CUDA graph launches cost little"
    return True, f"at most {MOST_ROWS} rows and contexts: launches cost more than the work"
