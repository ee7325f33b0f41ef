"""gpu_check without a GPU: what it would run is there, and what did not run is never called passed."""

import os
import subprocess
import sys
from pathlib import Path

import gpu_check  # of bench/
import ops_cuda
import pytest
import torch
from dendrite_lab.data import FILES

ROOT = Path(__file__).resolve().parent.parent


def ran(**results):
    return [
        {"stage": stage, "result": "not run", "why": result[9:]}
        if result.startswith("not run: ")
        else {"stage": stage, "result": result}
        for stage, result in results.items()
    ]


def test_what_passed():
    assert gpu_check.verdict(ran(report="passed", build="passed")) == (["all passed"], True)


@pytest.mark.parametrize("result", ["failed", "cut short"])
def test_what_failed(result):
    assert gpu_check.verdict(ran(report="passed", ops=result)) == (["fell short: ops"], False)


NO_MODULE = "not run: dendrite_kernels._cuda is not there"


def test_a_build_that_fails_fails_what_needed_it():
    said, passed = gpu_check.verdict(ran(report="passed", build="failed", tests=NO_MODULE))
    assert not passed and said[-1] == "fell short: build, tests"
    assert said[0] == "not run: tests (dendrite_kernels._cuda is not there)"


def test_what_a_machine_lacks_is_no_failure_and_no_pass():
    rows = ran(report="passed", build="not run: nvcc is not there", tests=NO_MODULE)
    said, passed = gpu_check.verdict(rows)
    assert passed and said[-1] == "passed, but for what was not run"
    refused = "compute-sanitizer refuses this device"
    said, passed = gpu_check.verdict(ran(report="passed", memcheck=f"not run: {refused}"))
    assert passed and said[0] == f"not run: memcheck ({refused})"


def test_no_time_is_a_failure():
    said, passed = gpu_check.verdict(ran(report="passed", ops=f"not run: {gpu_check.NO_TIME}"))
    assert not passed and said[-1] == "fell short: ops"
    assert gpu_check.verdict(ran(ops="not run: rich is not there")) == (
        ["not run: ops (rich is not there)", "fell short: nothing was checked"],
        False,
    )


def test_skipped_tests_have_not_passed():
    assert gpu_check.result_of(0, ["40 skipped in 3.1s"], gpu_check.CUDA_TESTS) == "failed"
    assert gpu_check.result_of(0, ["15 passed in 3.1s"], gpu_check.CUDA_TESTS) == "passed"
    assert gpu_check.result_of(3, ["15 passed in 3.1s"], gpu_check.CUDA_TESTS) == "failed"
    assert gpu_check.result_of(None, [], gpu_check.BUILD) == "cut short"


def test_commands_of_the_shell(tmp_path):
    build = gpu_check.commands("build", tmp_path)
    assert build == (
        f"{sys.executable} setup.py -q build_ext -j 2 --inplace && {sys.executable} -c 'import dendrite_kernels._cuda'"
    )
    race = gpu_check.commands("racecheck, CUDA", tmp_path)
    assert race.startswith(f"compute-sanitizer --tool racecheck --error-exitcode 3 {sys.executable} -m pytest -x ")
    memory = gpu_check.commands("memcheck, CUDA", tmp_path)
    assert memory.startswith("compute-sanitizer --tool memcheck --report-api-errors no --error-exitcode 3 ")


def test_what_is_missing(monkeypatch, tmp_path):
    environment = {**os.environ, "PYTHONPATH": gpu_check.SOURCES, "DENDRITE_DATA": str(tmp_path)}
    images = tmp_path / "mnist"
    images.mkdir()
    monkeypatch.setattr(gpu_check.shutil, "which", lambda name: "/bin/" + name)
    monkeypatch.setattr(gpu_check, "sanitizer_refuses", lambda: True)
    assert gpu_check.missing(("pytest",), environment) is None
    assert gpu_check.missing(("pytest", "no_such_module"), environment) == "no_such_module is not there"
    assert gpu_check.missing(("pytest", "compute-sanitizer"), environment) == "compute-sanitizer refuses this device"
    assert gpu_check.missing((gpu_check.MNIST,), environment) == "MNIST in --data is not there"
    for name in FILES:
        (images / f"{name}.gz").touch()
    assert gpu_check.missing((gpu_check.MNIST,), environment) is None


def test_the_lab_needs_no_more_than_its_stages_say():
    """Else they would fail where they should not run."""
    program = "import sys; sys.modules.update(dict.fromkeys(sys.argv[1:])); import dendrite_lab.cli, dendrite_lab.train"
    others = ("matplotlib", "ray", "pytest")
    done = subprocess.run([sys.executable, "-c", program, *others], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in gpu_check.LAB:
        done = subprocess.run([sys.executable, "-c", program, name], capture_output=True, text=True)
        assert done.returncode != 0, name


def test_build_and_its_tests_have_time():
    names = list(gpu_check.STAGES)
    until = names[: names.index("CUDA's tests") + 1]
    assert sum(gpu_check.STAGES[name][1] for name in until) < 60 * 9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_the_race_of_winners_is_between_alike_results(dtype):
    """Of all that can run here; compiled code is left to the GPU."""
    _, rivals, check, _ = ops_cuda.kwinners("cpu", 40, 300, dtype)
    ran = [label for label in rivals if "compiled" not in label and "CUDA" not in label]
    assert len(ran) == 3
    for label in ran:
        check(rivals[label]())
    with pytest.raises(AssertionError):
        check(rivals["ours"]().roll(1, dims=1))


def test_every_test_to_be_sanitized_is_there():
    """pytest fails where an id names no test."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-o", "addopts="]
    command += [f"tests/test_gpu.py::test_{name}" for name in gpu_check.SANITIZED_IDS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert all(f"test_{name}" in done.stdout for name in gpu_check.SANITIZED_IDS)
