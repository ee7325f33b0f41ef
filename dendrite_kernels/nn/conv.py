"""SparseConv2d and DendriticConv2d: convolutions with masked weights, and with a gate for each output channel."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..ops import kwinners2d
from ..sparsity import MaskedParameter, check_fraction, random_mask
from .dendritic import Dendritic
from .kwinners import KWinners2d


class SparseConv2d(MaskedParameter, nn.Conv2d):
    """torch.nn.Conv2d with round((1 - sparsity) * fan_in) weights an output channel; the others are and stay zero.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, device, dtype: as
            torch.nn.Conv2d.
        sparsity: share of zero weights in each output channel, in [0, 1).
        input_density: expected share of nonzero inputs, for the initialisation.

    fan_in is in_channels / groups times the kernel's area. The weight starts as
    U(+-1/sqrt(input_density * weight_density * fan_in)), the bias as torch.nn.Conv2d's. Call
    `dendrite_kernels.sparsity.rezero_weights(model)` after each optimizer step (not with optim.Adam).

    Equivalent to: torch.nn.functional.conv2d(x, weight * weight_mask, bias, ...)

    Source: as SparseLinear; for convolutions, Bain 2022.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        sparsity: float = 0.0,
        input_density: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        check_fraction("sparsity", sparsity, one=False)
        if not 0 < input_density <= 1:
            raise ValueError(f"input_density: expected a fraction in (0, 1], got {input_density}")
        self.sparsity, self.input_density = sparsity, input_density  # Conv2d's __init__ calls reset_parameters
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        self.to(device=device, dtype=dtype)  # drawn before: a seed means the same weights on any device

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws a new weight, bias and mask."""
        fan_in = max(1, self.weight[0].numel())
        bound = 1 / math.sqrt(self.input_density * (1 - self.sparsity) * fan_in)
        self.weight.uniform_(-bound, bound)
        if self.bias is not None:
            self.bias.uniform_(-1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))
        mask = None
        if self.sparsity:
            mask = (
                random_mask((self.out_channels, fan_in), self.sparsity).view(self.weight.shape).to(self.weight.device)
            )
        self.set_mask(mask)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, sparsity={self.masked_share:.4g}"


class DendriticConv2d(Dendritic, SparseConv2d):
    """A sparse convolution whose whole output channels are gated by their strongest segment, and k winners after it.

    Args:
        in_channels to bias, sparsity, input_density, device, dtype: as SparseConv2d.
        num_segments, dim_context: S and C, of each output channel.
        dendrite, relu, segment_sparsity, segment_bias, context_density: as DendriticLinear.
        kwinners: the KWinners2d that ends the layer, or None.

    forward(x, context, context_index=None): x [B, in_channels, H, W]; context [G, C] with G = 1 or B, or any G with
    context_index [B]. Returns [B, out_channels, H', W'].

    Equivalent to: kwinners(conv(x) * gate[context_index][:, :, None, None]), gate = segments(context)

    Source: Grewal et al. 2021, eq. 1 to 4, for channels as in Bain 2022.
    """

    _winners = KWinners2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        num_segments: int,
        dim_context: int,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        dendrite: str = "abs_max_gate",
        kwinners: KWinners2d | None = None,
        relu: bool = False,
        sparsity: float = 0.0,
        input_density: float = 1.0,
        segment_sparsity: float = 0.0,
        segment_bias: bool = False,
        context_density: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        options: dict[str, Any] = {"sparsity": sparsity, "input_density": input_density}
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, **options)
        self._set_dendrites(
            out_channels,
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

    def forward_gated(self, x: Tensor, gate: Tensor | None, context_index: Tensor | None = None) -> Tensor:
        """The layer with gates that are known, as `gate(contexts)` gave them: for many batches on frozen segments."""
        y, index = SparseConv2d.forward(self, x), None if gate is None else context_index
        if self.kwinners is not None:
            return self.kwinners(y, gate, index, combine=self.combine)
        everything = y.shape[1:].numel()
        return kwinners2d(y, everything, gate, index, combine=self.combine, relu=self.relu)
