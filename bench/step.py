"""Times whole training steps of ours and of the baseline in turn, on the same data, and checks that they agree.

Ours is a loop of model, loss.backward() and dendrite_kernels.optim.Adam; and the same with torch's fused Adam. Prints a
JSON line for each number of segments. Times are medians in milliseconds on whatever this machine is.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections import defaultdict
from functools import partial
from pathlib import Path
from statistics import mean

import torch
from baselines import PlainNetwork
from dendrite_lab.graphs import WARM_UP, GraphedStep
from dendrite_lab.permuted import PermutedMNIST
from dendrite_lab.results import provenance
from dendrite_lab.train import train_step
from rich.console import Console
from rich.progress import track
from workload import LR, Ours, check_agreement, load_data, median_ms, timed

from dendrite_kernels import backend

console = Console(stderr=True)


def plain_step(plain: PlainNetwork, optimizer, batch, model=None) -> None:
    """A step of the baseline; model: it, or it compiled."""
    plain.train_step(optimizer, *batch, forward=model)


def rivals(plain: PlainNetwork, device: str):
    """(name, fused Adam or not, what runs forward); compiling takes minutes on a CPU and gains little there."""
    yield "baseline", None, plain
    yield "baseline_fused_adam", True, plain
    if device == "cuda":
        yield "baseline_compiled", True, torch.compile(plain)


def graphed_steps(ours: Ours, steps: int) -> list[float]:
    """Times of ours, each step a CUDA graph's replay, as dendrite_lab runs it."""
    context = ours.context
    step = GraphedStep(lambda x, labels: train_step(ours.model, ours.optimizer, x, labels, context))
    for _ in range(WARM_UP + 1):
        step(*ours.next_batch()[:2])
    return timed(lambda batch: step(*batch[:2]), (ours.next_batch() for _ in range(steps)))


