"""The permutedMNIST papers' figures from result rows, the published values beside."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from . import published
from .config import EXPERIMENTS
from .errors import naming
from .experiment import Experiment
from .judged import grouped, interval
from .results import as_configured

TITLES = {
    "prototype": "segments = tasks",
    "prototype_segments_10": "10 segments",
    "si_prototype": "SI, active dendrites",
    "construct_prototype": "prototypes found while training",
    "active_dendrites_only": "active dendrites only",
    "sparse_representations_only": "sparse representations only",
    "three_layer_mlp": "3-layer MLP",
    "ten_layer_mlp": "10-layer MLP",
    "si_alone": "SI (literature)",
    "xdg": "XdG (literature)",
    "si_xdg": "SI + XdG (literature)",
}
# file: its families (Grewal et al. 2021, figures of accuracy against the number of tasks)
AGAINST_TASKS = {
    "accuracy": ("prototype", "prototype_segments_10", "si_prototype", "si_alone", "xdg", "si_xdg"),
    "ablations": (
        *("prototype", "active_dendrites_only", "sparse_representations_only"),
        *("three_layer_mlp", "ten_layer_mlp"),
    ),
    "found_contexts": ("prototype", "construct_prototype"),
}
SHOWN_UNITS = 64


def draw_all(rows: list[dict], folder: Path) -> list[Path]:
    """Draws every figure that has something to show, as PNG files in the folder."""
    named = [row for row in rows if as_configured(row) and isinstance(EXPERIMENTS[row["experiment"]], Experiment)]
    paths = [against_tasks(named, families, folder / f"{name}.png") for name, families in AGAINST_TASKS.items()]
    paths += [clusters(named, folder / "clusters.png"), sweeps(named, folder / "sweeps.png")]
    for of_contexts, name in ((True, "contexts"), (False, "curves")):
        found = [row for row in named if has_curve(row) and row["family"].startswith("context_") is of_contexts]
        if found:
            paths.append(curves(found, folder / f"{name}.png"))
    for row in rows:
        if "activations" in row and (folder / row["activations"]).exists():
            paths.append(heat_map(folder / row["activations"], row, folder / f"{Path(row['activations']).stem}.png"))
    return paths


def has_curve(row: dict) -> bool:
    """Whether a row was evaluated after every task, or as often as its source's own curve was."""
    curve = row.get("accuracy_by_task", {})
    return len(curve) == row["config"]["tasks"] or (row["family"].startswith("context_") and len(curve) > 1)


def against_tasks(rows: list[dict], families: tuple[str, ...], path: Path) -> Path:
    """Accuracy against tasks, a colour a family: published (line), ours (a dot a run), their mean and its interval."""
    figure, axes = plt.subplots(figsize=(7, 4.5), constrained_layout=True)
    for number, family in enumerate(families):
        colour, line = f"C{number}", published.curve(family)
        axes.plot(*zip(*line.items(), strict=True), ".-", color=colour, lw=1, label=f"published, {TITLES[family]}")
        ours = [row for row in rows if row["family"] == family]
        _points(axes, ours, lambda row: row["config"]["tasks"], "accuracy", colour, f"ours, {TITLES[family]}")
    axes.set(xscale="log", xlabel="tasks", ylabel="mean accuracy over all tasks", title="permutedMNIST")
    return _finished(figure, axes, path, published.TASKS)


def clusters(rows: list[dict], path: Path) -> Path:
    """Clusters found against tasks, and the number of tasks itself."""
    figure, axes = plt.subplots(figsize=(5, 4), constrained_layout=True)
    line = published.curve("construct_prototype", published.CLUSTERS)
    axes.plot(*zip(*line.items(), strict=True), ".-", color="C0", lw=1, label="published")
    axes.plot(published.TASKS, published.TASKS, ":", color="grey", label="one a task")
    _points(axes, [row for row in rows if "clusters" in row], lambda r: r["config"]["tasks"], "clusters", "C0", "ours")
    axes.set(xscale="log", yscale="log", xlabel="tasks", ylabel="clusters", title="clusters found while training")
    return _finished(figure, axes, path, published.TASKS)


