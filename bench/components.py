"""Where a training step's time goes: each kernel call beside its roof, and what no kernel takes.

The roof of a call is the larger of its sums at the rate of torch's largest matrix product and its bytes at the rate of
a copy too large for the caches, both measured in the same run: what the chip could do, were it always busy. A k-sparse
product loads a vector for each that it multiplies, which a matrix product with its tiles in registers need not.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import torch
from baselines import PlainNetwork
from dendrite_lab.permuted import PermutedMNIST
from dendrite_lab.results import provenance
from rich.console import Console
from rich.progress import track
from workload import Ours, check_agreement, load_data, timed

from dendrite_kernels.backends import cpu
from dendrite_kernels.backends.cpu import products
from dendrite_kernels.optim.moments import MOVING

console = Console(stderr=True)


def rate(work, amount: float, repeats: int = 7) -> float:
    """amount per second, at the best of the repeats."""
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - begin)
    return amount / best


def roofs() -> tuple[float, float]:
    """(flop/s of a large matrix product, bytes/s of a large copy), with as many threads as torch uses."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    out, source = torch.empty(2048, 2048), torch.zeros(1 << 26)
    target = torch.zeros_like(source)
    flops = rate(lambda: torch.mm(a, b, out=out), 2 * 2048**3)
    return flops, rate(lambda: target.copy_(source), 2 * source.numel() * source.element_size())


def size(*tensors) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


# What a call of each launcher has to do at least: (what it is called in the table, flop, bytes).


def _gate(out, context, segments, bias, select, activation, kept, fresh):
    read = segments if kept is None else kept
    return "segment gate", 2 * segments.numel() if kept is None else read.numel(), size(read, *out)


def _background_product(x, matrix, sums, few):
    common = x.flatten().mode().values
    others = int((x != common).sum())
    return "x W^T, mostly one number", 2 * others * matrix.shape[1], size(x, matrix) + 4 * len(x) * matrix.shape[1]


def _sparse_product(y, values, indices, matrix, bias):
    rows = indices.unique().numel()
    return "k-sparse x W^T", 2 * values.numel() * y.shape[1], 4 * rows * y.shape[1] + size(y, values, indices)


def _winners(y, *rest):
    return "gate, k winners", y.numel(), size(y, *rest[-3:])


def _winners_backward(grads, grad_values, values, indices, *_):
    return "gradients of gate and bias", 4 * values.numel(), size(*grads, grad_values, values, indices)


def _outer(values, indices, r, cols, weight, grad_weight, grad_values, keep_sums=False):
    rows = indices.unique().numel()
    products = (grad_values is not None) + (grad_weight is not None or keep_sums)
    read = 4 * rows * r.shape[1] * products
    return "dW and dx, k-sparse", 2 * products * values.numel() * r.shape[1], read + size(r, values, indices)


def _adam_outer(weight, sparse, other, sums, rule, m, v, start, bits, since, synapses):
    moving = since == MOVING
    entries = int(start.diff()[moving].sum())
    made = 0 if sums is not None else 2 * sparse.values.numel() * weight.shape[1]
    read = size(sums) if sums is not None else size(other)
    return "Adam of weights", made + 12 * entries, 16 * entries + 8 * int(moving.sum()) * weight.shape[1] + read


def _adam_segments(segments, grad, context, winner, rule, rows, since, count, rank1, m, v, keep, activations):
    moving = int((since[:count] == MOVING).sum())
    return "Adam of segments", 9 * moving * segments.shape[2], 8 * moving * segments.shape[2]


def _unit_lists(self, indices, units):
    return "lists of samples by unit", indices.numel(), 3 * size(indices)


LAUNCHERS = {
    (cpu, "_segment_gate"): _gate,
    (products, "mostly_constant_matmul"): _background_product,
    (products, "matmul"): _sparse_product,
    (cpu, "_kwinners"): _winners,
    (cpu, "_winners_backward"): _winners_backward,
    (products, "outer"): _outer,
    (cpu, "adam_outer"): _adam_outer,
    (cpu, "adam_segments"): _adam_segments,
    (products.UnitLists, "__init__"): _unit_lists,
}


