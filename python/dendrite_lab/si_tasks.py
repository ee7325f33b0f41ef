"""The tasks of Synaptic Intelligence's experiments: pairs of digits, or permutations of the pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from .data import MNIST
from .permuted import permutations
from .si_experiment import SIExperiment


class Tasks:
    """Tasks over images held once in memory, pixels in [0, 1]; a task's copy is made when it is asked for."""

    classes: int  # of a task

    def __init__(self, data: MNIST, config: SIExperiment):
        few = config.train_samples
        self._train = data.train_images[:few].float().div_(255), data.train_labels[:few]
        self._test = data.test_images.float().div_(255), data.test_labels

    def train(self, task: int) -> tuple[Tensor, Tensor]:
        """x [N, 784] and labels [N]."""
        return self._of(task, *self._train)

    def test(self, task: int) -> tuple[Tensor, Tensor]:
        """As train."""
        return self._of(task, *self._test)

    def _of(self, task: int, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class SplitTasks(Tasks):
    """Task t: the digits 2t and 2t + 1, with labels 0 and 1."""

    classes = 2

    def _of(self, task: int, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        chosen = torch.nonzero(labels // 2 == task)[:, 0]
        return images[chosen], labels[chosen] - 2 * task


class PermutedTasks(Tasks):
    """The permutations of permutedMNIST, the first of which leaves the image as it is."""

    classes = 10

    def __init__(self, data: MNIST, config: SIExperiment):
        super().__init__(data, config)
        self.permutations = permutations(config.tasks, config.data_seed)

    def _of(self, task: int, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return images.index_select(1, self.permutations[task]), labels


def tasks_of(data: MNIST, config: SIExperiment) -> Tasks:
    """The benchmark that the configuration names."""
    return {"split_mnist": SplitTasks, "permuted_mnist": PermutedTasks}[config.benchmark](data, config)
