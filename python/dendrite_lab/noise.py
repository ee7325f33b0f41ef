"""Noise in images: a share of the pixels becomes bright (Bain 2022, figure 2)."""

from __future__ import annotations

import torch
from torch import Tensor

BRIGHT = 2.0  # standard deviations above the mean, of normalised pixels


def bright_pixels(x: Tensor, share: float, seed: int, value: float = BRIGHT) -> Tensor:
    """A copy of x [N, P] with round(share * P) pixels of each image, at random places, set to value.

    The places follow from seed alone, and those of a smaller share are among those of a larger one.
    """
    count = round(share * x.shape[1])
    places = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)).argsort(1)[:, :count]
    return x.scatter(1, places, value)
