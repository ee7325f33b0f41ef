"""Fixed random weight masks, and keeping masked weights at zero."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .ops import rezero_


def check_fraction(name: str, value: float, *, one: bool) -> float:
    """A fraction in [0, 1), or [0, 1] where `one` is allowed."""
    if not 0 <= value <= 1 or (value == 1 and not one):
        raise ValueError(f"{name}: expected a fraction in [0, 1{']' if one else ')'}, got {value}")
    return value


def random_mask(shape: tuple[int, ...], sparsity: float, generator: torch.Generator | None = None) -> Tensor:
    """Bool mask with exactly round((1 - sparsity) * I) True in each row of I (the last dim), at random places.

    Source: Grewal et al. 2021, section 3.2 (sparse weights by a fixed random mask).
    """
    check_fraction("sparsity", sparsity, one=False)
    keep = round((1 - sparsity) * shape[-1])
    if keep == shape[-1]:
        return torch.ones(shape, dtype=torch.bool)
    rows = torch.rand(shape, generator=generator)
    chosen = rows.topk(keep, dim=-1).indices
    return torch.zeros(shape, dtype=torch.bool).scatter_(-1, chosen, True)


class MaskedParameter(nn.Module):
    """A module with one weight under a fixed mask. `weight_mask` is None where nothing is masked."""

    masked_name = "weight"

    def set_mask(self, mask: Tensor | None) -> None:
        self.register_buffer("weight_mask", mask)
        self.rezero_weights()

    def rezero_weights(self) -> None:
        """Sets masked weights back to zero."""
        if self.weight_mask is not None:
            rezero_(getattr(self, self.masked_name), self.weight_mask)


def rezero_weights(model: nn.Module) -> nn.Module:
    """Sets every masked weight of the model back to zero: call it after each optimizer step, whatever the optimizer.

    Equivalent to: m.weight.data.masked_fill_(~m.weight_mask, 0) for each module m with a mask
    """
    for module in model.modules():
        if isinstance(module, MaskedParameter):
            module.rezero_weights()
    return model
