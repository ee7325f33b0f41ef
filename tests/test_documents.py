"""README, CONTRIBUTING and docs/: their Python runs as it stands, their commands exist, and they say the truth."""

import importlib.util
import json
import re
import shlex
from pathlib import Path

import components
import pytest
import torch
from dendrite_lab import cli
from dendrite_lab.config import EXPERIMENTS
from plot import RESULTS, table

import dendrite_kernels as dk
from dendrite_kernels.testing import assert_close

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]


def blocks(page, language):
    """(line, text) of each fenced block of a language."""
    text = (ROOT / page).read_text()
    for found in re.finditer(rf"^```{language}\n(.*?)^```", text, flags=re.S | re.M):
        yield text[: found.start()].count("\n") + 2, found[1]


def run(page, folder, monkeypatch):
    """A page's Python, from top to bottom in one namespace; files that it writes go to the folder."""
    monkeypatch.chdir(folder)
    names = {"__name__": "__main__"}
    for line, snippet in blocks(page, "python"):
        exec(compile("\n" * (line - 1) + snippet, str(ROOT / page), "exec"), names)
    return names


@pytest.mark.parametrize("page", [page for page in PAGES if any(blocks(page, "python")) and page != "README.md"])
def test_the_python_runs(page, tmp_path, monkeypatch):
    run(page, tmp_path, monkeypatch)


def test_the_readme_runs_and_its_equivalent_is_equivalent(tmp_path, monkeypatch):
    names = run("README.md", tmp_path, monkeypatch)
    assert_close(names["z"], names["same"], terms=784)
    assert torch.equal(names["z"] != 0, names["same"] != 0)


# ---- commands -------------------------------------------------------------------------------------------------------

TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
LAB = {command.name or command.callback.__name__ for command in cli.app.registered_commands}


def commands(page):
    """Lines of sh blocks, and of blocks that are indented and begin with a command, less their comments."""
    lines = [line for _, block in blocks(page, "sh") for line in block.splitlines()]
    lines += re.findall(r"^    ((?:make|pip|python|\.venv/bin/\S+) .*)$", (ROOT / page).read_text(), flags=re.M)
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


def missing(words):
    """What of a command is not there, or None."""
    program, *rest = words
    program = program.removeprefix(".venv/bin/")
    if program == "make":
        return next((w for w in rest if "=" not in w and w not in TARGETS), None)
    if program == "dendrite-lab":
        return None if rest[0] in LAB else rest[0]
    if program == "python" and rest[0] == "-m":
        return None if importlib.util.find_spec(rest[1]) else rest[1]
    if program == "python":
        return None if (ROOT / rest[0]).exists() else rest[0]
    return None if program == "pip" else program


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_the_commands_exist(page):
    assert [words for words in commands(page) if missing(words)] == []


def test_a_command_that_is_not_there_is_found():
    bad = ["make tset", "dendrite-lab rnu x", "python -m dendrite_kernel", "python bench/stop.py", "npm install"]
    assert [missing(shlex.split(line)) for line in bad] == ["tset", "rnu", "dendrite_kernel", "bench/stop.py", "npm"]


# ---- what the README says -------------------------------------------------------------------------------------------


def test_the_ops_named_are_there():
    names = re.findall(r"`(\w+)`", re.search(r"- The ops: (.*?)\. ", README, flags=re.S).group(1))
    assert set(names) == set(dk.ops.__all__) - {"KSparse"}


@pytest.mark.parametrize("name", re.findall(r"dendrite-lab run (\S+)", README))
def test_experiments_named_are_there(name):
    assert name in EXPERIMENTS


def test_the_table_of_kernels_comes_from_the_rows():
    first, *_ = (RESULTS / "components_cpu.jsonl").read_text().splitlines()
    assert components.table(json.loads(first)) in README


def test_the_table_of_steps_comes_from_the_rows():
    rows = [json.loads(line) for line in (RESULTS / "step_cpu.jsonl").read_text().splitlines()]
    assert table(rows) in README
