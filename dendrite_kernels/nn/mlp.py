"""DendriticMLP: the network of the permutedMNIST experiments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..formats import Versioned
from .dendritic import DendriticLinear
from .kwinners import KWinners
from .sparse_linear import SparseLinear


class DendriticMLP(Versioned):
    """Dendritic layers with k winners, and a sparse linear output layer.

    Args:
        input_size, hidden_sizes, output_size: widths, 784, (2048, 2048) and 10 in the papers.
        num_segments, dim_context: segments a unit and context length.
        weight_sparsity: of every layer, the output's too. context_density, segment_sparsity: as DendriteSegments.
        percent_on: share of winners in each hidden layer; None for ReLU instead of k winners.
        dendrite: as DendriticLinear.
        boost_strength, duty_cycle_period, k_inference_factor, ties: as KWinners. device, dtype: as torch.nn.Linear.

    forward(x [B, I], context [G, C], context_index [B]?) -> logits [B, output_size]. Activations stay k-sparse between
    layers (with ties="keep" they are dense).

    Call `rezero_weights(model)` (dendrite_kernels.sparsity) after each optimizer step.

    Equivalent to: each layer as DendriticLinear's, then torch.nn.functional.linear

    Source: Grewal et al. 2021, section 3 and appendix.
    """

    layers: Any  # an nn.ModuleList of DendriticLinear: torch's hints forget what one holds

    def __init__(
        self,
        input_size: int,
        hidden_sizes: Sequence[int],
        output_size: int,
        num_segments: int,
        dim_context: int,
        *,
        weight_sparsity: float = 0.5,
        percent_on: float | None = 0.05,
        context_density: float = 1.0,
        segment_sparsity: float = 0.0,
        dendrite: str = "abs_max_gate",
        boost_strength: float = 0.0,
        duty_cycle_period: int = 1000,
        k_inference_factor: float = 1.0,
        ties: str = "lowest",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.layers = nn.ModuleList()
        width, input_density, sparse_input = input_size, 1.0, False
        for units in hidden_sizes:
            winners = None
            if percent_on is not None:
                winners = KWinners(
                    units,
                    percent_on,
                    k_inference_factor=k_inference_factor,
                    boost_strength=boost_strength,
                    duty_cycle_period=duty_cycle_period,
                    ties=ties,
                    sparse=ties == "lowest",
                )
            self.layers.append(
                DendriticLinear(
                    width,
                    units,
                    num_segments,
                    dim_context,
                    dendrite=dendrite,
                    kwinners=winners,
                    relu=winners is None,
                    sparsity=weight_sparsity,
                    input_density=input_density,
                    input_major=sparse_input,
                    segment_sparsity=segment_sparsity,
                    context_density=context_density,
                )
            )
            width, input_density = units, 1.0 if percent_on is None else percent_on
            sparse_input = winners is not None and winners.sparse
        self.output = SparseLinear(
            width, output_size, sparsity=weight_sparsity, input_density=input_density, input_major=sparse_input
        )
        self.to(device=device, dtype=dtype)

    def extra_repr(self) -> str:
        widths = [m.in_features for m in (*self.layers, self.output)] + [self.output.out_features]
        return " -> ".join(map(str, widths))

    def gates(self, context: Tensor | None) -> list[Tensor | None]:
        """Each layer's gate [G, O] for contexts [G, C]: give them to forward_gated for many batches."""
        return [layer.gate(context) for layer in self.layers]

    def forward(self, x: Tensor, context: Tensor | None = None, context_index: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            x = layer(x, context, context_index)
        return self.output(x)

    def forward_gated(self, x: Tensor, gates: list[Tensor | None], context_index: Tensor | None = None) -> Tensor:
        """forward with gates that are known. Segments get no gradient from gates made under torch.no_grad()."""
        for layer, gate in zip(self.layers, gates, strict=True):
            x = layer.forward_gated(x, gate, context_index)
        return self.output(x)


def nearest_prototype(x: Tensor, prototypes: Tensor) -> Tensor:
    """The index, int32 [B], of the prototype [G, C] nearest to each row of x [B, C] (Euclidean; ties to the lowest).

    Equivalent to: torch.cdist(x, prototypes).argmin(1)

    Source: Grewal et al. 2021, section 4.2 (the context of a test sample).
    """
    with torch.autocast(x.device.type, enabled=False):  # a choice, as of winners: not by rounded products
        # |x - p|^2 without |x|^2, which is the same for all prototypes
        scores = (prototypes * prototypes).sum(1) - 2 * (x @ prototypes.T)
    return scores.argmin(1).to(torch.int32)
