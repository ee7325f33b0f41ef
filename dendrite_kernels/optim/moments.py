"""What the moments of weights and of segments share: when rows may rest, and how those of resting rows decay."""

from __future__ import annotations

import math
import zlib
from typing import NamedTuple

import torch
from torch import Tensor

# A row's `since`: 0 untouched, MOVING, or the number of the last step of a row that rests.
UNTOUCHED, MOVING = 0, -1


class Synapses(NamedTuple):
    """What a step of a weight carries for SynapticIntelligence: tensors laid out as the weight."""

    omega: Tensor
    importance: Tensor
    reference: Tensor
    strength: float  # 2 c, or 0 while there is no penalty
    counts_penalty: bool  # whether omega's gradient has the penalty's in it


class Clock:
    """Decides whether a row that a step without gradient left as it was, bit for bit, may be left out of later steps.

    It may while the steps of such a row can only shrink: the same betas and eps, no larger lr, nobody else writing the
    weights, and sqrt(1 - beta2^t) / (1 - beta1^t) growing by less than the moments' ratio decays.
    """

    def __init__(self):
        self.last = None  # (betas, eps), lr and version of the weights after the last step

    def rule(self, p: Tensor, group: dict, now: int) -> tuple:
        """beta1, beta2, lr, eps, the number of this step and whether rows may rest, as the kernels take them."""
        (beta1, beta2), eps, lr = group["betas"], group["eps"], float(group["lr"])
        same = self.last is not None and self.last[0] == (beta1, beta2, eps) and lr <= self.last[1]
        return beta1, beta2, lr, eps, now, same and self.last[2] == p._version and _shrinks(beta1, beta2, eps, now)

    def stepped(self, p: Tensor, group: dict) -> None:
        """The step is done and counted in the weights' version."""
        self.last = ((*group["betas"], group["eps"]), float(group["lr"]), p._version)

    def state_dict(self, p: Tensor, resting: Tensor) -> dict | None:
        """What lets rows go on resting where p is loaded too; resting: their weights. None where they are to wake."""
        if self.last is None or self.last[2] != p._version:
            return None
        return {"rule": self.last[0], "lr": self.last[1], "resting": _checksum(resting)}

    def load_state_dict(self, saved: dict | None, p: Tensor, resting: Tensor) -> None:
        """Rows wake at the next step, which rounds their moments, but where their weights are those that were saved."""
        if saved is not None and saved["resting"] == _checksum(resting):
            self.last = tuple(saved["rule"]), saved["lr"], p._version


def _checksum(t: Tensor) -> int:
    return zlib.crc32(t.detach().contiguous().view(-1).view(torch.uint8).numpy())


def _shrinks(beta1: float, beta2: float, eps: float, now: int) -> bool:
    if eps <= 0 or beta2 <= 0:
        return False
    growth = math.sqrt((1 - beta2 ** (now + 1)) / (1 - beta2**now)) * (1 - beta1**now) / (1 - beta1 ** (now + 1))
    return beta1 / math.sqrt(beta2) * growth < 1


def awake(m: Tensor, v: Tensor, since: Tensor, now: int, betas: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Moments of rows [n, ...] as step `now` leaves them: those of rows that rest, decayed."""
    idle = torch.where(since > 0, now - since, 0).double().reshape(-1, *[1] * (m.dim() - 1))
    return m * (betas[0] ** idle).to(m.dtype), v * (betas[1] ** idle).to(v.dtype)
