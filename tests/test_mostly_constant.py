"""The product of a dense x most of whose entries equal one number: its own kernel, and when it must not be used."""

import pytest
import torch

import dendrite_kernels as dk
from dendrite_kernels import known
from dendrite_kernels.backends import cpu
from dendrite_kernels.backends.cpu import products
from dendrite_kernels.testing import assert_close, assert_same_bits

pytestmark = pytest.mark.skipif(cpu._cpu is None, reason="a native kernel: no C++ compiler here")


def background(batch, inputs, common, share=0.2, dtype=torch.float32):
    """x [batch, inputs]: `common`, but for about a share of its entries."""
    others = torch.rand(batch, inputs) < share
    others[0, : inputs // 2 + 1] = False  # the first row tells which number is common
    return torch.where(others, torch.randn(batch, inputs), common).to(dtype)


def kernel(x, weight, sums=None):
    """y of the kernel, or None where it declines."""
    return products.mostly_constant_matmul(x, weight.T, sums)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("common", [0.0, -0.42, 3.0])
@pytest.mark.parametrize("shape", [(40, 100, 64), (33, 37, 45), (50, 784, 130), (1, 9, 1), (3, 64, 33)])
@pytest.mark.parametrize("by_input", [False, True])
def test_values(isa, dtype, common, shape, by_input):
    batch, inputs, units = shape
    x, weight = background(batch, inputs, common, dtype=dtype), torch.randn(units, inputs, dtype=dtype)
    if by_input:
        weight = weight.T.contiguous().T
    got = kernel(x, weight)
    assert got is not None
    assert_close(got, x.double() @ weight.double().T, terms=2 * inputs, dtype=dtype)


def test_values_with_a_weight_cut_from_a_larger_one(isa):
    x, weight = background(40, 50, 1.0), torch.randn(70, 200)[:, 30:130:2]
    assert_close(kernel(x, weight), x.double() @ weight.double().T, terms=100)


def test_special_numbers_in_x(isa):
    x, weight = background(40, 60, 0.5), torch.randn(48, 60)
    x[3, 5], x[4, 6], x[5, 7] = float("nan"), float("inf"), -float("inf")
    assert_close(kernel(x, weight), x.double() @ weight.double().T, terms=120)


@pytest.mark.parametrize("case", ["few equal", "first row unlike", "nan", "inf", "large", "inf weight", "no rows"])
def test_declines(isa, case):
    x, weight = background(40, 60, 0.5), torch.randn(48, 60)
    if case == "few equal":
        x[1:] = torch.randn(39, 60)
    elif case == "first row unlike":
        x[0] = torch.randn(60)
    elif case in ("nan", "inf", "large"):
        x[x == 0.5] = {"nan": float("nan"), "inf": float("inf"), "large": 1e20}[case]
    elif case == "inf weight":
        weight[7, 8] = float("inf")
    elif case == "no rows":
        x = x[:0]
    assert kernel(x, weight) is None


def test_the_same_bits_for_any_number_of_threads(isa, threads):
    x, weight, runs = background(70, 300, -0.42), torch.randn(200, 300), []
    for count in (1, 2, 3):
        threads(count)
        runs.append(kernel(x, weight))
    assert_same_bits(runs[1], runs[0])
    assert_same_bits(runs[2], runs[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "shape",
    [
        (1, 9, 64),
        (1, 90, 96),
        (4, 784, 128),
        (2, 30, 33),
        (products.FEW_SAMPLES, 40, 65),
        (products.FEW_SAMPLES, 50, 576),
    ],
)
def test_a_frozen_weight_stored_by_input_changes_no_bit(isa, dtype, shape):
    batch, inputs, units = shape
    x, weight = (
        background(batch, inputs, -0.42, dtype=dtype),
        torch.nn.Parameter(torch.randn(units, inputs, dtype=dtype)),
    )
    with torch.no_grad():
        runs = [products.dense_matmul(x, weight) for _ in range(5)]
        assert known.of_frozen(weight, products.by_input, cpu._cpu.isa()) is not None
        for run in runs[1:]:
            assert_same_bits(run, runs[0])
        assert_close(runs[0], x.double() @ weight.double().T, terms=2 * inputs, dtype=dtype)
        weight.mul_(-2)
        assert_close(products.dense_matmul(x, weight), x.double() @ weight.double().T, terms=2 * inputs, dtype=dtype)


@pytest.mark.parametrize("seen", [True, False])
def test_a_frozen_weight_that_is_written(monkeypatch, seen):
    x, weight = background(1, 50, 1.0), torch.nn.Parameter(torch.randn(64, 50))
    with torch.no_grad():
        for _ in range(4):
            products.dense_matmul(x, weight)
        weight.data.mul_(3)
        if seen:
            dk.invalidate()
            assert_close(products.dense_matmul(x, weight), x.double() @ weight.double().T, terms=100)
        else:
            monkeypatch.setenv("DENDRITE_CHECK", "1")
            with pytest.raises(RuntimeError, match="what was made of the weight: out of date"):
                products.dense_matmul(x, weight)


def test_no_copy_of_a_weight_that_moves_or_whose_x_is_dense():
    weight, isa = torch.nn.Parameter(torch.randn(64, 50)), cpu._cpu.isa()
    for _ in range(5):
        dk.linear_kwinners(background(1, 50, 0.0), weight, None, None, None, 3)  # with grad: in training
    with torch.no_grad():
        for _ in range(5):
            products.dense_matmul(torch.randn(1, 50), weight)
        for _ in range(5):
            products.dense_matmul(background(1, 50, 0.0), weight)
            weight.add_(1)
    assert known.of_frozen(weight, products.by_input, isa) is None


@pytest.mark.parametrize("common", [-0.42, float("nan")])
def test_the_layer_uses_it_or_does_without(monkeypatch, common):
    """linear_kwinners gives the winners of the whole product whether the kernel takes x or not."""
    ran, call = [], products.call

    def spy(name, *args):
        out = call(name, *args)
        if name == "mostly_constant_matmul":
            ran.append(out)
        return out

    monkeypatch.setattr(products, "call", spy)
    x = background(products.MOSTLY_CONSTANT_ROWS, 90, common)
    weight, bias = torch.randn(120, 90), torch.randn(120)
    z = dk.linear_kwinners(x, weight, bias, None, None, 120)
    assert ran == [common == common]
    assert_close(z.to_dense(), x.double() @ weight.double().T + bias.double(), terms=180)
