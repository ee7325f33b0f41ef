"""Results as JSON lines: one row a finished run, with all that is needed to judge it."""

from __future__ import annotations

import json
import os
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from statistics import median

from .config import EXPERIMENTS, Configuration, changes_of
from .errors import LabError, naming
from .experiment import Experiment

ROWS = "results.jsonl"
# Rows that a checkout comes with; an installed package has none.
COMMITTED = Path(__file__).resolve().parents[2] / "bench/results/runs_cpu.jsonl"
NUMBER = (int, float)
# What is read of a row, here and in the report; all else in it is for people.
READ = {"experiment": str, "family": str, "seed": int, "config": dict}
READ |= {"accuracy": NUMBER, "train_seconds": NUMBER, "eval_seconds": NUMBER}


def row_of(config: Configuration, state, accuracy: float, **more) -> dict:
    """A finished run's row: what every kind of experiment has, `more` of its own, and where it comes from."""
    return {
        "experiment": config.name,
        "family": config.family,
        "seed": state.seed,
        "config": config.to_dict(),
        "accuracy": accuracy,
        **more,
        **({"note": config.note} if config.note else {}),
        "train_seconds": state.train_seconds,
        "eval_seconds": state.eval_seconds,
        "step_ms": median(state.step_ms),
        "threads": state.threads,
        **provenance(),
    }


def provenance() -> dict:
    """Versions, machine, commit and time of day."""
    from dendrite_kernels.__main__ import versions  # with torch, which takes seconds

    return {
        "versions": versions(),
        "commit": commit(),
        "finished": datetime.now(timezone.utc).isoformat("T", "seconds"),
    }


def commit() -> str | None:
    """The commit of the source tree that this runs from ("+" for one with changes), or None outside a checkout."""
    here = Path(__file__).resolve().parent

    def git(*words):
        return subprocess.run(
            ["git", "-C", str(here), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def append_row(folder: Path, row: dict) -> Path:
    """Adds a row in one write, so that runs side by side do not mix their lines."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ROWS
    line = json.dumps(row) + "\n"
    with naming(path), path.open("ab+") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":  # what a full disk cut short stays a line of its own
                line = "\n" + line
        file.write(line.encode())
    return path


def read_rows(folder: Path) -> list[dict]:
    """All rows of a folder; the newest where an experiment, its configuration and seed were run again."""
    path = folder / ROWS
    if not path.is_file():
        raise LabError(f"no results in {folder}: run an experiment first, e.g. `dendrite-lab run prototype_10`")
    return rows_of(path)


def rows_of(*paths: Path) -> list[dict]:
    """The rows of these files, without those that are not there; the newest of each run."""
    newest = {}
    for path in paths:
        for number, line in enumerate(path.read_bytes().splitlines() if path.is_file() else (), 1):
            try:
                row = _parsed(line)
            except ValueError as error:  # of JSON or of UTF-8 too
                raise LabError(f"{path}, line {number}: not a result row ({error}): remove it and run again") from None
            newest[row["experiment"], row["seed"], json.dumps(row["config"], sort_keys=True)] = row
    return list(newest.values())


def known_rows(folder: Path) -> list[dict]:
    """The committed rows and a folder's."""
    return rows_of(COMMITTED, folder / ROWS)


def as_configured(row: dict) -> bool:
    """Whether a row is of the experiment as named (no --set): only such rows stand beside published numbers."""
    named = EXPERIMENTS.get(row["experiment"])
    return named is not None and row["config"].keys() == named.to_dict().keys() and not changes_in(row)


def changes_in(row: dict) -> dict:
    """What of a row's configuration differs from the experiment as named, but for when it was evaluated."""
    changes = changes_of(row["experiment"], row["config"])
    changes.pop("evaluate_after", None)  # it changes no number of the last evaluation
    return changes


def one_a_run(rows: list[dict]) -> list[dict]:
    """The rows without those that are of the same run: with and without --curve, the one that was evaluated more often;
    of alike ones the last.
    """
    kept = {}
    for row in rows:
        run = row["experiment"], row["seed"], json.dumps(changes_in(row), sort_keys=True)
        if run not in kept or _evaluations(row) >= _evaluations(kept[run]):
            kept[run] = row
    return list(kept.values())


def with_twins(rows: list[dict]) -> list[dict]:
    """The rows, and each again under the other names of its configuration: points that two sweeps share."""
    names: dict[str, list[str]] = {}
    for name, config in EXPERIMENTS.items():
        names.setdefault(_nameless(config.to_dict()), []).append(name)
    there, out = {(row["experiment"], row["seed"]) for row in rows if as_configured(row)}, list(rows)
    for row in rows:
        for name in names.get(_nameless(row["config"]), ()) if as_configured(row) else ():
            if (name, row["seed"]) not in there:
                config = {**row["config"], "name": name, "family": EXPERIMENTS[name].family}
                out.append({**row, "experiment": name, "family": config["family"], "config": config})
                there.add((name, row["seed"]))
    return out


def _nameless(config: dict) -> str:
    """What of a configuration changes a number of the last evaluation."""
    return json.dumps(
        {k: v for k, v in config.items() if k not in ("name", "family", "evaluate_after")}, sort_keys=True
    )


def _evaluations(row: dict) -> int:
    return len(row.get("accuracy_by_task", ()))


def _parsed(line: bytes) -> dict:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError("not an object")
    for key, kind in READ.items():
        if not isinstance(row.get(key), kind):
            raise ValueError(f"no {key}, or one of another type")
    kind = type(EXPERIMENTS[row["experiment"]]) if row["experiment"] in EXPERIMENTS else Experiment
    if kind is Experiment and not isinstance(row["config"].get("tasks"), int):
        raise ValueError("no tasks in config")
    return {**row, "config": kind.completed(row["config"])}


def finished(folder: Path, config: Configuration) -> dict[int, dict]:
    """By seed, the rows of exactly this configuration."""
    if not (folder / ROWS).is_file():
        return {}
    return {row["seed"]: row for row in read_rows(folder) if row["config"] == config.to_dict()}
