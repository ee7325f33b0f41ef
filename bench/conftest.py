"""The harness of `pytest bench/`: every benchmark checks its output first, and rivals of one group share a run.

A benchmark calls `race(label, function, check, ...)`: `check(output)` must pass or the benchmark fails and reports no
speed; `inputs()` makes the arguments of each round, untimed. After the tests, each group is printed with every rival's
time over ours and, where bytes are given, the share of the memory bandwidth that was measured in the same run.
"""

import time
from statistics import median

import pytest
import torch
from dendrite_lab.results import commit

from dendrite_kernels.__main__ import versions

OURS = "ours"


@pytest.fixture(scope="session")
def bandwidth():
    """Bytes a second of reading memory that no cache holds, the roof of the ops that read all segments."""
    block = torch.ones(64 << 20)
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        block.sum()
        times.append(time.perf_counter() - begin)
    return block.numel() * 4 / median(times)


@pytest.fixture
def race(benchmark, bandwidth):
    def run(label, function, check, *, shape, dtype=torch.float32, inputs=tuple, bytes_=0, rounds=15, warmup=2):
        check(function(*inputs()))
        benchmark.extra_info.update(
            label=label,
            shape=shape,
            dtype=str(dtype).removeprefix("torch."),
            device="cpu",
            threads=torch.get_num_threads(),
            versions=versions(),
            commit=commit(),
            bytes=bytes_,
            bandwidth=bandwidth,
        )
        benchmark.pedantic(function, setup=lambda: (inputs(), {}), rounds=rounds, warmup_rounds=warmup, iterations=1)

    return run


def pytest_terminal_summary(terminalreporter, config):
    session = getattr(config, "_benchmarksession", None)
    groups = {}
    for bench in getattr(session, "benchmarks", []):
        if "label" in bench.extra_info and not bench.has_error:
            groups.setdefault(bench.group, []).append(bench)
    if not groups:
        return
    write = terminalreporter.write_line
    terminalreporter.section("ours against the others, medians of one run")
    for name, group in groups.items():
        medians = {b.extra_info["label"]: 1e3 * b.stats.median for b in group}
        ours = medians.get(OURS)
        write(f"{name}  ({group[0].extra_info['shape']}, {group[0].extra_info['threads']} threads)")
        for bench in sorted(group, key=lambda b: b.stats.median):
            label, ms = bench.extra_info["label"], 1e3 * bench.stats.median
            ratio = "" if ours is None or label == OURS else f"{ms / ours:8.2f} x ours"
            if ours is not None and ms < ours:
                ratio += "   (faster than ours)"
            share = bench.extra_info["bytes"] / (ms / 1e3) / bench.extra_info["bandwidth"]
            roof = f"{100 * share:6.0f} % of memory bandwidth" if bench.extra_info["bytes"] else ""
            write(f"  {label:34} {ms:10.3f} ms {ratio}{roof}")
