"""Launchers of the optimizer's passes. `hyper`: lr, beta1, beta2 and eps as float64 [4] on the device; `rule`: a row of
the rules that `advance` leaves there for each parameter.
"""

from __future__ import annotations

import torch

from ...reference import is_dense
from . import adam, settings
from .numbers import TYPES

STEPPED = (torch.float32, torch.float64)


def advance(steps, moving, hyper, rules):
    """Counts a step of the parameters that move. steps [P], rules [P, 2] float64; moving [P] int8."""
    with torch.cuda.device_of(steps):
        adam.advance[(len(steps),)](steps, moving, hyper, rules, num_warps=1)


def steppable(p, *tensors) -> bool:
    """Whether adam_dense takes p with these moments, gradient and mask."""
    floats = all(t.dtype in (p.dtype, torch.bool) for t in tensors)
    return p.dtype in STEPPED and floats and is_dense(p) and all(t.stride() == p.stride() for t in tensors)


def adam_dense(p, m, v, grad, keep, rule, hyper, synapses=None) -> bool:
    """Adam in place, and zero where keep is false, where dtypes and memory order allow; whether they did.

    synapses: omega, importance, reference, strength and counts_penalty of Synaptic Intelligence, or None.
    """
    if not steppable(p, m, v, grad, *([] if keep is None else [keep])):
        return False
    *kept, strength, counts_penalty = synapses or (p, p, p, 0.0, False)
    block = settings.ADAM_BLOCK // (1 if p.dtype == torch.float32 else 4)
    if p.numel():
        with torch.cuda.device_of(p):
            adam.dense[(-(-p.numel() // block),)](
                p, m, v, grad, p if keep is None else keep.view(torch.int8), *kept, rule, hyper, p.numel(),
                MASK=keep is not None, SYNAPSES=synapses is not None, STRENGTH=float(strength),
                COUNTS_PENALTY=counts_penalty, WIDE=TYPES[p.dtype], BLOCK=block,
                maxnreg=settings.REGISTERS,
            )  # fmt: skip
    return True


def adam_segments(segments, grad, context, winner, touched, m, v, keep, rule, hyper):
    """Adam on the touched rows of segments [O, S, C]. touched [O, S] int8; m, v: [O, S], factors of the one context and
    its square, or [O, S, C].
    """
    units, per_unit, width = segments.shape
    contexts, widest = len(context), 1024 if segments.dtype == torch.float32 else 512  # or registers spill
    block = min(widest, settings.power_of_2(max(16, width)))
    if not segments.numel():
        return
    block_contexts = settings.power_of_2(max(1, contexts))
    with torch.cuda.device_of(segments):
        adam.segments[(units,)](
            segments, grad, context, winner, touched, m, v, segments if keep is None else keep.view(torch.int8), rule,
            hyper, contexts, units, S=per_unit, C=width, RANK1=m.dim() == 2, MASK=keep is not None,
            WIDE=TYPES[segments.dtype], BLOCK_G=block_contexts, BLOCK_C=max(16, block // block_contexts),
            maxnreg=settings.REGISTERS,
        )  # fmt: skip
