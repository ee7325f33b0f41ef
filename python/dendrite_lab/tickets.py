"""Lottery tickets: train, keep the best epoch's network, prune, rewind; random tickets and noise beside."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dendrite_kernels.nn import SparseLinear
from dendrite_kernels.sparsity import densities, prune, random_ticket, rewind, rezero_weights

from . import permuted
from .cifar import CIFAR
from .data import MNIST
from .images import normalised
from .noise import bright_pixels, pixel_order, pixels_of
from .permuted import batches
from .results import row_of
from .state import Progress, Saved, begun
from .tickets_experiment import BEST, Tickets

Images = tuple[Tensor, Tensor]  # normalised, [N, pixels]; labels [N]
KINDS = ("winning", "random")


@dataclass
class TicketState(Saved):
    """Enough to go on after any level: the winning network's masks are in its rewound state_dict."""

    levels: list = field(default_factory=list)  # finished: kind -> what was measured


def new_network(config: Tickets, seed: int) -> nn.Sequential:
    """The network of images [N, pixels], drawn from the seed: dense, with fully connected layers that can be pruned."""
    torch.manual_seed(seed)
    if config.network == "fc":
        hidden = (SparseLinear(config.pixels, 300), nn.ReLU(), SparseLinear(300, 100), nn.ReLU())
        return nn.Sequential(*hidden, SparseLinear(100, 10))
    convolutions = (nn.Conv2d(1, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1))
    # the ReLU after the pool: the same values and gradients from a quarter of the pixels
    features = (nn.Unflatten(1, (1, 28, 28)), *convolutions, nn.MaxPool2d(2), nn.ReLU(), nn.Flatten())
    hidden = (SparseLinear(64 * 14 * 14, 256), nn.ReLU(), SparseLinear(256, 256), nn.ReLU())
    network = nn.Sequential(*features, *hidden, SparseLinear(256, 10))
    return network.to(memory_format=torch.channels_last)  # two thirds of the time of a step on CPUs


def flat_images(images: Tensor) -> Tensor:
    """Pixels uint8 [N, 784] of MNIST or [N, 3, 32, 32] of CIFAR as float32 [N, pixels], normalised by channel."""
    return permuted.normalised(images) if images.dim() == 2 else normalised(images.float().div_(255)).flatten(1)


@torch.no_grad()
def accuracy(model: nn.Module, images: Images, batch: int) -> float:
    """The share of images that the model classifies right."""
    parts = zip(*(part.split(batch) for part in images), strict=True)
    return sum(int((model(x).argmax(1) == labels).sum()) for x, labels in parts) / len(images[0])


