"""Working through a plan of runs within a budget of time: the missing ones, in order, as many as fit."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import mean

from .config import EXPERIMENTS, Configuration
from .configuration import IMAGE_VALUES
from .errors import LabError
from .experiment import Experiment
from .results import as_configured, with_twins

PLAN = Path(__file__).with_name("plan.txt")

# Guesses for what was never measured, on two cores: seconds for a pass over a task's test images, and for a
# training step with k winners; rates of dense training.
EVALUATION, STEP = 0.25, 0.02
FLOPS = 1.0e11
CLUSTER_TEST = 0.015  # seconds a step for the test that a batch passes

Run = tuple[str, int]  # experiment, seed


class OutOfTime(BaseException):  # not an error of the run, which jobs.attempt would report
    """Raised into a run at the end of the budget; it goes on from its state next time."""


def seconds(text: str) -> float:
    """ "90s", "150m", "2h", "1h30m" -> seconds."""
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
    if not found or not any(found.groups()):
        raise LabError(f"--budget: expected a time like 90s, 150m or 1h30m, got {text!r}")
    hours, minutes, rest = (int(part or 0) for part in found.groups())
    return 3600 * hours + 60 * minutes + rest


def read_plan(path: Path) -> list[Run]:
    """The runs of a plan in its order: a line an experiment, with the number of seeds; # starts a remark."""
    runs = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        words = line.split("#")[0].split()
        if not words:
            continue
        if len(words) != 2 or words[0] not in EXPERIMENTS or not words[1].isdigit():
            raise LabError(f"{path}, line {number}: expected an experiment and a number of seeds, got {line!r}")
        runs += [(words[0], seed) for seed in range(int(words[1]))]
    return runs


def missing(plan: list[Run], rows: list[dict]) -> list[Run]:
    """The runs of the plan that have no row of the experiment as named."""
    done = {(row["experiment"], row["seed"]) for row in with_twins(rows) if as_configured(row)}
    return [run for run in dict.fromkeys(plan) if run not in done]


def estimate(config: Configuration, rows: list[dict]) -> float:
    """Seconds that a run will take: as rows of the experiment did, else by the step, as its family's, else a guess."""
    same = [row for row in rows if row["config"] == config.to_dict()]
    if same:
        return mean(row["train_seconds"] + row["eval_seconds"] for row in same)
    family = [row for row in rows if row["family"] == config.family and as_configured(row)]
    step = mean(row["train_seconds"] / EXPERIMENTS[row["experiment"]].steps for row in family) if family else None
    return config.steps * (step or _step_guess(config)) + config.evaluations * EVALUATION


def _step_guess(config: Configuration) -> float:
    if not isinstance(config, Experiment):
        return config.step_guess
    found = CLUSTER_TEST if config.context == "clusters" else 0.0
    if config.activation == "kwinners" and config.percent_on <= 0.1:
        return STEP + found
    sizes = (IMAGE_VALUES["mnist"], *config.hidden)
    weights = sum(a * b for a, b in pairwise(sizes))
    return STEP + found + 6 * config.batch_size * weights / FLOPS  # forward, and a gradient for each factor


def work_through(
    runs: list[Run],
    rows: list[dict],
    budget: float,
    run_one: Callable[[Run, float], dict | None],
    say: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
) -> list[Run]:
    """Runs what fits into the budget (seconds), in order, and returns what is left.

    run_one(run, deadline) returns a run's row, None where it failed, or raises OutOfTime at the deadline (of clock()).
    A run that would not
    fit is passed over for later ones that do; what was measured meanwhile is what the next are judged by.
    """
    rows, left = list(rows), []
    deadline = clock() + budget
    for run in runs:
        if not missing([run], rows):  # since it began: a run under another name
            continue
        cost = estimate(EXPERIMENTS[run[0]], rows)
        if cost > deadline - clock():
            left.append(run)
            continue
        say(f"{run[0]}, seed {run[1]}: about {cost / 60:.1f} min, of {(deadline - clock()) / 60:.1f} min left")
        try:
            row = run_one(run, deadline)
            (rows if row else left).append(row or run)
        except OutOfTime:
            say(f"{run[0]}, seed {run[1]}: out of time; the same command goes on after its last finished task")
            left.append(run)
    return left
