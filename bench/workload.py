"""The training step that is timed: real data where it can be had, after an epoch, and checked against the baseline."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

import torch
from baselines import PlainNetwork, matching_parameters
from dendrite_lab.config import EXPERIMENTS, experiment
from dendrite_lab.data import MNIST, load_mnist
from dendrite_lab.errors import LabError
from dendrite_lab.permuted import PermutedMNIST, batches
from dendrite_lab.train import build_model, train_step

from dendrite_kernels.factored import FactoredGrad
from dendrite_kernels.nn import DendriticMLP
from dendrite_kernels.optim import Adam

EXPERIMENT = "prototype_10"
LR = EXPERIMENTS[EXPERIMENT].lr
# Relative L2 distances of two float32 gradients of one batch. Summing in another order moves them by about 1e-6, but
# where it moves a value across the k-th, a winner of 26,112 changes, and with it a share of the gradient.
AGREEMENT, AGREEMENT_ON_AN_EDGE = 1e-4, 0.02


def load_data(folder: Path | None) -> tuple[MNIST, str]:
    """(data, "mnist"), or images of its statistics and "generated" where no source is in reach."""
    try:
        return load_mnist(folder, say=lambda line: None), "mnist"
    except LabError:
        generator = torch.Generator().manual_seed(0)
        ink = torch.rand(60000, 784, generator=generator) < 0.19  # MNIST's share of pixels that are not 0
        images = (ink * torch.randint(1, 256, (60000, 784), generator=generator)).to(torch.uint8)
        labels = torch.randint(0, 10, (60000,), generator=generator)
        return MNIST(images, labels, images[:10000], labels[:10000]), "generated"


def make_model(segments: int) -> DendriticMLP:
    """The network of the experiment, with another number of segments."""
    return build_model(experiment(EXPERIMENT, {"segments": str(segments)}), seed=0)


class Ours:
    """Our network, trained on one task after another by our Adam or (dense) by torch's fused one."""

    def __init__(self, segments: int, tasks: PermutedMNIST, batch: int, dense: bool = False, device: str = "cpu"):
        self.model, self.tasks, self.batch, self.dense = make_model(segments).to(device), tasks, batch, dense
        self.segments, self.device = segments, device
        self.generator = torch.Generator().manual_seed(1)
        self.start_task(0)

    def start_task(self, task: int) -> None:
        """New data, a new context and a new Adam, as the experiments do."""
        self.x, self.labels = (part.to(self.device) for part in self.tasks.train(task))
        self.context = self.x.mean(0, keepdim=True)
        self.queue = []
        if self.dense:
            self.optimizer = torch.optim.Adam(self.model.parameters(), lr=LR, fused=True)
        else:
            self.optimizer = Adam(self.model, lr=LR)

    def next_batch(self):
        if not self.queue:
            self.queue = batches(len(self.x), self.batch, self.generator)
        index = self.queue.pop().to(self.device)
        return self.x[index], self.labels[index], self.context

    def step(self, batch) -> None:
        train_step(self.model, self.optimizer, *batch)

    def epoch(self, progress=lambda batches: batches) -> None:
        for _ in progress(range(len(self.x) // self.batch)):
            self.step(self.next_batch())

    def touched_rows(self) -> list[int]:
        """Segments of each layer that have had gradient since the optimizer was made; none with dense gradients."""
        states = [self.optimizer.state[layer.segments.weights] for layer in self.model.layers]
        return [state["moments"].count for state in states if "moments" in state]


def disagreement(ours: DendriticMLP, plain: PlainNetwork, batch) -> dict[str, float]:
    """Relative L2 distance of loss and of each gradient, for one batch and equal parameters."""
    x, labels, context = batch
    losses = []
    for model, rows in ((ours, context), (plain, plain.rows_of(context, len(x)))):
        model.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x, rows), labels)
        loss.backward()
        losses.append(loss.detach())
    out = {"loss": float((losses[0] - losses[1]).abs() / losses[1].abs())}
    for name, mine, theirs in matching_parameters(ours, plain):
        grad = mine.grad.to_dense() if isinstance(mine.grad, FactoredGrad) else mine.grad
        out[name] = float((grad - theirs.grad).norm() / theirs.grad.norm())  # masked weights have gradient too
    ours.zero_grad()
    plain.zero_grad()
    return out


@torch.no_grad()
def same_winners(ours: DendriticMLP, plain: PlainNetwork, batch) -> bool:
    """Whether the same units win in every hidden layer."""
    x, _, context = batch
    mine = theirs = x
    for layer, plain_layer in zip(ours.layers, plain.layers, strict=True):
        mine, theirs = layer(mine, context), plain_layer(theirs, context)
        if not torch.equal(mine.to_dense() != 0, theirs != 0):
            return False
    return True


def check_agreement(ours: DendriticMLP, plain: PlainNetwork, batch) -> float:
    """The largest disagreement; raises AssertionError where it is more than rounding and knife-edge winners explain."""
    distances = disagreement(ours, plain, batch)
    limit = AGREEMENT if same_winners(ours, plain, batch) else AGREEMENT_ON_AN_EDGE
    worst = max(distances, key=distances.get)
    assert distances[worst] < limit, f"{worst}: relative distance {distances[worst]:.2g} from the baseline"
    return distances[worst]


def finish() -> None:
    """Waits for what a GPU has been given to do."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def timed(step, inputs) -> list[float]:
    """Milliseconds of step(x) for each x."""
    out = []
    for x in inputs:
        finish()
        begin = time.perf_counter()
        step(x)
        finish()
        out.append(1e3 * (time.perf_counter() - begin))
    return out


def median_ms(samples: list[float]) -> float:
    return round(median(samples), 3)
