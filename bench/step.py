"""Times whole training steps of ours and of its rivals in turn, on the same data, and checks that they agree.

Ours is a loop of model, loss.backward() and dendrite_kernels.optim.Adam; and the same with torch's fused Adam. The
rivals (baselines.py) are the network as the sources run it and as one would rewrite it in plain PyTorch, compiled too.
Prints a sentence for each number of segments. Times are medians in milliseconds on whatever this machine is. torch's
large tensors get fresh pages at each step unless MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 is set; MKL
takes AVX-512 on Intel's processors alone, unless a function `int mkl_serv_intel_cpu_true(void) { return 1; }` is
preloaded. README.md has rows of both (bench/plot.py).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
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
from torch import Tensor
from workload import LR, Ours, check_agreement, load_data, median_ms, timed

from dendrite_kernels import backend

console = Console(stderr=True)


# name: (rewritten in plain PyTorch or as the sources run it, fused Adam, compiled)
RIVALS = {
    "baseline": (False, False, False),
    "baseline_fused_adam": (False, True, False),
    "rewritten": (True, True, False),
    "rewritten_compiled": (True, True, True),
}
ON_A_GPU = {"baseline_compiled": (False, True, True)}
COMPILED_FIRST = 6  # steps of compiled code that are not timed


def plain_step(plain: PlainNetwork, optimizer, batch, model=None) -> None:
    """A step of a rival; model: it, or it compiled."""
    plain.train_step(optimizer, *batch, forward=model)


def times_of_rival(name: str, ours: Ours, steps: int) -> tuple[dict[str, list[float]], float]:
    """Times of a rival that starts where ours is, with a new Adam, by name; and how far its gradients are from ours."""
    rewritten, fused, compiled = {**RIVALS, **ON_A_GPU}[name]
    on_gpu, plain = ours.device == "cuda", PlainNetwork(ours.model, rewritten)
    model = plain
    if compiled:  # graphs only for the one that never looks at a device value
        model = torch.compile(plain, mode="reduce-overhead" if on_gpu and rewritten else None)
    agreement = check_agreement(ours.model, model, ours.next_batch())
    options = {"fused": True, "capturable": on_gpu} if fused else {}
    optimizer = torch.optim.Adam(plain.parameters(), lr=LR, **options)
    step = partial(plain_step, plain, optimizer, model=model)
    for _ in range(COMPILED_FIRST if compiled else 1):
        step(ours.next_batch())
    work = [ours.next_batch() for _ in track(range(steps), f"  {name}", console=console, transient=True)]
    out = {name: timed(step, work)}
    if on_gpu and name == "rewritten":
        context = ours.context
        out["rewritten_graph"] = graphed_steps(
            lambda x, labels: plain.train_step(optimizer, x, labels, context), ours, 10 * steps
        )
    return out, agreement


def graphed_steps(step: Callable[[Tensor, Tensor], Tensor], ours: Ours, steps: int) -> list[float]:
    """Times of step(x, labels) as a CUDA graph's replay, as dendrite_lab runs ours."""
    graphed = GraphedStep(step)
    for _ in range(WARM_UP + 1):
        graphed(*ours.next_batch()[:2])
    return timed(lambda batch: graphed(*batch[:2]), (ours.next_batch() for _ in range(steps)))


def times_of_dense(ours: Ours, tasks: PermutedMNIST, steps: int) -> tuple[list[float], float]:
    """Times of ours with dense gradients and torch's fused Adam, from where ours is; and how far its gradients are."""
    dense = Ours(ours.segments, tasks, ours.batch, dense=True, device=ours.device)
    dense.model.load_state_dict(ours.model.state_dict())
    agreement = check_agreement(dense.model, PlainNetwork(dense.model), ours.next_batch())
    dense.step(ours.next_batch())  # a new Adam allocates at its first step
    return timed(dense.step, [ours.next_batch() for _ in range(steps)]), agreement


