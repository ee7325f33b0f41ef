"""Compiles csrc/cuda for a chip with nvcc and reads what ptxas says of each kernel; no GPU is needed."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "csrc/cuda"))
import nvcc

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "csrc/cuda").glob("*.cu"))
FLAGS = [*nvcc.FLAGS, f"-I{ROOT / 'csrc'}", "-Xptxas=-v", "-cubin"]

_KERNEL = re.compile(r"Compiling entry function '(\S+)' for 'sm_(\d+)a?'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?")


def known_chips() -> set[int]:
    """What this nvcc compiles for."""
    listed = subprocess.run([nvcc.path(), "--list-gpu-code"], check=True, capture_output=True, text=True).stdout
    return {int(number) for number in re.findall(r"sm_(\d+)", listed)}


def compiled(source: Path, chip: int) -> list[dict]:
    """A row for each kernel of the file."""
    with tempfile.TemporaryDirectory() as tmp:
        command = [nvcc.path(), *FLAGS, f"-arch=sm_{chip}", "-o", Path(tmp, "out.cubin"), source]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{source.name} does not compile for sm_{chip}: {done.stderr[-2000:]}")
    return list(parsed(done.stderr, source.name))


def parsed(said: str, source: str):
    """Rows of what ptxas -v said."""
    for part in said.split("Compiling entry function")[1:]:
        name, chip = _KERNEL.search("Compiling entry function" + part).groups()
        stack, stores, loads = map(int, _STACK.search(part).groups())
        registers, shared = _USED.search(part).groups(default="0")
        local = max(stack, stores, loads)
        yield {
            "kernel": readable(name),
            "case": source,
            "chip": f"sm_{chip}",
            "registers": int(registers),
            "shared": int(shared),
            "local": local,
            "problems": [f"{local} bytes of local memory"] if local else [],
        }


def readable(mangled: str) -> str:
    """The kernel's name with its template arguments, as `_ZN2dk..10warp_a_rowIfLi64EEE..` has them."""
    types = {"f": "fp32", "d": "fp64", "13__nv_bfloat16": "bf16", "6__half": "fp16"}
    found = re.search(r"([a-z][a-z_]+)I(f|d|13__nv_bfloat16|6__half)(?:Li(\d+)E)?E", mangled)
    if found is None:
        return mangled
    name, dtype, entries = found.groups()
    return f"{name}<{types[dtype]}{f', {entries}' if entries else ''}>"
