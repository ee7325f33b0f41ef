"""Training on split CIFAR with Synaptic Intelligence: one body, a head a task."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dendrite_kernels.optim import SynapticIntelligence

from .cifar import CIFAR
from .images import of_classes
from .networks import draw_as_keras
from .si_cifar import SICIFAR
from .state import Progress, TaskState
from .task_loop import Steps, accuracy, learn

CHANNELS = (3, 32, 32, 64, 64)
FLAT, HIDDEN = 64 * 6 * 6, 512  # 32 -> 30, 15 -> 13, 6: the second convolution of each pair is not padded


class ConvHeads(nn.Module):
    """conv 32-32, pool, dropout 0.25, conv 64-64, pool, dropout 0.25, fc 512, dropout 0.5, and a head a task.

    init: "keras" as the paper's code draws it, the heads 0; "torch".
    forward(x [B, 3, 32, 32], task) -> logits [B, classes].
    """

    def __init__(self, classes: int, heads: int, init: str = "torch"):
        super().__init__()
        layers = []
        for number, (inputs, outputs) in enumerate(pairwise(CHANNELS)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1 - number % 2), nn.ReLU()]
            if number % 2:
                layers += [nn.MaxPool2d(2), nn.Dropout(0.25)]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(FLAT, HIDDEN), nn.ReLU(), nn.Dropout(0.5))
        self.heads = nn.ModuleList(nn.Linear(HIDDEN, classes) for _ in range(heads))
        if init == "keras":
            draw_as_keras(self)

    def forward(self, x: Tensor, task: int) -> Tensor:
        return self.heads[task](self.body(x))


class SICIFARRun:
    """A run in memory."""

    def __init__(self, config: SICIFAR, state: TaskState, data: tuple[CIFAR, ...]):
        self.config, self.state, self.data = config, state, data
        self._begin_network(state.seed)
        if state.si is not None:
            self.si.load_state_dict(state.si)

    def _begin_network(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = ConvHeads(self.config.classes_per_task, self.config.tasks, self.config.init)
        self.si = SynapticIntelligence(self.model, self._new_optimizer(), self.config.c, self.config.xi, "zenke")

    def _new_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.model.parameters(), lr=self.config.lr, fused=True)

    def train(self, task: int, report: Progress) -> None:
        config = self.config
        if task > 0 and config.schedule == "scratch":
            self._begin_network(self.state.seed + 1_000_003 * task)
        self.si.optimizer = self._new_optimizer()
        images, labels = self.of_task(task, "train")
        steps = Steps(self.state, task, config.steps, report)

        def step(index: Tensor) -> Tensor:
            self.si.optimizer.zero_grad()
            loss = cross_entropy(self.model(images[index].float() / 255, task), labels[index])
            loss.backward()
            self.si.step()
            return loss.detach()

        for _ in range(config.epochs):
            steps.epoch(len(images), config.batch_size, step)
        self.si.end_task()
        steps.end()

    def evaluate(self, seen: int) -> list[float]:
        """On all tasks so far, or, with a network for each, on the latest beside what the earlier ones had."""
        if self.config.schedule == "scratch":
            return [*self.state.accuracy.get(seen - 1, []), self._accuracy(seen - 1)]
        return [self._accuracy(task) for task in range(seen)]

    def kept(self) -> dict:
        return {"si": self.si}

    def findings(self) -> dict:
        return {}

    def of_task(self, task: int, part: str) -> tuple[Tensor, Tensor]:
        """A task's images and labels of "train" or "test": the first of a new data set is its class 0."""
        which, first = (1, 10 * (task - 1)) if task and len(self.data) > 1 else (0, task * self.config.classes_per_task)
        images, labels = (getattr(self.data[which], f"{part}_{what}") for what in ("images", "labels"))
        index, places = of_classes(labels, torch.arange(first, first + self.config.classes_per_task))
        return images[index], places

    def _accuracy(self, task: int) -> float:
        def predict(part: Tensor) -> Tensor:
            return self.model(part.float() / 255, task)

        return accuracy(self.model, predict, *self.of_task(task, "test"), self.config.test_batch_size)


def run(
    config: SICIFAR,
    seed: int,
    data: CIFAR | tuple[CIFAR, CIFAR],
    folder: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
) -> dict:
    """Runs the experiment and returns its result row; data: CIFAR-10, or it and CIFAR-100, as config.dataset says."""
    sets = data if isinstance(data, tuple) else (data,)
    return learn(lambda state: SICIFARRun(config, state, sets), TaskState, config, seed, folder, resume, progress)
