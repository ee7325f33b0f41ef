"""Installing: with a compiler and without one, with build isolation, and on the Pythons that are here."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
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
    def element_size(self):
        return self.itemsize
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


CUDA_SMOKE = """
import glob, importlib.util, sysconfig
folder = sysconfig.get_paths()["platlib"] + "/dendrite_kernels/"
print(open(folder + "_cuda_build.txt").read())
for path in glob.glob(folder + "_cuda*.so"):
    spec = importlib.util.spec_from_file_location("_cuda", path)
    cuda = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cuda)
    print("imported:", cuda.archs, cuda.why_not(0) or "can run")
"""


def cuda_of(python):
    return subprocess.run([python, "-c", CUDA_SMOKE], capture_output=True, text=True, check=True, cwd="/").stdout


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc here")
def test_with_nvcc(tmp_path):
    """For one chip, as all take minutes; the module imports where there is no driver, and says so."""
    python, _ = install(tmp_path, sys.executable, DENDRITE_CUDA="1", DENDRITE_CUDA_ARCHS="90")
    said = cuda_of(python)
    assert said.startswith("built for sm_90 by Cuda compilation tools") and "imported: sm_90" in said
    if shutil.which("nvidia-smi") is None:
        assert "no CUDA driver is installed here" in said


@pytest.mark.parametrize(
    "environment, words",
    [
        ({"DENDRITE_CUDA": "0"}, "not built: DENDRITE_CUDA=0"),
        ({"DENDRITE_CUDA": "yes"}, "not built: DENDRITE_CUDA: expected 0 or 1, got 'yes'"),
        ({"DENDRITE_CUDA": "1", "CUDA_HOME": "{false}"}, "not built: nvcc failed"),
        ({"DENDRITE_CUDA": "1", "DENDRITE_CUDA_ARCHS": "75 x"}, "expected some of"),
    ],
)
def test_without_cuda(tmp_path, environment, words):
    """What keeps _cuda from being built never keeps the package from being installed."""
    broken = tmp_path / "bin/nvcc"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    if "DENDRITE_CUDA_ARCHS" in environment and shutil.which("nvcc") is None:
        pytest.skip("no nvcc here")
    environment = {key: value.format(false=tmp_path) for key, value in environment.items()}
    python, _ = install(tmp_path, sys.executable, **environment)
    said = cuda_of(python)
    assert words in said and "imported" not in said
    assert has_native(python)


WITHOUT_PYBIND11 = """
import importlib.util, runpy, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "pybind11" else find(name, *rest)
sys.argv = ["setup.py", "build_ext", "--inplace"]
runpy.run_path("setup.py", run_name="__main__")
"""


def test_without_pybind11_no_older_module_stays(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".venv", ".git", "*.so", "build", "runs", ".data"))
    package = source / "dendrite_kernels"
    modules = [package / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}" for name in ("_cuda", "_cpu")]
    for module in modules:
        module.write_text("of an earlier build")
    (package / "_cuda_build.txt").write_text("built for sm_90\n")
    done = subprocess.run([sys.executable, "-c", WITHOUT_PYBIND11], capture_output=True, text=True, cwd=source)
    assert done.returncode == 0, done.stderr
    assert 'building extension "dendrite_kernels._cpu" failed: no pybind11 was found' in done.stdout + done.stderr
    assert not any(module.exists() for module in modules)
    assert (package / "_cuda_build.txt").read_text() == "not built: no pybind11 was found\n"


def test_a_build_that_fails_leaves_no_older_module(tmp_path):
    """Whose kernels would be tested in place of what was changed."""
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".venv", ".git", "*.so", "build", "runs", ".data"))
    module = source / "dendrite_kernels" / f"_cpu{sysconfig.get_config_var('EXT_SUFFIX')}"
    module.write_text("of an earlier build")
    environment = {**os.environ, "CC": "false", "CXX": "false", "DENDRITE_CUDA": "0"}
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=source, env=environment)
    assert done.returncode == 0 and 'building extension "dendrite_kernels._cpu" failed' in done.stdout + done.stderr
    assert not module.exists()


def test_the_source_distribution_holds_every_kernel(tmp_path):
    shutil.copytree(ROOT, tmp_path / "source", ignore=shutil.ignore_patterns(".venv", ".git", "build", "runs", ".data"))
    command = [sys.executable, "setup.py", "-q", "sdist", "-d", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path / "source")
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    kernels = {str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*.*")}
    assert any(name.endswith(".cu") for name in kernels) and kernels <= names


def test_without_openmp(tmp_path):
    """A compiler that refuses -fopenmp: one thread, and the report says so."""
    wrapper = tmp_path / "c++"
    wrapper.write_text('#!/bin/sh\nfor a in "$@"; do [ "$a" = -fopenmp ] && exit 1; done\nexec g++ "$@"\n')
    wrapper.chmod(0o755)
    (tmp_path / "inner").mkdir()
    python, log = install(tmp_path / "inner", sys.executable, CC=str(wrapper), CXX=str(wrapper))
    assert has_native(python) and "will run on one thread" in log
    assert subprocess.run([python, "-c", SMOKE], capture_output=True, cwd="/").returncode == 0
