"""Type hints: every public name has all of them, and they are right (mypy, over the package and a user's program)."""

import importlib
import importlib.resources
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import dendrite_kernels

ROOT = Path(__file__).resolve().parent.parent

# reference is the mathematics, with the arguments of the public functions; the rest is not for users to import.
INTERNAL = {"__main__", "_cpu", "backends", "differentiation", "factored", "identity", "known", "reference"}
MODULES = [dendrite_kernels.__name__] + [
    f"dendrite_kernels.{m.name}" for m in pkgutil.iter_modules(dendrite_kernels.__path__) if m.name not in INTERNAL
]


def public_functions():
    """Functions, methods and properties by name: all that a user can call without an underscore."""
    for module in map(importlib.import_module, MODULES):
        for name in getattr(module, "__all__", vars(module)):
            value = getattr(module, name)
            home = "dendrite_kernels" if hasattr(module, "__all__") else module.__name__  # imports are not its own
            if name.startswith("_") or not getattr(value, "__module__", "").startswith(home):
                continue
            if inspect.isfunction(value):
                yield name, value
            if inspect.isclass(value):
                ours = [c for c in value.__mro__ if c.__module__.startswith("dendrite_kernels")]
                members = {key: member for c in reversed(ours) for key, member in vars(c).items()}
                yield from ((f"{name}.{key}", m) for key, m in members.items() if key == "__init__" or key[0] != "_")


def unhinted(function):
    function = getattr(function, "fget", None) or inspect.unwrap(getattr(function, "__func__", function))
    if not inspect.isfunction(function):
        return []
    signature = inspect.signature(function)
    names = [p.name for p in signature.parameters.values() if p.annotation is p.empty and p.name not in ("self", "cls")]
    returns = signature.return_annotation is signature.empty and function.__name__ != "__init__"
    return names + ["return"] * returns


def test_every_public_name_is_annotated():
    found = dict(public_functions())
    assert {"segment_gate", "Adam.step", "KSparse.shape", "DendriticLinear.forward", "use_backend"} <= set(found)
    assert {name: unhinted(f) for name, f in found.items() if unhinted(f)} == {}


def test_the_marker_of_hints_is_there():
    assert (importlib.resources.files("dendrite_kernels") / "py.typed").is_file()


@pytest.mark.slow
def test_mypy_agrees(tmp_path):
    """typed_use.py holds wrong calls too, whose `type: ignore` would be reported as unused if the hints let them by."""
    pytest.importorskip("mypy", reason="mypy is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", tmp_path], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
