"""The CUDA backend's host side: when it runs, what it says where it can't, its plans, what it compiles to.

Its values are in test_cuda_values.py (emulated) and test_gpu.py.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import cuda_report  # of bench/
import pytest
import torch

import dendrite_kernels as dk
from dendrite_kernels import __main__ as report
from dendrite_kernels import backend
from dendrite_kernels.backends import cuda, triton
from dendrite_kernels.backends.cuda import native, plan
from dendrite_kernels.testing import DTYPES

ROOT = Path(__file__).resolve().parent.parent
CUDA = torch.device("cuda", 0)


class Module:
    """A native module that says of every device what it is told to."""

    def __init__(self, why_not=""):
        self.why_not = lambda device: why_not


@pytest.fixture
def built(monkeypatch):
    """A function that stands a native module in for the one that may be there."""

    def put(why_not=""):
        native._why_not.cache_clear()
        monkeypatch.setattr(native, "_cuda", Module(why_not))
        monkeypatch.setattr(triton, "why_not", lambda device: None)

    yield put
    native._why_not.cache_clear()


def test_not_built(monkeypatch, tmp_path):
    monkeypatch.setattr(native, "_cuda", None)
    monkeypatch.setattr(native, "build_note", lambda: "not built: no nvcc was found")
    said = cuda.why_not(CUDA)
    assert "dendrite_kernels._cuda is not built" in said and "no nvcc was found" in said and "DENDRITE_CUDA=1" in said
    with dk.use_backend("cuda"), pytest.raises(dk.BackendUnavailable, match="_cuda is not built"):
        dk.kwinners(torch.zeros(1, 2), 1)


def test_what_the_module_says_is_said(built):
    built("no CUDA driver is installed here")
    assert cuda.why_not(CUDA) == "no CUDA driver is installed here"
    assert cuda.why_not(torch.device("cpu")) == "its kernels run on CUDA tensors only"
    assert backend.choose(CUDA) is triton


def test_a_chip_that_is_too_old_is_called_that(built, monkeypatch):
    built("these kernels were built for sm_80")
    monkeypatch.setattr(triton, "why_not", lambda device: "its kernels need a GPU of sm_80 or newer")
    assert cuda.why_not(CUDA) == "its kernels need a GPU of sm_80 or newer"


def test_a_device_without_an_index_is_the_current_one(built, monkeypatch):
    built()
    monkeypatch.setattr(native._cuda, "why_not", lambda index: f"device {index}")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert cuda.why_not(torch.device("cuda")) == "device 1"
    assert cuda.why_not(torch.device("cuda", 0)) == "device 0"


def test_without_triton_it_cannot_run(built, monkeypatch):
    built()
    monkeypatch.setattr(triton, "why_not", lambda device: "Triton can't be imported")
    assert cuda.why_not(CUDA) == "Triton can't be imported"


def test_it_must_be_asked_for_until_a_gpu_has_run_it(built, monkeypatch):
    built()
    assert not backend.CUDA_HAS_RUN and backend.choose(CUDA) is triton
    assert dict(backend.explain(CUDA))["cuda"] == f"available; {backend.ASKED_FOR}"
    with dk.use_backend("cuda"):
        assert backend.choose(CUDA) is cuda
    monkeypatch.setenv("DENDRITE_BACKEND", "cuda")
    assert backend.choose(CUDA) is cuda


def test_what_it_lacks_is_tritons():
    for name in ("segment_gate_backward", "adam_dense", "adam_segments", "counts_on_device", "one_launch", "rezero_"):
        assert getattr(cuda, name) is getattr(triton, name)
    assert all(hasattr(cuda, name) for names in triton._LAUNCHERS.values() for name in names)
    with pytest.raises(AttributeError):
        cuda.no_such_op  # noqa: B018
    assert cuda.plan is plan and plan is not triton.plan


def test_the_report_says_what_was_built(capsys):
    report.main([])
    assert f"dendrite_kernels._cuda: {native.build_note()}" in capsys.readouterr().out


# ---- the native module, where it was built --------------------------------------------------------------------------

needs_module = pytest.mark.skipif(native._cuda is None, reason="dendrite_kernels._cuda is not built here")


@needs_module
def test_errors_are_sentences():
    expected = {
        2: "out of memory",
        9: "with these sizes",
        98: "DENDRITE_CUDA_ARCHS",
        209: "DENDRITE_CUDA_ARCHS",
        700: "can't go on in this process",
    }
    for code, words in expected.items():
        assert words in native._cuda.explain(code)


@needs_module
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_driver_a_launch_raises_and_the_process_goes_on():
    if not Path("/dev/nvidiactl").exists():
        assert native._cuda.why_not(0) == "no CUDA driver is installed here"
    y, z, kept = torch.zeros(1, 8), torch.zeros(1, 8), torch.zeros(1, 8, dtype=torch.bool)
    flags = (None, None, None, None, 0, False, False, 1, 8, 3, False, False, z, kept, None, None, None)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"dendrite_kernels._cuda: kwinners_by_block: .*(driver|GPU)"):
            native._cuda.kwinners_f32(y, *flags, "block", 0, 0, None, 0)
    assert dk.kwinners(torch.tensor([[1.0, 3, 2]]), 1).tolist() == [[0, 3, 0]]


# ---- plans ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", [1, 128, 129, 512, 513, 100_000])
@pytest.mark.parametrize("units", [1, 256, 257, 2048, 2049, 4096, 4097, 32_767, 32_768, plan.LONGEST_ROW])
def test_plans_are_within_the_limits(batch, units, dtype):
    how = plan.winners(batch, units, dtype)
    if how.how == "warp":
        assert units <= 32 * how.size and how.warps in (1, 4)  # four are what the kernel's registers allow
        assert how.size * (2 if dtype == torch.float64 else 1) <= 128  # words a lane keeps in registers
        assert how.warps * 32 * how.size * 2 <= plan.SHARED_BYTES
    elif how.how == "split":
        tiles = -(-units // how.size)
        assert 1 < tiles <= 64 and batch * tiles < 2**31
        assert batch * 6 * 2048 * 4 < 2**25  # the counts of all rows are small beside them
    else:
        assert how == plan.Winners("block") and batch < 2**31


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_of_outer_fit_in_shared_memory(dtype):
    wide = 8 if dtype == torch.float64 else 4
    for columns in (1, 784, 2048, 6144, 12_288, 12_289, 100_000):
        warps = plan.outer_warps(columns, dtype)
        assert warps <= 4 and warps * columns * wide <= plan.SHARED_BYTES
        assert warps > 0 or columns * wide > plan.SHARED_BYTES


# ---- what it compiles to --------------------------------------------------------------------------------------------

PTXAS = """
ptxas info    : Compiling entry function '_ZN2dk3_GLOBAL__N__f2_911710warp_a_rowI6__halfLi128EEEvNS_8KWinnersIT_EEb' for 'sm_90'
ptxas info    : Function properties for x
    16 bytes stack frame, 32 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers, 56 bytes cumulative stack size
