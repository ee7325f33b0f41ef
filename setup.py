"""Builds dendrite_kernels._cpu where a C++ compiler is, ._cuda where nvcc and a GPU are, and installs without either.

The native modules know nothing of torch, so no torch is needed here. What was built, and why not, is what
`python -m dendrite_kernels` reports. DENDRITE_CUDA=1 builds _cuda wherever nvcc is, 0 nowhere; DENDRITE_CUDA_ARCHS
("80 90") says for which chips.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

sys.path.insert(0, str(Path(__file__).parent / "csrc/cuda"))  # a build's front end may not have this folder there
import nvcc

SOURCES = [
    "bindings.cpp",
    "dispatch.cpp",
    "kernels_avx2.cpp",
    "kernels_avx512.cpp",
    "kernels_portable.cpp",
    "pool.cpp",
]
CPU, CUDA = Path("csrc/cpu"), Path("csrc/cuda")
CUDA_SOURCES = sorted(p.name for p in CUDA.glob("*.c*"))
CUDA_ARCHS = (80, 90, 100)  # their chips run the later minor versions' code too; newer chips compile the last one's PTX
CPU_MODULE, CUDA_MODULE, CUDA_NOTE = "dendrite_kernels._cpu", "dendrite_kernels._cuda", "_cuda_build.txt"
SANITIZERS = ["-fsanitize=address", "-fsanitize=undefined"]


class BuildNative(build_ext):
    """Adds the flags that this compiler accepts; a module that can't be built is left out with a warning."""

    def build_extension(self, ext):
        try:
            (self._build_cuda if ext.name == CUDA_MODULE else self._build_cpu)(ext)
        except Exception:  # every compiler class raises its own
            Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)  # an earlier build's, of other sources
            raise

    def _build_cpu(self, ext):
        if why := why_nothing():
            raise CompileError(why)  # which setuptools makes a warning
        import pybind11

        ext.include_dirs.append(pybind11.get_include())
        flags = ["-std=c++17", "-O3", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"]
        ext.extra_compile_args = [f for f in [*flags, "-Wno-psabi", "-Wno-maybe-uninitialized"] if self._accepts([f])]
        if os.environ.get("DENDRITE_SANITIZE"):  # make sanitize
            ext.extra_compile_args += ["-O1", "-g", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all", *SANITIZERS]
            ext.extra_link_args += SANITIZERS
        if self._accepts(["-fopenmp"], link=True):
            ext.extra_compile_args.append("-fopenmp")
            ext.extra_link_args.append("-fopenmp")
        else:
            self.warn("no OpenMP: dendrite_kernels._cpu will run on one thread")
        super().build_extension(ext)

    def _build_cuda(self, ext):
        """Builds the module, or not; what happened goes into a file beside it, for the report."""
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # of an earlier build, which may not be wanted now
        said, why_not = "", why_no_cuda()
        try:
            if why_not is None:
                archs = cuda_archs()
                build_with_nvcc(target, archs)
                said = f"built for {', '.join(f'sm_{a}' for a in archs)} by {nvcc_version()}"
            else:
                said = f"not built: {why_not}"
        except CompileError as error:
            said = f"not built: {error}"
            raise
        finally:
            (target.parent / CUDA_NOTE).write_text(said + "\n")

    def copy_extensions_to_source(self):  # of an installation in place
        super().copy_extensions_to_source()
        package = Path(self.get_finalized_command("build_py").get_package_dir("dendrite_kernels"))
        for module in (CPU_MODULE, CUDA_MODULE):
            built = Path(self.build_lib, self.get_ext_filename(module))
            if not built.exists():
                (package / built.name).unlink(missing_ok=True)
        if (built.parent / CUDA_NOTE).exists():
            shutil.copyfile(built.parent / CUDA_NOTE, package / CUDA_NOTE)

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


def why_no_cuda():
    """Why not to build _cuda, or None."""
    if why := why_nothing():
        return why
    asked = os.environ.get("DENDRITE_CUDA", "")
    if asked not in ("", "0", "1"):
        return f"DENDRITE_CUDA: expected 0 or 1, got {asked!r}"
    if asked == "0":
        return "DENDRITE_CUDA=0"
    if os.environ.get("DENDRITE_SANITIZE"):
        return "DENDRITE_SANITIZE is for the CPU's module"
    if nvcc.path() is None:
        return "no nvcc was found"
    return None if asked == "1" or has_gpu() else "no GPU was found (DENDRITE_CUDA=1 builds it nevertheless)"


def has_gpu():
    smi = shutil.which("nvidia-smi")
    listed = smi and subprocess.run([smi, "-L"], capture_output=True, text=True)
    return bool(listed and listed.returncode == 0 and "GPU" in listed.stdout)


def run(*command):
    """Its output; CompileError with the end of what it said where it fails."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        raise CompileError(f"{Path(command[0]).name} failed: {(done.stdout + done.stderr).strip()[-2000:]}")
    return done.stdout


def nvcc_version():
    return run(nvcc.path(), "--version").strip().splitlines()[-2].strip()


def cuda_archs():
    """What to compile for: DENDRITE_CUDA_ARCHS, else those of CUDA_ARCHS that this nvcc knows."""
    asked = os.environ.get("DENDRITE_CUDA_ARCHS", "").replace(",", " ").replace(";", " ").split()
    known = [line.removeprefix("sm_") for line in run(nvcc.path(), "--list-gpu-code").split()]
    wrong = [arch for arch in asked if arch not in known or int(arch) < 80]
    if wrong:
        few = ", ".join(arch for arch in known if int(arch) >= 80)
        raise CompileError(f"DENDRITE_CUDA_ARCHS: expected some of {few}, got {' '.join(wrong)}")
    return sorted(map(int, asked or [arch for arch in map(str, CUDA_ARCHS) if arch in known]))


def build_with_nvcc(target, archs):
    import pybind11

    code = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    code.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")
    names = ", ".join(f"sm_{arch}" for arch in archs)
    folders = ["csrc", pybind11.get_include(), sysconfig.get_paths()["include"]]
    flags = [*nvcc.FLAGS, *code, *(f"-I{folder}" for folder in folders), f'-DDK_CUDA_ARCHS="{names}"']
    with tempfile.TemporaryDirectory() as tmp, ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = [Path(tmp, f"{source}.o") for source in CUDA_SOURCES]
        for done in [
            pool.submit(run, nvcc.path(), "-c", *flags, "-o", to, CUDA / source)
            for source, to in zip(CUDA_SOURCES, objects, strict=True)
        ]:
            done.result()
        run(nvcc.path(), "-shared", *nvcc.FLAGS, *code, "-o", target, *objects)


def why_nothing():
    """Why no native module can be built, or None."""
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        return "no Python.h was found"
    return None if importlib.util.find_spec("pybind11") else "no pybind11 was found"


HEADERS = [str(p) for folder in ("csrc", "csrc/core", "csrc/cpu") for p in sorted(Path(folder).glob("*.h"))]
MODULES = [
    Extension(
        CPU_MODULE,
        [str(CPU / s) for s in SOURCES],
        include_dirs=["csrc"],
        depends=HEADERS,
        language="c++",
        optional=True,
    ),
    Extension(CUDA_MODULE, [str(CUDA / s) for s in CUDA_SOURCES], optional=True),
]

setup(ext_modules=MODULES, cmdclass={"build_ext": BuildNative})
