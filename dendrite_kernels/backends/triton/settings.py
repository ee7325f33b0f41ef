"""Launch settings, from one function an operation. Modelled from compiled code; none was measured on a GPU yet."""

from __future__ import annotations

from dataclasses import dataclass

import torch


def power_of_2(n: int) -> int:
    """The least that is n or more."""
    return 1 << max(0, n - 1).bit_length()


@dataclass(frozen=True)
class Rows:
    """A program holds a whole row in registers. Without a limit ptxas spills one or two to use fewer than there are."""

    block: int
    warps: int
    registers: int = 128


# What a program holds without spilling, for any dtype and chip.
LONGEST_ROW = 4096


def rows(units: int) -> Rows:
    block = power_of_2(max(16, units))
    return Rows(block, min(16, max(1, block // 256)))


@dataclass(frozen=True)
class Columns:
    block_batch: int
    block_units: int
    warps: int


def columns(batch: int, units: int) -> Columns:
    return Columns(min(32, power_of_2(max(1, batch))), 32, 4)


@dataclass(frozen=True)
class Segments:
    """One context: BLOCK_O units a program; many: a product of [block_units, block_width] and [., block_contexts]."""

    block_units: int
    block_width: int
    block_contexts: int
    warps: int


def segments(contexts: int, width: int, dtype: torch.dtype, many: bool) -> Segments:
    padded = power_of_2(max(16, width))
    if not many:
        return Segments(4, min(256 if dtype == torch.float32 else 128, padded), 1, 4)
    block = min(32, power_of_2(max(16, contexts)))
    return Segments(16, min(32, padded), block, 4)


# With more rows than this a dense product beats the gather.
MOST_GATHERED_ROWS = 24
