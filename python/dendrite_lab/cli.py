"""`dendrite-lab list | run | grid | sweep | report`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Annotated

import typer
from rich.table import Column, Table

from . import engines, published
from . import grid as grids
from . import sweep as sweeps
from .board import Board, console, errors, say_error
from .claims import check_may_start, forget, state_path
from .config import EXPERIMENTS, LARGEST_SEED, Configuration, experiment
from .errors import LabError, sentence_of
from .jobs import End, Failed, Job, Step, here
from .results import as_configured, finished, known_rows, one_a_run, read_rows, with_twins

app = typer.Typer(
    help="Experiments with active dendrites networks on dendrite_kernels.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Out = Annotated[Path, typer.Option("--out", help="Folder of results and of the state of unfinished runs.")]
Data = Annotated[Path | None, typer.Option(help="Folder of the data set's files (default: its own in $DENDRITE_DATA).")]


def _say_version(wanted: bool) -> None:
    if wanted:
        from dendrite_kernels import __version__  # with torch, which takes seconds

        console.print(f"dendrite-lab {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command("list")
def list_(out: Out = Path("runs")) -> None:
    """Names every experiment with its published accuracy and, where there are rows, what was measured."""
    rows = [row for row in one_a_run(known_rows(out)) if as_configured(row)]
    columns = (Column("experiment", no_wrap=True), *(Column(no_wrap=True, justify="right") for _ in range(4)))
    table = Table(*columns, box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for column, heading in zip(table.columns[1:], ("epochs @ lr", "published", "ours (seeds)", "seconds"), strict=True):
        column.header = heading
    for config in EXPERIMENTS.values():
        ours = [row for row in rows if row["experiment"] == config.name]
        table.add_row(config.name, f"{config.epochs} @ {config.lr:g}", published.percent(config.name), *_measured(ours))
    for name in published.not_runnable():
        table.add_row(name, "-", published.percent(name), "can't be run", "-")
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


def _measured(rows: list[dict]) -> tuple[str, str]:
    if not rows:
        return "-", "-"
    cost = mean(row["train_seconds"] + row["eval_seconds"] for row in rows)
    return f"{100 * mean(row['accuracy'] for row in rows):.2f} % ({len(rows)})", f"{cost:.0f}"


@app.command()
def run(
    name: Annotated[str, typer.Argument(help="An experiment that `dendrite-lab list` names.")],
    seed: Annotated[int, typer.Option(min=0, help="The first seed.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds to run.")] = 1,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Seeds at once (default: 1; on a Ray cluster as many as it has room for)."),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Of each run (default: this machine's, shared by the jobs; on a Ray cluster 1)."),
    ] = None,
    engine: Annotated[
        str, typer.Option(help="local: processes on this machine; ray: a Ray cluster, which shares the folder --out.")
    ] = "local",
    address: Annotated[
        str | None, typer.Option(help="Of the Ray cluster (default: $RAY_ADDRESS, else one started on this machine).")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with runs that were stopped; skip finished ones.")
    ] = False,
    out: Out = Path("runs"),
    data: Data = None,
    changes: Annotated[list[str] | None, typer.Option("--set", help="key=value, a field of the configuration.")] = None,
    curve: Annotated[bool, typer.Option("--curve", help="Evaluate after every task (not training time).")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda; on a GPU each step is one CUDA graph.")] = "cpu",
) -> None:
    """Trains and evaluates an experiment, and adds a row a seed to OUT/results.jsonl.

    A row and a state have their thread count, on which a run's numbers depend: with --resume it goes on with that.
    Side by side with one thread each pays where a run can't use all threads: small networks, many cores.
    """
    config = _configured(name, changes or [], curve)
    if seed + seeds - 1 > LARGEST_SEED:
        raise LabError(f"--seed: expected seeds up to {LARGEST_SEED}, got {seed + seeds - 1}")
    if device != "cpu" and config.runner != "train":
        raise LabError(f"--device {device}: expected cpu for {name}: only the permutedMNIST families run on a GPU")
    engines.check(engine, address, threads)
    todo = _unfinished(config, range(seed, seed + seeds), out, resume, device)
    options = engines.Options(engine, address, jobs, threads, data, seeds)
    try:
        with Board(todo) as board:
            engines.carry_out(todo, options, board.tell)
    except KeyboardInterrupt:  # typer would end without a word
        errors.print("stopped; the same command with --resume goes on after the last finished task")
        raise typer.Exit(130) from None
    if board.failed:
        raise typer.Exit(1)


def _configured(name: str, changes: list[str], curve: bool) -> Configuration:
    config = experiment(name, _pairs(changes))
    if curve and not hasattr(config, "evaluate_after"):
        raise LabError(f"--curve: expected an experiment that evaluates after some tasks only, got {name}")
    return replace(config, evaluate_after=tuple(range(1, config.tasks + 1))) if curve else config


def _unfinished(config: Configuration, seeds: range, out: Path, resume: bool, device: str) -> list[Job]:
    """A job for each seed but those that --resume need not run again."""
    done = _forgotten(config, seeds, out)
    for seed in seeds:
        if resume and seed in done:
            console.print(f"{config.name}, seed {seed}: finished already")
        elif not resume:  # before the first of them is run
            check_may_start(state_path(out, config, seed))
    return [Job(config, seed, out, resume, device) for seed in seeds if not (resume and seed in done)]


def _forgotten(config: Configuration, seeds: Iterable[int], out: Path) -> set[int]:
    """Those of the seeds that are finished; a state that a kill right after the row has left is removed."""
    done = set(seeds).intersection(finished(out, config))
    for seed in done:
        forget(state_path(out, config, seed))
    return done


@app.command()
def grid(
    name: Annotated[str, typer.Argument(help="An experiment with a grid: split_cifar100_cnn and its like.")],
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Of every run.")] = 0,
    out: Out = Path("runs"),
    data: Data = None,
    changes: Annotated[list[str] | None, typer.Option("--set", help="key=value, at every point of the grid.")] = None,
) -> None:
    """Runs an experiment at each point of the grid that its source searched; the same command goes on later."""
    pairs = _pairs(changes or [])
    config = experiment(name, pairs)
    points = grids.points(config)
    grids.check_unvaried(config, pairs)
    todo = [Job(point, seed, out, resume=True) for point in points if not _forgotten(point, [seed], out)]
    console.print(f"{name}: {len(points)} points, {len(todo)} to run")
    try:
        for job in todo:
            with Board([job], sharing=True) as board:
                engines.carry_out([job], engines.Options(data=data), board.tell)
            if board.failed:
                raise typer.Exit(1)
    except KeyboardInterrupt:
        errors.print("stopped; the same command goes on after the last finished task")
        raise typer.Exit(130) from None
    reached = [row for row in read_rows(out) if row["config"] in [point.to_dict() for point in points]]
    console.print(grids.table(config, reached))


@app.command()
def sweep(
    budget: Annotated[str, typer.Option(help="Time for all runs together: 90s, 150m, 1h30m.")],
    plan: Annotated[Path, typer.Option(help="A line an experiment, with its number of seeds.")] = sweeps.PLAN,
    out: Out = Path("runs"),
    data: Annotated[Path | None, typer.Option(help="Folder of the MNIST files; others are in $DENDRITE_DATA.")] = None,
) -> None:
    """Runs what is missing of a plan, in its order, as far as the budget goes; the same command goes on later, or side
    by side with itself: a run that another command has is passed over.
    """
    limit = sweeps.seconds(budget)
    rows = known_rows(out)
    planned_runs = sweeps.read_plan(plan)
    todo = sweeps.missing(planned_runs, rows)
    for name in {name for name, _ in planned_runs}:
        _forgotten(EXPERIMENTS[name], [seed for one, seed in planned_runs if one == name], out)

    from .datasets import load
    from .train import check_backend

    check_backend()

    @cache
    def loaded(name: str):
        return load(name, data if name == "mnist" else None, say=console.print)

    failed = []

    def run_one(planned: sweeps.Run, deadline: float) -> dict | None:
        job = Job(EXPERIMENTS[planned[0]], planned[1], out, resume=True)
        with Board([job], sharing=True) as board:

            def tell(event: Step | End) -> None:
                board.tell(event)
                if isinstance(event, Step) and time.monotonic() > deadline:
                    raise sweeps.OutOfTime

            end = here(job, lambda: loaded(job.config.dataset), tell)
        failed.extend(board.failed)
        return None if isinstance(end, Failed) else end.row

    try:
        left = sweeps.work_through(todo, rows, limit, run_one, console.print)
    except KeyboardInterrupt:
        errors.print("stopped; the same command goes on after the last finished task")
        raise typer.Exit(130) from None
    console.print(f"{len(todo) - len(left)} of {len(todo)} missing runs done, {len(left)} left")
    if failed:
        raise typer.Exit(1)


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

    rows = with_twins(one_a_run(known_rows(out) if committed else read_rows(out)))
    for table in (
        reports.table(rows),
        reports.beyond_table(rows),
        reports.clusters_table(rows),
        reports.overlap_table(rows),
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
    for why in reports.not_drawn(rows, out):
        console.print(f"not drawn: {why}", soft_wrap=True)


def _pairs(changes: list[str]) -> dict[str, str]:
    for text in changes:
        if "=" not in text:
            raise LabError(f"--set {text}: expected key=value")
    return dict(text.split("=", 1) for text in changes)


def main() -> None:
    """Runs the command line; a LabError or a system error becomes one sentence and exit status 1."""
    try:
        app()  # leaves by SystemExit unless it fails
    except (LabError, OSError) as error:
        say_error(sentence_of(error))
    sys.exit(1)


if __name__ == "__main__":
    main()
