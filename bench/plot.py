"""Draws bench/results/step.svg and prints the README's table of steps, from the rows of bench/step.py --json.

python bench/step.py --json > bench/results/step_cpu.jsonl
MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 python bench/step.py --json --segments 10 \
    --environment "pages kept" >> bench/results/step_cpu.jsonl
LD_PRELOAD=... python bench/step.py --json --segments 10 --no-memory \
    --environment "MKL as on Intel" >> bench/results/step_cpu.jsonl
(and once more with all three variables: --environment "both")
python bench/plot.py
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent / "results"
SIDES = {
    "baseline_ms": "as the sources run it",
    "baseline_fused_adam_ms": "as the sources run it, Adam(fused=True)",
    "rewritten_ms": "rewritten in PyTorch, Adam(fused=True)",
    "rewritten_compiled_ms": "rewritten and compiled",
    "ours_dense_ms": "dendrite_kernels, Adam(fused=True)",
    "ours_ms": "dendrite_kernels, its own Adam",
}


def draw(rows: list[dict], path: Path) -> None:
    """A panel for each number of segments, each on its own linear scale; of rows of a plain shell."""
    rows = [row for row in rows if row["environment"] == "default"]
    plt.rcParams["svg.hashsalt"] = "dendrite"  # the same rows give the same file
    figure, panels = plt.subplots(1, len(rows), figsize=(4 * len(rows), 2.8), squeeze=False, constrained_layout=True)
    for axes, row in zip(panels[0], rows, strict=True):
        times = [row[key] for key in SIDES]
        bars = axes.barh(range(len(SIDES)), times, color=("0.8", "0.65", "0.5", "0.35", "C0", "C2"))
        axes.bar_label(bars, [f"{ms:.0f} ms" for ms in times], padding=3, fontsize=8)
        axes.set_yticks(range(len(SIDES)), SIDES.values() if axes is panels[0][0] else [""] * len(SIDES), fontsize=8)
        axes.set_xlim(right=1.2 * max(times))
        axes.set_title(f"{row['S']} segments a unit", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    first = rows[0]
    figure.supxlabel(
        f"milliseconds a training step; 784-2048-2048-10, batch {first['B']}, {first['data'].upper()} data, "
        f"{first['threads']} threads of {first['versions']['processor']}",
        fontsize=8,
    )
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def ratio(row: dict, rival: str) -> str:
    """A rival's time over ours."""
    over = row[f"{rival}_ms"] / row["ours_ms"]
    return f"{over:.0f}x" if over >= 20 else f"{over:.1f}x"


def table(rows: list[dict]) -> str:
    lines = [
        "| segments | ours | rewritten in PyTorch | compiled | as the sources run it | with fused Adam | ours, dense "
        "gradients | peak GiB (ours, dense, rewritten, sources') |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        memory = row.get("peak_memory_mib")
        sides = ("ours", "ours_dense", "rewritten", "baseline")
        size = ", ".join(f"{memory[side] / 1024:.1f}" for side in sides) if memory else "-"
        rivals = ("rewritten", "rewritten_compiled", "baseline", "baseline_fused_adam")
        theirs = " | ".join(f"{row[f'{name}_ms']:.0f} ms ({ratio(row, name)})" for name in rivals)
        which = str(row["S"]) if row["environment"] == "default" else f"{row['S']}, {row['environment']}"
        lines.append(f"| {which} | {row['ours_ms']:.1f} ms | {theirs} | {row['ours_dense_ms']:.0f} ms | {size} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=RESULTS / "step_cpu.jsonl", help="JSON lines of bench/step.py")
    parser.add_argument("--out", type=Path, default=RESULTS / "step.svg")
    args = parser.parse_args()
    if not args.rows.exists():
        parser.error(f"{args.rows} is not there: run bench/step.py --json first")
    rows = [json.loads(line) for line in args.rows.read_text().splitlines()]
    draw(rows, args.out)
    print(table(rows))


if __name__ == "__main__":
    main()
