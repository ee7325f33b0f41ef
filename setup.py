"""Builds dendrite_kernels._cpu where a C++ compiler is found, and installs without it where none is.

The native module knows nothing of torch, so no torch is needed here. What was built, and why not, is what
`python -m dendrite_kernels` reports.
"""

import os
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext

SOURCES = [
    "bindings.cpp",
    "dispatch.cpp",
    "kernels_avx2.cpp",
    "kernels_avx512.cpp",
    "kernels_portable.cpp",
    "pool.cpp",
]
CPU = Path("csrc/cpu")
SANITIZERS = ["-fsanitize=address", "-fsanitize=undefined"]


class BuildNative(build_ext):
    """Adds the flags that this compiler accepts; a module that can't be built is left out with a warning."""

    def build_extension(self, ext):
        flags = ["-std=c++17", "-O3", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"]
        ext.extra_compile_args = [f for f in [*flags, "-Wno-psabi"] if self._accepts([f])]
        if os.environ.get("DENDRITE_SANITIZE"):  # make sanitize
            ext.extra_compile_args += ["-O1", "-g", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all", *SANITIZERS]
            ext.extra_link_args += SANITIZERS
        if self._accepts(["-fopenmp"], link=True):
            ext.extra_compile_args.append("-fopenmp")
            ext.extra_link_args.append("-fopenmp")
        else:
            self.warn("no OpenMP: dendrite_kernels._cpu will run on one thread")
        super().build_extension(ext)

    def _accepts(self, flags, link=False):
        with tempfile.TemporaryDirectory() as tmp:
            source = Path(tmp, "probe.cpp")
            source.write_text("int main() { return 0; }\n")
            try:
                objects = self.compiler.compile([str(source)], output_dir=tmp, extra_postargs=flags)
                if link:
                    self.compiler.link_executable(objects, str(Path(tmp, "probe")), extra_postargs=flags)
            except Exception:  # every compiler class raises its own
                return False
        return True


def native_module():
    try:
        from pybind11.setup_helpers import Pybind11Extension
    except ImportError:
        print("warning: no pybind11: dendrite_kernels._cpu is not built", file=sys.stderr)
        return []
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        print("warning: no Python.h: dendrite_kernels._cpu is not built", file=sys.stderr)
        return []
    headers = [str(p) for folder in ("csrc/core", "csrc/cpu") for p in sorted(Path(folder).glob("*.h"))]
    return [
        Pybind11Extension(
            "dendrite_kernels._cpu",
            [str(CPU / s) for s in SOURCES],
            include_dirs=["csrc"],
            depends=headers,
            optional=True,
        )
    ]


setup(ext_modules=native_module(), cmdclass={"build_ext": BuildNative})
