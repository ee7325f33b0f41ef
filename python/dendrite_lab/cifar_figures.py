"""Figures of the runs on CIFAR: accuracy while tasks come, by network; accuracy by task after the last, as bars."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

import matplotlib.pyplot as plt

from . import published
from .config import EXPERIMENTS
from .figures import saved
from .judged import grouped, interval
from .results import as_configured
from .si_cifar import SICIFAR
from .split_cifar import SplitCIFAR

SHORT = {"cifar100": "SplitCIFAR100", "cifar10": "CIFAR-10 in its place", "cifar10_100": "split CIFAR-10/100"}


def draw_all(rows: list[dict], folder: Path) -> list[Path]:
    """Draws every figure that has rows, as PNG files in the folder."""
    named, paths = [row for row in rows if as_configured(row)], []
    for kind, name, figures in ((SplitCIFAR, "split", {"": running, "_bars": bars}), (SICIFAR, "si_split", {"": bars})):
        ours = [row for row in named if isinstance(EXPERIMENTS[row["experiment"]], kind)]
        for dataset, some in grouped(ours, lambda row: row["config"]["dataset"]).items():
            for what, draw in figures.items():
                most = "at most " if kind is SplitCIFAR else ""
                title = f"{SHORT[dataset]}, {most}{some[0]['config']['epochs']} epochs a task"
                paths.append(saved(draw(some, title), folder / f"{name}_{dataset}{what}.png"))
    return paths


def by_task(rows: list[dict], seen: int) -> list[float]:
    """Accuracy on each of the first `seen` tasks after that many, mean over the rows."""
    return [mean(values) for values in zip(*(row["accuracy_by_task"][str(seen)] for row in rows), strict=True)]


def running(rows: list[dict], title: str):
    """Accuracy on the latest task and mean over the tasks so far, a line a network (Bain 2022, figure 9)."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True, constrained_layout=True)
    for name, group in grouped(rows, lambda row: row["experiment"]).items():
        seen = sorted(int(key) for key in group[0]["accuracy_by_task"])
        accuracies = [by_task(group, number) for number in seen]
        for axes, line in zip(panels, ([a[-1] for a in accuracies], [mean(a) for a in accuracies]), strict=True):
            axes.plot(seen, line, ".-", label=f"{name} ({len(group)})")
    for axes, what in zip(panels, ("latest task", "mean over the tasks so far"), strict=True):
        axes.set(xlabel="tasks so far", ylabel="test accuracy", title=f"{title}: {what}")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    panels[1].legend(fontsize="small")
    return figure


def bars(rows: list[dict], title: str):
    """Accuracy on each task after the last and their mean, a colour an experiment (Zenke et al. 2017, figure 6)."""
    figure, axes = plt.subplots(figsize=(9, 4.5), constrained_layout=True)
    groups = grouped(rows, lambda row: row["experiment"])
    width = 0.8 / len(groups)
    for number, (name, group) in enumerate(groups.items()):
        tasks = group[0]["config"]["tasks"]
        finals = [row["accuracy_by_task"][str(tasks)] for row in group]
        columns = [[final[task] for final in finals] for task in range(tasks)] + [[mean(final) for final in finals]]
        places = [place + (number - (len(groups) - 1) / 2) * width for place in range(tasks + 1)]
        axes.bar(
            places, [mean(values) for values in columns], width, color=f"C{number}", label=f"{name} ({len(group)})"
        )
        for place, values in zip(places, columns, strict=True):
            if ends := interval(values):
                axes.vlines(place, *ends, color="black", lw=1)
        if name in published.ACCURACY:
            axes.plot(places[-1], published.ACCURACY[name], "_k", ms=14)
    axes.set(ylabel="test accuracy after the last task", title=title)
    axes.set_xticks(range(tasks + 1), [*(f"task {number + 1}" for number in range(tasks)), "mean\n(line: published)"])
    axes.grid(alpha=0.3, axis="y")
    axes.legend(fontsize="small", loc="lower left")
    return figure
