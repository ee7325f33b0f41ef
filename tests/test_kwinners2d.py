"""kwinners2d and KWinners2d on every backend and instruction set, against plain PyTorch and the specification."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dendrite_kernels as dk
from dendrite_kernels import nn as dnn
from dendrite_kernels import reference as ref
from dendrite_kernels.reference import compute_dtype
from dendrite_kernels.testing import DTYPES, assert_close, assert_same_bits, small_integers, special_rows

BATCH, CHANNELS, HEIGHT, WIDTH = 6, 7, 5, 4
GROUPS = ["none", "one", "expanded", "each", "index"]


def arguments(groups, dtype=torch.float32):
    """y, gate and context_index; groups says which contexts there are."""
    y, wide = torch.randn(BATCH, CHANNELS, HEIGHT, WIDTH).to(dtype), compute_dtype(dtype)
    if groups == "none":
        return y, None, None
    contexts = {"one": 1, "expanded": 1, "each": BATCH, "index": 3}[groups]
    gate, index = torch.rand(contexts, CHANNELS, dtype=wide) + 0.1, None
    if groups == "index":
        index = torch.randint(0, 3, (BATCH,))
    return y, gate.expand(BATCH, -1) if groups == "expanded" else gate, index


def plainly(y, k, gate, index, local):
    """The docstring's three lines, with topk."""
    a = y if gate is None else y * (gate if index is None else gate[index])[:, :, None, None]
    if local:
        winners = a.topk(k, dim=1).indices
        return torch.zeros_like(a).scatter(1, winners, a.gather(1, winners))
    winners = a.flatten(1).topk(k, dim=1).indices
    return torch.zeros_like(a).flatten(1).scatter(1, winners, a.flatten(1).gather(1, winners)).view_as(a)


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("local, k", [(False, 1), (False, 28), (False, 139), (True, 1), (True, 3), (True, 6)])
def test_values_against_plain_pytorch(implementation, groups, local, k):
    y, gate, index = arguments(groups)
    z = dk.kwinners2d(y, k, gate, index, local=local)
    assert_same_bits(z, plainly(y, k, gate, index, local))
    assert z.is_contiguous()
    per = (z != 0).sum(1) if local else (z != 0).flatten(1).sum(1)
    assert (per == k).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("options", [{}, {"combine": "add", "relu": True}, {"ties": "keep"}, {"boost": True}])
def test_values_against_the_specification(implementation, dtype, local, options):
    options = dict(options)
    if "boost" in options:
        options["boost"] = torch.rand(CHANNELS, dtype=compute_dtype(dtype))
    for groups in GROUPS:
        y, gate, index = arguments(groups, dtype)
        for images in (y, (4 * y).round(), y.contiguous(memory_format=torch.channels_last), y.transpose(2, 3)):
            for k in (0, 2, 5, 60, 1000):
                got = dk.kwinners2d(images, k, gate, index, local=local, **options)
                assert_same_bits(got, ref.kwinners2d(images, gate, index, k, local, **options)[0])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 6), st.integers(1, 20), st.integers(0, 50), st.booleans())
