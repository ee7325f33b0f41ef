"""The documentation: what is made for it at build time is right, and it builds without a warning (slow)."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import docstrings
import performance
import pictures
import pytest
import rows
import torch

import dendrite_kernels as dk

ROOT = Path(__file__).resolve().parent.parent

DOCSTRING = """A sum * a star, of update_duty_cycle_ and `k * x`.

Args:
    weight, bias: [O, I] * 2
        and more.
    k: winners.

Raises:
    as others do.

Equivalent to (no bias): x @ w  # a * b
    + 1

Equivalent to::

    a = b * c

    d = a_

Source: a paper."""

RST = r"""A sum \* a star, of update_duty_cycle\_ and `k * x`.

**Args**

- **weight, bias**: [O, I] \* 2
  and more.
- **k**: winners.

**Raises**

as others do.

Equivalent to (no bias)::

    x @ w  # a * b
        + 1

Equivalent to::

    a = b * c

    d = a_

Source: a paper.
"""


def test_docstrings_become_rst():
    assert docstrings.to_rst(DOCSTRING.splitlines()) == [*RST.splitlines(), ""]


# ---- pictures -------------------------------------------------------------------------------------------------------


def test_the_pictures_show_what_their_page_says():
    """Facts 2, 3 and 5 of the small layer that is drawn."""
    small = pictures.SmallLayer()
    first = small.segments.detach().clone()
    touched = torch.zeros(pictures.UNITS, pictures.SEGMENTS, dtype=torch.bool)
    for _ in range(30):
        before = small.activations()
        small.step()
        rows = small.segments.grad.ne(0).any(2)
        assert rows.sum(1).max() == 1 and torch.linalg.matrix_rank(small.segments.grad.flatten(0, 1)) == 1
        touched |= rows
        assert not small.activations().ne(before)[~touched].any()
    moved = small.segments.detach().ne(first).any(2)
    assert torch.equal(moved, touched) and not touched.all()


# ---- the performance page -------------------------------------------------------------------------------------------

ABOUT = {
    "threads": 2,
    "commit": "abc",
    "finished": "2026-01-02T03:04:05+00:00",
    "versions": {"processor": "chip", "instruction set": "avx2 of two", "torch": "2.13", "python": "3.11"},
}


def raced(group, **medians):
    return [{"group": group, "shape": "B = 1", "label": name, "median_ms": ms, **ABOUT} for name, ms in medians.items()]


def test_races_are_told_as_they_ended():
    rows = raced("won", ours=1.0, topk=4.0) + raced("lost", ours=2.0, topk=1.0, csr=8.0) + raced("alone", ours=1.0)
    lines = [line for line in performance.ops(rows).splitlines() if line.startswith("|")][2:]
    assert lines == [
        "| won | B = 1 | 1.000 | topk | 4.000 | 4.00 |",
        "| lost | B = 1 | 2.000 | topk | 1.000 | **0.50** |",
        "| lost | B = 1 | 2.000 | csr | 8.000 | 4.00 |",
    ]


def test_rows_of_a_run_are_what_the_page_reads():
    about = {key: ABOUT[key] for key in ("threads", "commit", "versions")}
    run = {
        "datetime": ABOUT["finished"],
        "benchmarks": [
            {
                "group": "g",
                "extra_info": {"label": "ours", "shape": "s", **about},
                "stats": {"median": 2e-3, "rounds": 7},
            },
            {"group": "g", "extra_info": {}, "stats": {"median": 1.0, "rounds": 1}},
        ],
    }
    (row,) = rows.rows(run)
    assert row == {"group": "g", "label": "ours", "shape": "s", **ABOUT, "median_ms": 2.0, "rounds": 7}


def test_losses_are_named():
    calls = [("fast", 1.0, 0.9), ("slow", 2.0, 0.5), ("slow", 1.0, 0.5), ("b", 0.4, 0.1), ("c", 0.4, 0.2), ("d", 1, 1)]
    row = {"S": 10, **ABOUT, "components": [{"name": n, "ms": ms, "floor_ms": floor} for n, ms, floor in calls]}
    text = performance.losses(raced("a", ours=2.0, topk=1.0) + raced("b", ours=1.0, topk=0.99), [row], [])
    assert "| a | topk takes 1.000 ms, ours 2.000 |" in text and "topk takes 0.99" not in text
    assert re.findall(r"\| (\w+) \| [\d.]+ ms a step", text) == ["slow", "b", "c", "fast"]
    assert "| slow | 3.00 ms a step, where its roof is 1.00 (S = 10) |" in text


def test_the_committed_rows_make_both_pages(tmp_path):
    performance.write_all(tmp_path)
    text = (tmp_path / "performance.md").read_text()
    drawn = set(re.findall(r"_generated/(\w+\.svg)", text))
    assert drawn and all((tmp_path / name).stat().st_size > 1000 for name in drawn)
    assert "## Where we lose" in text
    assert "| `prototype_10` | 8 of 8 | 94.93 | 94.67-95.15 | 94.55 |" in (tmp_path / "experiments.md").read_text()


# ---- the build ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(
    any(importlib.util.find_spec(m) is None for m in ("sphinx", "myst_parser", "furo")),
    reason="Sphinx, myst-parser or furo is not installed (make docs installs them)",
)
def test_builds_without_warnings_and_has_every_public_name(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-E", "-b", "html", ROOT / "docs", tmp_path]
    done = subprocess.run([*command, "-d", tmp_path / "doctrees"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    anchors = set(re.findall(r'id="dendrite_kernels\.([\w.]+)"', (tmp_path / "api.html").read_text()))
    public = {f"ops.{name}" for name in dk.ops.__all__} | {f"optim.{name}" for name in dk.optim.__all__}
    public |= {f"nn.{name}" for name in dk.nn.__all__} | {"use_backend", "invalidate", "sparsity.prune"}
    assert public <= anchors
    pages = [page for page in tmp_path.glob("*.html") if "_generated" in page.read_text()]
    assert pages == []  # every picture was found and copied
