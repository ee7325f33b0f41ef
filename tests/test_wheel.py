"""The wheel: built from the sdist, fit for any recent Linux, and right in a clean environment with torch alone.

torch is this environment's version. DENDRITE_TORCH="2.10.0 2.14.1" names others, which pip must be able to fetch: a
CUDA build brings gigabytes of libraries.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = os.environ.get("DENDRITE_TORCH", torch.__version__).split()

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(find_spec(m) is None for m in ("build", "auditwheel")), reason="build or auditwheel is not installed"
    ),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="auditwheel is for Linux"),
]


def run(*command, **options):
    # nothing of this environment's is to be found by the one that is tried
    environment = {**os.environ, "PYTHONPATH": "", "PIP_CONSTRAINT": str(ROOT / "constraints.txt")}
    done = subprocess.run([str(w) for w in command], capture_output=True, text=True, env=environment, **options)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder with the sdist and the wheel of `make wheel`, from a copy of the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns(".venv", ".git", "*.so", "build", "dist", "*.egg-info", "runs", ".data")
    shutil.copytree(ROOT, folder / "source", ignore=ignore)
    tools = sysconfig.get_paths()["scripts"]  # of this environment, so that make sets up none
    run("make", "wheel", f"BIN={tools}", "TOOLS=", cwd=folder / "source")
    return folder / "source/dist"


def test_the_sdist_has_what_a_build_needs_and_the_wheel_what_runs(made):
    (sdist,), (wheel,) = made.glob("*.tar.gz"), made.glob("*.whl")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"csrc/cpu/bindings.cpp", "csrc/core/order.h", "setup.py", "CHANGELOG.md"} <= names
    assert not any(name.startswith(("tests", "bench", "docs")) for name in names)
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"dendrite_kernels/py.typed", "dendrite_lab/plan.txt"} <= names
    assert sum(bool(re.match(r"dendrite_kernels/_cpu\..*\.so$", name)) for name in names) == 1
    assert not any("libgomp" in name for name in names)  # torch's is to be shared
    assert re.search(r"-manylinux_2_\d+_", wheel.name)


@pytest.mark.parametrize("version", VERSIONS)
def test_right_in_a_clean_environment(made, tmp_path, version):
    (wheel,) = made.glob("*.whl")
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv/bin/python"
    environment = dict(os.environ, PYTHONPATH="")
    environment.pop("PIP_CONSTRAINT", None)  # another torch than the pinned one
    command = [python, "-m", "pip", "install", "--quiet", "--no-cache-dir", f"torch=={version}", wheel]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    out = run(python, "-P", ROOT / "tests/smoke.py", version, cwd="/")
    assert f"torch {version.partition('+')[0]}" in out and str(tmp_path) in out and "all as the reference" in out
