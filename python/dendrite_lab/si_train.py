"""Training on the tasks of Synaptic Intelligence's experiments, and what its omegas have in common."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dendrite_kernels.optim import SynapticIntelligence

from .data import MNIST
from .networks import draw_as_keras
from .permuted import PIXELS, batches
from .results import row_of
from .si_experiment import SIExperiment
from .si_tasks import Tasks, tasks_of
from .state import Progress, Saver, TaskState, begun


@dataclass
class SIState(TaskState):
    """Also each finished task's own omegas, by the name of a hidden layer's weight."""

    omegas: list = field(default_factory=list)


class MultiHead(nn.Module):
    """Hidden ReLU layers for all tasks and output layers: task t takes head t, or the only one.

    init: "keras" as the paper's code draws it; "torch".
    """

    def __init__(self, hidden: tuple[int, ...], classes: int, heads: int, dropout: float = 0.0, init: str = "torch"):
        super().__init__()
        layers = []
        for inputs, outputs in pairwise((PIXELS, *hidden)):
            layers += [nn.Linear(inputs, outputs), nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])]
        self.body = nn.Sequential(*layers)
        self.heads = nn.ModuleList(nn.Linear(hidden[-1], classes) for _ in range(heads))
        if init == "keras":
            draw_as_keras(self)

    def forward(self, x: Tensor, task: int) -> Tensor:
        return self.heads[task % len(self.heads)](self.body(x))


def new_model(config: SIExperiment, classes: int, seed: int) -> MultiHead:
    """The network, drawn from the seed."""
    torch.manual_seed(seed)
    return MultiHead(config.hidden, classes, config.heads, config.dropout, config.init)


def new_optimizer(model: nn.Module, config: SIExperiment) -> torch.optim.Optimizer:
    """torch's Adam or plain SGD."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr=config.lr)
    return torch.optim.Adam(model.parameters(), lr=config.lr, fused=True)


@torch.no_grad()
def accuracy(model: MultiHead, tasks: Tasks, task: int, batch: int) -> float:
    """Of a task's test samples, with the task's own head."""
    model.eval()
    x, labels = tasks.test(task)
    right = sum(
        int((model(part, task).argmax(1) == target).sum())
        for part, target in zip(x.split(batch), labels.split(batch), strict=True)
    )
    model.train()
    return right / len(x)