class TicketRun:
    """A run in memory: all that its state on disk brings back."""

    def __init__(self, config: Tickets, state: TicketState, data: MNIST | CIFAR, report: Progress):
        self.config, self.state, self.report = config, state, report
        few = config.train_samples
        x = flat_images(data.train_images)
        self.train = x[:few], data.train_labels[:few]
        self.validation = x[-config.validation :], data.train_labels[-config.validation :]
        self.test = flat_images(data.test_images), data.test_labels
        self.pixels = pixels_of(data.test_images)
        self.model = new_network(config, state.seed)
        self.initial = copy.deepcopy(self.model.state_dict())
        self._order = None  # of noisy pixels, the same for all networks of the run
        if state.levels:
            self.model.load_state_dict(state.model)

    def level(self, level: int) -> None:
        """Trains the winning ticket of a level and a random one like it, and prunes and rewinds the former."""
        config, found = self.config, {}
        random = self._random_ticket(level) if level else None  # dense, they are the same
        for number, (kind, model) in enumerate(zip(KINDS, (self.model, random), strict=True)):
            if model is None:
                continue
            trained = self._train(model, level, number, f"{kind} ticket, level {level + 1} of {config.levels}")
            found[kind] = {**self._measure(model, level, kind), **trained}
        prune(self.model, config.pruned)
        rewind(self.model, self.initial)
        self.state.levels.append(found)
        self.state.model = self.model.state_dict()

    def _random_ticket(self, level: int) -> nn.Module:
        random = copy.deepcopy(self.model)
        random_ticket(random, self.initial, generator=self._generator(level, 2))
        return random

    def _generator(self, level: int, number: int) -> torch.Generator:
        """Of what a level draws, so that it follows from seed and level alone."""
        return torch.Generator().manual_seed(1_000_003 * (self.state.seed + 1) + 10 * level + number)

    def _train(self, model: nn.Module, level: int, number: int, what: str) -> dict:
        """Trains until `patience` epochs were no better in validation, and leaves the network of the best."""
        config, state, start = self.config, self.state, time.perf_counter()
        optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True)
        generator, times = self._generator(level, number), []
        best, best_epoch, kept = -1.0, 0, {}
        for epoch in range(1, config.epochs + 1):
            times += self._epoch(model, optimizer, generator, what, done=self._position(level, number, epoch))
            reached = accuracy(model, self.validation, config.test_batch_size)
            if reached > best:
                best, best_epoch, kept = reached, epoch, copy.deepcopy(model.state_dict())
            elif epoch - best_epoch >= config.patience:
                break
        model.load_state_dict(kept)
        state.step_ms.append(median(times))
        state.train_seconds += time.perf_counter() - start
        return {"validation": best, "best_epoch": best_epoch, "epochs": epoch}

    def _epoch(self, model, optimizer, generator: torch.Generator, what: str, done: int) -> list[float]:
        """One epoch of steps; their times in milliseconds."""
        times, (x, labels) = [], self.train
        for index in batches(len(x), self.config.batch_size, generator):
            begin = time.perf_counter()
            optimizer.zero_grad()
            cross_entropy(model(x.index_select(0, index)), labels.index_select(0, index)).backward()
            optimizer.step()
            rezero_weights(model)
            times.append(1e3 * (time.perf_counter() - begin))
            self.report(done + len(times), self.config.steps, what)
        return times

    def _position(self, level: int, number: int, epoch: int) -> int:
        """Steps done before an epoch, had the levels before it taken all of theirs."""
        before = max(0, 2 * level - 1) + number
        return (before * self.config.epochs + epoch - 1) * (self.config.train_samples // self.config.batch_size)

    def _measure(self, model: nn.Module, level: int, kind: str) -> dict:
        """Test accuracy and densities, and under noise where the source looked at it."""
        config, start, left = self.config, time.perf_counter(), densities(model)
        measured = {"accuracy": accuracy(model, self.test, config.test_batch_size)}
        measured |= {"density": left.total, "density_by_layer": list(left.layers.values())}
        if level in noisy_levels(config)[kind]:
            measured["noise_accuracy"] = [self._noisy_accuracy(model, share) for share in config.noise]
        self.state.eval_seconds += time.perf_counter() - start
        return measured

    def _noisy_accuracy(self, model: nn.Module, share: float) -> float:
        x, labels = self.test
        if self._order is None:
            self._order = pixel_order(len(x), self.pixels, self.state.seed)
        noisy = bright_pixels(x, share, self._order)
        return accuracy(model, (noisy, labels), self.config.test_batch_size)


def noisy_levels(config: Tickets) -> dict[str, set[int]]:
    """The levels whose tickets meet noise: the dense network, winning tickets of two densities, random ones of one."""
    chosen = {density: config.level_of(density) for density in config.noisy_densities}
    return {"winning": {0, *chosen.values()}, "random": {chosen[max(chosen)]}}


def run(
    config: Tickets,
    seed: int,
    data: MNIST | CIFAR,
    folder: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
) -> dict:
    """Runs the experiment and returns its result row; resumed after the last finished level, to the same numbers."""
    with begun(TicketState, config, seed, folder, resume) as (state, path):
        going = TicketRun(config, state, data, progress or (lambda done, total, what: None))
        for level in range(len(state.levels), config.levels):
            going.level(level)
            state.save(path)
        best = state.levels[config.level_of(BEST)]["winning"]
        tickets = {kind: [found.get(kind) for found in state.levels] for kind in KINDS}
        return row_of(config, state, best["accuracy"], **tickets)
