"""`python -m dendrite_kernels`: what is here, which backend would be used for what, and why not the others."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import shutil
import sys

import torch

from . import __version__
from .backend import BackendUnavailable, explain
from .backends import cpu
from .backends.cuda import native
from .backends.triton import plan


def versions() -> dict[str, str]:
    """Versions and machine, as results record them."""
    return {
        "dendrite_kernels": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _installed("triton"),
        "numpy": _installed("numpy"),
        "CUDA": _cuda(),
        "CUDA kernels": f"dendrite_kernels._cuda: {native.build_note()}",
        "compiler": shutil.which("c++") or shutil.which("g++") or "none found (dendrite_kernels._cpu can't be built)",
        "processor": _processor(),
        "instruction set": _instruction_set(),
        "threads": str(torch.get_num_threads()),
    }


def _installed(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cuda() -> str:
    if not torch.backends.cuda.is_built():
        return "none: this torch is a CPU build"
    if not torch.cuda.is_available():
        return f"torch is built for {torch.version.cuda}, but no usable GPU was found"
    major, minor = torch.cuda.get_device_capability()
    return f"{torch.version.cuda}, {torch.cuda.get_device_name()} (sm_{major}{minor})"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as info:
            return next(line.split(":", 1)[1].strip() for line in info if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _instruction_set() -> str:
    if cpu._cpu is None:
        return "none: the native module is not built"
    openmp = "OpenMP" if cpu._cpu.openmp else "one thread (built without OpenMP)"
    return f"{cpu._cpu.isa()} of {', '.join(cpu._cpu.supported_isas())}; {openmp}"


def main(arguments: list[str] | None = None) -> int:
    argparse.ArgumentParser(prog="python -m dendrite_kernels", description=__doc__).parse_args(arguments)
    facts = versions()
    print(f"dendrite_kernels {facts.pop('dendrite_kernels')}")
    for name, value in facts.items():
        print(f"  {name:16} {value}")
    for device in (torch.device("cpu"), torch.device("cuda")):
        print(f"backends for {device.type} tensors")
        try:
            rows = explain(device)
        except (ValueError, BackendUnavailable) as error:
            rows = [("none", str(error))]
        for name, state in rows:
            print(f"  {name:16} {state}")
    print(f"a Triton layer of one sample\n  {_launches()}")
    return 0


def _launches() -> str:
    try:
        one, why = plan.choose(1, 2048, 1, torch.float32)
    except ValueError as error:
        return str(error)
    return f"{'in one launch' if one else 'a launch a stage'}: {why}"


if __name__ == "__main__":
    sys.exit(main())
