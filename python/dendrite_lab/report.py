"""Ours beside the published: a table, and a plot of accuracy against the number of tasks."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from statistics import mean

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from rich.table import Table

from .config import EXPERIMENTS, PUBLISHED
from .errors import naming

TITLES = {"prototype": "segments = tasks", "prototype_segments_10": "10 segments"}


def as_configured(row: dict) -> bool:
    """Whether a row is of the experiment as named (no --set): only such rows stand beside published numbers."""
    named = EXPERIMENTS.get(row["experiment"])
    return named is not None and row["config"] == named.to_dict()


def table(rows: list[dict]) -> Table:
    """Mean accuracy by experiment, with seeds, times and the published value."""
    out = Table(title="mean accuracy over all tasks after the last")
    out.add_column("experiment", no_wrap=True)
    for heading in ("seeds", "ours", "published", "diff.", "train + test"):
        out.add_column(heading, justify="right", no_wrap=True)
    for name, group in _grouped(rows, "experiment").items():
        named = [row for row in group if as_configured(row)]
        for label, some in ((name, named), (f"{name} (--set)", [r for r in group if r not in named])):
            if some:
                out.add_row(label, *_cells(some, published=label == name))
    return out


def _cells(rows: list[dict], published: bool) -> list[str]:
    ours = mean(row["accuracy"] for row in rows)
    value = PUBLISHED.get(rows[0]["family"], {}).get(rows[0]["config"]["tasks"]) if published else None
    times = " + ".join(f"{mean(row[key] for row in rows):.0f}" for key in ("train_seconds", "eval_seconds"))
    versus = ["-", "-"] if value is None else [f"{100 * value:.2f} %", f"{100 * (ours - value):+.2f}"]
    return [str(len(rows)), f"{100 * ours:.2f} %", *versus, f"{times} s"]


def plot(rows: list[dict], path: Path) -> Path:
    """Accuracy against tasks, a colour for each family: published (line), ours (a dot a run) and their mean (ring)."""
    figure, axes = plt.subplots(figsize=(7, 4.5), constrained_layout=True)
    for colour, (family, published) in zip(("C0", "C1"), PUBLISHED.items(), strict=True):
        axes.plot(*zip(*published.items(), strict=True), "-", color=colour, lw=1, label=f"published, {TITLES[family]}")
        ours = [row for row in rows if row["family"] == family and as_configured(row)]
        if not ours:
            continue
        axes.plot([r["config"]["tasks"] for r in ours], [r["accuracy"] for r in ours], ".", color=colour, alpha=0.5)
        means = {t: mean(r["accuracy"] for r in group) for t, group in _grouped(ours, "tasks").items()}
        axes.plot(
            *zip(*means.items(), strict=True), "o", ms=9, mfc="none", color=colour, label=f"ours, {TITLES[family]}"
        )
    axes.set(xscale="log", xlabel="tasks", ylabel="mean accuracy over all tasks", title="permutedMNIST")
    ticks = sorted(PUBLISHED["prototype"])
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path):
        figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


def _grouped(rows: list[dict], key: str) -> dict:
    groups = defaultdict(list)
    for row in rows:
        groups[row["config"][key] if key == "tasks" else row[key]].append(row)
    return dict(sorted(groups.items()))
