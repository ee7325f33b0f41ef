"""Installing: with a compiler and without one, with build isolation, and on the Pythons that are here."""

import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.slow


def interpreters():
    """This Python, and each of 3.10 to 3.13 that answers by name or lies in pyenv's folder."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    found = {}
    for version in ("3.10", "3.11", "3.12", "3.13"):
        candidates = [
            shutil.which(f"python{version}"),
            *sorted(map(str, pyenv.glob(f"{version}.*/bin/python{version}"))),
        ]
        for candidate in filter(None, candidates):
            if subprocess.run([candidate, "-c", ""], capture_output=True).returncode == 0:
                found[version] = candidate
                break
    return found or {"this": sys.executable}


def install(tmp_path, python, *words, **environment):
    """A copy of the sources, installed into an empty environment without its dependencies; returns its python."""
    source = tmp_path / "source"
    ignore = shutil.ignore_patterns(".venv", ".git", "*.so", "build", "*.egg-info", "runs", ".data")
    shutil.copytree(ROOT, source, ignore=ignore)
    subprocess.run([python, "-m", "venv", tmp_path / "venv"], check=True)
    inside = tmp_path / "venv/bin/python"
    command = [inside, "-m", "pip", "install", "-v", "--no-deps", *words, str(source)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "", **environment})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return inside, done.stdout + done.stderr


def has_native(python):
    # importing the package would import torch, which this environment lacks: look for the file
    code = "import sysconfig; print(sysconfig.get_paths()['platlib'])"
    folder = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, cwd="/").stdout.strip()
    return any(Path(folder, "dendrite_kernels").glob("_cpu*.so"))


SMOKE = """
import array, glob, importlib.util, sysconfig
class Numbers(array.array):  # all that the module asks of a tensor
    def data_ptr(self):
        return self.buffer_info()[0]
path = glob.glob(sysconfig.get_paths()["platlib"] + "/dendrite_kernels/_cpu*.so")[0]
spec = importlib.util.spec_from_file_location("_cpu", path)
cpu = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cpu)
y, z, kept = Numbers("f", [3, 1, 2, 5, 4, 0]), Numbers("f", [9] * 6), Numbers("B", [9] * 6)
cpu.kwinners_f32(y, None, None, None, None, 0, False, 2, 3, 2, False, False, z, kept, None, None, None, 2)
assert list(z) == [3, 0, 2, 5, 4, 0] and list(kept) == [1, 0, 1, 1, 1, 0], (z, kept)
print(cpu.isa())
"""


@pytest.mark.parametrize("version", interpreters())
def test_with_build_isolation_and_without_torch(tmp_path, version):
    python, _ = install(tmp_path, interpreters()[version])
    assert has_native(python)
    out = subprocess.run([python, "-c", SMOKE], capture_output=True, text=True, cwd="/")
    assert out.returncode == 0 and out.stdout.strip() in ("portable", "avx2", "avx512"), out.stderr


def test_without_a_compiler(tmp_path):
    environment = dict.fromkeys(("CC", "CXX", "LDSHARED"), "/nonexistent/compiler")
    python, log = install(tmp_path, sys.executable, **environment)
    assert not has_native(python)
    assert 'building extension "dendrite_kernels._cpu" failed' in log
    # with this environment's torch, the package imports, runs on the reference and says why
    site = Path(subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
                               capture_output=True, text=True, check=True).stdout.strip())  # fmt: skip
    # (an editable install beside it would lend it the native module of the tree)
    alone = "import sys; sys.meta_path = [f for f in sys.meta_path if 'Editable' not in repr(f)]; "
    use = (
        "import dendrite_kernels as dk, torch; print(dk.__file__, dk.kwinners(torch.tensor([[1., 3, 2]]), 1).tolist())"
    )
    code = alone + use
    here = {**os.environ, "PYTHONPATH": str(site)}
    run = partial(subprocess.run, capture_output=True, text=True, env=here, cwd="/", check=True)
    out = run([sys.executable, "-P", "-c", code])
    assert str(site) in out.stdout and "[[0.0, 3.0, 0.0]]" in out.stdout
    code = alone + "import runpy; runpy.run_module('dendrite_kernels', run_name='__main__')"
    assert "dendrite_kernels._cpu is not built" in run([sys.executable, "-P", "-c", code]).stdout


def test_without_openmp(tmp_path):
    """A compiler that refuses -fopenmp: one thread, and the report says so."""
    wrapper = tmp_path / "c++"
    wrapper.write_text('#!/bin/sh\nfor a in "$@"; do [ "$a" = -fopenmp ] && exit 1; done\nexec g++ "$@"\n')
    wrapper.chmod(0o755)
    (tmp_path / "inner").mkdir()
    python, log = install(tmp_path / "inner", sys.executable, CC=str(wrapper), CXX=str(wrapper))
    assert has_native(python) and "will run on one thread" in log
    assert subprocess.run([python, "-c", SMOKE], capture_output=True, cwd="/").returncode == 0
