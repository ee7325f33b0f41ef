"""The task loop: train on one task after the other, evaluate on all tasks so far, and lose nothing when killed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dendrite_kernels import backend
from dendrite_kernels.optim import Adam, SynapticIntelligence
from dendrite_kernels.sparsity import rezero_weights

from . import activations
from .config import run_name
from .contexts import NoContexts, contexts_of
from .data import MNIST
from .errors import LabError
from .experiment import Experiment
from .graphs import GraphedStep
from .networks import build_model
from .permuted import PermutedMNIST, batches
from .results import row_of
from .state import Progress, Saver, State, begun


def train_step(
    model, optimizer, x: Tensor, labels: Tensor, context: Tensor | None, si: SynapticIntelligence | None = None
) -> Tensor:
    """One step: forward, backward, update (si's, where given); masked weights are zero after it. Returns the loss."""
    optimizer.zero_grad()
    loss = cross_entropy(model(x, context), labels)
    loss.backward()
    (si or optimizer).step()
    if not isinstance(optimizer, Adam):  # ours leaves them at zero
        rezero_weights(model)
    return loss.detach()


@torch.no_grad()
def evaluate(model, tasks: PermutedMNIST, seen: int, contexts: NoContexts, batch: int) -> list[float]:
    """Accuracy on each of the first `seen` tasks; each sample takes the context that the source chooses for it."""
    model.eval()
    known, device = contexts.all(), next(model.parameters()).device
    gates, accuracy = model.gates(None if known is None else known.to(device)), []
    for task in range(seen):
        x, labels = tasks.test(task)
        right = 0
        for part, target in zip(x.split(batch), labels.split(batch), strict=True):
            logits = model.forward_gated(part, gates, contexts.choose(part, task))
            right += int((logits.argmax(1) == target).sum())
        accuracy.append(right / len(x))
    model.train()
    return accuracy


def new_optimizer(model: nn.Module, config: Experiment) -> torch.optim.Optimizer:
    """Our Adam; torch's for a network of torch's layers."""
    if config.plain:
        on_gpu = next(model.parameters()).is_cuda  # where steps are captured in a graph
        return torch.optim.Adam(model.parameters(), lr=config.lr, fused=True, capturable=on_gpu)
    return Adam(model, lr=config.lr)


class Run:
    """A run in memory: all that its state on disk brings back."""

    def __init__(self, config: Experiment, state: State, data: MNIST, device: str = "cpu"):
        self.config, self.state, self.device = config, state, torch.device(device)
        drawn = config.data_seed + (state.seed if config.permutations == "run" else 0)
        self.tasks = PermutedMNIST(data, config.tasks, drawn, device)
        self.model = build_model(config, state.seed).to(device)
        self.contexts = contexts_of(config, state.seed)
        if state.tasks_done:
            self.model.load_state_dict(state.model)
            self.contexts.load(state.contexts)
        self.optimizer = new_optimizer(self.model, config)
        if state.optimizer is not None:
            self.optimizer.load_state_dict(state.optimizer)
        self.si = None
        if config.si_c:
            self.si = SynapticIntelligence(self.model, self.optimizer, config.si_c, config.si_xi, config.si_variant)
            if state.si is not None:
                self.si.load_state_dict(state.si)
        self._images = torch.empty(0, device=device)  # each task's in turn

    def train(self, task: int, report: Progress) -> None:
        """Trains one task. The order of samples follows from seed and task alone."""
        config, state, start = self.config, self.state, time.perf_counter()
        x, labels = (part[: config.train_samples] for part in self.tasks.train(task, self._images))
        self.contexts.begin_task(x)
        if task > 0 and config.optimizer_lifetime == "task":
            self.optimizer = new_optimizer(self.model, config)
            if self.si:
                self.si.optimizer = self.optimizer
        generator = torch.Generator().manual_seed(1_000_003 * (state.seed + 1) + task)
        times, loss, step = [], torch.tensor(float("nan")), self._stepper()
        for _ in range(config.epochs):
            for index in batches(len(x), config.batch_size, generator, self.device):
                begin = time.perf_counter()
                loss = step(x.index_select(0, index), labels.index_select(0, index))
                times.append(1e3 * (time.perf_counter() - begin))
                report(*self._position(task, len(times)), f"task {task + 1} of {config.tasks}")
        if self.si:
            self.si.end_task()
        state.loss.append(float(loss))  # on a GPU, this waits for the steps
        seconds = time.perf_counter() - start
        state.step_ms.append(median(times) if self.device.type == "cpu" else 1e3 * seconds / len(times))
        state.train_seconds += seconds

    def _stepper(self) -> Callable[[Tensor, Tensor], Tensor]:
        """A task's step; on a GPU as a graph, but where the host chooses each batch's context."""
        if self.device.type == "cuda" and self.config.context != "clusters":
            return GraphedStep(self._step)
        return self._step

    def _step(self, x: Tensor, labels: Tensor) -> Tensor:
        return train_step(self.model, self.optimizer, x, labels, self.contexts.of_batch(x), self.si)

    def evaluate(self, seen: int, report: Progress) -> None:
        report(*self._position(seen, 0), f"evaluating on {seen} tasks")
        start = time.perf_counter()
        batch = self.config.test_batch_size
        self.state.accuracy[seen] = evaluate(self.model, self.tasks, seen, self.contexts, batch)
        self.state.eval_seconds += time.perf_counter() - start

    def capture(self, tasks_done: int) -> dict:
        """Puts into the state what has changed; returns what is to be kept too and is large, by the state's field."""
        self.state.tasks_done = tasks_done
        self.state.model, self.state.contexts = self.model.state_dict(), self.contexts.state()
        kept = {"optimizer": self.optimizer} if self.config.optimizer_lifetime == "run" else {}
        return {**kept, "si": self.si} if self.si else kept

    def _position(self, task: int, step: int) -> tuple[int, int]:
        return task * (self.config.steps // self.config.tasks) + step, self.config.steps


def run(
    config: Experiment,
    seed: int,
    data: MNIST,
    folder: Path,
    *,
    device: str = "cpu",
    resume: bool = False,
    progress: Progress | None = None,
) -> dict:
    """Runs the experiment and returns its result row. With `resume`, goes on after the last finished task of a run
    that was stopped, with its thread count (torch's matrix products depend on it), to the same numbers. Without it,
    raises LabError where such a run has left its state.
    """
    with begun(State, config, seed, folder, resume) as (state, path):
        going = Run(config, state, data, device)
        _run_tasks(going, path, progress or (lambda done, total, what: None))
        return {**_row(config, state), **_findings(going, folder), "device": _name(going.device)}


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def check_device(device: str) -> None:
    """Raises LabError for a device that no machine has."""
    if device not in ("cpu", "cuda"):
        raise LabError(f"--device: expected cpu or cuda, got {device}")


def check_backend(device: str = "cpu") -> None:
    """Raises LabError for a device that is not here, and where DENDRITE_BACKEND names what can't run there."""
    check_device(device)
    if device == "cuda" and not torch.cuda.is_available():
        raise LabError("--device cuda: torch finds no CUDA GPU here")
    try:
        backend.choose(torch.device(device))
    except (ValueError, backend.BackendUnavailable) as error:
        raise LabError(str(error)) from None


def _run_tasks(going: Run, path: Path, report: Progress) -> None:
    config, saver = going.config, Saver(going.state, path)
    for task in range(going.state.tasks_done, config.tasks):
        going.train(task, report)
        seen = task + 1
        if seen in config.evaluate_after or seen == config.tasks:
            going.evaluate(seen, report)
        saver.save_if_worth(last=seen == config.tasks, **going.capture(seen))


def _row(config: Experiment, state: State) -> dict:
    final = state.accuracy[config.tasks]
    by_task = {str(seen): values for seen, values in state.accuracy.items()}
    return row_of(config, state, sum(final) / len(final), accuracy_by_task=by_task, loss_by_task=state.loss)


def _findings(going: Run, folder: Path) -> dict:
    """What only some experiments have to say: clusters found, which units were active."""
    config, out = going.config, {}
    if config.context == "clusters":
        out["clusters"] = len(going.contexts.all())
    if config.record_activations:
        few = config.record_activations, config.test_batch_size
        shares = activations.active_shares(going.model, going.tasks, config.tasks, going.contexts, *few)
        path = folder / f"{run_name(config, going.state.seed)}.activations.npz"
        activations.save(path, shares)
        out |= {"activations": path.name, "overlap_by_layer": [activations.overlap(s) for s in shares]}
    return out
