"""Where contexts come from: one class a source, each for training batches and for test samples."""

from __future__ import annotations

import torch
from torch import Tensor

from dendrite_kernels.nn import nearest_prototype

from .clusters import Clusters
from .experiment import CLUSTER_PIXELS, Experiment
from .permuted import PIXELS


class NoContexts:
    """For networks without dendrites, and what the other sources have in common."""

    def begin_task(self, x: Tensor) -> None:
        """Called before a task's training with all its inputs [N, 784]."""

    def of_batch(self, x: Tensor) -> Tensor | None:
        """The context [1, C] of a training batch [B, 784]."""
        return None

    def all(self) -> Tensor | None:
        """The contexts [G, C] that test samples choose from."""
        return None

    def choose(self, x: Tensor, task: int) -> Tensor | None:
        """The index [B] into all() of each of a task's test samples [B, 784]."""
        return None

    def state(self) -> dict:
        """What of this a stopped run needs to go on."""
        return {}

    def load(self, state: dict) -> None:
        """Takes state() back."""


class TrueTask(NoContexts):
    """A vector a task, known in training and at test (Bain 2022, section 3.2)."""

    def __init__(self, vectors: Tensor):
        self.vectors, self.task = vectors, -1

    def begin_task(self, x: Tensor) -> None:
        self.task, self.vectors = self.task + 1, self.vectors.to(x.device)

    def of_batch(self, x: Tensor) -> Tensor:
        return self.vectors[self.task, None]

    def all(self) -> Tensor:
        return self.vectors

    def choose(self, x: Tensor, task: int) -> Tensor:
        return torch.full((len(x),), task, dtype=torch.int32, device=x.device)

    def state(self) -> dict:
        return {"task": self.task}

    def load(self, state: dict) -> None:
        self.task = state["task"]


class TrueMean(TrueTask):
    """The mean of the task's training inputs, known at test too (Bain 2022, section 3.2)."""

    def __init__(self):
        super().__init__(torch.empty(0, PIXELS))

    def begin_task(self, x: Tensor) -> None:
        super().begin_task(x)
        self.vectors = torch.cat([self.vectors.to(x.device), x.mean(0, keepdim=True)])

    def state(self) -> dict:
        return {"task": self.task, "vectors": self.vectors}

    def load(self, state: dict) -> None:
        self.task, self.vectors = state["task"], state["vectors"]


class Prototypes(TrueMean):
    """The mean of the task's training inputs; the nearest of them at test (Grewal et al. 2021, section 3.3)."""

    def choose(self, x: Tensor, task: int) -> Tensor:
        return nearest_prototype(x, self.vectors.to(x.device))


class FoundPrototypes(NoContexts):
    """The prototype of the batch's cluster, over a few random pixels; at test the nearest of all clusters'."""

    def __init__(self, seed: int):
        generator = torch.Generator().manual_seed(seed)
        self.pixels = torch.randperm(PIXELS, generator=generator)[:CLUSTER_PIXELS]
        self.clusters = Clusters(generator)

    def of_batch(self, x: Tensor) -> Tensor:
        number = self.clusters.add(x.cpu()[:, self.pixels])
        return self.clusters.prototypes[number].float()[None].to(x.device)

    def all(self) -> Tensor:
        return torch.stack(self.clusters.prototypes).float()

    def choose(self, x: Tensor, task: int) -> Tensor:
        return nearest_prototype(x[:, self.pixels.to(x.device)], self.all().to(x.device))

    def state(self) -> dict:
        return self.clusters.state()

    def load(self, state: dict) -> None:
        self.clusters.load(state)


def contexts_of(config: Experiment, seed: int) -> NoContexts:
    """The source that the configuration names."""
    sources = {
        "none": NoContexts,
        "prototype": Prototypes,
        "mean": TrueMean,
        "onehot": lambda: TrueTask(torch.eye(config.tasks)),
        "zeros": lambda: TrueTask(torch.zeros(config.tasks, config.tasks)),
        "clusters": lambda: FoundPrototypes(seed),
    }
    return sources[config.context]()