def test_any_shape(implementation, batch, channels, height, width, k, local):
    """Whole vectors of locations, and their tails."""
    for y in (torch.randn(batch, channels, height, width), small_integers(batch, channels, height, width)):
        gate = torch.rand(batch, channels)
        got = dk.kwinners2d(y, k, gate, local=local)
        assert_same_bits(got, ref.kwinners2d(y, gate, None, k, local)[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ties", ["lowest", "keep"])
@pytest.mark.parametrize("relu", [False, True])
def test_special_values(implementation, dtype, ties, relu):
    """NaN, infinities, signed zeros, denormals and constants at each location, and in each sample."""
    locations = special_rows(20, dtype).T.reshape(1, 20, 3, -1)
    samples = special_rows(60, dtype).view(-1, 3, 4, 5)
    for k in (0, 1, 7, 19, 20, 59, 60):
        for y, local in ((locations, True), (samples, False)):
            got = dk.kwinners2d(y, k, local=local, ties=ties, relu=relu)
            assert_same_bits(got, ref.kwinners2d(y, None, None, k, local, relu=relu, ties=ties)[0])


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("local", [False, True])
def test_triton(groups, local):
    y, gate, index = arguments(groups)
    assert_same_bits(dk.kwinners2d(y, 5, gate, index, local=local), ref.kwinners2d(y, gate, index, 5, local)[0])
    if groups in ("none", "expanded"):
        return  # no gate, or one whose gradient is that of its first row
    leaves = [y.requires_grad_(), gate.requires_grad_()]
    grad = torch.randn_like(y)
    got = torch.autograd.grad(dk.kwinners2d(y, 5, gate, index, local=local), leaves, grad)
    want = torch.autograd.grad(plainly(y.double(), 5, gate.double(), index, local), leaves, grad.double())
    for mine, theirs in zip(got, want, strict=True):
        assert_close(mine, theirs, terms=BATCH * HEIGHT * WIDTH)


@pytest.mark.parametrize("local", [False, True])
def test_same_bits_for_any_number_of_threads(implementation, threads, local):
    y, gate = torch.randn(6, 9, 7, 5, requires_grad=True), torch.rand(1, 9, requires_grad=True)
    runs = []
    for count in (1, 2, 3):
        threads(count)
        z = dk.kwinners2d(y, 4, gate, local=local)
        runs.append([z, *torch.autograd.grad(z.square().sum(), (y, gate))])
    for run in runs[1:]:
        for mine, first in zip(run, runs[0], strict=True):
            assert_same_bits(mine, first)


@pytest.mark.parametrize("local", [False, True])
def test_the_op_is_registered_in_full(local):
    y, gate = torch.randn(3, 5, 4, 3, requires_grad=True), torch.rand(2, 5, requires_grad=True)
    index = torch.tensor([0, 1, 1])
    torch.library.opcheck(
        torch.ops.dendrite_kernels.kwinners2d.default, (y, gate, index, 4, local, "mul", torch.rand(5), True, "keep")
    )
    z = dk.kwinners2d(y, 4, gate, index, local=local)
    (first,) = torch.autograd.grad(z.square().sum(), y, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not implemented"):
        first.sum().backward()


def test_ties_go_to_the_first_channel_row_and_column(implementation):
    y = torch.ones(2, 3, 2, 2)
    y[1, 0] = 0
    z = dk.kwinners2d(y, 3)
    assert z.flatten(1).tolist() == [[1, 1, 1] + 9 * [0], 4 * [0] + [1, 1, 1] + 5 * [0]]
    z = dk.kwinners2d(y, 1, local=True)
    assert (z.sum(1) == 1).all() and (z[0, 0] == 1).all() and (z[1, 1] == 1).all()
    assert_same_bits(dk.kwinners2d(y, 3, ties="keep"), y)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("groups", ["one", "each", "index"])
@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("combine", ["mul", "add"])
def test_gradients(implementation, dtype, groups, local, combine):
    y, gate, index = arguments(groups, dtype)
    leaves = [y.requires_grad_(), gate.requires_grad_()]
    z = dk.kwinners2d(y, 5, gate, index, local=local, combine=combine)
    grad, kept = torch.randn_like(z), z != 0
    rows = (gate if index is None else gate[index]).double()[:, :, None, None]
    exact = torch.where(kept, y.double() * rows if combine == "mul" else y.double() + rows, 0)
    terms = BATCH * HEIGHT * WIDTH  # of a gate's gradient
    for mine, want in zip(
        torch.autograd.grad(z, leaves, grad), torch.autograd.grad(exact, leaves, grad.double()), strict=True
    ):
        assert_close(mine, want, terms=terms, dtype=dtype)


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("contexts, index", [(1, None), (2, None), (3, torch.tensor([2, 0]))])
def test_gradcheck(local, contexts, index):
    y = torch.randperm(2 * 4 * 3 * 2).view(2, 4, 3, 2).double() / 5 - 4.7  # far apart: a small change flips no winner
    gate = torch.linspace(0.7, 1.3, contexts * 4, dtype=torch.float64).view(contexts, 4)

    def run(y, gate):
        return dk.kwinners2d(y, 3, gate, index, local=local)

    assert torch.autograd.gradcheck(run, (y.requires_grad_(), gate.requires_grad_()))


@pytest.mark.parametrize("shape", [(0, 3, 2, 2), (2, 0, 2, 2), (2, 3, 0, 2)])
@pytest.mark.parametrize("local", [False, True])
def test_empty(implementation, shape, local):
    y, gate = torch.zeros(shape, requires_grad=True), torch.rand(shape[0], shape[1])
    z = dk.kwinners2d(y, 2, gate, local=local)
    assert z.shape == shape
    z.sum().backward()
    assert y.grad.shape == shape


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"y": torch.zeros(2, 3, 4)}, ValueError, r"y: expected shape \[B, C, H, W\]"),
        ({"y": torch.zeros(2, 3, 4, 4, dtype=torch.int32)}, TypeError, "y: expected float32, float64"),
        ({"gate": torch.zeros(1, 4)}, ValueError, r"gate: expected shape \[G, C\] = \[any, 3\], got \[1, 4\]"),
        ({"gate": torch.zeros(1, 3).double()}, TypeError, r"gate: expected torch\.float32"),
        ({"gate": torch.zeros(3, 3)}, ValueError, "context_index: expected one, as there are 3 contexts for 2 rows"),
        ({"context_index": torch.zeros(2).long()}, ValueError, "context_index: expected None without a gate"),
        ({"gate": torch.zeros(3, 3), "context_index": torch.tensor([0, 3])}, IndexError, "context_index: expected val"),
        ({"boost": torch.zeros(4)}, ValueError, r"boost: expected shape \[C\]"),
        ({"k": -1}, ValueError, "k: expected 0 or more, got -1"),
        ({"combine": "max"}, ValueError, "combine: expected one of 'mul', 'add'"),
        ({"ties": "random"}, ValueError, "ties: expected one of 'lowest', 'keep'"),
    ],
)
@pytest.mark.parametrize("local", [False, True])
def test_bad_arguments_are_named(options, error, words, local):
    with pytest.raises(error, match=words):
        dk.kwinners2d(**{"y": torch.zeros(2, 3, 4, 4), "k": 1, "local": local, **options})


