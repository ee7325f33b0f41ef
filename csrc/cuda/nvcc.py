"""Where nvcc is and how csrc/cuda is compiled, for setup.py and for the reports of bench/."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

FLAGS = ["-std=c++17", "-O3", "--fmad=false", "-Xcompiler=-fPIC,-fvisibility=hidden", "-cudart=static"]


def path() -> str | None:
    """nvcc of CUDA_HOME or CUDA_PATH, else of PATH, else where CUDA's installer puts it."""
    for home in ("CUDA_HOME", "CUDA_PATH"):
        found = os.environ.get(home) and shutil.which("nvcc", path=str(Path(os.environ[home], "bin")))
        if found:
            return found
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
