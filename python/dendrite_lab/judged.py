"""Ours against the published: how far runs spread, which experiments lie beyond that, and why, where that was found."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean, stdev

import numpy as np
from scipy.stats import bootstrap, t

from . import published
from .results import as_configured, changes_in

FEW = 5  # resampled means of fewer runs say no more than the runs, and lie too close together
ONE_RUN = 0.01  # how far a single run may lie from a published mean before it is spoken of


def grouped(rows: list[dict], key: Callable[[dict], object]) -> dict:
    """Rows by key, in the order of the keys."""
    groups = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return dict(sorted(groups.items()))


def interval(values: list[float]) -> tuple[float, float] | None:
    """The 95 % interval of the mean: by bootstrap (percentiles of 9,999 resamples, drawn alike each time), of fewer
    than five runs by Student's t; None of one.
    """
    if len(values) < 2:
        return None
    if len(values) < FEW:
        half = t.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5
        return mean(values) - half, mean(values) + half
    found = bootstrap((np.asarray(values),), np.mean, method="percentile", rng=np.random.default_rng(0))
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


INTERVAL = "95 % (by t)"  # the heading of what in_words gives


def in_words(values: list[float], scale: float = 100) -> str:
    """An interval, in parentheses of fewer than five runs; "-" of one."""
    ends = interval(values)
    if ends is None:
        return "-"
    words = "-".join(f"{scale * end:.2f}" for end in ends)
    return words if len(values) >= FEW else f"({words})"


@dataclass(frozen=True)
class Explanation:
    """Why an experiment differs, and the experiment and `--set` whose rows test that, by their accuracy at the end or
    after some tasks.
    """

    words: str
    experiment: str = ""
    changes: tuple[tuple[str, object], ...] = ()
    after: int = 0

    def tested(self, rows: list[dict]) -> str:
        """What the test gave; "" without one or without rows."""
        found = [self._accuracy(r) for r in rows if r["experiment"] == self.experiment and self._is_of(r)]
        if not found:
            return ""
        told = "".join(f" --set {key}={value}" for key, value in self.changes)
        told += f" after {self.after} tasks" if self.after else ""
        return f" {self.experiment}{told}: {100 * mean(found):.2f} % ({len(found)} run{'s' * (len(found) > 1)})."

    def _is_of(self, row: dict) -> bool:
        return changes_in(row) == dict(self.changes)

    def _accuracy(self, row: dict) -> float:
        return mean(row["accuracy_by_task"][str(self.after)]) if self.after else row["accuracy"]


_ONE_EPOCH = "One epoch at 5e-4, as the public configuration has it, falls short; five at a higher rate don't."
_SCATTER = "The source's sweep has 94.90 % for prototype_10 (as percent_on 0.05): its own trials scatter as far."
_LONGER_RUN = "The public code has no such experiment: it evaluates one of ten tasks on the way."
EXPLAINED = {
    "prototype_2": Explanation(_ONE_EPOCH, "prototype_2", (("epochs", 5), ("lr", 0.001))),
    "prototype_5": Explanation(_ONE_EPOCH, "prototype_5", (("epochs", 5), ("lr", 0.0007))),
    "prototype_10": Explanation(_SCATTER),
    "si_prototype_5": Explanation(_LONGER_RUN, "si_prototype_10", after=5),
    "prototype_10_segments_10": Explanation("The source prints prototype_10's number again. " + _SCATTER),
}


BEYOND = ("experiment", "ours", INTERVAL, "published", "why")  # the headings of what beyond gives


def beyond(rows: list[dict]) -> list[tuple[str, ...]]:
    """The experiments whose published value lies outside the interval of ours (of a single run more than a point from
    it), in words.
    """
    out = []
    named = [row for row in rows if as_configured(row) and row["experiment"] in published.ACCURACY]
    for name, group in grouped(named, lambda row: row["experiment"]).items():
        values, theirs = [row["accuracy"] for row in group], published.ACCURACY[name]
        low, high = interval(values) or (values[0] - ONE_RUN, values[0] + ONE_RUN)
        if not low <= theirs <= high:
            why = EXPLAINED.get(name)
            told = why.words + why.tested(rows) if why else "unexplained"
            out.append((name, f"{100 * mean(values):.2f}", in_words(values), f"{100 * theirs:.2f}", told))
    return out
