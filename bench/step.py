"""Times whole training steps of ours and of the baseline in turn, on the same data, and checks that they agree.

Prints a JSON line for each number of segments. Times are medians in milliseconds on whatever this machine is.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

import torch
from baselines import PlainNetwork
from dendrite_lab.permuted import PermutedMNIST
from dendrite_lab.results import provenance
from rich.console import Console
from rich.progress import track
from workload import LR, Ours, check_agreement, load_data, median_ms, timed

from dendrite_kernels import backend

console = Console(stderr=True)


def measure(segments: int, batch: int, data, source: str, steps: int, baseline_steps: int, rounds: int) -> dict:
    """One row: our step after a full epoch, with a change of context inside the window, against the baseline's."""
    ours = Ours(segments, PermutedMNIST(data, 2), batch)
    for _ in track(range(60000 // batch), f"S = {segments}: one epoch of ours first", console=console):
        ours.step(ours.next_batch())
    touched = ours.touched_rows()
    plain = PlainNetwork(ours.model)
    agreement = check_agreement(ours.model, plain, ours.next_batch())
    times: dict[str, list] = {"ours": [], "baseline": [], "baseline_fused_adam": []}
    for turn in track(range(rounds), f"S = {segments}: ours and the baseline in turn", console=console):
        half = [ours.next_batch() for _ in range(steps // 2)]
        times["ours"] += timed(ours.step, half)
        ours.start_task(1 - turn % 2)  # its own time is not a step's
        ours.step(ours.next_batch())  # a new Adam allocates at its first step, here and for the baseline
        times["ours"] += timed(ours.step, [ours.next_batch() for _ in range(steps - steps // 2)])
        for name, fused in (("baseline", None), ("baseline_fused_adam", True)):
            optimizer = torch.optim.Adam(plain.parameters(), lr=LR, fused=fused)
            plain.train_step(optimizer, *ours.next_batch())
            work = [ours.next_batch() for _ in range(baseline_steps)]
            times[name] += timed(lambda args, by=optimizer: plain.train_step(by, *args), work)
            del optimizer
    ms = {name: median_ms(values) for name, values in times.items()}
    return {
        "S": segments,
        "B": batch,
        "device": "cpu",
        "backend": backend.choose(torch.device("cpu")).__name__.split(".")[-1],
        "optimizer": "torch.optim.Adam(fused=True), dense gradients",
        "data": source,
        **{f"{name}_ms": value for name, value in ms.items()},
        "speedup": round(ms["baseline"] / ms["ours"], 2),
        "speedup_over_fused_adam": round(ms["baseline_fused_adam"] / ms["ours"], 2),
        "largest_disagreement": agreement,
        "touched_rows": touched,
        "steps": {name: len(values) for name, values in times.items()},
        "threads": torch.get_num_threads(),
    }


def peak_memory(side: str, segments: int, batch: int, folder: Path | None) -> float:
    """Peak resident MiB of a process of its own that makes three steps of one side."""
    command = [sys.executable, __file__, "--memory-of", side, "--segments", str(segments), "--batch", str(batch)]
    command += ["--data", str(folder)] if folder else []
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def three_steps(side: str, segments: int, batch: int, folder: Path | None) -> float:
    data, _ = load_data(folder)
    ours = Ours(segments, PermutedMNIST(data, 1), batch)
    work = [ours.next_batch() for _ in range(3)]
    if side == "ours":
        timed(ours.step, work)
    else:
        plain = PlainNetwork(ours.model)
        del ours
        optimizer = torch.optim.Adam(plain.parameters(), lr=LR)
        timed(lambda args: plain.train_step(optimizer, *args), work)
    return peak_resident_mib()


def peak_resident_mib() -> float:
    """The most memory this process has held. ru_maxrss would include what the parent held when it started us."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


def describe(row: dict) -> str:
    memory = row.get("peak_memory_mib")
    return (
        f"S = {row['S']}, B = {row['B']}: ours {row['ours_ms']:.1f} ms a step; baseline {row['baseline_ms']:.0f} ms "
        f"({row['speedup']:.1f}x), with fused Adam {row['baseline_fused_adam_ms']:.0f} ms "
        f"({row['speedup_over_fused_adam']:.1f}x); gradients agree to {row['largest_disagreement']:.1g}; "
        f"{row['data']} data, {row['threads']} threads"
        + (f"; peak memory {memory['ours']} and {memory['baseline']} MiB" if memory else "")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--segments", type=int, nargs="+", default=[10, 100], help="segments a unit (default: 10 100)")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--data", type=Path, help="folder of the MNIST files (default: $DENDRITE_DATA/mnist)")
    parser.add_argument("--steps", type=int, default=20, help="our steps a round (default: 20)")
    parser.add_argument("--baseline-steps", type=int, default=3, help="the baseline's steps a round (default: 3)")
    parser.add_argument(
        "--rounds", type=int, default=2, help="rounds, each of ours and then the baseline's (default: 2)"
    )
    parser.add_argument(
        "--no-memory", action="store_true", help="leave out peak memory, measured in processes of its own"
    )
    parser.add_argument("--json", action="store_true", help="print JSON lines rather than sentences")
    parser.add_argument("--memory-of", choices=["ours", "baseline"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    numbers = [*args.segments, args.batch, args.steps, args.baseline_steps, args.rounds]
    if any(number < 1 for number in numbers):
        parser.error("segments, batch, steps and rounds must be 1 or more")
    if args.memory_of:
        print(three_steps(args.memory_of, args.segments[0], args.batch, args.data))
        return
    data, source = load_data(args.data)
    for segments in args.segments:
        row = measure(segments, args.batch, data, source, args.steps, args.baseline_steps, args.rounds)
        if not args.no_memory:
            sides = ("ours", "baseline")
            row["peak_memory_mib"] = {side: round(peak_memory(side, segments, args.batch, args.data)) for side in sides}
        print(json.dumps({**row, **provenance()}) if args.json else describe(row), flush=True)


if __name__ == "__main__":
    main()
