"""permutedMNIST: one fixed permutation of the pixels a task, labels shared by all tasks (Grewal et al. 2021, 4.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from .configuration import IMAGE_VALUES
from .data import MNIST
from .errors import LabError

MEAN, STD, PIXELS = 0.13062755, 0.30810780, IMAGE_VALUES["mnist"]


def permutations(tasks: int, seed: int = 42) -> list[Tensor]:
    """Task 0 as it is, then one randperm(784) a task from torch.manual_seed(seed), in order; the public code's rule."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.arange(PIXELS), *(torch.randperm(PIXELS, generator=generator) for _ in range(tasks - 1))]


class PermutedMNIST:
    """The tasks over images held once in memory; a task's copy is made by index when it is asked for."""

    def __init__(self, data: MNIST, tasks: int, seed: int = 42, device: str = "cpu"):
        self.permutations = [order.to(device) for order in permutations(tasks, seed)]
        self._train, self._test = (normalised(t.to(device)) for t in (data.train_images, data.test_images))
        self._train_labels, self._test_labels = (t.to(device) for t in (data.train_labels, data.test_labels))

    def train(self, task: int, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x [60000, 784], in out where it is given (fresh memory costs more than the copy), and labels [60000]."""
        return torch.index_select(self._train, 1, self.permutations[task], out=out), self._train_labels

    def test(self, task: int) -> tuple[Tensor, Tensor]:
        """x [10000, 784] and labels [10000]."""
        return self._test.index_select(1, self.permutations[task]), self._test_labels


def normalised(images: Tensor) -> Tensor:
    """Pixels uint8 as float32 of zero mean and unit variance, by the statistics of the public code."""
    return images.float().div_(255).sub_(MEAN).div_(STD)


def batches(count: int, size: int, generator: torch.Generator, device: torch.device | str = "cpu") -> list[Tensor]:
    """Shuffled batches of indices for one epoch; the last short one is dropped.

    Raises LabError: there are fewer samples than a batch has.
    """
    if count < size:
        raise LabError(f"batch_size: expected at most the {count} samples that a task trains on, got {size}")
    order = torch.randperm(count, generator=generator).to(device)
    return list(order[: count // size * size].split(size))