def measure(segments: int, batch: int, data, source: str, args: argparse.Namespace) -> dict:
    """One row. A round: an epoch of ours, then what is timed: a tenth of `steps`, a change of task and context, and
    `steps` of ours (the first hundred move more rows than later ones: the window is a whole task, as in the
    experiment); then `slow_steps` of ours with dense gradients and of the baseline with either Adam, each with an
    optimizer of its own.
    """
    tasks, steps, slow_steps = PermutedMNIST(data, 2), args.steps, args.slow_steps
    ours, agreements, times = Ours(segments, tasks, batch, device=args.device), [], defaultdict(list)
    changes, early = [], []
    for turn in range(args.rounds):
        title = f"S = {segments}, round {turn + 1}"
        ours.epoch(partial(track, description=f"{title}: an epoch of ours first", console=console))
        touched = ours.touched_rows()
        times["ours"] += timed(ours.step, (ours.next_batch() for _ in range(steps // 10)))
        ours.start_task(1 - turn % 2)  # its own time is not a step's
        after = timed(ours.step, (ours.next_batch() for _ in track(range(steps), f"{title}: ours", console=console)))
        times["ours"] += after
        if args.device == "cuda":
            times["ours_graph"] += graphed_steps(ours, steps // 2)
        changes.append(after[0])
        early += after[1:100]
        plain = PlainNetwork(ours.model)
        agreements.append(check_agreement(ours.model, plain, ours.next_batch()))
        dense = Ours(segments, tasks, batch, dense=True, device=args.device)
        dense.step(dense.next_batch())  # a new Adam allocates at its first step
        times["ours_dense"] += timed(dense.step, [ours.next_batch() for _ in range(slow_steps)])
        agreements.append(check_agreement(dense.model, PlainNetwork(dense.model), ours.next_batch()))
        del dense
        for name, fused, model in rivals(plain, args.device):
            optimizer = torch.optim.Adam(plain.parameters(), lr=LR, fused=fused)
            for _ in range(1 if model is plain else 6):  # the first compile
                plain_step(plain, optimizer, ours.next_batch(), model)
            work = [ours.next_batch() for _ in track(range(slow_steps), f"  {name}", console=console, transient=True)]
            times[name] += timed(partial(plain_step, plain, optimizer, model=model), work)
            del optimizer
    ms = {name: median_ms(values) for name, values in times.items()}
    ratios = {}
    if "ours_graph" in ms:
        ratios["speedup_graph"] = round(ms["baseline"] / ms["ours_graph"], 2)
        ratios["speedup_graph_over_compiled"] = round(ms["baseline_compiled"] / ms["ours_graph"], 2)
    return {
        "S": segments,
        "B": batch,
        "device": args.device,
        "backend": backend.choose(torch.device(args.device)).__name__.split(".")[-1],
        "data": source,
        **{f"{name}_ms": value for name, value in ms.items()},
        "ours_mean_ms": round(mean(times["ours"]), 3),
        "ours_first_step_of_a_task_ms": median_ms(changes),
        "ours_next_99_steps_ms": median_ms(early or changes),
        "speedup": round(ms["baseline"] / ms["ours"], 2),
        "speedup_over_fused_adam": round(ms["baseline_fused_adam"] / ms["ours"], 2),
        "speedup_dense_over_fused_adam": round(ms["baseline_fused_adam"] / ms["ours_dense"], 2),
        **ratios,
        "largest_disagreement": max(agreements),
        "touched_rows": touched,
        "steps": {name: len(values) for name, values in times.items()},
        "threads": torch.get_num_threads(),
    }


SIDES = ("ours", "ours_dense", "baseline")


def peak_memory(side: str, segments: int, batch: int, folder: Path | None) -> float:
    """Peak resident MiB of a process of its own that makes three steps of one side and evaluates on a test batch."""
    command = [sys.executable, __file__, "--memory-of", side, "--segments", str(segments), "--batch", str(batch)]
    command += ["--data", str(folder)] if folder else []
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def three_steps(side: str, segments: int, batch: int, folder: Path | None) -> float:
    data, _ = load_data(folder)
    tasks = PermutedMNIST(data, 1)
    ours = Ours(segments, tasks, batch, dense=side == "ours_dense")
    work = [ours.next_batch() for _ in range(3)]
    x = tasks.test(0)[0][:512].clone()
    ours.x = ours.labels = data = tasks = None  # either side holds just its batches
    if side == "baseline":
        plain, context = PlainNetwork(ours.model), ours.context
        del ours
        optimizer = torch.optim.Adam(plain.parameters(), lr=LR)
        timed(partial(plain_step, plain, optimizer), work)
        with torch.no_grad():
            plain.eval()(x, context.expand(len(x), -1).contiguous())
    else:
        timed(ours.step, work)
        with torch.no_grad():
            ours.model.eval()(x, ours.context)
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
        f"S = {row['S']}, B = {row['B']}: ours {row['ours_ms']:.1f} ms a step (mean {row['ours_mean_ms']:.1f}, the "
        f"first of a task {row['ours_first_step_of_a_task_ms']:.0f}, the next 99 {row['ours_next_99_steps_ms']:.1f}); "
        f"baseline {row['baseline_ms']:.0f} ms ({row['speedup']:.0f}x), with fused Adam "
        f"{row['baseline_fused_adam_ms']:.0f} ms "
        f"({row['speedup_over_fused_adam']:.0f}x). Ours with dense gradients and torch's fused Adam: "
        f"{row['ours_dense_ms']:.1f} ms ({row['speedup_dense_over_fused_adam']:.1f}x). Gradients agree to "
        f"{row['largest_disagreement']:.1g}; {row['data']} data, {row['threads']} threads"
        + ("; peak memory " + ", ".join(f"{side} {mib} MiB" for side, mib in memory.items()) if memory else "")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--segments", type=int, nargs="+", default=[10, 100], help="segments a unit (default: 10 100)")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--data", type=Path, help="folder of the MNIST files (default: $DENDRITE_DATA/mnist)")
    parser.add_argument("--steps", type=int, default=702, help="our steps a round (default: 702, a whole task)")
    parser.add_argument("--slow-steps", type=int, default=3, help="steps a round of each slow side (default: 3)")
    parser.add_argument("--rounds", type=int, default=2, help="rounds, each of ours and then the others (default: 2)")
    parser.add_argument(
        "--no-memory", action="store_true", help="leave out peak memory, measured in processes of its own"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", action="store_true", help="print JSON lines rather than sentences")
    parser.add_argument("--memory-of", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    numbers = [*args.segments, args.batch, args.steps, args.slow_steps, args.rounds]
    if any(number < 1 for number in numbers):
        parser.error("segments, batch, steps and rounds must be 1 or more")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no CUDA GPU here")
    if args.memory_of:
        print(three_steps(args.memory_of, args.segments[0], args.batch, args.data))
        return
    data, source = load_data(args.data)
    for segments in args.segments:
        row = measure(segments, args.batch, data, source, args)
        if not args.no_memory and args.device == "cpu":
            row["peak_memory_mib"] = {side: round(peak_memory(side, segments, args.batch, args.data)) for side in SIDES}
        print(json.dumps({**row, **provenance()}) if args.json else describe(row), flush=True)


if __name__ == "__main__":
    main()
