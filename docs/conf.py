"""Sphinx: `make docs`. Pictures and tables are made here at each build, from the code and the committed rows."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
GENERATED = HERE / "_generated"
sys.path[:0] = [str(p) for p in (HERE, HERE.parent, HERE.parent / "python", HERE.parent / "bench")]

import docstrings  # noqa: E402 - these four lie in the folders named above
import performance  # noqa: E402
import pictures  # noqa: E402

import dendrite_kernels  # noqa: E402

project = "dendrite_kernels"
version = release = dendrite_kernels.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
smartquotes = False  # code is quoted, too
html_title = f"{project} {version}"
exclude_patterns = ["_build", "_generated/*.md"]  # the latter are included by pages
myst_heading_anchors = 3

default_role = "code"  # `x` in a docstring is code
autodoc_inherit_docstrings = False  # what torch says of its modules is torch's
autodoc_member_order = "bysource"
maximum_signature_line_length = 90


def generate(app):
    GENERATED.mkdir(exist_ok=True)
    pictures.draw_all(GENERATED)
    performance.write_all(GENERATED)


def as_written(app, what, name, obj, options, lines):
    lines[:] = docstrings.to_rst(lines)


def leave_out(app, what, name, member, skip, options):
    """Fields of a NamedTuple: the class's docstring has said what they are."""
    return True if type(member).__name__ == "_tuplegetter" else None


def setup(app):
    app.connect("builder-inited", generate)
    app.connect("autodoc-process-docstring", as_written)
    app.connect("autodoc-skip-member", leave_out)
