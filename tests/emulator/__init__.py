"""Builds csrc/cuda for the host: what its kernels compute is then tested where there is no GPU."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
SOURCES = [ROOT / "csrc/cuda/bindings.cpp", *sorted((ROOT / "csrc/cuda").glob("*.cu"))]
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-w"]


def compiler() -> str | None:
    """g++: its threads' contexts and extensions are what the emulator is written for."""
    return os.environ.get("CXX") or shutil.which("g++")


def build(folder: Path) -> Path:
    """The module in this folder: dendrite_kernels._cuda on the emulator, with host.cpp's functions for ctypes."""
    import pybind11

    include = [f"-I{p}" for p in (HERE, ROOT / "csrc", pybind11.get_include(), sysconfig.get_paths()["include"])]
    emulated = ["-include", str(HERE / "emulator.h"), '-DDK_CUDA_ARCHS="the emulator"', "-x", "c++"]

    def compiled(source: Path) -> Path:
        to = folder / f"{source.name}.o"
        run(compiler(), *FLAGS, *include, *emulated, "-c", source, "-o", to)
        return to

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, [HERE / "host.cpp", *SOURCES]))
    module = folder / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    run(compiler(), "-shared", "-o", module, *objects)
    return module


def run(*command) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stderr[-3000:]}"


def load(path: Path):
    spec = importlib.util.spec_from_file_location("_cuda", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