def measure(segments: int, batch: int, data, source: str, args: argparse.Namespace) -> dict:
    """One row. A round: an epoch of ours, then what is timed: a tenth of `steps`, a change of task and context, and
    `steps` of ours (the first hundred move more rows than later ones: the window is a whole task, as in the
    experiment); then `slow_steps` of ours with dense gradients and of each rival, all from where ours has come to.
    """
    tasks, steps, slow_steps = PermutedMNIST(data, 2), args.steps, args.slow_steps
    ours, agreements, times = Ours(segments, tasks, batch, device=args.device), [], defaultdict(list)
    changes, early = [], []
    for turn in range(args.rounds):
        title = f"S = {segments}, round {turn + 1}"
        ours.epoch(partial(track, description=f"{title}: an epoch of ours first", console=console))
        agreements.append(check_agreement(ours.model, PlainNetwork(ours.model), ours.next_batch()))
        touched = ours.touched_rows()
        times["ours"] += timed(ours.step, (ours.next_batch() for _ in range(steps // 10)))
        ours.start_task(1 - turn % 2)  # its own time is not a step's
        after = timed(ours.step, (ours.next_batch() for _ in track(range(steps), f"{title}: ours", console=console)))
        times["ours"] += after
        changes.append(after[0])
        early += after[1:100]
        if args.device == "cuda":
            context = ours.context
            mine = partial(train_step, ours.model, ours.optimizer)
            times["ours_graph"] += graphed_steps(lambda x, labels: mine(x, labels, context), ours, steps // 2)  # noqa: B023
        found, agreement = times_of_dense(ours, tasks, slow_steps)
        times["ours_dense"] += found
        agreements.append(agreement)
        for name in (*RIVALS, *(ON_A_GPU if args.device == "cuda" else ())):
            some, agreement = times_of_rival(name, ours, slow_steps)
            agreements.append(agreement)
            for key, found in some.items():
                times[key] += found
    ms = {name: median_ms(values) for name, values in times.items()}
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
        **{name: round(ratio, 2) for name, ratio in ratios(ms).items()},
        "largest_disagreement": max(agreements),
        "touched_rows": touched,
        "steps": {name: len(values) for name, values in times.items()},
        "threads": torch.get_num_threads(),
        "environment": args.environment,
    }


def ratios(ms: dict[str, float]) -> dict[str, float]:
    """What a step's speed is judged by: times of the sources' way, and of the quickest rewritten one, over ours."""
    best = min(value for name, value in ms.items() if name.startswith("rewritten"))
    out = {
        "speedup": ms["baseline"] / ms["ours"],
        "speedup_over_fused_adam": ms["baseline_fused_adam"] / ms["ours"],
        "speedup_over_rewritten": best / ms["ours"],
        "speedup_dense_over_rewritten": best / ms["ours_dense"],
    }
    if "ours_graph" in ms:
        out["speedup_graph"] = ms["baseline"] / ms["ours_graph"]
        out["speedup_graph_over_compiled"] = ms["baseline_compiled"] / ms["ours_graph"]
        out["speedup_graph_over_rewritten"] = best / ms["ours_graph"]
    return out


SIDES = ("ours", "ours_dense", "baseline", "rewritten")


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
    if side in RIVALS:
        rewritten, fused, _ = RIVALS[side]
        plain, context = PlainNetwork(ours.model, rewritten), ours.context
        del ours
        optimizer = torch.optim.Adam(plain.parameters(), lr=LR, fused=fused)
        timed(partial(plain_step, plain, optimizer), work)
        with torch.no_grad():
            plain.eval()(x, plain.rows_of(context, len(x)))
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
        f"rewritten in plain PyTorch {row['rewritten_ms']:.0f} ms, compiled {row['rewritten_compiled_ms']:.0f} ms "
        f"({row['speedup_over_rewritten']:.1f}x the quicker one's speed); as the sources run it "
        f"{row['baseline_ms']:.0f} ms ({row['speedup']:.0f}x), with fused Adam {row['baseline_fused_adam_ms']:.0f} ms "
        f"({row['speedup_over_fused_adam']:.0f}x). Ours with dense gradients and torch's fused Adam: "
        f"{row['ours_dense_ms']:.1f} ms ({row['speedup_dense_over_rewritten']:.1f}x the rewritten one's). Gradients "
        f"agree to {row['largest_disagreement']:.1g}; {row['data']} data, {row['threads']} threads"
        + ("; peak memory " + ", ".join(f"{side} {mib} MiB" for side, mib in memory.items()) if memory else "")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--segments", type=int, nargs="+", default=[10, 100], help="segments a unit (default: 10 100)")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--data", type=Path, help="folder of the MNIST files (default: $DENDRITE_DATA/mnist)")
    parser.add_argument("--steps", type=int, default=702, help="our steps a round (default: 702, a whole task)")
    parser.add_argument("--slow-steps", type=int, default=5, help="steps a round of each slow side (default: 5)")
    parser.add_argument("--rounds", type=int, default=2, help="rounds, each of ours and then the others (default: 2)")
    parser.add_argument(
        "--no-memory", action="store_true", help="leave out peak memory, measured in processes of its own"
    )
    parser.add_argument(
        "--environment", default="default", metavar="WORDS", help="what is unlike a plain shell, as the row will say"
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
