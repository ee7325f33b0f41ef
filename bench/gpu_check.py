"""All that has to be settled on a machine with a GPU, in one command: make gpu-check OUT=folder DATA=folder.

Uses the Python, torch and Triton that are there, and no network. The stages run in order of worth; each one's result is
a line in OUT/gpu_check.jsonl as soon as it is known (what a stage printed lies beside it), so that a check that is cut
short keeps what it has. What is absent is reported as not run. Exits with 1 where a stage failed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from gpu_targets import shortfalls

ROOT = Path(__file__).resolve().parent.parent
STEP = "bench/step.py --device cuda --json"
SHORT_LIST = (
    "'by_triton and (float32 and (test_segment_gate and shape0 or test_winners and 5-2 or test_adam_agrees)"
    " or one_launch and 16-1-False or k_sparse_product and 3-10)'"
)

LAB = ("rich", "numpy", "typer")  # what the experiments' data and configurations need

GPU_TESTS = "-m pytest -v --tb=short -m gpu tests/test_gpu.py --maxfail=30"
# The CUDA backend's kernels, a few of each.
CUDA_SHORT_LIST = (
    "'by_cuda and (test_winners and float32 and (5-2 or 257 or 8192) or test_special_rows and 301 and float32"
    " or test_outer and float32 and 3-70 or k_sparse_product and 3-10)'"
)
CUDA_TESTS = f"-m pytest tests/test_gpu.py -x -k {CUDA_SHORT_LIST}"
SANITIZED = ("pytest", "dendrite_kernels._cuda", "compute-sanitizer")

# name: (what must be there, the most seconds, the command)
STAGES = {
    "report": ((), 60, "-m dendrite_kernels"),
    "quick step": (LAB, 120, f"{STEP} --segments 10 --steps 60 --slow-steps 3 --rounds 1"),
    "tests on the GPU": (
        ("pytest",),
        240,
        f"{GPU_TESTS} -k by_triton",
    ),
    "compute-sanitizer": (
        ("pytest", "compute-sanitizer"),
        150,
        f"-m pytest tests/test_gpu.py -x -k {SHORT_LIST}",
    ),
    "step, S = 10": (LAB, 90, f"{STEP} --segments 10 --steps 300 --rounds 1"),
    "step, S = 100": (LAB, 150, f"{STEP} --segments 100 --steps 300 --rounds 1"),
    "prototype_10": (LAB, 60, "-m dendrite_lab.cli run prototype_10 --device cuda --out {out}"),
    "build": (("nvcc", "setuptools", "pybind11"), 150, "setup.py -q build_ext --inplace"),
    "CUDA's tests": (
        ("pytest", "dendrite_kernels._cuda"),
        150,
        f"{GPU_TESTS} -k by_cuda",
    ),
    "ops": (LAB, 150, "bench/ops_cuda.py"),
    "step, B = 1024": (LAB, 90, f"{STEP} --segments 10 --batch 1024 --steps 120 --rounds 1"),
    "memcheck, CUDA": (SANITIZED, 90, CUDA_TESTS),
    "racecheck, CUDA": (SANITIZED, 90, CUDA_TESTS),
    "synccheck, CUDA": (SANITIZED, 90, CUDA_TESTS),
    "prototype_100": (LAB, 240, "-m dendrite_lab.cli run prototype_100 --device cuda --out {out}"),
}


def missing(needs: tuple[str, ...]) -> str | None:
    for need in needs:
        found = shutil.which(need) if need in ("compute-sanitizer", "nvcc") else importable(need)
        if not found:
            return need
    return None


def importable(name: str) -> bool:
    return subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True, cwd=ROOT).returncode == 0


def run_stage(name: str, limit: float, out: Path, environment: dict) -> dict:
    needs, seconds, words = STAGES[name]
    absent = missing(needs)
    if absent:
        return {"stage": name, "result": "not run", "why": f"{absent} is not there"}
    if limit < 5:
        return {"stage": name, "result": "not run", "why": "no time left"}
    command = [sys.executable, *(word.format(out=out) for word in shlex.split(words))]
    if "compute-sanitizer" in needs:
        tool = name.split(",")[0] if name.endswith(", CUDA") else "memcheck"
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "3", *command]
        # memcheck sees no overrun within a block that torch's allocator has cut up
        environment = {**environment, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    begin, log = time.perf_counter(), out / (re.sub(r"[^\w ]", "", name).replace(" ", "_") + ".txt")
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(timeout=min(seconds, limit))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # compute-sanitizer's child too: the next stage needs the GPU
            process.wait()
            code = None
    text = log.read_text(errors="replace").splitlines()
    row = {"stage": name, "result": {0: "passed", None: "cut short"}.get(code, "failed"), "code": code}
    row["seconds"] = round(time.perf_counter() - begin, 1)
    results = out / "results.jsonl"  # of an experiment, whose command prints sentences
    if "dendrite_lab" in words and results.exists():
        text += results.read_text().splitlines()[-1:]
    row["rows"] = [found for line in text if (found := parsed(line)) is not None]
    row["end"] = text[-12:]
    return row


def parsed(line: str) -> dict | None:
    try:
        return json.loads(line) if line.startswith("{") else None
    except ValueError:  # cut short, or no row
        return None


def device() -> dict:
    if not torch.cuda.is_available():
        return {"device": None}
    properties = torch.cuda.get_device_properties(0)
    return {"device": properties.name, "memory_gib": round(properties.total_memory / 2**30, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--data", type=Path, help="folder that holds mnist/ (default: $DENDRITE_DATA)")
    parser.add_argument("--minutes", type=float, default=9, help="most time in all (default: 9)")
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES), metavar="STAGE")
    parser.add_argument("--list", action="store_true", help="name the stages and what they run")
    args = parser.parse_args()
    if args.list:
        for name, (_, seconds, words) in STAGES.items():
            print(f"{name} (at most {seconds} s): python {words}")
        return
    if not torch.cuda.is_available():
        parser.error("no CUDA GPU here; nothing was checked")
    args.out.mkdir(parents=True, exist_ok=True)
    # no network: where MNIST is not in the folder, data of its statistics is made at once
    offline = {"PIP_NO_INDEX": "1", "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    environment = {**os.environ, **offline, "PYTHONPATH": f"{ROOT}:{ROOT / 'python'}", "DENDRITE_CUDA": "1"}
    environment["DENDRITE_CUDA_ARCHS"] = "{}{}".format(*torch.cuda.get_device_capability())
    if args.data:
        environment["DENDRITE_DATA"] = str(args.data.resolve())
    end, failed, done = time.perf_counter() + 60 * args.minutes, [], []
    with (args.out / "gpu_check.jsonl").open("w") as file:
        for name in args.stages:
            row = {**run_stage(name, end - time.perf_counter(), args.out, environment), **device()}
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(f"{name}: {row['result']} {row.get('why', '')} {row.get('seconds', '')}", flush=True)
            failed += [name] if row["result"] in ("failed", "cut short") else []
            done.append(row)
    for sentence in shortfalls(done):
        print(sentence)
    print("all passed" if not failed else f"fell short: {', '.join(failed)}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
