"""The oracle itself: against plain Python where the rules are subtle, and its derivatives against autograd."""

import math

import pytest
import torch

from dendrite_kernels import reference as ref
from dendrite_kernels.testing import assert_close, special_rows


def winners_in_python(row, k):
    """The contract in words: NaN first, then larger first, ties to the lowest index."""
    order = sorted(
        range(len(row)), key=lambda i: (0 if math.isnan(row[i]) else 1, 0 if math.isnan(row[i]) else -row[i], i)
    )
    return sorted(order[:k])


@pytest.mark.parametrize("k", [0, 1, 3, 10, 16, 17, 40])
def test_winners_follow_the_contract(k):
    rows = special_rows(17)
    got = ref.winner_indices(ref.rank(rows, None), k)
    assert got.tolist() == [winners_in_python(row, k) for row in rows.tolist()]


def test_keep_keeps_what_equals_the_kth():
    key = torch.tensor([[3.0, 1, 2, 2, 2, 0], [1, 1, 1, 1, 1, 1], [5, 4, 3, 2, 1, 0]])
    kept = ref.winner_mask(key, 2, "keep")
    assert kept.tolist() == [
        [True, False, True, True, True, False],
        [True] * 6,
        [True, True, False, False, False, False],
    ]


def test_strongest_segment_keeps_its_sign_and_ties_go_low():
    context = torch.tensor([[1.0, 1.0]])
    segments = torch.tensor([[[1.0, 0], [-2, 0], [0, 2]], [[0, 0], [0, 0], [0, 0]], [[0, -1], [0, 3], [0, -3]]])
    gate, winner = ref.segment_gate(context, segments, activation="none")
    assert winner.tolist() == [[1, 0, 1]] and gate.tolist() == [[-2, 0, 3]]
    gate, winner = ref.segment_gate(context, segments, select="max", activation="none")
    assert winner.tolist() == [[2, 0, 1]] and gate.tolist() == [[2, 0, 3]]


def test_nan_segment_wins():
    segments = torch.tensor([[[1.0], [float("nan")], [float("inf")], [float("nan")]]])
    assert ref.segment_gate(torch.ones(1, 1), segments)[1].item() == 1


def autograd_of(outputs, inputs, grad):
    return torch.autograd.grad(outputs, inputs, grad)


@pytest.mark.parametrize("activation", ["sigmoid", "none"])
def test_segment_gate_backward_is_the_derivative(activation):
    args = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in [(3, 5), (7, 4, 5), (7, 4)]]
    gate, winner = ref.segment_gate(*args, activation=activation)
    grad = torch.randn_like(gate)
    with torch.no_grad():
        ours = ref.segment_gate_backward(grad, args[0], args[1], gate, winner, activation, (True,) * 3)
    for mine, theirs in zip(ours, autograd_of(gate, args, grad), strict=True):
        assert_close(mine, theirs, terms=16)


@pytest.mark.parametrize("combine", ["mul", "add"])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("groups", ["one", "each", "index"])
def test_kwinners_backward_is_the_derivative(combine, relu, groups):
    batch, units, k = 6, 11, 4
    index = torch.tensor([2, 0, 0, 1, 2, 0]) if groups == "index" else None
    contexts = {"one": 1, "each": batch, "index": 3}[groups]
    args = [
        torch.randn(s, dtype=torch.float64, requires_grad=True) for s in [(batch, units), (contexts, units), (units,)]
    ]
    y, gate, bias = args
    z, kept = ref.gated_kwinners(y, gate, bias, index, k, combine, relu=relu)
    grad = torch.randn_like(z)
    theirs = autograd_of(z, args, grad)
    with torch.no_grad():
        dense = ref.gated_kwinners_backward(grad, kept, y, gate, bias, index, combine, (True,) * 3)
        values, indices, pre = ref.gated_kwinners_sparse(y, gate, bias, index, k, combine, relu=relu)
        grad_values = grad.gather(1, indices.long())
        sparse = ref.winners_backward(grad_values, values, indices, pre, gate, index, units, combine, relu, (True,) * 3)
    for mine, want in zip(dense, theirs, strict=True):
        assert_close(mine, want, terms=8)
    for mine, want in zip((ref.ksparse_to_dense(sparse[0], indices, units), *sparse[1:]), theirs, strict=True):
        assert_close(mine, want, terms=8)


@pytest.mark.parametrize("sparse_x", [False, True])
def test_linear_kwinners_backward_is_the_derivative(sparse_x):
    x = torch.randn(6, 4 if sparse_x else 9, dtype=torch.float64, requires_grad=True)
    x_indices = torch.rand(6, 9).argsort(1)[:, :4].sort(1).values.int() if sparse_x else None
    weight, bias, gate = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in [(11, 9), (11,), (1, 11)])
    values, indices, pre = ref.linear_kwinners(x, x_indices, weight, bias, gate, None, 4)
    grad = torch.randn_like(values)
    theirs = autograd_of(values, (x, weight, bias, gate), grad)
    with torch.no_grad():
        mine = ref.linear_kwinners_backward(
            grad, values, indices, pre, x, x_indices, weight, gate, None, "mul", False, (True,) * 4
        )
    for ours, want in zip(mine[:4], theirs, strict=True):
        assert_close(ours, want, terms=64)
