"""What is known of weights that nobody has written since: gates of segments, their activations for one context, and
what is made of weights that stay as they are.

segment_gate on the CPU asks here first. The gates of frozen segments come without reading a segment. Segments that
optim.Adam owns keep the activations of the last single context, and that Adam computes those of the rows that it moves
in the same pass: the next step reads no other row. All of it has the bits of a fresh computation.

Values hold for nn.Parameters only, and while memory, version counter, instruction set and the number of steps by
other optimizers (torch's fused ones do not touch the version counter) stay the same. Whoever writes weights through
`.data`, numpy or dlpack calls `invalidate`; DENDRITE_CHECK=1 computes everything afresh and compares.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim.optimizer import register_optimizer_step_post_hook

from .identity import ByIdentity

# A weight that so many calls have found the same is taken to be frozen.
CALLS_OF_A_FROZEN_WEIGHT = 3

# More contexts than this are not compared and kept.
MOST_CONTEXTS = 128

_gates = ByIdentity()  # parameter -> _Gates
_activations = ByIdentity()  # parameter that optim.Adam follows -> _Activations or None
_frozen = ByIdentity()  # parameter -> _Frozen
_steps = 0  # by optimizers that do not say what they write


@dataclass
class _Gates:
    stamp: tuple
    context: Tensor
    gate: Tensor
    winner: Tensor


@dataclass
class _Frozen:
    stamp: tuple
    calls: int = 0
    made: tuple[Tensor, ...] | None = None


@dataclass
class _Activations:
    stamp: tuple
    context: Tensor
    values: Tensor  # [O, S]


def _count_step(optimizer, args, kwargs) -> None:
    global _steps
    _steps += not getattr(optimizer, "says_what_it_writes", False)


register_optimizer_step_post_hook(_count_step)


def invalidate(module: nn.Module | None = None) -> None:
    """Forgets what is known of the module's weights (None: of all), so that the next call reads them.

    Call it after weights were written in a way that PyTorch does not see: through `.data`, numpy or dlpack.
    """
    parameters = list(_activations) if module is None else list(module.parameters())
    for p in parameters:
        if p in _activations:
            _activations[p] = None
    for kept in (_gates, _frozen):
        for p in kept if module is None else parameters:
            kept.pop(p, None)


def checking() -> bool:
    """Whether DENDRITE_CHECK asks for everything to be computed afresh and compared."""
    return os.environ.get("DENDRITE_CHECK", "0") not in ("", "0")


def check_same(known: Tensor, fresh: Tensor, what: str) -> None:
    """Raises RuntimeError where a known value is not the fresh one."""
    # inside the optimizer numbers below the normal range count as 0
    if not torch.allclose(known, fresh, rtol=0, atol=1e-30, equal_nan=True):
        raise RuntimeError(
            f"{what}: out of date, for something wrote the parameter unseen (.data, numpy, dlpack); "
            "call dendrite_kernels.invalidate(model) after such writes"
        )


def _stamp(t: Tensor | None, *more) -> tuple:
    if t is None:
        return ()
    # The reference is weak, but while it is there no other memory is taken for this one: model.half().float() may get
    # the same address again.
    return (StorageWeakRef(t.untyped_storage()), t.data_ptr(), t.dtype, t._version, _steps, *more)


def _may_keep(segments: Tensor, context: Tensor) -> bool:
    plain = isinstance(segments, nn.Parameter) and not segments.is_inference()
    return plain and 0 < len(context) <= MOST_CONTEXTS


# ---- gates ----------------------------------------------------------------------------------------------------------


def gates(context: Tensor, segments: Tensor, bias: Tensor | None, *options) -> tuple[Tensor, Tensor] | None:
    """gate and winner [G, O] of these arguments, or None."""
    entry = _gates.get(segments)
    if entry is None or (bias is not None and bias.is_inference()):
        return None
    if entry.stamp != (_stamp(segments), _stamp(bias), options):
        return None
    return (entry.gate, entry.winner) if _same(entry.context, context) else None


def keep_gates(gate: Tensor, winner: Tensor, context: Tensor, segments: Tensor, bias: Tensor | None, *options) -> None:
    """Remembers a result for `gates`."""
    if _may_keep(segments, context) and not (bias is not None and bias.is_inference()):
        stamp = (_stamp(segments), _stamp(bias), options)
        _gates[segments] = _Gates(stamp, context.clone(), gate.clone(), winner.clone())


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


# ---- weights that stay as they are ----------------------------------------------------------------------------------


def of_frozen(weight: Tensor, make: Callable, isa: str):
    """make(weight), if count_frozen has had it made and the weight is as it was then; else None."""
    entry = _frozen.get(weight)
    if entry is None or entry.made is None or entry.stamp != _stamp(weight, isa):
        return None
    if checking():
        fresh = make(weight) or [torch.full_like(kept, torch.nan) for kept in entry.made]
        for mine, now in zip(entry.made, fresh, strict=True):
            check_same(mine, now, "what was made of the weight")
    return entry.made


def count_frozen(weight: Tensor, make: Callable, isa: str) -> None:
    """Counts a call that make(weight) would have served; makes it at the third that finds the weight the same."""
    if not isinstance(weight, nn.Parameter) or weight.is_inference():
        return
    entry, stamp = _frozen.get(weight), _stamp(weight, isa)
    if entry is None or entry.stamp != stamp:
        entry = _frozen[weight] = _Frozen(stamp)
    entry.calls += 1
    if entry.calls == CALLS_OF_A_FROZEN_WEIGHT:
        entry.made = make(weight)


# ---- activations of one context -------------------------------------------------------------------------------------


def follow(segments: Tensor) -> None:
    """From now on the activations of one context are kept for these segments: their optimizer says what it moves."""
    if segments not in _activations:
        _activations[segments] = None


def followed(context: Tensor, segments: Tensor) -> bool:
    """Whether the activations of this context are worth keeping."""
    return len(context) == 1 and segments in _activations and _may_keep(segments, context)


def activations(context: Tensor, segments: Tensor, isa: str) -> Tensor | None:
    """The activations [O, S] of the one context [1, C], or None."""
    entry = _activations.get(segments)
    if entry is None or entry.stamp != _stamp(segments, isa) or not _same(entry.context, context):
        return None
    return entry.values


def keep_activations(values: Tensor, context: Tensor, segments: Tensor, isa: str) -> None:
    """Remembers activations; the tensor is not copied, and the optimizer may move it with the segments."""
    _activations[segments] = _Activations(_stamp(segments, isa), context.clone(), values)


def moved(segments: Tensor, isa: str) -> None:
    """The owner has written the segments, and their known activations with them."""
    entry = _activations.get(segments)
    if entry is not None:
        entry.stamp = _stamp(segments, isa)
