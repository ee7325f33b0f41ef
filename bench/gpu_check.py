"""All that has to be settled on a machine with a GPU, in one command: make gpu-check OUT=folder DATA=folder.

Uses the Python, torch and Triton that are there, and no network. The stages run in order of worth; each one's result is
a line in OUT/gpu_check.jsonl as soon as it is known (what a stage printed lies beside it), so that a check that is cut
short keeps what it has. What is absent is reported as not run. Exits with 1 where a stage failed, or could not run
because the build had failed or the time was over.
"""

from __future__ import annotations

import argparse
import functools
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

import cuda_report
import torch
from gpu_targets import shortfalls

ROOT = Path(__file__).resolve().parent.parent
SOURCES = f"{ROOT}:{ROOT / 'python'}"
STEP = "bench/step.py --device cuda --json"
SHORT_LIST = (
    "'by_triton and (float32 and (test_segment_gate and shape0 or test_winners and 5-2 or test_adam_agrees)"
    " or one_launch and 16-1-False or k_sparse_product and 3-10)'"
)

# what the experiments' data and configurations need, and their command
DATA = ("numpy", "scipy", "filelock")
STEPS = (*DATA, "rich")
LAB = (*STEPS, "typer")
MNIST = "MNIST in --data"

GPU_TESTS = "-m pytest -v --tb=short -m gpu tests/test_gpu.py --maxfail=30"
# Of each of the CUDA backend's kernels, of each way it reads its rows, and of halves.
SANITIZED_IDS = (
    "winners[by_cuda-5-2-torch.float32]",
    "winners[by_cuda-100-5-torch.float16]",
    "winners[by_cuda-257-128-torch.float32]",
    "winners[by_cuda-2048-102-torch.float32]",
    "winners[by_cuda-4096-1000-torch.float32]",
    "winners[by_cuda-8192-400-torch.float32]",
    "winners[by_cuda-65536-3277-torch.float32]",
    "winners[by_cuda-65536-3277-torch.bfloat16]",
    "special_rows[by_cuda-301-torch.float32]",
    "product[by_cuda-3-70-9-by_input-torch.float32]",
    "product[by_cuda-3-70-9-by_unit-torch.float32]",
    "product[by_cuda-3-70-9-by_unit-torch.bfloat16]",
    "outer_products_of_sparse_rows[by_cuda-3-70-9-torch.float32]",
    "outer_products_of_sparse_rows[by_cuda-3-70-9-torch.float16]",
    "adam_agrees_with_torch[by_cuda-0.5-torch.float32]",
    "gradients_of_a_k_sparse_product[by_cuda-3-10]",
)
CUDA_TESTS = "-m pytest -x " + shlex.join(f"tests/test_gpu.py::test_{name}" for name in SANITIZED_IDS)
BUILD = "setup.py -q build_ext -j 2 --inplace && -c 'import dendrite_kernels._cuda'"  # it exits 0 without the module
CUDA_MODULE, SANITIZER = "dendrite_kernels._cuda", "compute-sanitizer"
SANITIZED = ("pytest", CUDA_MODULE, SANITIZER)
NO_TIME = "no time left"
FINDS_MNIST = "from dendrite_lab.data import default_folder, mnist_is_in; assert mnist_is_in(default_folder())"

# name: (what must be there, the most seconds, what Python is to run)
STAGES = {
    "report": ((), 60, "-m dendrite_kernels"),
    "quick step": (STEPS, 150, f"{STEP} --segments 10 --steps 60 --slow-steps 3 --rounds 1"),
    "build": (("nvcc", "setuptools", "pybind11"), 150, BUILD),
    "CUDA's tests": (("pytest", CUDA_MODULE), 150, f"{GPU_TESTS} -k by_cuda"),
    "tests on the GPU": (("pytest",), 240, f"{GPU_TESTS} -k by_triton"),
    "step, S = 10": (STEPS, 150, f"{STEP} --segments 10 --steps 300 --rounds 1"),
    "memcheck, CUDA": (SANITIZED, 150, CUDA_TESTS),
    "racecheck, CUDA": (SANITIZED, 150, CUDA_TESTS),
    "compute-sanitizer": (("pytest", SANITIZER), 150, f"-m pytest tests/test_gpu.py -x -k {SHORT_LIST}"),
    "step, S = 100": (STEPS, 210, f"{STEP} --segments 100 --steps 300 --rounds 1"),
    "ops": (DATA, 150, "bench/ops_cuda.py"),
    "prototype_10": ((*LAB, MNIST), 60, "-m dendrite_lab.cli run prototype_10 --device cuda --out {out}"),
    "step, B = 1024": (STEPS, 150, f"{STEP} --segments 10 --batch 1024 --steps 120 --rounds 1"),
    "synccheck, CUDA": (SANITIZED, 150, CUDA_TESTS),
    "prototype_100": ((*LAB, MNIST), 240, "-m dendrite_lab.cli run prototype_100 --device cuda --out {out}"),
}


def missing(needs: tuple[str, ...], environment: dict) -> str | None:
    """Why a stage with these needs can't run in the environment, or None."""
    for need in needs:
        if not there(need, environment):
            return f"{need} is not there"
    return f"{SANITIZER} refuses this device" if SANITIZER in needs and sanitizer_refuses() else None


