"""A training step as a CUDA graph: one launch a step, where an eager loop starts some forty kernels from Python."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Steps that run as they are before one is captured: they allocate moments, and choose and compile kernels.
WARM_UP = 3


class GraphedStep:
    """step(x, labels) -> loss, from the fourth call on as a replay of a captured graph.

    step must be the same computation at every call, on tensors of one shape, without a look at a device value: our ops
    and optim.Adam are. Model, optimizer and what else it reads stay where they are in memory. Make a new one where the
    optimizer, its lr or the context changes.
    """

    def __init__(self, step: Callable[[Tensor, Tensor], Tensor]):
        self.step, self.calls, self.graph = step, 0, None
        self.x = self.labels = self.loss = self.stream = None

    def __call__(self, x: Tensor, labels: Tensor) -> Tensor:
        if self.x is None:
            self.x, self.labels, self.stream = x.clone(), labels.clone(), torch.cuda.Stream()
        if x.shape != self.x.shape or labels.shape != self.labels.shape:
            raise ValueError(f"x: expected the first batch's shape {tuple(self.x.shape)}, got {tuple(x.shape)}")
        self.x.copy_(x)
        self.labels.copy_(labels)
        self.calls += 1
        if self.calls <= WARM_UP:
            return self._aside()
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):  # notes the step without taking it
                self.loss = self.step(self.x, self.labels)
        self.graph.replay()
        return self.loss

    def _aside(self) -> Tensor:
        """A step on a stream of its own, as a capture will be."""
        here = torch.cuda.current_stream()
        self.stream.wait_stream(here)
        with torch.cuda.stream(self.stream):
            loss = self.step(self.x, self.labels)
        here.wait_stream(self.stream)
        return loss
