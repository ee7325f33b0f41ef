"""The Triton backend's host side: when it runs, what it says where it can't, its settings, what it compiles to."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import dendrite_kernels as dk
from dendrite_kernels import backend
from dendrite_kernels.backends import triton
from dendrite_kernels.backends.triton import settings

ROOT = Path(__file__).resolve().parent.parent
CUDA = torch.device("cuda", 0)
installed = triton._no_triton() is None
needs_triton = pytest.mark.skipif(not installed, reason="Triton is not installed here")


def test_without_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    assert "Triton can't be imported" in triton.why_not(CUDA)
    with dk.use_backend("triton"), pytest.raises(dk.BackendUnavailable, match="pip install triton"):
        dk.kwinners(torch.zeros(1, 2), 1)


def test_an_old_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__="3.5.1"))
    assert triton.why_not(CUDA) == "Triton 3.6 or newer is needed; 3.5.1 is installed"


@needs_triton
def test_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert triton.why_not(CUDA) == "torch finds no CUDA GPU here"
    assert "not on xla" in triton.why_not(torch.device("xla"))


@needs_triton
def test_an_old_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    assert triton.why_not(CUDA) == "its kernels need a GPU of sm_80 or newer; Tesla T4 is sm_75"
    assert backend.choose(CUDA) is backend.BACKENDS["reference"]


@needs_triton
def test_a_new_gpu_is_used(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert backend.choose(CUDA) is triton


@needs_triton
def test_a_cpu_tensor_without_the_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with dk.use_backend("triton"), pytest.raises(dk.BackendUnavailable, match="TRITON_INTERPRET=1"):
        dk.kwinners(torch.zeros(1, 2), 1)


@pytest.mark.parametrize("units", [1, 15, 16, 17, 2048, 2049, settings.LONGEST_ROW])
def test_a_row_fits_its_program(units):
    how = settings.rows(units)
    assert how.block >= max(16, units) and how.block < 2 * max(16, units)
    assert how.block & (how.block - 1) == 0
    assert how.block <= 32 * how.warps * 32  # numbers a thread


def kernels():
    """The names of the backend's jit functions that no other one names."""
    trees = [ast.parse(path.read_text()) for path in Path(triton.__file__).parent.glob("*.py")]
    functions = [f for tree in trees for f in tree.body if isinstance(f, ast.FunctionDef)]
    functions = [f for f in functions if any("jit" in ast.unparse(d) for d in f.decorator_list)]
    named = {getattr(n, "attr", getattr(n, "id", None)) for f in functions for n in ast.walk(f)}
    return {f.name for f in functions} - named


@needs_triton
def test_every_kernel_compiles_for_every_chip_without_spills():
    """bench/kernel_report.py in a process of its own: here kernels are made for the interpreter."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, ROOT / "bench/kernel_report.py", "--json", "--only", "triton"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["kernel"] for row in rows} == kernels() | {"rows", "segments"}  # which are variables' names too
    assert {row["chip"] for row in rows} == {f"sm_{chip}" for chip in (80, 86, 89, 90, 100, 120)}
    assert all(row["local"] == 0 and row["registers"] > 0 for row in rows)