# ---- KWinners2d -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("local", [False, True])
def test_duty_cycles_and_boosting_by_channel(implementation, local):
    layer = dnn.KWinners2d(CHANNELS, 0.3, local=local, boost_strength=1.5, duty_cycle_period=20)
    area, duty, seen = HEIGHT * WIDTH, torch.zeros(CHANNELS), 0
    k = round(CHANNELS * 0.3) if local else round(CHANNELS * area * 0.3)
    for _ in range(5):
        x = torch.randn(BATCH, CHANNELS, HEIGHT, WIDTH) - 0.5
        want = torch.where(plainly(x * torch.exp(-1.5 * duty)[:, None, None], k, None, None, local) != 0, x, 0)
        assert_same_bits(layer(x), want)
        seen += BATCH
        period = min(20, seen)
        duty = (duty * (period - BATCH) + (want > 0).sum((0, 2, 3)) / area) / period
        torch.testing.assert_close(layer.duty_cycle, duty)
    assert int(layer.learning_iterations) == seen
    layer.eval()(x)
    torch.testing.assert_close(layer.duty_cycle, duty)


def test_k_and_relu():
    layer = dnn.KWinners2d(10, 0.25, k_inference_factor=2.0, relu=True)
    assert (layer(torch.rand(2, 10, 2, 2) + 1) != 0).flatten(1).sum(1).tolist() == [10, 10]
    assert (layer.eval()(torch.rand(2, 10, 3, 2) + 1) != 0).flatten(1).sum(1).tolist() == [30, 30]
    assert (layer(-torch.rand(2, 10, 2, 2)) == 0).all()


def test_a_checkpoint_goes_on_to_the_same_bits():
    first, second = (dnn.KWinners2d(CHANNELS, 0.3, boost_strength=s) for s in (1.0, 0.0))
    first(torch.randn(BATCH, CHANNELS, 3, 3))
    second.load_state_dict(first.state_dict())
    x = torch.randn(BATCH, CHANNELS, 3, 3)
    assert_same_bits(first(x), second(x))
    assert_same_bits(first.duty_cycle, second.duty_cycle)


def test_bad_shapes_are_named():
    for shape in ((2, 4, 3, 3), (2, 3, 3)):
        with pytest.raises(ValueError, match=r"x: expected \[B, 3, H, W\]"):
            dnn.KWinners2d(3, 0.5)(torch.zeros(shape))


@pytest.mark.parametrize("combine", ["mul", "add"])
def test_y_is_kept_only_for_the_gradient_of_a_gate_that_multiplies(combine):
    """Without one, what y becomes after the call is nobody's concern; the gradient is the gate where z is kept."""
    for op, shape in (
        (lambda y, g: dk.kwinners2d(y, 6, g, combine=combine), (2, 3, 2, 2)),
        (lambda y, g: dk.gated_kwinners(y, g, None, None, 2, combine=combine), (2, 3)),
    ):
        gate, y = torch.tensor([[0.5, 2.0, 0.25]]), torch.rand(shape) + 1
        leaf = y.clone().requires_grad_()
        written = leaf * 1
        z = op(written, gate)
        written.mul_(2)
        z.sum().backward()
        factor = gate.view(1, 3, *[1] * (y.dim() - 2)) if combine == "mul" else torch.ones(())
        assert torch.equal(leaf.grad, (z != 0) * factor.expand(shape) if combine == "mul" else (z != 0).float())
        gate.requires_grad_()
        written = leaf * 1
        z = op(written, gate)
        written.mul_(2)
        if combine == "mul":
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                z.sum().backward()
        else:
            z.sum().backward()
