"""Noise in images: a share of the pixels becomes bright (Bain 2022, figure 2)."""

from __future__ import annotations

import torch
from torch import Tensor

BRIGHT = 2.0  # standard deviations above the mean, of normalised pixels


def pixel_order(images: int, pixels: int, seed: int) -> Tensor:
    """The order [images, pixels] in which the pixels of each image are hit, at random, from the seed alone."""
    return torch.rand(images, pixels, generator=torch.Generator().manual_seed(seed)).argsort(1)


def pixels_of(images: Tensor) -> int:
    """Pixels of an image of [N, pixels] or of [N, channels, height, width]."""
    return images[0, 0].numel() if images.dim() == 4 else images.shape[1]


def bright_pixels(x: Tensor, share: float, order: Tensor, value: float = BRIGHT) -> Tensor:
    """A copy of x [N, C * P], channel after channel, with round(share * P) pixels of each image, the first of its order
    [N, P], set to value in all C channels: the source's shares are of pixels.
    """
    pixels = order.shape[1]
    hit = order[:, : round(share * pixels)]
    return x.scatter(1, torch.cat([hit + start for start in range(0, x.shape[1], pixels)], dim=1), value)
