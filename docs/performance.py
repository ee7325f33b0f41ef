"""The tables and plots of performance.md and experiments.md, from the rows in bench/results, at each build.

python docs/performance.py FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import mean

import components
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import plot
from dendrite_lab import judged, published, report
from dendrite_lab.results import as_configured, one_a_run, rows_of, with_twins

OURS = "ours"
SLOWER = 1.05  # a rival this much faster is counted as a race that we lose
KERNELS_NAMED = 4
POINT_SHORT = 0.01


def read(name: str) -> list[dict]:
    """The rows of a file in bench/results; none where it is not there."""
    path = plot.RESULTS / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def origin(row: dict) -> str:
    """Where a row comes from."""
    about = row["versions"]
    return (
        f"{row['threads']} threads of {about['processor']} ({about['instruction set'].split()[0]}), torch "
        f"{about['torch']}, Python {about['python']}, commit `{row['commit']}`, {row['finished'][:10]}"
    )


def markdown(headings: tuple[str, ...], lines: list[tuple]) -> str:
    rows = [headings, tuple("---" for _ in headings), *lines]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


# ---- whole steps ----------------------------------------------------------------------------------------------------


def steps(rows: list[dict], folder: Path) -> str:
    plot.draw(rows, folder / "step.svg")
    firsts = [
        (row["S"], f"{row['ours_first_step_of_a_task_ms']:.1f} ms", f"{row['ours_next_99_steps_ms']:.1f} ms")
        for row in rows
        if row["environment"] == "default"
    ]
    return f"""## A training step

{plot.table(rows)}

![milliseconds a training step](_generated/step.svg)

{len(rows)} rows of `bench/step.py`: {origin(rows[0])}. All rivals start where ours has come to, and before
each is timed its gradients of a batch are compared with ours; the largest relative difference was
{max(row["largest_disagreement"] for row in rows):.1g} (a value on the edge may change a winner of 26,112).
"Pages kept" is with `MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000`: by default torch's large tensors get
fresh pages at each step, which ours avoids by itself.
"MKL as on Intel" is with a function `int mkl_serv_intel_cpu_true(void) {{ return 1; }}` preloaded: MKL takes AVX-512 on
Intel's processors alone by itself.

A task's first step meets a context that nobody has seen, so that every segment is read and every moment is new:

{markdown(("segments", "first step of a task", "the next 99"), firsts)}
"""


# ---- kernels --------------------------------------------------------------------------------------------------------


def kernels(rows: list[dict], folder: Path) -> str:
    """The latest row of each number of segments."""
    latest = {row["S"]: row for row in sorted(rows, key=lambda row: row["finished"])}
    parts = ["## Kernel by kernel\n"]
    for segments, row in sorted(latest.items()):
        draw_kernels(row, folder / f"kernels_{segments}.svg")
        parts.append(f"""### {segments} segments a unit

{components.table(row)}

![milliseconds of each kernel beside its roof](_generated/kernels_{segments}.svg)

The roof of a kernel is the larger of its sums at {row["gflops_roof"]:.0f} GFLOP/s, the rate of torch's largest matrix
product, and its bytes at {row["gbytes_roof"]:.0f} GB/s, that of a large copy, both measured in the same run.
{origin(row)}.
""")
    return "\n".join(parts)


def by_kernel(row: dict) -> dict[str, tuple[float, float]]:
    """name -> milliseconds a step, and those of its roof."""
    out: dict[str, tuple[float, float]] = {}
    for c in row["components"]:
        ms, floor = out.get(c["name"], (0.0, 0.0))
        out[c["name"]] = ms + c["ms"], floor + c["floor_ms"]
    return out


def draw_kernels(row: dict, path: Path) -> None:
    together = by_kernel(row)
    figure, axes = plt.subplots(figsize=(8, 3.2), constrained_layout=True)
    times, floors = zip(*together.values(), strict=True)
    axes.barh(range(len(together)), times, color="C2", label="measured")
    axes.barh(range(len(together)), floors, height=0.35, color="0.3", label="roof")
    axes.set_yticks(range(len(together)), together, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds a step", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


# ---- ops against their rivals ---------------------------------------------------------------------------------------


def races(rows: list[dict]) -> list[dict]:
    """Of each group: its name and shape, our time, and the rivals' by label."""
    groups: dict[str, dict] = {}
    for row in rows:
        group = groups.setdefault(row["group"], {"name": row["group"], "shape": row["shape"], "rivals": {}, "row": row})
        if row["label"] == OURS:
            group["ours"] = row["median_ms"]
        else:
            group["rivals"][row["label"]] = row["median_ms"]
    return [group for group in groups.values() if "ours" in group and group["rivals"]]


