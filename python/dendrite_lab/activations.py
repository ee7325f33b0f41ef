"""Which hidden units are active for each task, and how far tasks share them (Grewal et al. 2021, figure 6)."""

from __future__ import annotations

import io
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dendrite_kernels.nn import DendriticMLP

from .contexts import NoContexts
from .data import write_atomically
from .permuted import PermutedMNIST


@torch.no_grad()
def active_shares(
    model: DendriticMLP, tasks: PermutedMNIST, count: int, contexts: NoContexts, samples: int, batch: int
) -> list[np.ndarray]:
    """For each hidden layer, float64 [count, units]: the share of a task's first test samples that a unit fires for.

    A unit fires where its output is not zero. Contexts are those of an evaluation.
    """
    model.eval()
    known, device = contexts.all(), next(model.parameters()).device
    gates = model.gates(None if known is None else known.to(device))
    fired = [torch.zeros(count, layer.out_features, dtype=torch.int64, device=device) for layer in model.layers]
    for task in range(count):
        x = tasks.test(task)[0][:samples]
        for part in x.split(batch):
            index, z = contexts.choose(part, task), part
            for layer, gate, total in zip(model.layers, gates, fired, strict=True):
                z = layer.forward_gated(z, gate, index)
                total[task] += (_dense(z) != 0).sum(0)
    model.train()
    return [total.double().div(len(x)).cpu().numpy() for total in fired]


def _dense(z) -> Tensor:
    return z if isinstance(z, Tensor) else z.to_dense()


def overlap(shares: np.ndarray) -> float:
    """Of shares [tasks, units]: sum(min) / sum(max), its mean over pairs of tasks; 1 where they use the same units."""
    pairs = [(np.minimum(a, b).sum(), np.maximum(a, b).sum()) for a, b in combinations(shares, 2)]
    return float(np.mean([low / high if high else 1.0 for low, high in pairs])) if pairs else 1.0


def save(path: Path, shares: list[np.ndarray]) -> None:
    """One array a hidden layer, as layer_1, layer_2 and so on."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{f"layer_{i}": s.astype(np.float32) for i, s in enumerate(shares, 1)})
    write_atomically(path, buffer.getvalue())
