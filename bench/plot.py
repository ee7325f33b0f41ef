"""Draws bench/results/step.svg and prints the README's table of steps, from the rows of bench/step.py --json.

python bench/step.py --json > bench/results/step_cpu.jsonl && python bench/plot.py
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
    "baseline_ms": "the sources' way, torch.optim.Adam",
    "baseline_fused_adam_ms": "the sources' way, Adam(fused=True)",
    "ours_ms": "dendrite_kernels, Adam(fused=True)",
}


def draw(rows: list[dict], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7.5, 2.4 + 0.2 * len(rows)), constrained_layout=True)
    for side, (key, label) in enumerate(SIDES.items()):
        places = [row_number + 0.27 * (1 - side) for row_number in range(len(rows))]
        bars = axes.barh(
            places, [row[key] for row in rows], height=0.25, label=label, color=("0.75", "0.55", "C2")[side]
        )
        axes.bar_label(bars, [f"{row[key]:.0f} ms" for row in rows], padding=3, fontsize=8)
    axes.set_yticks(range(len(rows)), [f"{row['S']} segments" for row in rows])
    axes.set(xscale="log", xlabel="milliseconds a training step (log scale, shorter is better)")
    axes.set_xlim(right=4 * max(row["baseline_ms"] for row in rows))
    first = rows[0]
    axes.set_title(
        f"784-2048-2048-10, batch {first['B']}, {first['data'].upper()}, {first['threads']} threads of "
        f"{first['versions']['processor']}",
        fontsize=9,
    )
    axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.25), ncols=3, fontsize=7, frameon=False)
    plt.rcParams["svg.hashsalt"] = "dendrite"  # the same rows give the same file
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def table(rows: list[dict]) -> str:
    lines = ["| segments | ours | baseline | with fused Adam | memory, ours / baseline |", "|---|---|---|---|---|"]
    for row in rows:
        memory = row.get("peak_memory_mib")
        size = f"{memory['ours'] / 1024:.1f} / {memory['baseline'] / 1024:.1f} GiB" if memory else "-"
        plain = f"{row['baseline_ms']:.0f} ms ({row['speedup']:.0f}x)"
        fused = f"{row['baseline_fused_adam_ms']:.0f} ms ({row['speedup_over_fused_adam']:.0f}x)"
        lines.append(f"| {row['S']} | {row['ours_ms']:.0f} ms | {plain} | {fused} | {size} |")
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
