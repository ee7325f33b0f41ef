"""Images in training: random flips and affine maps of a whole batch at once, normalisation, classes drawn for tasks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

# Of the channels, as Bain 2022 normalised CIFAR.
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


@dataclass(frozen=True)
class Augmentation:
    """How far an image is moved at random: probability of a flip, degrees, share of the side, range of scales."""

    flip: float = 0.5
    degrees: float = 30.0
    shift: float = 0.2
    scale: tuple[float, float] = (0.8, 1.2)

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """images [B, 3, H, W], each moved in its own way; what comes from outside is 0 (black, before normalising)."""
        draws = torch.rand(5, len(images), generator=generator)
        low, high = self.scale
        angle = (2 * draws[1] - 1) * math.radians(self.degrees)
        shift = (2 * draws[2:4] - 1) * self.shift
        return moved(images, draws[0] < self.flip, angle, shift.T, low + (high - low) * draws[4])


def moved(images: Tensor, flip: Tensor, angle: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """images [B, C, H, H] flipped left to right, turned clockwise (radians), scaled about the centre, then shifted.

    flip bool [B], angle [B], shift [B, 2] to the right and down as shares of the side, scale [B]. Bilinear; outside the
    image is 0.
    """
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    # from a place in the output to the one in the image it comes from: the inverse of turning and scaling
    linear = torch.stack([torch.stack([cos, sin], 1), torch.stack([-sin, cos], 1)], 1)
    offset = -(linear @ (2 * shift)[:, :, None])  # the grid's side is 2
    theta = torch.cat([linear, offset], 2)
    theta[:, 0] *= torch.where(flip, -1.0, 1.0)[:, None]
    grid = affine_grid(theta.to(images.dtype), list(images.shape), align_corners=False)
    return grid_sample(images, grid, align_corners=False)


def normalised(images: Tensor) -> Tensor:
    """images [B, 3, H, W] in [0, 1] -> zero mean and unit variance of each channel, by CIFAR's statistics."""
    mean, std = (images.new_tensor(values)[:, None, None] for values in (MEAN, STD))
    return (images - mean) / std


def drawn_classes(classes: int, tasks: int, of_each: int, seed: int) -> Tensor:
    """The classes of each task, int64 [tasks, of_each]: drawn without replacement, from the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(classes, generator=generator)[: tasks * of_each].view(tasks, of_each)


def of_classes(labels: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Indices [M] of the samples of these classes, and their labels [M] as places in `classes`."""
    place = torch.full((int(labels.max()) + 1,), -1)
    known = classes[classes < len(place)]
    place[known] = torch.arange(len(classes))[classes < len(place)]
    found = place[labels]
    index = (found >= 0).nonzero().squeeze(1)
    return index, found[index]
