"""Noise in images: a share of the pixels becomes bright (Bain 2022, figure 2)."""

from __future__ import annotations

import torch
from torch import Tensor

BRIGHT = 2.0  # standard deviations above the mean, of normalised pixels


def pixel_order(images: int, pixels: int, seed: int) -> Tensor:
    """The order [images, pixels] in which the pixels of each image are hit, at random, from the seed alone."""
    return torch.rand(images, pixels, generator=torch.Generator().manual_seed(seed)).argsort(1)


def bright_pixels(x: Tensor, share: float, order: Tensor, value: float = BRIGHT) -> Tensor:
    """A copy of x [N, P] with round(share * P) pixels of each image, the first of its order [N, P], set to value."""
    return x.scatter(1, order[:, : round(share * x.shape[1])], value)
