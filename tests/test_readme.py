"""The README's Python runs as it stands, and says the truth."""

import json
import re
from pathlib import Path

import components
import pytest
import torch
from dendrite_lab.config import EXPERIMENTS
from plot import RESULTS, table

import dendrite_kernels as dk
from dendrite_kernels.testing import assert_close

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()


def test_snippets_run_and_the_equivalent_is_equivalent():
    snippets = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    assert len(snippets) == 2
    names = {}
    for snippet in snippets:
        exec(snippet, names)
    assert_close(names["z"], names["same"], terms=784)
    assert torch.equal(names["z"] != 0, names["same"] != 0)


def test_the_ops_named_are_there():
    names = re.findall(r"`(\w+)`", re.search(r"- The ops: (.*?)\. ", README, flags=re.S).group(1))
    assert len(names) == 9 and all(hasattr(dk, name) for name in names)


@pytest.mark.parametrize("name", re.findall(r"dendrite-lab run (\S+)", README))
def test_experiments_named_are_there(name):
    assert name in EXPERIMENTS


def test_the_table_of_kernels_comes_from_the_rows():
    first, *_ = (RESULTS / "components_cpu.jsonl").read_text().splitlines()
    assert components.table(json.loads(first)) in README


def test_the_table_of_steps_comes_from_the_rows():
    rows = [json.loads(line) for line in (RESULTS / "step_cpu.jsonl").read_text().splitlines()]
    assert table(rows) in README
