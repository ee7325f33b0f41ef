"""Which kernel a row or a gradient gets, and in what blocks: plain numbers, modelled and not yet measured."""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Of a kernel that asks for no more than every chip gives.
SHARED_BYTES = 48 * 1024

# Units of a row that kernels here take; longer ones are Triton's.
LONGEST_ROW = 262_144

# Entries a lane may hold, as csrc/cuda/kwinners_warp.cu is compiled for; of float64 not the last.
ENTRIES = (8, 32, 64, 128)

# Of a dense gradient's row: a block's 512 in float64 (csrc/cuda/outer.cu) times the blocks that a grid takes in y.
MOST_COLUMNS = 512 * 65_535

# So few rows of so many units leave most of the chip idle with a block each: they get several.
FEW_ROWS, SPLIT_UNITS, TILE = 128, 32_768, 8192

# More rows than this hide each other's waits four to a block; fewer are spread over the chip.
MANY_ROWS = 512


@dataclass(frozen=True)
class Winners:
    """how: "warp" (size: entries a lane; warps: rows a block), "block", or "split" (size: units a tile)."""

    how: str
    size: int = 0
    warps: int = 0


def winners(batch: int, units: int, dtype: torch.dtype) -> Winners:
    entries = ENTRIES[:-1] if dtype == torch.float64 else ENTRIES
    for size in entries:
        if units <= 32 * size:
            return Winners("warp", size, 4 if batch > MANY_ROWS else 1)
    if batch <= FEW_ROWS and units >= SPLIT_UNITS:
        return Winners("split", TILE)
    return Winners("block")


def outer_warps(columns: int, dtype: torch.dtype) -> int:
    """Rows of a weight's gradient a block, each in shared memory; 0: not one fits."""
    row = columns * (8 if dtype == torch.float64 else 4)
    return min(4, SHARED_BYTES // max(1, row))
