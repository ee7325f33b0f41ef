"""bench/: each race runs, and one whose sides disagree reports no speed."""

import argparse
import subprocess
import sys
from pathlib import Path

import components
import pytest
import step
import torch
import workload
from dendrite_lab.data import MNIST

from dendrite_kernels.backends import cpu

ROOT = Path(__file__).parents[1]
BATCH = 64

pytestmark = pytest.mark.skipif(cpu._cpu is None, reason="the native module, whose kernels are timed, is not built")


@pytest.fixture(scope="module")
def images():
    """Enough for two steps a task."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2 * BATCH, 784), generator=generator, dtype=torch.uint8)
    pixels[torch.rand(pixels.shape, generator=generator) < 0.8] = 0
    labels = torch.randint(0, 10, (len(pixels),), generator=generator)
    return MNIST(pixels, labels, pixels, labels)


@pytest.fixture
def arguments():
    return argparse.Namespace(steps=10, slow_steps=1, rounds=1, device="cpu", environment="default")


def test_the_table_of_kernels_has_each_call_of_a_step(images):
    row = components.measure(2, BATCH, images, steps=2)
    calls = [c["name"] for c in row["components"]]
    named = {work.__name__ for work in components.LAUNCHERS.values()}
    assert len(set(calls)) == len(named), "a launcher in the table is no longer called"
    assert calls.count("segment gate") == calls.count("gate, k winners") == calls.count("Adam of segments") == 2
    assert calls.count("Adam of weights") == 3
    assert all(c["ms"] > 0 and c["floor_ms"] > 0 for c in row["components"])
    outside = row["outside_kernels_ms"]
    assert outside > 0, "kernels were timed as longer than the step that they are part of"
    assert f"| a step | | {row['step_ms']:.2f} |" in components.table(row)


def test_a_watched_launcher_is_put_back():
    before = [getattr(owner, name) for owner, name in components.LAUNCHERS]
    with pytest.raises(KeyError), components.watched([]):
        raise KeyError
    assert before == [getattr(owner, name) for owner, name in components.LAUNCHERS]


def test_a_step_is_raced_against_every_rival(images, arguments, monkeypatch):
    eager = {name: (rewritten, fused, False) for name, (rewritten, fused, _) in step.RIVALS.items()}
    monkeypatch.setattr(step, "RIVALS", eager)  # compiled code is the slow test's
    row = step.measure(2, BATCH, images, "generated", arguments)
    assert row["steps"] == {"ours": 11, "ours_dense": 1, **dict.fromkeys(eager, 1)}
    assert all(row[f"{name}_ms"] > 0 for name in row["steps"])
    assert row["speedup"] == pytest.approx(row["baseline_ms"] / row["ours_ms"], abs=0.01)
    best = min(row["rewritten_ms"], row["rewritten_compiled_ms"])
    assert row["speedup_over_rewritten"] == pytest.approx(best / row["ours_ms"], abs=0.01)
    assert 0 < row["largest_disagreement"] < workload.AGREEMENT_ON_AN_EDGE
    assert f"ours {row['ours_ms']:.1f} ms" in step.describe(row)


@pytest.mark.parametrize("where", ["step", "components"])
def test_sides_that_disagree_report_no_speed(where, images, arguments, monkeypatch):
    def other_network(model, *args):
        plain = workload.PlainNetwork(model, *args)
        with torch.no_grad():
            next(plain.parameters()).mul_(1.01)
        return plain

    for module in (step, components):
        monkeypatch.setattr(module, "PlainNetwork", other_network)
    with pytest.raises(AssertionError, match=r"relative distance .* from the baseline"):
        if where == "step":
            step.measure(2, BATCH, images, "generated", arguments)
        else:
            components.measure(2, BATCH, images, steps=1)


@pytest.mark.slow  # every race in full but for its repeats: about five minutes
def test_every_benchmark_runs():
    command = [sys.executable, "-m", "pytest", "bench", "--benchmark-disable", "-p", "no:cacheprovider"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-4000:]


@pytest.mark.slow
@pytest.mark.parametrize("script", [["step.py", "--segments", "2", "--rounds", "1"], ["components.py"]])
def test_the_scripts_run(script):
    """With compiled rivals and peak memory; on generated images where MNIST is not in reach."""
    small = ["--steps", "10"] + (["--slow-steps", "1"] if script[0] == "step.py" else [])
    command = [sys.executable, str(ROOT / "bench" / script[0]), *script[1:], *small]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    assert "peak memory" in run.stdout if script[0] == "step.py" else "| a step |" in run.stdout