ptxas info    : Compiling entry function '_ZN2dk4_GLOBAL__N__d1_9169split_tallyIdEEvNS_8KWinnersIT_EE' for 'sm_100a'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 88 bytes smem
"""  # noqa: E501


def test_what_ptxas_says_is_read():
    spilling, clean = cuda_report.parsed(PTXAS, "a.cu")
    assert (spilling["kernel"], spilling["chip"], spilling["registers"]) == ("warp_a_row<fp16, 128>", "sm_90", 255)
    assert spilling["local"] == 32 and spilling["problems"] == ["32 bytes of local memory"]
    assert (clean["kernel"], clean["chip"], clean["shared"]) == ("split_tally<fp64>", "sm_100", 88)
    assert clean["local"] == 0 and clean["problems"] == []


@pytest.mark.slow
@pytest.mark.skipif(cuda_report.nvcc.path() is None, reason="no nvcc here")
def test_every_kernel_compiles_for_every_chip_without_spills():
    pytest.importorskip("triton")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, ROOT / "bench/kernel_report.py", "--json", "--only", "cuda"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    names = {"warp_a_row", "block_a_row", "split_count", "split_tally", "split_write"}
    names |= {"gather_columns", "gather_rows", "outer_dense", "outer_sparse", "adam_outer_dense", "adam_outer_sparse"}
    assert {row["kernel"].split("<")[0] for row in rows} == names
    assert {row["chip"] for row in rows} == {"sm_80", "sm_90", "sm_100"}
    assert all(row["local"] == 0 and 0 < row["registers"] <= 255 for row in rows)
