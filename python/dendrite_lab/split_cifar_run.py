"""SplitCIFAR: training with augmentation and early stopping, evaluation on all tasks so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from dendrite_kernels.optim import Adam

from .cifar import CIFAR
from .conv_networks import build_conv_net
from .images import Augmentation, drawn_classes, normalised, of_classes
from .split_cifar import SplitCIFAR
from .state import Progress, TaskState
from .task_loop import Steps, accuracy, learn
from .train import train_step


@dataclass
class SplitState(TaskState):
    """Of a SplitCIFAR run."""

    epochs: list = field(default_factory=list)  # of each task, until it stopped


class EarlyStop:
    """Keeps a model as it was after its best epoch, and says when `patience` epochs have not been better."""

    def __init__(self, model: torch.nn.Module, patience: int):
        self.model, self.patience = model, patience
        self.best, self.waited, self.epochs, self.kept = -1.0, 0, 0, {}

    def after_epoch(self, score: float) -> bool:
        """Whether to stop after an epoch with this score (higher is better)."""
        self.epochs, self.waited = self.epochs + 1, self.waited + 1
        if score > self.best:
            self.best, self.waited = score, 0
            self.kept = {name: value.clone() for name, value in self.model.state_dict().items()}
        return self.waited >= self.patience

    def restore(self) -> None:
        """Puts the best epoch's parameters back."""
        self.model.load_state_dict(self.kept)


class SplitRun:
    """A run in memory."""

    def __init__(self, config: SplitCIFAR, state: SplitState, data: CIFAR):
        self.config, self.state, self.data = config, state, data
        self.classes = drawn_classes(data.classes, config.tasks, config.classes_per_task, state.seed)
        self.model = build_conv_net(config, state.seed)
        self.contexts = self._contexts()
        self.augmentation = Augmentation()
        self.optimizer = self._new_optimizer()
        if state.optimizer is not None:
            self.optimizer.load_state_dict(state.optimizer)

    def train(self, task: int, report: Progress) -> None:
        """Trains one task until it no longer improves. What is drawn follows from seed and task alone."""
        config = self.config
        if task > 0 and config.optimizer_lifetime == "task":
            self.optimizer = self._new_optimizer()
        (images, labels), held_out = self._split(task)
        total = config.tasks * config.epochs * (len(images) // config.batch_size)
        steps, stop = Steps(self.state, task, total, report), EarlyStop(self.model, config.patience)

        def step(index: Tensor) -> Tensor:
            x = normalised(self.augmentation(images[index].float() / 255, steps.generator))
            return train_step(self.model, self.optimizer, x, labels[index], self._context(task))

        for _ in range(config.epochs):
            steps.epoch(len(images), config.batch_size, step)
            if stop.after_epoch(self._accuracy(task, *held_out)):
                break
        stop.restore()
        steps.end()
        self.state.epochs.append(stop.epochs)

    def evaluate(self, seen: int) -> list[float]:
        tests = (self._of_task(task, self.data.test_images, self.data.test_labels) for task in range(seen))
        return [self._accuracy(task, *test) for task, test in enumerate(tests)]

    def kept(self) -> dict:
        return {"optimizer": self.optimizer} if self.config.optimizer_lifetime == "run" else {}

    def findings(self) -> dict:
        return {"epochs_by_task": self.state.epochs, "classes_by_task": self.classes.tolist()}

    def _new_optimizer(self) -> torch.optim.Optimizer:
        """Our Adam; torch's, which has weight decay, for a network of torch's layers."""
        config = self.config
        if config.plain:
            options = {"lr": config.lr, "weight_decay": config.weight_decay}
            return torch.optim.Adam(self.model.parameters(), **options, fused=True)
        return Adam(self.model, lr=config.lr)

    def _contexts(self) -> Tensor:
        """[tasks, dim_context]"""
        if self.config.context == "mean":
            trained = (self._split(task)[0][0] for task in range(self.config.tasks))
            return torch.stack([normalised(images.float() / 255).mean(0).flatten() for images in trained])
        return torch.eye(self.config.tasks) * (self.config.context == "onehot")

    def _context(self, task: int) -> Tensor | None:
        return self.contexts[task : task + 1] if self.config.segments else None

    def _of_task(self, task: int, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        index, places = of_classes(labels, self.classes[task])
        return images[index], places

    def _split(self, task: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Images and labels of a task to train on, and to choose the best epoch by."""
        images, labels = self._of_task(task, self.data.train_images, self.data.train_labels)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1000 * self.state.seed + task))
        held_out, trained = order.tensor_split([max(1, round(self.config.validation * len(images)))])
        return (images[trained], labels[trained]), (images[held_out], labels[held_out])

    def _accuracy(self, task: int, images: Tensor, labels: Tensor) -> float:
        def predict(part: Tensor) -> Tensor:
            return self.model(normalised(part.float() / 255), self._context(task))

        return accuracy(self.model, predict, images, labels, self.config.test_batch_size)


def run(
    config: SplitCIFAR, seed: int, data: CIFAR, folder: Path, *, resume: bool = False, progress: Progress | None = None
) -> dict:
    """Runs the experiment and returns its result row; with `resume`, goes on after the last finished task."""
    return learn(lambda state: SplitRun(config, state, data), SplitState, config, seed, folder, resume, progress)
