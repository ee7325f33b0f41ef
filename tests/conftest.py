"""Fixtures: backends and instruction sets to run on, NaN-poisoned allocations, and a warm torch."""

import ctypes
import os
import sys
from pathlib import Path

import pytest
import torch

# Triton's kernels run in its interpreter where there is no GPU; it looks once, when they are defined.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Deterministic algorithms, which the fixture below asks for, want this of cuBLAS before torch 2.10.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

sys.path.insert(0, str(Path(__file__).parent))

import emulator

import dendrite_kernels as dk
from dendrite_kernels.backends import cpu, cuda, triton
from dendrite_kernels.ops import _register


def _implementations():
    if cpu._cpu is None:
        return ["reference"]
    return ["reference", *(f"cpu-{isa}" for isa in cpu._cpu.supported_isas())]


@pytest.fixture(params=_implementations())
def implementation(request):
    """Runs the test on each backend, and on each instruction set that this processor has."""
    name, _, isa = request.param.partition("-")
    if isa:
        before = cpu._cpu.isa()
        cpu._cpu.set_isa(isa)
    with dk.use_backend(name):
        yield request.param
    if isa:
        cpu._cpu.set_isa(before)


@pytest.fixture(params=cpu._cpu.supported_isas() if cpu._cpu else [])
def isa(request):
    """Runs the test on each instruction set of this processor, on the CPU backend."""
    before = cpu._cpu.isa()
    cpu._cpu.set_isa(request.param)
    yield request.param
    cpu._cpu.set_isa(before)


@pytest.fixture
def interpreted():
    """Runs the test on the Triton backend, in its interpreter."""
    reason = triton.why_not(torch.device("cpu"))
    if reason is not None:
        pytest.skip(f"the interpreter can't run here: {reason}")
    with dk.use_backend("triton"):
        yield


@pytest.fixture(scope="session")
def emulator_path(tmp_path_factory):
    """csrc/cuda and csrc/core built for the host (tests/emulator), once a session; a build that fails is a failure."""
    if emulator.compiler() is None:
        pytest.skip("no g++ here")
    return emulator.build(tmp_path_factory.mktemp("emulator"))


@pytest.fixture
def emulated(emulator_path, monkeypatch):
    """Runs the test on the CUDA backend, whose kernels are emulated, on CPU tensors; what it lacks Triton interprets.

    A function that sets the order in which a block's threads run: 0 warp by warp, 1 backwards, 2 shuffled.
    """
    if triton.why_not(torch.device("cpu")) is not None:
        pytest.skip("what the CUDA backend leaves to Triton can't be interpreted here")
    monkeypatch.setattr(cuda.native, "_cuda", emulator.load(emulator_path))
    monkeypatch.setattr(cuda.native, "stream", lambda: 0)
    monkeypatch.setattr(cuda, "why_not", lambda device: None)
    set_order = ctypes.CDLL(str(emulator_path)).set_order
    with dk.use_backend("cuda"):
        yield set_order
    set_order(0)


@pytest.fixture
def called(monkeypatch):
    """The names of the CUDA kernels that were started."""
    names, call = [], cuda.native.call

    def noted(name, *args):
        names.append(name)
        return call(name, *args)

    monkeypatch.setattr(cuda.native, "call", noted)
    return names


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Memory that no one has written reads as NaN: a kernel that misses an entry shows."""
    pooled = _register.gradient_like
    monkeypatch.setattr(_register, "gradient_like", lambda t: pooled(t).fill_(float("nan")))
    torch.use_deterministic_algorithms(True)  # fills torch.empty
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def warm():
    """torch's first vectorised square root was seen to be off in fresh processes."""
    torch.ones(64).sqrt()


@pytest.fixture
def threads():
    """A function that sets torch's thread count; the count is put back after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def one_thread(threads):
    """For many steps on tiny tensors: handing them out takes longer than the sums."""
    threads(1)
