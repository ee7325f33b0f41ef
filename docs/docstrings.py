"""Our docstrings, which are plain text, as reStructuredText.

Args:                           a list, the names in bold
    weight, bias: [O, I], [O]
Returns: / Raises:              a paragraph under a bold word
Equivalent to: code             a block of code; a paragraph that ends in "::" has its own
all else                        as it is, stars and underscores too; `code` is code
"""

from __future__ import annotations

import re

SECTION = re.compile(r"(Args|Returns|Raises):")
ENTRY = re.compile(r"    ([\w*]+(?:(?:, | to | and )[\w*]+)*): (.+)")
EQUIVALENT = re.compile(r"(Equivalent to[^:]*): (.+)")


def to_rst(lines: list[str]) -> list[str]:
    """Of a docstring without indentation of its own."""
    out: list[str] = []
    literal = False
    for paragraph in paragraphs(lines):
        first, *rest = paragraph
        equivalent = EQUIVALENT.fullmatch(first)
        literal = first.startswith(" ") and (literal or (bool(out) and out[-2].endswith("::")))
        if literal:
            out += paragraph
        elif SECTION.fullmatch(first):
            out += [f"**{first[:-1]}**", "", *listed(rest)]
        elif equivalent:
            out += [f"{equivalent[1]}::", "", *(f"    {line}" for line in (equivalent[2], *rest))]
        else:
            out += [escaped(line) for line in paragraph]
        out.append("")
    return out


def paragraphs(lines: list[str]) -> list[list[str]]:
    """Split at blank lines."""
    out: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            out[-1].append(line)
        elif out[-1]:
            out.append([])
    return [p for p in out if p]


def listed(lines: list[str]) -> list[str]:
    """The entries of a section, each an item; a section of one sentence is that sentence."""
    out = []
    for line in lines:
        entry = ENTRY.fullmatch(line)
        if entry:
            out.append(f"- **{escaped(entry[1])}**: {escaped(entry[2])}")
        else:
            out.append(("  " if out and out[0].startswith("- ") else "") + escaped(line.strip()))
    return out


def escaped(line: str) -> str:
    """Without markup but for `code`; a paragraph's last colons stay."""
    parts = re.split(r"(`+[^`]*`+)", line)
    return "".join(p if p.startswith("`") else re.sub(r"[*|]|(?<=\w)_(?!\w)", r"\\\g<0>", p) for p in parts)
