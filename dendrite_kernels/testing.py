"""What the tests and benchmarks compare with: tolerances from the arithmetic, and inputs whose sums are exact."""

from __future__ import annotations

import torch
from torch import Tensor

from .reference import compute_dtype

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def rounding(dtype: torch.dtype, terms: int) -> float:
    """Relative error of a result that is a sum of this many rounded terms, computed wide and rounded once to dtype.

    A sum of n terms, each rounded, is off by at most n * eps of the compute dtype times the largest partial sum; the
    factor 4 covers two such sums being compared and the few elementwise operations around them.
    """
    return 4 * terms * torch.finfo(compute_dtype(dtype)).eps + torch.finfo(dtype).eps


def assert_close(actual: Tensor, expected: Tensor, terms: int = 1, dtype: torch.dtype | None = None) -> None:
    """Equal up to `rounding`, relative to the largest finite expected entry; NaN and infinities in the same places."""
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    dtype = dtype or actual.dtype
    actual, expected = actual.detach().double(), expected.detach().double()
    finite = expected[expected.isfinite()]
    scale = float(finite.abs().max()) if finite.numel() else 1.0
    spacing = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps  # of denormals
    atol = rounding(dtype, terms) * scale + spacing
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol, equal_nan=True)


def assert_same_bits(actual: Tensor, expected: Tensor) -> None:
    """Equal bit for bit (so -0.0 is not 0.0), NaN to NaN."""
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    both_nan = actual.isnan() & expected.isnan()
    same = (
        (actual == expected) & (actual.signbit() == expected.signbit())
        if actual.is_floating_point()
        else actual == expected
    )
    wrong = ~(same | both_nan)
    if wrong.any():
        at = tuple(int(i) for i in wrong.nonzero()[0])
        raise AssertionError(f"{int(wrong.sum())} entries differ, first at {at}: {actual[at]} for {expected[at]}")


def small_integers(*shape: int, dtype: torch.dtype = torch.float32, high: int = 3) -> Tensor:
    """Whole numbers in [-high, high] as floats: their sums are exact in any order, and ties abound."""
    return torch.randint(-high, high + 1, shape).to(dtype)


def special_rows(units: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows [B, units] that try a selection: ties, signed zeros, NaN, infinities, denormals, constants, sorted, tiny."""
    nan, inf, tiny = float("nan"), float("inf"), torch.finfo(dtype).tiny
    base = torch.randn(units).double()
    position = torch.arange(units)

    def every(step: int, value: float, row: Tensor = base) -> Tensor:
        return torch.where(position % step == 0, torch.tensor(value, dtype=torch.float64), row)

    zeros = torch.zeros(units, dtype=torch.float64)
    rows = [
        base,
        base.round(),
        torch.where(position % 2 == 0, zeros, -zeros),
        every(3, -0.0, every(2, 0.0, -base.abs())),
        zeros + 1.5,
        every(7, nan),
        every(2, nan),
        zeros + nan,
        -every(5, nan),
        every(4, inf),
        every(3, -inf, every(4, inf)),
        every(6, nan, every(4, inf)),
        zeros - inf,
        base * tiny / 64,
        base.sort().values,
        base.sort(descending=True).values,
        every(11, 1e4, base * 1e-3),
        base * 1e-30 if dtype != torch.float16 else base * 1e-6,
    ]
    return torch.stack(rows).to(dtype)
