"""SparseLinear: a linear layer whose weights lie under a fixed random mask."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..ops import KSparse, sparse_linear
from ..sparsity import MaskedParameter, check_fraction, random_mask


class SparseLinear(MaskedParameter):
    """y = x W^T + b with round((1 - sparsity) * in_features) weights a unit; the others are and stay zero.

    Args:
        in_features, out_features, bias, device, dtype: as torch.nn.Linear.
        sparsity: share of zero weights in each row, in [0, 1).
        input_density: expected share of nonzero inputs, for the initialisation.
        input_major: store the weight by input, which a k-sparse x reads fastest (its shape stays [O, I]).

    The weight starts as U(+-1/sqrt(input_density * weight_density * in_features)), the bias as torch.nn.Linear's.
    Call `dendrite_kernels.sparsity.rezero_weights(model)` after each optimizer step.

    forward(x [..., I], or a KSparse [B, I]) -> y [..., O].

    Equivalent to: torch.nn.functional.linear(x, weight * weight_mask, bias)

    Source: Grewal et al. 2021, section 3.2; systems as in Ahmad & Scheinkman 2019.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        sparsity: float = 0.0,
        input_density: float = 1.0,
        input_major: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        check_fraction("sparsity", sparsity, one=False)
        if not 0 < input_density <= 1:
            raise ValueError(f"input_density: expected a fraction in (0, 1], got {input_density}")
        self.in_features, self.out_features = in_features, out_features
        self.sparsity, self.input_density, self.input_major = sparsity, input_density, input_major
        self.weight = nn.Parameter(self._empty())
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.register_buffer("weight_mask", None)
        self.reset_parameters()
        self.to(device=device, dtype=dtype)  # drawn before: a seed means the same weights on any device

    def _empty(self, dtype: torch.dtype | None = None) -> Tensor:
        if self.input_major:
            return torch.empty(self.in_features, self.out_features, dtype=dtype).T
        return torch.empty(self.out_features, self.in_features, dtype=dtype)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws a new weight, bias and mask."""
        fan_in = max(1, self.in_features)
        bound = 1 / math.sqrt(self.input_density * (1 - self.sparsity) * fan_in)
        # drawn by unit, so that a seed means the same weights in either memory order
        self.weight.copy_(torch.empty(self.out_features, self.in_features).uniform_(-bound, bound))
        if self.bias is not None:
            self.bias.uniform_(-1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))
        if self.sparsity:
            mask = random_mask((self.out_features, self.in_features), self.sparsity)
            self.set_mask(self._empty(torch.bool).copy_(mask))

    def forward(self, x: Tensor | KSparse) -> Tensor:
        return sparse_linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        layout = ", input_major" if self.input_major else ""
        bias, masked = self.bias is not None, f"{self.masked_share:.4g}"
        return f"{self.in_features}, {self.out_features}, bias={bias}, sparsity={masked}{layout}"
