"""Launch settings, from one function an operation. Modelled from compiled code; none was measured on a GPU yet."""

from __future__ import annotations

from dataclasses import dataclass

import torch


def power_of_2(n: int) -> int:
    """The least that is n or more."""
    return 1 << max(0, n - 1).bit_length()


# A limit for ptxas, which otherwise spills one or two to use fewer than there are.
REGISTERS = 128


@dataclass(frozen=True)
class Rows:
    """A program holds a whole row in registers."""

    block: int
    warps: int
    registers: int = REGISTERS


# What a program holds without spilling, on any chip; of float64 half as much.
LONGEST_ROW = 4096
# Blocks on the second axis of a grid, which ends at 65,535; the third has the rest.
MOST_BLOCKS = 32_768


def held(units: int, dtype: torch.dtype) -> bool:
    """Whether a program holds a row."""
    return units <= LONGEST_ROW // (2 if dtype == torch.float64 else 1)


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


# A longer row is read over and over, this many entries at a time.
LONG_ROWS = Rows(1024, 8)


@dataclass(frozen=True)
class Products:
    """Blocks of k-sparse gradients: of dW [block_units of one input], of dx [block_entries, block_inner]."""

    block_units: int
    block_entries: int
    block_inner: int


def products(units: int, entries: int, inner: int) -> Products:
    return Products(min(1024, power_of_2(max(32, units))), 8, min(128, power_of_2(max(16, inner))))


# With more rows than this a dense product beats the gather.
MOST_GATHERED_ROWS = 24
# With a larger share of entries in a row of x, or of units in a row of dy, torch's dense product has the less to do.
MOST_GATHERED_SHARE = 0.1
# Dense rows of dy are gathered from where they are this short (an output layer's).
MOST_GATHERED_UNITS = 256

# Entries a program of Adam takes; of float64 a quarter, or registers spill.
ADAM_BLOCK = 1024


@dataclass(frozen=True)
class Layer:
    """The whole layer in one launch: the blocks of its pieces, and the registers of its rows."""

    gate: Segments
    block_batch: int
    block_units: int
    block_inputs: int
    rows: Rows


def layer(units: int, width: int, dtype: torch.dtype, sparse: bool) -> Layer:
    row = rows(units)
    row = Rows(row.block, max(4, row.warps), row.registers)
    return Layer(segments(1, width, dtype, many=False), 16, 256 if sparse else 32, 32, row)
