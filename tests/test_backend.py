"""Choosing a backend, and explaining what can't run."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from types import FunctionType

import pytest
import torch

import dendrite_kernels as dk
from dendrite_kernels import __main__ as report
from dendrite_kernels import backend
from dendrite_kernels.backends import cpu, reference

CPU = torch.device("cpu")


def test_the_native_module_is_there_when_a_compiler_is():
    import shutil

    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    assert cpu._cpu is not None or compiler is None, cpu.why_not(CPU)


@pytest.mark.parametrize("name", backend.BACKENDS)
def test_every_backend_has_every_launcher(name):
    """Its own or another's: an op asks the backend that a device has, not one for each op."""
    if name in ("cuda", "triton"):
        pytest.importorskip("triton", reason="Triton is not installed here")
    helpers = {"why_not", "fill", "in_stages"}
    launchers = {key for key, value in vars(reference).items() if isinstance(value, FunctionType)} - helpers
    launchers = {key for key in launchers if vars(reference)[key].__module__ == reference.__name__ and key[0] != "_"}
    assert len(launchers) > 15
    assert {key for key in launchers if not hasattr(backend.BACKENDS[name], key)} == set()


@pytest.mark.skipif("DENDRITE_SANITIZED" not in os.environ, reason="only `make sanitize` builds such a module")
def test_the_sanitized_module_is_the_one_that_is_tested():
    assert cpu._cpu.__file__.startswith(os.environ["DENDRITE_SANITIZED"])
    assert b"__asan_init" in Path(cpu._cpu.__file__).read_bytes()


def test_default_is_the_native_backend():
    if cpu._cpu is None:
        pytest.skip("the native module is not built here: no C++ compiler")
    assert backend.choose(CPU) is cpu


def test_context_manager_and_environment(monkeypatch):
    with dk.use_backend("reference"):
        assert backend.choose(CPU) is reference
        with dk.use_backend("cpu"):
            assert backend.choose(CPU) is cpu
        assert backend.choose(CPU) is reference
    monkeypatch.setenv("DENDRITE_BACKEND", "reference")
    assert backend.choose(CPU) is reference


def test_the_override_stays_in_its_thread():
    seen = []
    with dk.use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(backend.choose(CPU)))
        thread.start()
        thread.join()
    assert seen == [cpu if cpu._cpu is not None else reference]


def test_unknown_names(monkeypatch):
    with (
        pytest.raises(
            ValueError, match=r"use_backend: expected one of \['cpu', 'cuda', 'reference', 'triton'\], got 'gpu'"
        ),
        dk.use_backend("gpu"),
    ):
        pass
    monkeypatch.setenv("DENDRITE_BACKEND", "fast")
    with pytest.raises(ValueError, match="DENDRITE_BACKEND: expected one of"):
        dk.kwinners(torch.zeros(1, 2), 1)


def test_a_forced_backend_that_cannot_run_says_why():
    with dk.use_backend("cpu"), pytest.raises(dk.BackendUnavailable, match="its kernels run on CPU tensors only"):
        backend.choose(torch.device("cuda", 0))


@pytest.fixture
def asked_anew():
    backend._runs_on_a_gpu_here.cache_clear()
    yield backend._runs_on_a_gpu_here.cache_clear
    backend._runs_on_a_gpu_here.cache_clear()


@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_a_gpus_backend_in_the_environment_leaves_the_cpu_alone(monkeypatch, name, asked_anew):
    """A model is made on the CPU, then moved; but without a GPU to move it to, it says why not."""
    monkeypatch.setenv("DENDRITE_BACKEND", name)
    monkeypatch.setattr(backend.BACKENDS[name], "why_not", lambda device: "no GPU here")
    with pytest.raises(dk.BackendUnavailable, match=f"backend '{name}' was asked for but can't run on cpu: no GPU"):
        backend.choose(CPU)
    asked_anew()
    monkeypatch.setattr(backend.BACKENDS[name], "why_not", lambda device: "no" if device.type == "cpu" else None)
    assert backend.choose(CPU) is (cpu if cpu._cpu is not None else reference)
    assert backend.choose(torch.device("cuda", 0)) is backend.BACKENDS[name]
    dk.nn.SparseLinear(8, 4, sparsity=0.5)
    with dk.use_backend(name), pytest.raises(dk.BackendUnavailable, match="can't run on cpu: no"):
        backend.choose(CPU)


def test_without_the_native_module(monkeypatch):
    monkeypatch.setattr(cpu, "_cpu", None)
    monkeypatch.setattr(cpu, "import_error", "no such file")
    assert backend.choose(CPU) is reference
    assert dk.kwinners(torch.tensor([[1.0, 3, 2]]), 2).tolist() == [[0, 3, 2]]
    with dk.use_backend("cpu"), pytest.raises(dk.BackendUnavailable, match=r"_cpu is not built \(no such file\)"):
        dk.kwinners(torch.zeros(1, 2), 1)


def test_other_devices_fall_back_to_the_reference():
    assert backend.choose(torch.device("xla")) is reference


def test_the_report_names_every_backend(capsys):
    report.main([])
    text = capsys.readouterr().out
    for word in ("torch", "triton", "CUDA", "compiler", "instruction set", "cpu", "reference", "used"):
        assert word in text


def test_the_report_runs_as_a_module():
    run = subprocess.run([sys.executable, "-m", "dendrite_kernels"], capture_output=True, text=True, check=True)
    assert "dendrite_kernels " + dk.__version__ in run.stdout


def test_the_report_survives_a_wrong_setting(monkeypatch, capsys):
    monkeypatch.setenv("DENDRITE_BACKEND", "fast")
    report.main([])
    assert "DENDRITE_BACKEND: expected one of" in capsys.readouterr().out


def test_isa_names():
    if cpu._cpu is None:
        pytest.skip("the native module is not built here: no C++ compiler")
    assert cpu._cpu.isa() in cpu._cpu.supported_isas()
    with pytest.raises(ValueError, match="isa: expected portable, avx2 or avx512, got sse9"):
        cpu._cpu.set_isa("sse9")


def test_released_memory_leaves_the_pool():
    if cpu._cpu is None:
        pytest.skip("the native module is not built here: no C++ compiler")
    block = cpu.gradient_like(torch.empty(1 << 20))
    address = block.data_ptr()
    del block
    assert cpu._cpu.pool_bytes() >= 4 << 20
    again = cpu.gradient_like(torch.empty(1 << 20))
    assert again.data_ptr() == address  # the same pages
    del again
    cpu.release_memory()
    assert cpu._cpu.pool_bytes() == 0


@pytest.mark.skipif(cpu._cpu is None, reason="the native module is not built")
def test_a_launchers_slip_is_an_error():
    """Entries of another width than the kernel's would be read past their end."""
    y, z = torch.zeros(2, 3), torch.zeros(2, 3)
    indices = torch.zeros(2, 1, dtype=torch.int32)
    with pytest.raises(TypeError, match="entries of 4 bytes, got 8"):
        cpu._cpu.densify_f32(y.double(), indices, None, 2, 1, 3, z, True, 1)
    with pytest.raises(TypeError, match="entries of 4 bytes, got 8"):
        cpu._cpu.densify_f32(y, indices.long(), None, 2, 1, 3, z, True, 1)
    with pytest.raises(AttributeError, match="element_size"):
        cpu._cpu.densify_f32(y.tolist(), indices, None, 2, 1, 3, z, True, 1)
