"""segment_gate on every backend and instruction set, against the oracle."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dendrite_kernels as dk
from dendrite_kernels import reference as ref
from dendrite_kernels.testing import DTYPES, assert_close, assert_same_bits, small_integers

SHAPES = [(1, 3, 1, 1), (1, 17, 10, 784), (2, 5, 4, 16), (3, 9, 7, 33), (5, 1, 100, 5), (11, 20, 3, 100)]  # G, O, S, C


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_exact_activations_give_exact_winners(implementation, dtype, shape):
    contexts, units, per_unit, width = shape
    context = small_integers(contexts, width, dtype=dtype, high=2)
    segments = small_integers(units, per_unit, width, dtype=dtype, high=2)
    bias = small_integers(units, per_unit, dtype=dtype)
    for select in ("abs_max", "max"):
        gate, winner = dk.segment_gate(context, segments, bias, select=select, activation="none")
        want_gate, want_winner = ref.segment_gate(context, segments, bias, select, "none")
        assert_same_bits(winner, want_winner)
        assert_same_bits(gate + 0.0, want_gate + 0.0)
        gate, _ = dk.segment_gate(context, segments, bias, select=select)
        assert_close(gate, want_gate.sigmoid(), terms=2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients(implementation, dtype, shape):
    contexts, units, per_unit, width = shape
    args = [small_integers(*s, dtype=dtype).requires_grad_() for s in [(contexts, width), (units, per_unit, width)]]
    args.append(torch.rand(units, per_unit).to(dtype).requires_grad_())
    gate, winner = dk.segment_gate(*args)
    grad = torch.randn_like(gate)
    mine = torch.autograd.grad(gate, args, grad)
    exact = ref.segment_gate_backward(
        grad.double(), *(a.detach().double() for a in args[:2]), gate.detach().double(), winner, "sigmoid", (True,) * 3
    )
    for ours, want in zip(mine, exact, strict=True):
        assert_close(ours, want, terms=max(units, contexts))


def test_only_the_gradients_asked_for(implementation):
    context, segments = torch.randn(2, 6), torch.randn(5, 3, 6, requires_grad=True)
    dk.segment_gate(context, segments)[0].sum().backward()
    assert context.grad is None and segments.grad.abs().sum() > 0


@pytest.mark.parametrize("per_unit", [1, 3, 4, 5, 21])
def test_special_values(implementation, per_unit):
    values = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1.0, -1.0, 1e-40, 3e38])
    segments = values[torch.randint(0, len(values), (200, per_unit, 1))]
    for select in ("abs_max", "max"):
        gate, winner = dk.segment_gate(torch.ones(1, 1), segments, select=select, activation="none")
        want_gate, want_winner = ref.segment_gate(torch.ones(1, 1), segments, None, select, "none")
        assert_same_bits(winner, want_winner)
        assert_same_bits(gate + 0.0, want_gate + 0.0)


def test_sigmoid_at_the_ends(implementation):
    segments = torch.tensor([[[200.0]], [[-200.0]], [[-88.5]], [[0.0]], [[float("inf")]], [[-float("inf")]]])
    gate, _ = dk.segment_gate(torch.ones(1, 1), segments)
    torch.testing.assert_close(gate[0], segments.flatten().sigmoid(), rtol=1e-6, atol=0)


def test_a_row_expanded_over_the_batch_is_one_context(implementation):
    row, segments = torch.randn(1, 20, requires_grad=True), torch.randn(6, 3, 20, requires_grad=True)
    gate, winner = dk.segment_gate(row.expand(50, -1), segments)
    one, winner_one = dk.segment_gate(row, segments)
    assert gate.stride(0) == 0
    assert_same_bits(gate, one.expand(50, -1))
    assert_same_bits(winner, winner_one.expand(50, -1))
    grads = torch.autograd.grad(gate.sum(), (row, segments))
    for mine, want in zip(grads, torch.autograd.grad(50 * one.sum(), (row, segments)), strict=True):
        assert_close(mine, want, terms=50)


def test_a_context_has_the_same_gate_in_any_batch(implementation):
    context, segments = torch.randn(9, 50), torch.randn(7, 6, 50)
    together, _ = dk.segment_gate(context, segments)
    alone = torch.cat([dk.segment_gate(c[None], segments)[0] for c in context])
    if implementation != "reference":  # torch's matrix product sums in another order
        assert_same_bits(together, alone)
    assert_close(together, alone, terms=50)


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_winners_do_not_follow_torchs_precision_switch(implementation, precision):
    context, segments = torch.randn(8, 300), torch.randn(200, 6, 300)
    want = ref.segment_gate(context.double(), segments.double())[1]
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            _, winner = dk.segment_gate(context, segments)
    finally:
        torch.set_float32_matmul_precision(before)
    assert (winner != want).sum() <= 1  # of 1,600: bf16 would flip some ten


def test_strides(implementation):
    context = small_integers(30, 4).T
    segments = small_integers(3, 30, 8).permute(2, 0, 1)
    bias = small_integers(3, 8).T
    gate, winner = dk.segment_gate(context, segments, bias, activation="none")
    want = ref.segment_gate(context, segments, bias, activation="none")
    assert_same_bits(gate, want[0])
    assert_same_bits(winner, want[1])


@pytest.mark.parametrize("shape", [(0, 3, 2, 5), (2, 0, 3, 5), (2, 3, 4, 0), (0, 0, 1, 0)])
def test_empty(implementation, shape):
    contexts, units, per_unit, width = shape
    context = torch.randn(contexts, width, requires_grad=True)
    segments = torch.randn(units, per_unit, width, requires_grad=True)
    gate, winner = dk.segment_gate(context, segments)
    assert gate.shape == winner.shape == (contexts, units)
    assert (gate == 0.5).all() and (winner == 0).all()
    gate.sum().backward()
    assert (segments.grad == 0).all() and (context.grad == 0).all()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9), st.integers(1, 70), st.integers(0, 1 << 30))
def test_any_shape(implementation, contexts, units, per_unit, width, seed):
    torch.manual_seed(seed)
    context, segments = small_integers(contexts, width), small_integers(units, per_unit, width)
    gate, winner = dk.segment_gate(context, segments, activation="none")
    want_gate, want_winner = ref.segment_gate(context, segments, activation="none")
    assert_same_bits(winner, want_winner)
    assert_same_bits(gate + 0.0, want_gate + 0.0)


@pytest.mark.parametrize("activation", ["sigmoid", "none"])
def test_gradcheck(implementation, activation):
    args = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in [(2, 5), (4, 3, 5), (4, 3)]]
    assert torch.autograd.gradcheck(lambda *a: dk.segment_gate(*a, activation=activation)[0], args)


def test_opcheck(implementation):
    args = [torch.randn(s, requires_grad=True) for s in [(2, 5), (4, 3, 5), (4, 3)]]
    torch.library.opcheck(torch.ops.dendrite_kernels.segment_gate.default, (*args, "abs_max", "sigmoid"))
    grad, gate, winner = torch.randn(2, 4), torch.rand(2, 4), torch.zeros(2, 4, dtype=torch.int32)
    op = torch.ops.dendrite_kernels.segment_gate_backward.default
    torch.library.opcheck(op, (grad, args[0].detach(), args[1].detach(), gate, winner, "sigmoid", [True, True, False]))


def test_second_derivative_raises(implementation):
    segments = torch.randn(3, 2, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(dk.segment_gate(torch.randn(1, 4), segments)[0].sum(), segments, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives"):
        grad.sum().backward()


GOOD = {"context": torch.zeros(2, 5), "segments": torch.zeros(4, 3, 5), "bias": torch.zeros(4, 3)}


@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"context": torch.zeros(2, 6)}, ValueError, r"context: expected shape \[G, C\] = \[any, 5\], got \[2, 6\]"),
        ({"context": torch.zeros(5)}, ValueError, "context: expected shape"),
        ({"context": [1.0]}, TypeError, "context: expected a tensor"),
        ({"context": torch.zeros(2, 5).double()}, TypeError, "context: expected torch.float32 to go with segments"),
        ({"context": torch.zeros(2, 5, device="meta")}, ValueError, "context: expected device cpu"),
        ({"segments": torch.zeros(4, 5)}, ValueError, r"segments: expected shape \[O, S, C\]"),
        ({"segments": torch.zeros(4, 0, 5)}, ValueError, "segments: expected at least one segment"),
        ({"segments": torch.zeros(4, 3, 5, dtype=torch.int64)}, TypeError, "segments: expected float32"),
        ({"bias": torch.zeros(4, 2)}, ValueError, r"bias: expected shape \[O, S\] = \[4, 3\], got \[4, 2\]"),
        ({"bias": torch.zeros(4, 3).half()}, TypeError, "bias: expected torch.float32"),
        ({"select": "min"}, ValueError, "select: expected one of 'abs_max', 'max', got 'min'"),
        ({"activation": "tanh"}, ValueError, "activation: expected one of"),
    ],
)
def test_bad_arguments_are_named(change, error, words):
    with pytest.raises(error, match=words):
        dk.segment_gate(**{**GOOD, **change})
