"""Figures 3, 4 and 5 of Zenke et al. 2017 from result rows."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev

import matplotlib.pyplot as plt
import numpy as np

from . import published
from .config import EXPERIMENTS
from .figures import saved
from .judged import grouped
from .results import as_configured
from .si_experiment import SIExperiment


def draw_all(rows: list[dict], folder: Path) -> list[Path]:
    """Draws every figure that has rows, as PNG files in the folder."""
    ours = [r for r in rows if as_configured(r) and isinstance(EXPERIMENTS[r["experiment"]], SIExperiment)]
    of = grouped(ours, lambda row: row["config"]["benchmark"])
    paths = []
    if "split_mnist" in of:
        paths.append(saved(by_task(of["split_mnist"]), folder / "si_split_mnist.png"))
    if "permuted_mnist" in of:
        paths.append(saved(running_mean(of["permuted_mnist"]), folder / "si_permuted_mnist.png"))
        compared = [row for row in of["permuted_mnist"] if "omega_correlation" in row]
        if compared:
            paths.append(saved(omegas(compared), folder / "si_omega_correlation.png"))
    return paths


def by_task(rows: list[dict]):
    """Accuracy on each task, and on all so far, against the number of tasks, with the error of the mean (figure 3)."""
    tasks = rows[0]["config"]["tasks"]
    figure, panels = plt.subplots(
        1, tasks + 1, figsize=(3 * tasks, 3.2), sharex=True, sharey=True, constrained_layout=True
    )
    for name, group in grouped(rows, lambda row: row["experiment"]).items():
        for task, axes in enumerate(panels[:-1]):
            _line(axes, group, lambda accuracies, t=task: accuracies[t], name, first=task + 1)
        _line(panels[-1], group, mean, name)
    for task, axes in enumerate(panels):
        axes.set(xlabel="tasks", title=f"digits {2 * task}, {2 * task + 1}" if task < tasks else "average")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("test accuracy")
    panels[0].set_xticks(range(1, tasks + 1))
    panels[-1].legend(fontsize="x-small")
    return figure


def running_mean(rows: list[dict]):
    """Mean accuracy over the tasks so far against their number, above the whole range in large (figure 4)."""
    figure, (zoomed, whole) = plt.subplots(2, 1, figsize=(6, 7), sharex=True, constrained_layout=True)
    for axes in (zoomed, whole):
        seen = range(1, len(published.SI_PERMUTED) + 1)
        axes.plot(seen, published.SI_PERMUTED, ".-k", lw=1, label="published reference, c = 0.1")
        for name, group in grouped(rows, lambda row: row["experiment"]).items():
            _line(axes, group, mean, name)
        axes.grid(alpha=0.3)
        axes.set_ylabel("mean test accuracy, tasks so far")
    zoomed.set(ylim=(0.9, 1.0), title="permuted MNIST")
    whole.set_xlabel("tasks")
    whole.legend(fontsize="small")
    return figure


def omegas(rows: list[dict]):
    """Correlation of a task's omegas with each other's, a row an experiment, a column a layer (figure 5)."""
    groups = grouped(rows, lambda row: row["experiment"])
    layers = sorted(rows[0]["omega_correlation"])
    size = (3.6 * len(layers), 3.2 * len(groups))
    figure, panels = plt.subplots(len(groups), len(layers), figsize=size, squeeze=False, constrained_layout=True)
    for line, (name, group) in zip(panels, groups.items(), strict=True):
        for axes, layer in zip(line, layers, strict=True):
            r = np.mean([row["omega_correlation"][layer] for row in group], axis=0)
            image = axes.imshow(r, vmin=0, vmax=1, cmap="viridis")
            axes.set_title(f"{name}, {layer.replace('_', ' ')}", fontsize="small")
            axes.set(xlabel="task", ylabel="task")
    figure.colorbar(image, ax=panels, label="correlation of omega")
    return figure


def _line(axes, rows: list[dict], value, label: str, first: int = 1) -> None:
    """Mean over the rows of value(accuracy by task), from the first number of tasks on."""
    seen = sorted(int(key) for key in rows[0]["accuracy_by_task"] if int(key) >= first)
    found = [[value(row["accuracy_by_task"][str(s)]) for row in rows] for s in seen]
    error = [stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0 for values in found]
    axes.errorbar(seen, [mean(values) for values in found], error, marker=".", lw=1, label=f"{label} ({len(rows)})")