def sweeps(rows: list[dict], path: Path) -> Path:
    """Accuracy against each swept field, at 10 and at 50 tasks."""
    figure, panels = plt.subplots(1, 3, figsize=(12, 4), constrained_layout=True)
    for axes, (field, values) in zip(panels, published.SWEPT.items(), strict=True):
        for number, tasks in enumerate(published.SWEEP_TASKS):
            names = {value: published.sweep_name(field, value, tasks) for value in values}
            line = {value: published.ACCURACY[n] for value, n in names.items() if n in published.ACCURACY}
            if line:
                axes.plot(*zip(*line.items(), strict=True), ".-", color=f"C{number}", label=f"published, {tasks} tasks")
            ours = [row for row in rows if row["experiment"] in names.values()]
            _points(axes, ours, lambda row, f=field: row["config"][f], "accuracy", f"C{number}", f"ours, {tasks} tasks")
        axes.set(xlabel=field.replace("_", " "), ylabel="mean accuracy over all tasks")
        if field == "segments":
            axes.set_xscale("log")
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
        else:
            axes.text(0.5, 0.5, "not run; no numbers published", ha="center", transform=axes.transAxes)
    return saved(figure, path)


def curves(rows: list[dict], path: Path) -> Path:
    """After every evaluation: mean accuracy over the tasks so far, and on the latest, each with its interval; the
    published mean (-) after the last (Bain 2022, figure 8).
    """
    figure, (running, latest) = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True, constrained_layout=True)
    for name, group in grouped(rows, lambda row: row["experiment"]).items():
        for axes, value in ((running, mean), (latest, lambda accuracies: accuracies[-1])):
            colour = band(axes, curve_of(group, value), f"{name} ({len(group)})")
        if name in published.ACCURACY:
            running.plot(group[0]["config"]["tasks"], published.ACCURACY[name], "_", ms=14, color=colour)
    running.set(xlabel="tasks so far", ylabel="accuracy", title="mean over all tasks so far")
    latest.set(xlabel="tasks so far", title="latest task")
    running.grid(alpha=0.3)
    for axes in (running, latest):
        axes.xaxis.get_major_locator().set_params(integer=True)
    return _finished(figure, latest, path)


def curve_of(rows: list[dict], value) -> dict[int, list[float]]:
    """tasks seen -> value(accuracy by task) of each row that was evaluated there."""
    seen = sorted({int(key) for row in rows for key in row["accuracy_by_task"]})
    return {s: [value(r["accuracy_by_task"][str(s)]) for r in rows if str(s) in r["accuracy_by_task"]] for s in seen}


def heat_map(activations: Path, row: dict, path: Path) -> Path:
    """Share of each task's test samples that the first hidden units fire for, a panel a layer."""
    with np.load(activations) as layers:
        shares = [layers[name] for name in sorted(layers, key=lambda name: int(name.split("_")[1]))]
    figure, panels = plt.subplots(1, len(shares), figsize=(4 * len(shares), 8), squeeze=False, constrained_layout=True)
    for axes, share, number, common in zip(panels[0], shares, range(1, 99), row["overlap_by_layer"], strict=False):
        image = axes.imshow(share[:, :SHOWN_UNITS].T, aspect="auto", cmap="viridis")
        axes.set(xlabel="task", ylabel="hidden unit", title=f"layer {number}, overlap of tasks {common:.2f}")
        figure.colorbar(image, ax=axes, label="share of samples")
    return saved(figure, path)


def band(axes, values_at: dict[float, list[float]], label: str) -> str:
    """Draws the mean of the values at each place, and their intervals; returns the line's colour."""
    (line,) = axes.plot(list(values_at), [mean(values) for values in values_at.values()], ".-", lw=1, label=label)
    ends = zip(*map(_ends, values_at.values()), strict=True)
    axes.fill_between(list(values_at), *ends, color=line.get_color(), alpha=0.2)
    return line.get_color()


def _ends(values: list[float]) -> tuple[float, float]:
    return interval(values) or (values[0], values[0])


def _points(axes, rows: list[dict], x, key: str, colour: str, label: str) -> None:
    for at, group in grouped(rows, x).items():
        values = [row[key] for row in group]
        axes.plot([at] * len(values), values, ".", color=colour, alpha=0.5)
        axes.vlines(at, *_ends(values), color=colour)
        axes.plot(at, mean(values), "o", ms=9, mfc="none", color=colour, label=label)
        label = None  # once is enough


def _finished(figure, axes, path: Path, ticks: tuple[int, ...] = ()) -> Path:
    if ticks:
        axes.set_xticks(ticks, [str(t) for t in ticks])
        axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return saved(figure, path)


def saved(figure, path: Path) -> Path:
    """Writes a figure as PNG and closes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path):
        figure.savefig(path, dpi=100)
    plt.close(figure)
    return path