def ops(rows: list[dict]) -> str:
    lines = []
    for race in races(rows):
        for label, ms in sorted(race["rivals"].items(), key=lambda item: item[1]):
            ratio = ms / race["ours"]
            told = f"**{ratio:.2f}**" if ratio * SLOWER < 1 else f"{ratio:.2f}"
            lines.append((race["name"], race["shape"], f"{race['ours']:.3f}", label, f"{ms:.3f}", told))
    headings = ("op", "shape", "ours, ms", "rival", "its ms", "its time over ours")
    return f"""## Ops against what a user would pick instead

Medians of `make bench` (`bench/rows.py` keeps them), the rivals of one op on the same inputs in one run; below 1, in
bold, the rival is faster. {origin(rows[0])}.

{markdown(headings, lines)}
"""


def losses(op_rows: list[dict], component_rows: list[dict], run_rows: list[dict]) -> str:
    """Where we lose, from the same rows."""
    lines = []
    for race in races(op_rows):
        label, ms = min(race["rivals"].items(), key=lambda item: item[1])
        if ms * SLOWER < race["ours"]:
            lines.append((race["name"], f"{label} takes {ms:.3f} ms, ours {race['ours']:.3f}"))
    latest = max(component_rows, key=lambda row: row["finished"])
    lost = sorted(by_kernel(latest).items(), key=lambda item: item[1][1] - item[1][0])
    for name, (ms, floor) in lost[:KERNELS_NAMED]:
        lines.append((name, f"{ms:.2f} ms a step, where its roof is {floor:.2f} (S = {latest['S']})"))
    for name, ours, theirs in short_of_published(run_rows):
        lines.append((name, f"{100 * ours:.2f} % accuracy, where {100 * theirs:.2f} was published"))
    return f"""## Where we lose

{markdown(("what", "how"), lines)}

The kernels named here are the {KERNELS_NAMED} furthest above their roofs; the experiments those that end more than
{100 * POINT_SHORT:.0f} point short of the published accuracy.
"""


# ---- experiments ----------------------------------------------------------------------------------------------------


def by_experiment(rows: list[dict]) -> dict[str, list[dict]]:
    return judged.grouped([row for row in rows if as_configured(row)], lambda row: row["experiment"])


def short_of_published(rows: list[dict]) -> list[tuple[str, float, float]]:
    means = {name: mean(row["accuracy"] for row in group) for name, group in by_experiment(rows).items()}
    found = ((name, value, published.ACCURACY.get(name)) for name, value in means.items())
    return [
        (name, value, theirs) for name, value, theirs in found if theirs is not None and value < theirs - POINT_SHORT
    ]


def experiments(rows: list[dict]) -> str:
    lines = []
    for name, group in by_experiment(rows).items():
        accuracies = [row["accuracy"] for row in group]
        theirs = published.ACCURACY.get(name)
        told = "-" if theirs is None else f"{100 * theirs:.2f}"
        runs = published.runs_in_words(name, len(group))
        seconds = f"{mean(row['train_seconds'] for row in group):.0f} s"
        ours = f"{100 * mean(accuracies):.2f}", judged.in_words(accuracies)
        lines.append((f"`{name}`", runs, *ours, told, seconds))
    headings = ("experiment", "runs, of the source's", "ours", judged.INTERVAL, "published", "training")
    return "\n".join([markdown(headings, lines), "", *(f"- {note}" for note in report.notes(rows)), "", beyond(rows)])


def beyond(rows: list[dict]) -> str:
    lines = [(f"`{name}`", *rest) for name, *rest in judged.beyond(rows)]
    told = "The published value lies beyond the interval (of a single run, more than a point from it) of:"
    return f"{told}\n\n{markdown(judged.BEYOND, lines)}"


def write_all(folder: Path) -> None:
    step_rows, component_rows, op_rows = (read(f"{name}_cpu.jsonl") for name in ("step", "components", "ops"))
    run_rows = with_twins(one_a_run(rows_of(plot.RESULTS / "runs_cpu.jsonl")))
    parts = [steps(step_rows, folder), kernels(component_rows, folder)]
    parts += [ops(op_rows)] if op_rows else []
    parts.append(losses(op_rows, component_rows, run_rows))
    (folder / "performance.md").write_text("\n".join(parts))
    (folder / "experiments.md").write_text(experiments(run_rows) + "\n")


if __name__ == "__main__":
    write_all(Path(sys.argv[1]))