@contextmanager
def watched(events: list):
    """Every launcher's call is noted as (what works out its work, seconds, arguments)."""

    inside = [0.0]  # seconds of the launchers that each one under way has called

    def watch(owner, name, work):
        launcher = getattr(owner, name)

        def timed(*args):
            inside.append(0.0)
            begin = time.perf_counter()
            out = launcher(*args)
            seconds = time.perf_counter() - begin
            events.append((work, seconds - inside.pop(), args))
            inside[-1] += seconds
            return out

        setattr(owner, name, timed)
        return owner, name, launcher

    places = [watch(*place, work) for place, work in LAUNCHERS.items()]
    try:
        yield
    finally:
        for owner, name, launcher in places:
            setattr(owner, name, launcher)


def measure(segments: int, batch: int, data, steps: int) -> dict:
    """Medians over `steps` steps of the second epoch, checked against the baseline; the work is the last one's."""
    ours = Ours(segments, PermutedMNIST(data, 1), batch)
    ours.epoch(lambda r: track(r, f"S = {segments}: an epoch first", console=console))
    times, wholes, plain = defaultdict(list), [], []
    for _ in track(range(steps), "measured", console=console):
        events = []
        with watched(events):
            wholes += timed(ours.step, [ours.next_batch()])
        for place, (_, seconds, _) in enumerate(events):
            times[place].append(seconds)
        plain += timed(ours.step, [ours.next_batch()])
    disagreement = check_agreement(ours.model, PlainNetwork(ours.model), ours.next_batch())
    flops, bandwidth = roofs()
    components = []
    for place, (work, _, args) in enumerate(events):
        name, flop, nbytes = work(*args)
        floor = 1e3 * max(flop / flops, nbytes / bandwidth)
        components.append(
            {"name": name, "ms": 1e3 * median(times[place]), "flop": flop, "bytes": nbytes, "floor_ms": floor}
        )
    return {
        "S": segments,
        "B": batch,
        "step_ms": median(plain),
        "outside_kernels_ms": median(wholes) - sum(c["ms"] for c in components),
        "floor_ms": sum(c["floor_ms"] for c in components),
        "gflops_roof": flops / 1e9,
        "gbytes_roof": bandwidth / 1e9,
        "threads": torch.get_num_threads(),
        "largest_disagreement": disagreement,
        "components": components,
    }


def table(row: dict) -> str:
    """In Markdown, calls of one name together."""
    together: dict[str, dict] = {}
    for c in row["components"]:
        mine = together.setdefault(c["name"], {"calls": 0, "ms": 0.0, "flop": 0, "bytes": 0, "floor_ms": 0.0})
        mine["calls"] += 1
        for key in ("ms", "flop", "bytes", "floor_ms"):
            mine[key] += c[key]
    lines = ["| kernel | calls | ms | MFLOP | MB | roof, ms |", "|---|---|---|---|---|---|"]
    for name, c in together.items():
        cells = (f"{c['ms']:.2f}", f"{c['flop'] / 1e6:.0f}", f"{c['bytes'] / 1e6:.1f}", f"{c['floor_ms']:.2f}")
        lines.append(f"| {name} | {c['calls']} | {' | '.join(cells)} |")
    lines.append(f"| Python, autograd, loss, biases | | {row['outside_kernels_ms']:.2f} | | | |")
    lines.append(f"| a step | | {row['step_ms']:.2f} | | | {row['floor_ms']:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segments", type=int, nargs="+", default=[10], help="segments a unit (default: 10)")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=100, help="steps that are measured (default: 100)")
    parser.add_argument("--data", type=Path, help="folder of the MNIST files (default: $DENDRITE_DATA/mnist)")
    parser.add_argument("--json", action="store_true", help="print JSON lines rather than tables")
    args = parser.parse_args()
    if any(number < 1 for number in (*args.segments, args.batch, args.steps)):
        parser.error("segments, batch and steps must be 1 or more")
    if cpu._cpu is None:
        parser.error("the native module is not built: there are no kernels to time")
    data, source = load_data(args.data)
    for segments in args.segments:
        row = {**measure(segments, args.batch, data, args.steps), "data": source}
        if args.json:
            print(json.dumps({**row, **provenance()}), flush=True)
        else:
            roofs_of = f"{row['gflops_roof']:.0f} GFLOP/s and {row['gbytes_roof']:.0f} GB/s"
            print(f"S = {segments}, B = {args.batch}, {row['threads']} threads; roofs {roofs_of}\n{table(row)}")


if __name__ == "__main__":
    main()
