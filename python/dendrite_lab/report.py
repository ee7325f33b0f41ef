"""Ours beside the published, as tables with intervals, and what was not run."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

import numpy as np
from rich.table import Column, Table
from rich.text import Text

from . import datasets, published
from .config import EXPERIMENTS
from .configuration import as_typed
from .judged import BEYOND, INTERVAL, beyond, grouped, in_words
from .results import as_configured, changes_in
from .sweep import PLAN, estimate, read_plan


def table(rows: list[dict]) -> Table:
    """Mean accuracy by experiment, with its interval, runs, seconds (training + test) and the published value."""
    headings = ("runs", "ours", INTERVAL, "published", "diff.", "seconds")
    # where a terminal is narrow, a name is folded and no number is cut
    name_column = Column("experiment", overflow="fold")
    columns = [name_column, *(Column(h, justify="right", no_wrap=True) for h in headings)]
    out = Table(*columns, title="mean accuracy over all tasks after the last, %", padding=(0, 0), pad_edge=False)
    for name, group in grouped(rows, lambda row: row["experiment"]).items():
        for words, some in grouped(group, _changes_in_words).items():
            value = None if words else published.ACCURACY.get(name)
            runs = str(len(some)) if words else published.runs_in_words(name, len(some))
            out.add_row(Text(f"{name} (--set){words}" if words else name), runs, *_cells(some, value))
    return out


def _changes_in_words(row: dict) -> str:
    """What --set changed, as " lr=0.1 epochs=1"; "" of an experiment as named."""
    if as_configured(row):
        return ""
    if row["experiment"] not in EXPERIMENTS:
        return " of an unknown experiment"
    return "".join(f" {key}={as_typed(_tupled(value))}" for key, value in sorted(changes_in(row).items()))


def _tupled(value):
    return tuple(value) if isinstance(value, list) else value


def _cells(rows: list[dict], value: float | None) -> list[str]:
    accuracies = [row["accuracy"] for row in rows]
    ours = mean(accuracies)
    versus = ["-", "-"] if value is None else [f"{100 * value:.2f} %", f"{100 * (ours - value):+.2f}"]
    times = " + ".join(f"{mean(row[key] for row in rows):.0f}" for key in ("train_seconds", "eval_seconds"))
    return [f"{100 * ours:.2f} %", in_words(accuracies), *versus, times]


def beyond_table(rows: list[dict]) -> Table | None:
    """The experiments whose published value lies beyond their interval, and why."""
    found = beyond(rows)
    if not found:
        return None
    out = Table(*BEYOND, title="beyond their interval", padding=(0, 0), pad_edge=False)
    for cells in found:
        out.add_row(*cells)
    return out


def clusters_table(rows: list[dict]) -> Table | None:
    """Clusters found beside the published counts, for experiments that find their contexts."""
    found = [row for row in rows if "clusters" in row and as_configured(row)]
    if not found:
        return None
    columns = ("experiment", "runs", "ours", INTERVAL, "published")
    out = Table(*columns, title="clusters found", padding=(0, 0), pad_edge=False)
    for name, group in grouped(found, lambda row: row["experiment"]).items():
        counts = [row["clusters"] for row in group]
        spread = in_words(counts, scale=1)
        theirs = f"{published.CLUSTERS[name]:g}" if name in published.CLUSTERS else "-"
        out.add_row(name, str(len(counts)), f"{mean(counts):.2f}", spread, theirs)
    return out


def overlap_table(rows: list[dict]) -> Table | None:
    """How far tasks use the same hidden units: sum(min) / sum(max) of their shares, its mean over pairs of tasks."""
    found = [row for row in rows if "overlap_by_layer" in row and as_configured(row)]
    if not found:
        return None
    layers = len(found[0]["overlap_by_layer"])
    columns = ("experiment", "seeds", *(f"layer {number}" for number in range(1, layers + 1)))
    out = Table(*columns, title="overlap of tasks' active units (1: the same)", padding=(0, 0), pad_edge=False)
    for name, group in grouped(found, lambda row: row["experiment"]).items():
        means = np.mean([row["overlap_by_layer"] for row in group], axis=0)
        out.add_row(name, str(len(group)), *(f"{value:.3f}" for value in means))
    return out


def notes(rows: list[dict]) -> list[str]:
    """What a reader of some rows must know: that another data set stands in for the paper's, or what is ours."""
    return list(dict.fromkeys(f"{row['experiment']}: {row['note']}" for row in rows if "note" in row))


def tickets_table(rows: list[dict]) -> Table | None:
    """Test accuracy of tickets at some densities, winning and random."""
    found = [row for row in rows if "winning" in row and as_configured(row)]
    if not found:
        return None
    columns = ("experiment", "runs", "weights left", f"winning, {INTERVAL}", f"random, {INTERVAL}")
    out = Table(*columns, title="lottery tickets, test accuracy, %", padding=(0, 0), pad_edge=False)
    for name, group in grouped(found, lambda row: row["experiment"]).items():
        config = EXPERIMENTS[name]
        for level in sorted({0, *map(config.level_of, config.noisy_densities), config.levels - 1}):
            left = f"{100 * group[0]['winning'][level]['density']:.1f} %"
            cells = (_mean_and_interval([r[kind][level]["accuracy"] for r in group]) for kind in _kinds(level))
            out.add_row(name, str(len(group)), left, *cells)
    return out


def _mean_and_interval(accuracies: list[float]) -> str:
    between = in_words(accuracies)
    return f"{100 * mean(accuracies):.2f}" + ("" if between == "-" else f" {between}")


def _kinds(level: int) -> tuple[str, ...]:
    return ("winning", "random") if level else ("winning",)  # dense, they are the same


def not_drawn(rows: list[dict], folder: Path) -> list[str]:
    """Figures that rows ask for and that lack what they show, and why."""
    out = []
    for row in rows:
        if "activations" in row and not (folder / row["activations"]).exists():
            out.append(f"{row['experiment']}, seed {row['seed']}: no heat map: {row['activations']} is not in {folder}")
    for dataset in sorted({row["config"]["dataset"] for row in rows if "winning" in row and as_configured(row)}):
        if not datasets.is_here(dataset):
            out.append(f"no examples of noise: {dataset} is not in $DENDRITE_DATA")
    return out


def not_run(rows: list[dict]) -> Table:
    """Every published or named row that has no result, and why."""
    out = Table("not run", "why", padding=(0, 0), pad_edge=False)
    run, planned = {row["experiment"] for row in rows if as_configured(row)}, {name for name, _ in read_plan(PLAN)}
    for name, config in EXPERIMENTS.items():
        if name not in run:
            why = "planned" if name in planned else "not in the plan of two cores"
            out.add_row(name, f"{why}: about {estimate(config, rows) / 60:.1f} min a seed{_hindrance(config.dataset)}")
    for family, why in published.NOT_RUNNABLE.items():
        out.add_row(f"{family}_N", why)
    return out


def _hindrance(dataset: str) -> str:
    """Why not even time would give a result: CIFAR-100 is in no package registry, and may have to be put here."""
    if "100" not in dataset or datasets.is_here("cifar100"):
        return ""
    return "; CIFAR-100 is not here, and no package registry has it: put it into $DENDRITE_DATA"
