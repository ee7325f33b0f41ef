"""The rows of a run of `make bench`, one a benchmark, for bench/results and the documentation's performance page.

python bench/rows.py runs/bench.json > bench/results/ops_cpu.jsonl
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def rows(run: dict) -> list[dict]:
    """Of pytest-benchmark's JSON: what the benchmark said of itself, its median and when the run ended."""
    return [
        {
            "group": bench["group"],
            **bench["extra_info"],
            "median_ms": 1e3 * bench["stats"]["median"],
            "rounds": bench["stats"]["rounds"],
            "finished": run["datetime"],
        }
        for bench in run["benchmarks"]
        if "label" in bench["extra_info"]
    ]


if __name__ == "__main__":
    for row in rows(json.loads(Path(sys.argv[1]).read_text())):
        print(json.dumps(row))
