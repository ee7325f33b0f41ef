"""The task loop: train on one task after the other, evaluate on all tasks so far, and lose nothing when killed."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from dendrite_kernels import backend
from dendrite_kernels.nn import DendriticMLP, nearest_prototype
from dendrite_kernels.optim import Adam
from dendrite_kernels.sparsity import rezero_weights

from .config import Experiment
from .data import MNIST, write_atomically
from .errors import LabError
from .permuted import PIXELS, PermutedMNIST, batches
from .results import provenance

CLASSES = 10

# Called with (steps done, steps in all, what is going on).
Progress = Callable[[int, int, str], None]


def build_model(config: Experiment, seed: int) -> DendriticMLP:
    """The network of the experiment, drawn from the seed."""
    torch.manual_seed(seed)
    return DendriticMLP(
        PIXELS,
        config.hidden,
        CLASSES,
        config.segments,
        PIXELS,
        weight_sparsity=config.weight_sparsity,
        percent_on=config.percent_on,
        context_density=config.context_density,
    )


def train_step(model, optimizer, x: Tensor, labels: Tensor, context: Tensor) -> Tensor:
    """One step: forward, backward, update; masked weights are zero after it. Returns the loss."""
    optimizer.zero_grad()
    loss = cross_entropy(model(x, context), labels)
    loss.backward()
    optimizer.step()
    if not isinstance(optimizer, Adam):  # ours leaves them at zero
        rezero_weights(model)
    return loss.detach()


@torch.no_grad()
def evaluate(model: DendriticMLP, tasks: PermutedMNIST, seen: int, prototypes: Tensor, batch: int) -> list[float]:
    """Accuracy on each of the first `seen` tasks; each sample takes the nearest of the prototypes as its context."""
    model.eval()
    gates, accuracy = model.gates(prototypes), []
    for task in range(seen):
        x, labels = tasks.test(task)
        right = 0
        for part, target in zip(x.split(batch), labels.split(batch), strict=True):
            logits = model.forward_gated(part, gates, nearest_prototype(part, prototypes))
            right += int((logits.argmax(1) == target).sum())
        accuracy.append(right / len(x))
    model.train()
    return accuracy


@dataclass
class State:
    """All that a run needs to go on after any task; what is saved is exactly this."""

    config: dict
    seed: int
    threads: int
    tasks_done: int = 0
    prototypes: list = field(default_factory=list)  # of Tensor [784]
    accuracy: dict = field(default_factory=dict)  # tasks seen -> accuracy by task
    loss: list = field(default_factory=list)  # of each task's last step
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    step_ms: list = field(default_factory=list)  # median of each task
    model: dict = field(default_factory=dict)

    def save(self, path: Path) -> None:
        buffer = io.BytesIO()
        torch.save(vars(self), buffer)
        write_atomically(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path, config: Experiment) -> State:
        try:
            state = cls(**torch.load(path, weights_only=True))
        except Exception as error:  # a damaged file fails in many ways
            raise LabError(f"{path} can't be read ({error}): delete it to start anew") from None
        if state.config != config.to_dict():
            raise LabError(
                f"{path} is of another configuration: run it with the same --set, or delete it to start anew"
            )
        return state


class Saver:
    """Saves the state after tasks: after each one where that is quick, else so often that it takes 5 % of the time."""

    QUICK, SHARE = 0.2, 0.05  # seconds; of the time

    def __init__(self, state: State, path: Path):
        self.state, self.path, self.cost, self.saved_at = state, path, 0.0, time.perf_counter()

    def save_if_worth(self, last: bool) -> None:
        start = time.perf_counter()
        if last or self.cost <= max(self.QUICK, self.SHARE * (start - self.saved_at)):
            self.state.save(self.path)
            self.saved_at = time.perf_counter()
            self.cost = self.saved_at - start


def state_path(folder: Path, config: Experiment, seed: int) -> Path:
    return folder / f"{config.name}-seed{seed}.state.pt"


def run(
    config: Experiment, seed: int, data: MNIST, folder: Path, *, resume: bool = False, progress: Progress | None = None
) -> dict:
    """Runs the experiment and returns its result row. With `resume`, goes on after the last finished task of a run
    that was stopped, with its thread count (torch's matrix products depend on it), to the same numbers. Without it,
    raises LabError where such a run has left its state.
    """
    path = state_path(folder, config, seed)
    model = build_model(config, seed)
    if resume and path.exists():
        state = State.load(path, config)
        if state.tasks_done:
            model.load_state_dict(state.model)
    else:
        check_unstarted(path)
        state = State(config.to_dict(), seed, torch.get_num_threads())
        state.save(path)  # so that a run stopped in its first task is resumed with its threads too
    threads = torch.get_num_threads()
    torch.set_num_threads(state.threads)
    try:
        _run_tasks(model, PermutedMNIST(data, config.tasks, config.data_seed), config, state, path, progress)
        return _row(config, state)
    finally:
        torch.set_num_threads(threads)  # the next seed runs with what its own command asks for


def check_backend() -> None:
    """Raises LabError where DENDRITE_BACKEND names none, or one that can't run here."""
    try:
        backend.choose(torch.device("cpu"))
    except (ValueError, backend.BackendUnavailable) as error:
        raise LabError(str(error)) from None


def check_unstarted(path: Path) -> None:
    """Raises LabError where a run has left its state: starting anew would write over it."""
    if path.exists():
        raise LabError(f"{path} is of an unfinished run: --resume goes on with it; delete it to start anew")


def _run_tasks(model, tasks, config, state, path, progress) -> None:
    report, saver = progress or (lambda done, total, what: None), Saver(state, path)
    images = torch.empty(0)  # each task's in turn
    for task in range(state.tasks_done, config.tasks):
        _train_task(model, tasks, task, config, state, report, images)
        seen = task + 1
        if seen in config.evaluate_after or seen == config.tasks:
            report(*_position(config, seen, 0), f"evaluating on {seen} tasks")
            start = time.perf_counter()
            prototypes = torch.stack(state.prototypes)
            state.accuracy[seen] = evaluate(model, tasks, seen, prototypes, config.test_batch_size)
            state.eval_seconds += time.perf_counter() - start
        state.tasks_done, state.model = seen, model.state_dict()
        saver.save_if_worth(last=seen == config.tasks)


def _steps(config: Experiment) -> int:
    return config.epochs * (config.train_samples // config.batch_size)


def _position(config: Experiment, task: int, step: int) -> tuple[int, int]:
    return task * _steps(config) + step, config.tasks * _steps(config)


def _train_task(model, tasks, task, config, state, report, images) -> None:
    """Trains one task with an Adam of its own. The order of samples follows from seed and task alone."""
    start = time.perf_counter()
    x, labels = (part[: config.train_samples] for part in tasks.train(task, images))
    prototype = x.mean(0)
    state.prototypes.append(prototype)
    optimizer = Adam(model, lr=config.lr)
    generator = torch.Generator().manual_seed(1_000_003 * (state.seed + 1) + task)
    context, times, loss = prototype[None], [], torch.tensor(float("nan"))
    for _ in range(config.epochs):
        for index in batches(len(x), config.batch_size, generator):
            begin = time.perf_counter()
            loss = train_step(model, optimizer, x.index_select(0, index), labels.index_select(0, index), context)
            times.append(1e3 * (time.perf_counter() - begin))
            report(*_position(config, task, len(times)), f"task {task + 1} of {config.tasks}")
    state.loss.append(float(loss))
    state.step_ms.append(median(times))
    state.train_seconds += time.perf_counter() - start


def _row(config: Experiment, state: State) -> dict:
    final = state.accuracy[config.tasks]
    return {
        "experiment": config.name,
        "family": config.family,
        "seed": state.seed,
        "config": config.to_dict(),
        "accuracy": sum(final) / len(final),
        "accuracy_by_task": {str(seen): values for seen, values in state.accuracy.items()},
        "loss_by_task": state.loss,
        "train_seconds": state.train_seconds,
        "eval_seconds": state.eval_seconds,
        "step_ms": median(state.step_ms),
        "threads": state.threads,
        **provenance(),
    }
