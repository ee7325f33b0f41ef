"""Making layers: device, dtype, torch's defaults; and what shapes they take."""

import pytest
import torch

from dendrite_kernels.nn import (
    DendriteSegments,
    DendriticConv2d,
    DendriticLinear,
    DendriticMLP,
    KWinners,
    KWinners2d,
    SparseConv2d,
    SparseLinear,
)

LAYERS = [
    lambda **options: SparseLinear(20, 8, sparsity=0.5, **options),
    lambda **options: SparseLinear(20, 8, sparsity=0.5, input_major=True, **options),
    lambda **options: DendriteSegments(6, 3, 7, sparsity=0.5, bias=True, **options),
    lambda **options: DendriticLinear(20, 8, 3, 7, kwinners=KWinners(8, 0.3), sparsity=0.5, **options),
    lambda **options: SparseConv2d(3, 8, 3, sparsity=0.5, **options),
    lambda **options: DendriticConv2d(3, 8, 3, 3, 7, kwinners=KWinners2d(8, 0.3), sparsity=0.5, **options),
    lambda **options: DendriticMLP(20, (16, 12), 4, 3, 7, percent_on=0.2, **options),
]


@pytest.mark.parametrize("make", LAYERS)
def test_device_and_dtype_are_given_as_to_torchs_layers(make):
    """The weights of a seed are the same ones, rounded."""
    torch.manual_seed(3)
    plain = make()
    torch.manual_seed(3)
    half = make(dtype=torch.bfloat16)
    for (name, want), got in zip(plain.state_dict().items(), half.state_dict().values(), strict=True):
        want = want.bfloat16() if want.is_floating_point() else want
        assert got.dtype == want.dtype and torch.equal(got, want) and got.stride() == want.stride(), name
    meta = make(device="meta")
    assert {t.device.type for t in meta.state_dict().values()} == {"meta"}
    assert [t.stride() for t in meta.state_dict().values()] == [t.stride() for t in plain.state_dict().values()]


@pytest.mark.parametrize("make", LAYERS)
def test_layers_are_of_the_default_dtype(make):
    torch.set_default_dtype(torch.float64)
    try:
        floats = [t for t in make().state_dict().values() if t.is_floating_point()]
    finally:
        torch.set_default_dtype(torch.float32)
    assert {t.dtype for t in floats} == {torch.float64}


@pytest.mark.parametrize("shape", [(20,), (2, 3, 20), (2, 0, 20)])
def test_rows_of_a_sparse_linear_may_lie_in_any_shape(shape):
    layer, x = SparseLinear(20, 8, sparsity=0.5), torch.randn(shape)
    y = layer(x)
    assert torch.equal(y, torch.nn.functional.linear(x, layer.weight, layer.bias)) and y.shape == (*shape[:-1], 8)
    with pytest.raises(ValueError, match=r"x: expected shape \[B, I\]"):
        layer(x[..., 1:])
