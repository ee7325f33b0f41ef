"""DendriteSegments and DendriticLinear: the layer of an active dendrites network."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..ops import KSparse, dendritic_linear, segment_gate
from ..ops.dendritic_linear import gated_linear, in_one_launch
from ..ops.segment_gate import gate_to_read
from ..sparsity import MaskedParameter, check_fraction, random_mask
from .kwinners import KWinners, KWinners2d
from .sparse_linear import SparseLinear

# name: (select, activation, combine); None: a layer without dendrites
DENDRITES: dict[str, Any] = {
    "abs_max_gate": ("abs_max", "sigmoid", "mul"),
    "max_gate": ("max", "sigmoid", "mul"),
    "bias": ("max", "none", "add"),
    "none": None,
}


class DendriteSegments(MaskedParameter):
    """The dendritic segments of a layer: weights [O, S, C], and bias [O, S] if asked for.

    Args:
        units, segments, dim_context: O, S and C. sparsity: share of zero weights in each segment, in [0, 1).
        context_density: expected share of nonzero context entries, for the initialisation
            U(+-1/sqrt(context_density * segment_density * C)). bias: starts at zero. device, dtype: as torch.nn.Linear.

    Source: Grewal et al. 2021, eq. 2.
    """

    masked_name = "weights"
    prunable = False

    def __init__(
        self,
        units: int,
        segments: int,
        dim_context: int,
        *,
        sparsity: float = 0.0,
        context_density: float = 1.0,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        check_fraction("sparsity", sparsity, one=False)
        if not 0 < context_density <= 1:
            raise ValueError(f"context_density: expected a fraction in (0, 1], got {context_density}")
        if segments < 1:
            raise ValueError(f"segments: expected at least 1, got {segments}")
        self.sparsity, self.context_density = sparsity, context_density
        self.weights = nn.Parameter(torch.empty(units, segments, dim_context))
        self.biases = nn.Parameter(torch.empty(units, segments)) if bias else None
        self.register_buffer("weight_mask", None)
        self.reset_parameters()
        self.to(device=device, dtype=dtype)  # drawn before: a seed means the same weights on any device

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws new weights and a new mask."""
        bound = 1 / math.sqrt(self.context_density * (1 - self.sparsity) * max(1, self.weights.shape[2]))
        self.weights.uniform_(-bound, bound)
        if self.biases is not None:
            self.biases.zero_()
        if self.sparsity:
            self.set_mask(random_mask(tuple(self.weights.shape), self.sparsity))

    def forward(self, context: Tensor, select: str = "abs_max", activation: str = "sigmoid") -> tuple[Tensor, Tensor]:
        """context [G, C] -> gate [G, O] and winner [G, O], as segment_gate."""
        return segment_gate(context, self.weights, self.biases, select=select, activation=activation)

    def extra_repr(self) -> str:
        units, segments, dim_context = self.weights.shape
        options = f"sparsity={self.masked_share:.4g}, bias={self.biases is not None}"
        return f"{units} units x {segments} segments x {dim_context}, {options}"


class Dendritic(nn.Module):
    """What layers with dendrites share: their `segments` (None without dendrites) and the gate that these make."""

    _winners: type[KWinners] | type[KWinners2d]  # the k winners that may end such a layer
    segments: DendriteSegments | None
    kwinners: Any  # _winners or None
    forward_gated: Callable[..., Any]

    def _set_dendrites(
        self,
        units: int,
        num_segments: int,
        dim_context: int,
        dendrite: str,
        kwinners: KWinners | KWinners2d | None,
        relu: bool,
        **segment_options: Any,
    ) -> None:
        if dendrite not in DENDRITES:
            raise ValueError(f"dendrite: expected one of {', '.join(map(repr, DENDRITES))}, got {dendrite!r}")
        if kwinners is not None and not isinstance(kwinners, self._winners):
            raise TypeError(f"kwinners: expected {self._winners.__name__}, got {type(kwinners).__name__}")
        if kwinners is not None and kwinners.n != units:
            raise ValueError(f"kwinners: expected n = {units} (the layer's units or channels), got {kwinners.n}")
        if kwinners is not None and relu:
            raise ValueError("relu: expected False beside kwinners, which has a relu option of its own")
        self.dendrite, self.kwinners, self.relu = dendrite, kwinners, relu
        self.segments = None
        if DENDRITES[dendrite] is not None:
            self.segments = DendriteSegments(units, num_segments, dim_context, **segment_options)

    @property
    def combine(self) -> str:
        """How a gate acts: "mul" or "add"."""
        return "mul" if self.segments is None else DENDRITES[self.dendrite][2]

    def forward(self, x: Tensor | KSparse, context: Tensor | None = None, context_index: Tensor | None = None) -> Any:
        return self.forward_gated(x, self._gate_to_read(context), context_index)

    def gate(self, context: Tensor | None) -> Tensor | None:
        """The gate [G, O] for contexts [G, C] (None for a layer without dendrites)."""
        if self.segments is None:
            return None
        select, activation, _ = DENDRITES[self.dendrite]
        return self.segments(self._context(context), select, activation)[0]

    def _gate_to_read(self, context: Tensor | None) -> Tensor | None:
        segments = self.segments
        if segments is None or torch.is_grad_enabled() or segments._forward_hooks or segments._forward_pre_hooks:
            return self.gate(context)
        if torch.jit.is_tracing():  # a trace has the same modules with and without gradients
            return self.gate(context)
        select, activation, _ = DENDRITES[self.dendrite]
        return gate_to_read(self._context(context), segments.weights, segments.biases, select, activation)

    def _context(self, context: Tensor | None) -> Tensor:
        if context is None:
            raise ValueError(f"context: expected [G, C] for a layer with dendrites ({self.dendrite}), got None")
        return context

    def extra_repr(self) -> str:
        relu = ", relu=True" if self.relu else ""
        return f"{super().extra_repr()}, dendrite={self.dendrite!r}{relu}"


