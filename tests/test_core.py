"""csrc/core on 32 host lanes against the oracle, bit for bit: keys, and what a warp or a radix search chooses."""

import ctypes

import pytest
import torch

from dendrite_kernels import reference as ref
from dendrite_kernels.reference import compute_dtype
from dendrite_kernels.testing import DTYPES, special_rows

RADIX = 0
ENTRIES = [8, 32, 64, 128, RADIX]  # of a lane, as csrc/cuda/kwinners_warp.cu is compiled for


@pytest.fixture
def core(emulator_path):
    library = ctypes.CDLL(str(emulator_path))
    library.key_f32.argtypes, library.key_f64.argtypes = [ctypes.c_float], [ctypes.c_double]
    library.key_f32.restype = library.key_f64.restype = ctypes.c_uint64
    return library


def winners(core, row, k, keep_ties, entries):
    out = (ctypes.c_int32 * len(row))()
    function = core.winners_f64 if row.dtype == torch.float64 else core.winners_f32
    count = function(ctypes.c_void_p(row.data_ptr()), len(row), k, keep_ties, entries, out)
    return list(out[:count])


def assert_winners(core, rows, k, entries):
    """rows: of any dtype; halves are ranked in float32, as the kernels rank them."""
    wide = rows.to(compute_dtype(rows.dtype)).contiguous()
    key = ref.rank(wide, None)
    for ties in ("lowest", "keep"):
        want = ref.winner_mask(key, k, ties)
        for row, mask in zip(wide, want, strict=True):
            assert winners(core, row, k, ties == "keep", entries) == mask.nonzero()[:, 0].tolist()


@pytest.mark.parametrize("entries", ENTRIES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_special_rows(core, dtype, entries):
    units = 241
    for k in (1, 7, 12, 120, 192, 193, units - 1, units):
        assert_winners(core, special_rows(units, dtype), k, entries)


@pytest.mark.parametrize("entries", ENTRIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_full_rows(core, dtype, entries):
    """As many units as a warp may hold, one fewer, and few winners, some and all: with and without gathering."""
    longest = 32 * (entries or 200)
    for units in (longest, longest - 1, longest // 2 + 3):
        for k in (1, units // 20 + 1, units // 5, units):
            assert_winners(core, torch.randn(1, units).to(dtype), k, entries)


@pytest.mark.parametrize("entries", ENTRIES)
@pytest.mark.parametrize("units", [1, 2, 31, 32, 33, 127, 128, 129, 255])
def test_odd_sizes(core, units, entries):
    for k in {1, (units + 1) // 2, units}:
        assert_winners(core, torch.randn(2, units).round(decimals=1), k, entries)


@pytest.mark.parametrize("entries", [32, 64, 128])
def test_more_candidates_than_room(core, entries):
    """All the row ties for the k-th place but a few: what lies above the groups' bound does not fit."""
    row = torch.full((1, 32 * entries), 0.5)
    row[0, ::7] = torch.rand(len(row[0, ::7])) + 1
    for k in (3, row[0].numel() // 20, row[0].numel() // 12):
        assert_winners(core, row, k, entries)


def test_keys_rank_as_the_contract_does(core):
    inf, nan, tiny = float("inf"), float("nan"), 5e-324
    ascending = [-inf, -1e308, -1.5, -tiny, 0.0, tiny, 1.0, 1e308, inf, nan]
    keys = [core.key_f64(v) for v in ascending]
    assert keys == sorted(set(keys)) and min(keys) > 0
    assert core.key_f64(-0.0) == core.key_f64(0.0) and core.key_f64(-nan) == core.key_f64(nan)
    floats = torch.randint(-(2**31), 2**31, (2000,)).to(torch.int32).view(torch.float32)
    floats = floats[~floats.isnan()].sort().values
    keys = [core.key_f32(v) for v in floats.tolist()]
    assert keys == sorted(keys) and min(keys) > 0
    assert all((a == b) == (x == y) for a, b, x, y in zip(keys, keys[1:], floats, floats[1:], strict=False))
    assert core.key_f32(-0.0) == core.key_f32(0.0) and core.key_f32(nan) == 2**32 - 1