class SIRun:
    """A run in memory: all that its state on disk brings back."""

    def __init__(self, config: SIExperiment, state: SIState, data: MNIST, report: Progress):
        self.config, self.state, self.report = config, state, report
        self.tasks = tasks_of(data, config)
        self._begin_network(state.seed)
        if state.tasks_done:
            self.model.load_state_dict(state.model)
            self.si.load_state_dict(state.si)
        if state.optimizer is not None:
            self.optimizer.load_state_dict(state.optimizer)
        self.hidden = [name for name, p in self.model.body.named_parameters(prefix="body") if p.dim() == 2]

    def _begin_network(self, seed: int) -> None:
        self.model = new_model(self.config, self.tasks.classes, seed)
        self.optimizer = new_optimizer(self.model, self.config)
        self.si = SynapticIntelligence(self.model, self.optimizer, self.config.c, self.config.xi, self.config.variant)

    def learn(self, trained: list[int]) -> None:
        """Trains these tasks at once: one in a sequence, all of them jointly. A batch is of one task."""
        config, state, start = self.config, self.state, time.perf_counter()
        if config.schedule == "scratch" and state.tasks_done:
            self._begin_network(state.seed + 1_000_003 * state.tasks_done)
        elif config.optimizer_lifetime == "task" and state.tasks_done:
            self.si.optimizer = self.optimizer = new_optimizer(self.model, config)
        # the order of samples, and dropout, follow from seed and task alone
        torch.manual_seed(1_000_003 * (state.seed + 1) + trained[0])
        data = {task: self.tasks.train(task) for task in trained}
        times, loss = [], torch.tensor(float("nan"))
        for _ in range(config.epochs):
            for task, index in self._epoch(data):
                begin = time.perf_counter()
                x, labels = (part.index_select(0, index) for part in data[task])
                loss = self.step(x, labels, task)
                times.append(1e3 * (time.perf_counter() - begin))
                self._tell(len(times), f"task {task + 1} of {config.tasks}")
        if config.schedule == "sequence":
            state.omegas.append({name: self.si.omega[name].clone() for name in self.hidden})
        self.si.end_task()
        state.loss.append(float(loss))
        state.step_ms.append(median(times))
        state.train_seconds += time.perf_counter() - start

    def _epoch(self, data: dict[int, tuple[Tensor, Tensor]]) -> list[tuple[int, Tensor]]:
        generator = torch.default_generator
        out = [(t, i) for t, (x, _) in data.items() for i in batches(len(x), self.config.batch_size, generator)]
        return out if len(data) == 1 else [out[i] for i in torch.randperm(len(out), generator=generator)]

    def step(self, x: Tensor, labels: Tensor, task: int) -> Tensor:
        """One step on the loss of the task's own head; returns it."""
        self.optimizer.zero_grad()
        loss = cross_entropy(self.model(x, task), labels)
        loss.backward()
        self.si.step()
        return loss.detach()

    def evaluate(self, seen: int) -> None:
        """On all tasks so far, or, with a network for each, on the latest beside what the earlier ones had."""
        start, accuracies = time.perf_counter(), self.state.accuracy
        batch = self.config.test_batch_size
        if self.config.schedule == "scratch":
            before = accuracies[seen - 1] if seen > 1 else []
            accuracies[seen] = [*before, accuracy(self.model, self.tasks, seen - 1, batch)]
        else:
            accuracies[seen] = [accuracy(self.model, self.tasks, task, batch) for task in range(seen)]
        self.state.eval_seconds += time.perf_counter() - start

    def capture(self, tasks_done: int) -> dict:
        """Puts into the state what has changed; returns what is to be kept too and is large, by the state's field."""
        self.state.tasks_done, self.state.model = tasks_done, self.model.state_dict()
        kept = {"optimizer": self.optimizer} if self.config.optimizer_lifetime == "run" else {}
        return {**kept, "si": self.si}

    def _tell(self, step: int, what: str) -> None:
        config = self.config
        done = self.state.tasks_done * (config.steps // config.tasks) + step
        self.report(min(done, config.steps), config.steps, what)


def correlations(omegas: list[dict[str, Tensor]]) -> dict[str, list[list[float]]]:
    """Pearson's r of omega between tasks, [tasks, tasks], for each hidden layer: layer_1, layer_2 (Zenke, figure 5)."""
    out = {}
    for number, name in enumerate(omegas[0], 1):
        r = torch.corrcoef(torch.stack([task[name].flatten() for task in omegas]))
        out[f"layer_{number}"] = r.reshape(len(omegas), len(omegas)).tolist()
    return out


def run(
    config: SIExperiment,
    seed: int,
    data: MNIST,
    folder: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
) -> dict:
    """Runs the experiment and returns its result row; resumed after the last finished task, to the same numbers."""
    with begun(SIState, config, seed, folder, resume) as (state, path):
        going, saver = SIRun(config, state, data, progress or (lambda done, total, what: None)), Saver(state, path)
        while state.tasks_done < config.tasks:
            trained = [*range(config.tasks)] if config.schedule == "joint" else [state.tasks_done]
            going.learn(trained)
            seen = trained[-1] + 1
            going.evaluate(seen)
            saver.save_if_worth(last=seen == config.tasks, **going.capture(seen))
        return _row(config, state)


def _row(config: SIExperiment, state: SIState) -> dict:
    final = state.accuracy[config.tasks]
    by_task = {str(seen): values for seen, values in state.accuracy.items()}
    found = {"accuracy_by_task": by_task, "loss_by_task": state.loss}
    if len(state.omegas) > 1:
        found["omega_correlation"] = correlations(state.omegas)
    return row_of(config, state, sum(final) / len(final), **found)
