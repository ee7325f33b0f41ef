"""`dendrite-lab list | run | report`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from .config import EXPERIMENTS, LARGEST_SEED, PUBLISHED, experiment
from .errors import LabError

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


@app.command("list")
def list_() -> None:
    """Names every experiment with its published accuracy."""
    table = Table()
    table.add_column("experiment", no_wrap=True)
    for heading in ("tasks", "segments", "epochs", "lr", "published"):
        table.add_column(heading, justify="right")
    for config in EXPERIMENTS.values():
        published = PUBLISHED[config.family][config.tasks]
        numbers = (config.tasks, config.segments, config.epochs, f"{config.lr:g}", f"{100 * published:.2f} %")
        table.add_row(config.name, *(str(n) for n in numbers))
    console.print(table)


@app.command()
def run(
    name: Annotated[str, typer.Argument(help="An experiment that `dendrite-lab list` names.")],
    seed: Annotated[int, typer.Option(min=0, help="The first seed.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds to run, one after the other.")] = 1,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with runs that were stopped; skip finished ones.")
    ] = False,
    out: Out = Path("runs"),
    data: Annotated[
        Path | None, typer.Option(help="Folder of the MNIST files (default: $DENDRITE_DATA/mnist).")
    ] = None,
    changes: Annotated[list[str] | None, typer.Option("--set", help="key=value, a field of the configuration.")] = None,
) -> None:
    """Trains and evaluates an experiment, and adds a row a seed to OUT/results.jsonl."""
    config = experiment(name, _pairs(changes or []))
    if seed + seeds - 1 > LARGEST_SEED:
        raise LabError(f"--seed: expected seeds up to {LARGEST_SEED}, got {seed + seeds - 1}")

    # torch takes seconds to import: after what needs none of it
    from .data import load_mnist
    from .results import append_row, finished_seeds
    from .train import check_backend, check_unstarted, state_path
    from .train import run as run_one

    check_backend()
    finished = finished_seeds(out, config) if resume else set()
    if not resume:
        for s in range(seed, seed + seeds):  # before the first of them is run
            check_unstarted(state_path(out, config, s))
    mnist = load_mnist(data, say=console.print)
    for s in range(seed, seed + seeds):
        if s in finished:
            console.print(f"{name}, seed {s}: finished already")
            continue
        with _progress() as bar:
            task = bar.add_task(f"{name}, seed {s}", total=None, what="loading")

            def show(done: int, total: int, what: str, bar=bar, task=task) -> None:
                bar.update(task, completed=done, total=total, what=what)

            try:
                row = run_one(config, s, mnist, out, resume=resume, progress=show)
            except KeyboardInterrupt:  # typer would end without a word
                errors.print("stopped; the same command with --resume goes on after the last finished task")
                raise typer.Exit(130) from None
        path = append_row(out, row)
        state_path(out, config, s).unlink(missing_ok=True)
        published = PUBLISHED[config.family].get(config.tasks)
        beside = f" (published: {100 * published:.2f} %)" if published and not changes else ""
        console.print(
            f"{name}, seed {s}: mean accuracy over {config.tasks} tasks {100 * row['accuracy']:.2f} %{beside}; "
            f"training {row['train_seconds']:.0f} s, evaluation {row['eval_seconds']:.0f} s, "
            f"{row['step_ms']:.1f} ms a step (median). Row added to {path}"
        )


@app.command()
def report(out: Out = Path("runs")) -> None:
    """Prints results beside the published numbers and draws accuracy against tasks."""
    from . import report as reports
    from .results import read_rows

    rows = read_rows(out)
    console.print(reports.table(rows))
    console.print(f"plot: {reports.plot(rows, out / 'accuracy.png').resolve()}", soft_wrap=True)


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