@functools.cache
def sanitizer_refuses() -> bool:
    """Whether it says so of a program that touches the device (of some virtual machines' it does)."""
    program = [sys.executable, "-c", "import torch; torch.ones(1, device='cuda').cpu()"]
    try:
        done = subprocess.run([SANITIZER, *program], capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return False  # the stage itself will tell
    return "Device not supported" in done.stdout + done.stderr


def there(need: str, environment: dict) -> bool:
    """Whether a program, a Python module or the images can be found."""
    if need in ("nvcc", SANITIZER):
        return bool(cuda_report.nvcc.path() if need == "nvcc" else shutil.which(need))
    program = FINDS_MNIST if need == MNIST else f"import {need}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, cwd=ROOT, env=environment)
    return done.returncode == 0


def commands(name: str, out: Path) -> str:
    """The stage's commands for the shell: each is this Python's, under a tool of compute-sanitizer if needed."""
    needs, _, words = STAGES[name]
    start = [sys.executable]
    if SANITIZER in needs:
        tool = name.split(",")[0] if name.endswith(", CUDA") else "memcheck"
        # torch asks for contexts that are not there yet, which is no fault
        options = ["--report-api-errors", "no"] if tool == "memcheck" else []
        start = [SANITIZER, "--tool", tool, *options, "--error-exitcode", "3", *start]
    parts = words.format(out=shlex.quote(str(out))).split(" && ")
    return " && ".join(f"{shlex.join(start)} {part}" for part in parts)


def run_stage(name: str, limit: float, out: Path, environment: dict) -> dict:
    needs, seconds, words = STAGES[name]
    why = NO_TIME if limit < 5 else missing(needs, environment)
    if why:
        return {"stage": name, "result": "not run", "why": why}
    if SANITIZER in needs:
        # memcheck sees no overrun within a block that torch's allocator has cut up
        environment = {**environment, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    begin, log = time.perf_counter(), out / (re.sub(r"[^\w ]", "", name).replace(" ", "_") + ".txt")
    with log.open("w") as file:
        process = subprocess.Popen(
            ["sh", "-c", commands(name, out)], cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(timeout=min(seconds, limit))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # compute-sanitizer's child too: the next stage needs the GPU
            process.wait()
            code = None
    text = log.read_text(errors="replace").splitlines()
    row = {"stage": name, "result": result_of(code, text, words), "code": code}
    row["seconds"] = round(time.perf_counter() - begin, 1)
    results = out / "results.jsonl"  # of an experiment, whose command prints sentences
    if "dendrite_lab" in words and results.exists():
        text += results.read_text().splitlines()[-1:]
    row["rows"] = [found for line in text if (found := parsed(line)) is not None]
    row["end"] = text[-12:]
    return row


def result_of(code: int | None, text: list[str], words: str) -> str:
    """Tests that were all skipped have not passed, whatever pytest exits with."""
    nothing_ran = "-m pytest" in words and not any(re.search(r"\b[1-9]\d* passed", line) for line in text)
    return "cut short" if code is None else "failed" if code or nothing_ran else "passed"


def verdict(rows: list[dict]) -> tuple[list[str], bool]:
    """Sentences, and whether every stage passed, or lacked what this machine hasn't got."""
    results = {row["stage"]: row["result"] for row in rows}
    short = [name for name, result in results.items() if result in ("failed", "cut short")]
    said = []
    for name, why in ((row["stage"], row["why"]) for row in rows if row["result"] == "not run"):
        said.append(f"not run: {name} ({why})")
        # without nvcc there is no module to be missed
        if why == NO_TIME or (CUDA_MODULE in why and results.get("build") != "not run"):
            short.append(name)
    nothing = "passed" not in results.values()
    if short or nothing:
        return [*said, f"fell short: {', '.join(short) or 'nothing was checked'}"], False
    return [*said, "passed, but for what was not run" if said else "all passed"], True


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
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder of the results")
    parser.add_argument("--data", type=Path, help="folder that holds mnist/ (default: $DENDRITE_DATA, or .data)")
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
    args.out = args.out.resolve()  # stages run in the repository
    args.out.mkdir(parents=True, exist_ok=True)
    # no network: where MNIST is not in the folder, step.py makes data of its statistics at once
    offline = {"PIP_NO_INDEX": "1", "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    environment = {**os.environ, **offline, "PYTHONPATH": SOURCES, "DENDRITE_CUDA": "1"}
    environment["DENDRITE_CUDA_ARCHS"] = "{}{}".format(*torch.cuda.get_device_capability())
    environment["DENDRITE_DATA"] = str((args.data or Path(os.environ.get("DENDRITE_DATA", ROOT / ".data"))).resolve())
    end, done = time.perf_counter() + 60 * args.minutes, []
    with (args.out / "gpu_check.jsonl").open("w") as file:
        for name in args.stages:
            row = {**run_stage(name, end - time.perf_counter(), args.out, environment), **device()}
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(f"{name}: {row['result']} {row.get('why', '')} {row.get('seconds', '')}", flush=True)
            done.append(row)
    said, passed = verdict(done)
    for sentence in [*shortfalls(done), *said]:
        print(sentence)
    if left := [row["stage"] for row in done if row.get("why") == NO_TIME or row["result"] == "cut short"]:
        words = [sys.executable, sys.argv[0], "--out", f"{args.out}-rest", "--minutes", f"{args.minutes:g}"]
        words += ["--data", str(args.data)] if args.data else []
        print(f"the rest: {shlex.join([*words, '--stages', *left])}")
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