class DendriticLinear(Dendritic, SparseLinear):
    """A sparse linear layer whose units are gated by their strongest segment, and k-winner-take-all after it.

    Args:
        in_features, out_features, bias, sparsity, input_density, input_major, device, dtype: as SparseLinear.
        num_segments, dim_context: S and C.
        dendrite: "abs_max_gate" (the papers'), "max_gate", "bias" (y + max_s u_s.c) or "none".
        kwinners: the KWinners that ends the layer (its options are fused into the kernel), or None.
        relu: without kwinners, end in a ReLU.
        segment_sparsity, segment_bias, context_density: as DendriteSegments.

    forward(x, context, context_index=None): x [B, I] or KSparse; context [G, C] with G = 1 or B, or any G with
    context_index [B]. Returns [B, O], or a KSparse where kwinners is sparse.

    Equivalent to: kwinners(torch.nn.functional.linear(x, weight, bias) * gate[context_index]), gate = segments(context)

    Source: Grewal et al. 2021, eq. 1 to 4.
    """

    _winners = KWinners

    def __init__(
        self,
        in_features: int,
        out_features: int,
        num_segments: int,
        dim_context: int,
        bias: bool = True,
        *,
        dendrite: str = "abs_max_gate",
        kwinners: KWinners | None = None,
        relu: bool = False,
        sparsity: float = 0.0,
        input_density: float = 1.0,
        input_major: bool = False,
        segment_sparsity: float = 0.0,
        segment_bias: bool = False,
        context_density: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        options: dict[str, Any] = {"sparsity": sparsity, "input_density": input_density, "input_major": input_major}
        super().__init__(in_features, out_features, bias, **options)
        self._set_dendrites(
            out_features,
            num_segments,
            dim_context,
            dendrite,
            kwinners,
            relu,
            sparsity=segment_sparsity,
            context_density=context_density,
            bias=segment_bias,
        )
        self.to(device=device, dtype=dtype)

    def forward(  # type: ignore[override]  # KSparse, where a SparseLinear has no winners to keep
        self, x: Tensor | KSparse, context: Tensor | None = None, context_index: Tensor | None = None
    ) -> Tensor | KSparse:
        if context is not None and self._runs_at_once(x, context):
            return self._at_once(x, context, context_index)
        return super().forward(x, context, context_index)

    def _runs_at_once(self, x, context):
        segments, winners = self.segments, self.kwinners
        whole = segments is not None and winners is not None and winners.ties == "lowest"
        hooked = whole and (segments._forward_hooks or segments._forward_pre_hooks)
        return whole and not hooked and in_one_launch(x, self.weight, context)

    def _at_once(self, x, context, context_index):
        winners, segments = self.kwinners, self.segments
        select, activation, combine = DENDRITES[self.dendrite]
        out = dendritic_linear(
            x,
            self.weight,
            self.bias,
            context,
            segments.weights,
            segments.biases,
            context_index,
            winners.k,
            select=select,
            activation=activation,
            combine=combine,
            boost=winners.boost(),
            relu=winners.relu,
            sparse=winners.sparse,
        )
        winners.update_duty_cycle(out)
        return out

    def forward_gated(
        self, x: Tensor | KSparse, gate: Tensor | None, context_index: Tensor | None = None
    ) -> Tensor | KSparse:
        """The layer with gates that are known, as `gate(contexts)` gave them: for many batches on frozen segments."""
        winners = self.kwinners
        out = gated_linear(
            x,
            self.weight,
            self.bias,
            gate,
            None if gate is None else context_index,
            None if winners is None else winners.k,
            combine=self.combine,
            boost=None if winners is None else winners.boost(),
            relu=self.relu if winners is None else winners.relu,
            ties="lowest" if winners is None else winners.ties,
            sparse=winners is not None and winners.sparse,
        )
        if winners is not None:
            winners.update_duty_cycle(out)
        return out
