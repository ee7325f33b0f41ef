"""KWinners and KWinners2d: k-winner-take-all with boosting and duty cycles."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from .. import backend, reference
from ..formats import Versioned
from ..ops import KSparse, gated_kwinners_sparse, kwinners, kwinners2d
from ..ops._register import only_autograd_sees
from ..ops._second_pass import CHOOSES_OTHERS, runs_again, second_pass
from ..reference import compute_dtype
from ..scripting import NotScriptable
from ..sparsity import check_fraction


class _Boosted(NotScriptable, Versioned):
    """What k winners of n units (or channels) need besides the choice itself: how many, their boost, duty cycles."""

    boost_strength: Tensor
    duty_cycle: Tensor
    learning_iterations: Tensor
    _read: tuple[Tensor, int] | None = None  # the boost strength that was read last
    _boosts = _boosted = False  # what it said, and whether any that was read was above 0

    def __init__(
        self,
        n: int,
        percent_on: float,
        *,
        k_inference_factor: float = 1.0,
        boost_strength: float = 0.0,
        boost_strength_factor: float = 1.0,
        duty_cycle_period: int = 1000,
        relu: bool = False,
        ties: str = "lowest",
    ):
        super().__init__()
        if boost_strength < 0:
            raise ValueError(f"boost_strength: expected 0 or more, got {boost_strength}")
        self.n, self.percent_on = n, check_fraction("percent_on", percent_on, one=True)
        self.k_inference_factor, self.boost_strength_factor = k_inference_factor, boost_strength_factor
        self.duty_cycle_period, self.relu, self.ties = duty_cycle_period, relu, ties
        self.register_buffer("boost_strength", torch.tensor(float(boost_strength)))
        self._boosted = self._boosts = boost_strength > 0
        self._read = _same_value(self.boost_strength)
        self.register_buffer("duty_cycle", torch.zeros(n))
        self.register_buffer("learning_iterations", torch.tensor(0))

    def winners_among(self, units: int) -> int:
        """Winners among so many units in the present mode."""
        factor = 1.0 if self.training else self.k_inference_factor
        return min(units, round(units * self.percent_on * factor))

    def boosts(self) -> bool:
        """Whether the boost strength is above 0; reads it, which stalls a device, only after it was written.

        Compiled programs can't read it: they boost, be it by 1, if it was ever seen above 0 before they were compiled.
        """
        if torch.compiler.is_compiling():
            return self._boosted
        strength = self.boost_strength
        now = _same_value(strength)
        if self._read is not None and now[0] is self._read[0] and now[1] == self._read[1]:
            return self._boosts
        if torch._C._functorch.is_functorch_wrapped_tensor(strength):
            return True  # none of its samples can be asked, and boosting by 1 is none
        if not strength.is_meta and type(strength) is Tensor:
            self._boosts, self._read = bool(strength > 0), now
            self._boosted = self._boosted or self._boosts
        return self._boosts

    def boost(self) -> Tensor | None:
        """What ranks are multiplied by [n], in float32 (float64), or None without boosting; at inference too."""
        if not self.boosts():
            return None
        wide = compute_dtype(self.duty_cycle.dtype)
        boost = torch.exp(-self.boost_strength.to(wide) * self.duty_cycle.to(wide))
        if not self.training:
            return boost
        if torch.compiler.is_compiling():  # asked when it runs; tied to the boost, lest it be left out
            return boost.masked_fill(second_pass(self.duty_cycle, type(self).__name__), torch.nan)
        if runs_again():
            raise RuntimeError(CHOOSES_OTHERS.format(type(self).__name__))
        return boost

    def _counts(self, values: Tensor) -> bool:
        """Whether these results go into the duty cycles."""
        if not self.training or (not torch.compiler.is_compiling() and runs_again()):
            return False
        if _in_vmap(values) and not _in_vmap(self.duty_cycle):
            raise RuntimeError(
                f"{type(self).__name__}: in training it counts winners in its buffers, which the samples of a vmap "
                "can't share; call eval() first, or map over the buffers too (torch.func.functional_call)"
            )
        return True

    @contextmanager
    def _once(self) -> Iterator[None]:
        """Takes back what is counted in here where a compiled program runs it again, for torch.utils.checkpoint."""
        counts = self.duty_cycle, self.learning_iterations
        before = [t.clone() for t in counts]
        yield
        again = second_pass(self.duty_cycle, "")
        for t, old in zip(counts, before, strict=True):
            t.copy_(torch.where(again, old, t))

    def update_boost_strength(self) -> None:
        """Multiplies the boost strength by boost_strength_factor."""
        self.boost_strength *= self.boost_strength_factor

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._read = None  # a copy's writes are counted from 0

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.boosts()  # a program may be compiled next

    def extra_repr(self) -> str:
        text = f"{self.n}, percent_on={self.percent_on}, ties={self.ties!r}"
        if self.k_inference_factor != 1:
            text += f", k_inference_factor={self.k_inference_factor:.4g}"
        if self.boosts():
            strength = "on meta" if self.boost_strength.is_meta else f"{float(self.boost_strength):.4g}"
            text += f", boost_strength={strength}, boost_strength_factor={self.boost_strength_factor:.4g}"
        return f"{text}, duty_cycle_period={self.duty_cycle_period}" + (", relu=True" if self.relu else "")


def _same_value(t: Tensor) -> tuple[Tensor, int]:
    """Equal for a tensor that nobody has written in between."""
    return t, 0 if t.is_inference() else t._version


def _in_vmap(t: Tensor) -> bool:
    return not torch.compiler.is_compiling() and torch._C._functorch.is_batchedtensor(t)


class KWinners(_Boosted):
    """Keeps the k = round(n * percent_on) largest of each row of x [B, n]; the rest become 0.

    Args:
        n: units. percent_on: share of winners, in [0, 1].
        k_inference_factor: winners at inference are round(n * percent_on * k_inference_factor).
        boost_strength: winners are ranked by x * exp(-boost_strength * duty_cycle); 0 for none.
        boost_strength_factor: what `update_boost_strength()` multiplies it by (once an epoch, say).
        duty_cycle_period: samples over which the duty cycle (how often a unit's output is above 0) is averaged.
        relu: winners that are not positive become 0. ties: as in gated_kwinners.
        sparse: return KSparse.

    Buffers: boost_strength, duty_cycle [n], learning_iterations (samples seen in training).

    torch.utils.checkpoint: winners are counted in the first of its two passes. With boosting, training in it raises
    RuntimeError. Compiled programs ask when they run; the replay of a CUDA graph can't ask.

    Equivalent to (no boosting): kwinners(x, k)

    Source: Ahmad & Scheinkman 2019, algorithm 1.
    """

    def __init__(self, n: int, percent_on: float, *, sparse: bool = False, ties: str = "lowest", **options: Any):
        super().__init__(n, percent_on, ties=ties, **options)
        if sparse and ties != "lowest":
            raise ValueError(f"ties: expected 'lowest' with sparse=True (exactly k a row), got {ties!r}")
        self.sparse = sparse

    @property
    def k(self) -> int:
        """Winners a row in the present mode."""
        return self.winners_among(self.n)

    def forward(self, x: Tensor) -> Tensor | KSparse:
        if self.sparse:
            out: Tensor | KSparse = gated_kwinners_sparse(
                x, None, None, None, self.k, boost=self.boost(), relu=self.relu
            )
        else:
            out = kwinners(x, self.k, boost=self.boost(), relu=self.relu, ties=self.ties)
        self.update_duty_cycle(out)
        return out

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, k={self.k}, sparse={self.sparse}"

    def update_duty_cycle(self, out: Tensor | KSparse) -> None:
        """In training, counts the units above 0 into the running average over the last samples."""
        values, indices = (out.values, out.indices) if isinstance(out, KSparse) else (out, None)
        if not self._counts(values):
            return
        if out.shape[1] != self.n:
            raise ValueError(f"x: expected [B, {self.n}], got {tuple(out.shape)}")
        if out.shape[0] == 0:
            return
        ours = only_autograd_sees((self.duty_cycle, values))
        module = backend.choose(self.duty_cycle.device) if ours else reference
        counts, period = (self.duty_cycle, self.learning_iterations), self.duty_cycle_period
        # not around all of it: an export would show a region with nothing in it
        with torch.no_grad(), self._once() if torch.compiler.is_compiling() else nullcontext():
            module.update_duty_cycle_(*counts, values.detach(), indices, period)


class KWinners2d(_Boosted):
    """Keeps the k largest of each sample of x [B, C, H, W], or of each location of it; the rest become 0.

    Args:
        channels: C. percent_on: share of winners, in [0, 1], among the C * H * W values of a sample or, with local,
            among the C of a location; k is that share, rounded.
        local: choose at each location.
        k_inference_factor, boost_strength, boost_strength_factor, duty_cycle_period, relu, ties: as KWinners. A channel
            has one duty cycle, the share of samples and locations in which it was above 0, and one boost.

    Buffers: boost_strength, duty_cycle [C], learning_iterations (samples seen in training).

    forward(x, gate=None, context_index=None, *, combine="mul"): gate [G, C], applied before the choice, as kwinners2d.

    Equivalent to (no boosting): kwinners2d(x, k, gate, context_index, local=local)

    Source: Ahmad & Scheinkman 2019, algorithm 1, for the layers of Bain 2022.
    """

    def __init__(self, channels: int, percent_on: float, *, local: bool = False, **options: Any):
        super().__init__(channels, percent_on, **options)
        self.local = local

    def forward(
        self, x: Tensor, gate: Tensor | None = None, context_index: Tensor | None = None, *, combine: str = "mul"
    ) -> Tensor:
        if x.dim() != 4 or x.shape[1] != self.n:
            raise ValueError(f"x: expected [B, {self.n}, H, W], got {tuple(x.shape)}")
        k = self.winners_among(self.n if self.local else x.shape[1:].numel())
        options: dict[str, Any] = {"local": self.local, "boost": self.boost(), "relu": self.relu, "ties": self.ties}
        out = kwinners2d(x, k, gate, context_index, combine=combine, **options)
        self.update_duty_cycle(out)
        return out

    def update_duty_cycle(self, out: Tensor) -> None:
        """In training, counts where each channel is above 0 into its running average over the last samples."""
        if not self._counts(out) or out.numel() == 0:
            return
        area = out.shape[2] * out.shape[3]
        with torch.no_grad(), self._once() if torch.compiler.is_compiling() else nullcontext():
            # bytes along a channel's locations: a quarter of the time of counting booleans by channel
            active = (out.detach() > 0).flatten(2).view(torch.uint8).sum(2, dtype=torch.int32).sum(0)
            # every location is a sample
            seen, period = self.learning_iterations * area, self.duty_cycle_period * area
            reference.count_active_(self.duty_cycle, seen, active, out.shape[0] * area, period)
            self.learning_iterations += out.shape[0]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, local={self.local}"
