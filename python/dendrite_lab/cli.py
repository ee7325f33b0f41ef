"""`dendrite-lab list | run | sweep | report`."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from functools import cache
from importlib import import_module
from pathlib import Path
from statistics import mean
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from . import published
from . import sweep as sweeps
from .config import EXPERIMENTS, LARGEST_SEED, Configuration, experiment
from .errors import LabError
from .results import append_row, as_configured, finished_seeds, known_rows, read_rows

app = typer.Typer(
    help="Experiments with active dendrites networks on dendrite_kernels.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# Without markup: names, paths and values that users give are printed as they are.
console = Console(markup=False, emoji=False)
errors = Console(markup=False, emoji=False, highlight=False, stderr=True, soft_wrap=True)

Out = Annotated[Path, typer.Option("--out", help="Folder of results and of the state of unfinished runs.")]
Data = Annotated[Path | None, typer.Option(help="Folder of the data set's files (default: its own in $DENDRITE_DATA).")]


@app.command("list")
def list_(out: Out = Path("runs")) -> None:
    """Names every experiment with its published accuracy and, where there are rows, what was measured."""
    rows = [row for row in known_rows(out) if as_configured(row)]
    columns = (Column("experiment", no_wrap=True), *(Column(no_wrap=True, justify="right") for _ in range(4)))
    table = Table(*columns, box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for column, heading in zip(table.columns[1:], ("epochs @ lr", "published", "ours (seeds)", "seconds"), strict=True):
        column.header = heading
    for config in EXPERIMENTS.values():
        ours = [row for row in rows if row["experiment"] == config.name]
        table.add_row(config.name, f"{config.epochs} @ {config.lr:g}", _percent(config.name), *_measured(ours))
    for name in published.not_runnable():
        table.add_row(name, "-", _percent(name), "can't be run", "-")
    console.print(table)
    for family, why in published.NOT_RUNNABLE.items():
        console.print(f"{family}_N can't be run: {why}")
    for note, some in _notes(EXPERIMENTS.values()).items():
        console.print(f"{', '.join(some)}: {note}", soft_wrap=True)


def _notes(configs) -> dict[str, list[str]]:
    """note -> names of the experiments that it is about."""
    out: dict[str, list[str]] = {}
    for config in configs:
        if config.note:
            out.setdefault(config.note, []).append(config.name)
    return out


def _percent(name: str) -> str:
    return f"{100 * published.ACCURACY[name]:.2f} %" if name in published.ACCURACY else "-"


def _measured(rows: list[dict]) -> tuple[str, str]:
    if not rows:
        return "-", "-"
    cost = mean(row["train_seconds"] + row["eval_seconds"] for row in rows)
    return f"{100 * mean(row['accuracy'] for row in rows):.2f} % ({len(rows)})", f"{cost:.0f}"


@app.command()
def run(
    name: Annotated[str, typer.Argument(help="An experiment that `dendrite-lab list` names.")],
    seed: Annotated[int, typer.Option(min=0, help="The first seed.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds to run, one after the other.")] = 1,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with runs that were stopped; skip finished ones.")
    ] = False,
    out: Out = Path("runs"),
    data: Data = None,
    changes: Annotated[list[str] | None, typer.Option("--set", help="key=value, a field of the configuration.")] = None,
    curve: Annotated[bool, typer.Option("--curve", help="Evaluate after every task (not training time).")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda; on a GPU each step is one CUDA graph.")] = "cpu",
) -> None:
    """Trains and evaluates an experiment, and adds a row a seed to OUT/results.jsonl."""
    config = experiment(name, _pairs(changes or []))
    if curve and not hasattr(config, "evaluate_after"):
        raise LabError(f"--curve: expected an experiment that evaluates after some tasks only, got {name}")
    if curve:
        config = replace(config, evaluate_after=tuple(range(1, config.tasks + 1)))
    if seed + seeds - 1 > LARGEST_SEED:
        raise LabError(f"--seed: expected seeds up to {LARGEST_SEED}, got {seed + seeds - 1}")

    # torch takes seconds to import: after what needs none of it
    from .datasets import load
    from .state import check_unstarted, state_path
    from .train import check_backend

    check_backend(device)
    options = {} if device == "cpu" else {"device": device}
    if options and config.runner != "train":
        raise LabError(f"--device {device}: expected cpu for {name}: only the permutedMNIST families run on a GPU")
    finished = finished_seeds(out, config) if resume else set()
    if not resume:
        for s in range(seed, seed + seeds):  # before the first of them is run
            check_unstarted(state_path(out, config, s))
    loaded = load(config.dataset, data, say=console.print)
    for s in range(seed, seed + seeds):
        if s in finished:
            console.print(f"{name}, seed {s}: finished already")
            continue
        try:
            _run_seed(config, s, loaded, out, resume=resume, **options)
        except KeyboardInterrupt:  # typer would end without a word
            errors.print("stopped; the same command with --resume goes on after the last finished task")
            raise typer.Exit(130) from None


def _run_seed(
    config: Configuration, seed: int, data, out: Path, *, resume: bool, check=lambda: None, **options
) -> dict:
    """One run with its progress shown, its row added and its state removed; check() is called at every step."""
    from .state import state_path

    run_one = import_module(f".{config.runner}", __package__).run  # its kind's, which takes torch

    with _progress() as bar:
        task = bar.add_task(f"{config.name}, seed {seed}", total=None, what="loading")

        def show(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, what=what)
            check()

        row = run_one(config, seed, data, out, resume=resume, progress=show, **options)
    path = append_row(out, row)
    state_path(out, config, seed).unlink(missing_ok=True)
    beside = f" (published: {_percent(config.name)})" if as_configured(row) and _percent(config.name) != "-" else ""
    found = f", {row['clusters']} clusters found" if "clusters" in row else ""
    console.print(
        f"{config.name}, seed {seed}: {config.describe()} {100 * row['accuracy']:.2f} %{beside}"
        f"{found}; training {row['train_seconds']:.0f} s, evaluation {row['eval_seconds']:.0f} s, "
        f"{row['step_ms']:.1f} ms a step (median). Row added to {path}"
    )
    if "note" in row:
        console.print(row["note"], soft_wrap=True)
    return row


@app.command()
def sweep(
    budget: Annotated[str, typer.Option(help="Time for all runs together: 90s, 150m, 1h30m.")],
    plan: Annotated[Path, typer.Option(help="A line an experiment, with its number of seeds.")] = sweeps.PLAN,
    out: Out = Path("runs"),
    data: Annotated[Path | None, typer.Option(help="Folder of the MNIST files; others are in $DENDRITE_DATA.")] = None,
) -> None:
    """Runs what is missing of a plan, in its order, as far as the budget goes; the same command goes on later."""
    limit = sweeps.seconds(budget)
    rows = known_rows(out)
    todo = sweeps.missing(sweeps.read_plan(plan), rows)

    from .datasets import load
    from .train import check_backend

    check_backend()

    @cache
    def loaded(name: str):
        return load(name, data if name == "mnist" else None, say=console.print)

    def run_one(planned: sweeps.Run, deadline: float) -> dict:
        def check() -> None:
            if time.monotonic() > deadline:
                raise sweeps.OutOfTime

        config = EXPERIMENTS[planned[0]]
        return _run_seed(config, planned[1], loaded(config.dataset), out, resume=True, check=check)

    try:
        left = sweeps.work_through(todo, rows, limit, run_one, console.print)
    except KeyboardInterrupt:
        errors.print("stopped; the same command goes on after the last finished task")
        raise typer.Exit(130) from None
    console.print(f"{len(todo) - len(left)} of {len(todo)} missing runs done, {len(left)} left")


@app.command()
def report(
    out: Out = Path("runs"),
    committed: Annotated[
        bool, typer.Option("--committed", help="Take in the rows that the repository comes with.")
    ] = False,
) -> None:
    """Prints results beside the published numbers and draws the papers' figures."""
    from . import cifar_figures, figures, si_figures, tickets_figures
    from . import report as reports

    rows = known_rows(out) if committed else read_rows(out)
    for table in (
        reports.table(rows),
        reports.clusters_table(rows),
        reports.tickets_table(rows),
        reports.not_run(rows),
    ):
        if table is not None:
            console.print(table)
    for note in reports.notes(rows):
        console.print(note, soft_wrap=True)
    for kind in (figures, cifar_figures, si_figures, tickets_figures):
        for path in kind.draw_all(rows, out):
            console.print(f"plot: {path.resolve()}", soft_wrap=True)


def _pairs(changes: list[str]) -> dict[str, str]:
    for text in changes:
        if "=" not in text:
            raise LabError(f"--set {text}: expected key=value")
    return dict(text.split("=", 1) for text in changes)


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps,"))
    times = (TimeElapsedColumn(), TextColumn("gone,"), TimeRemainingColumn(), TextColumn("left; {task.fields[what]}"))
    return Progress(*columns, *times, console=console, refresh_per_second=2)


def main() -> None:
    """Runs the command line; a LabError or a system error becomes one sentence and exit status 1."""
    try:
        app()  # leaves by SystemExit unless it fails
    except LabError as error:
        sentence = str(error)
    except OSError as error:
        sentence = f"{error.filename or 'a file'}: {error.strerror or error}"
    errors.print(Text.assemble(("error:", "red"), " ", sentence))
    sys.exit(1)


if __name__ == "__main__":
    main()
