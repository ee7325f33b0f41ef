"""Our kernels give the same bits from run to run and for any number of threads."""

import pytest
import torch

import dendrite_kernels as dk
from dendrite_kernels import KSparse
from dendrite_kernels.testing import assert_same_bits


def everything():
    """Outputs and gradients of every op (no torch matrix product among them)."""
    torch.manual_seed(5)
    y, gate, bias = torch.randn(67, 300), torch.rand(4, 300), torch.randn(300)
    index = torch.randint(0, 4, (67,))
    context, segments = torch.randn(4, 90), torch.randn(300, 7, 90)
    weight = torch.randn(120, 300).T.contiguous().T
    leaves = [t.requires_grad_() for t in (y, gate, bias, context, segments, weight)]
    made, winner = dk.segment_gate(context, segments)
    dense = dk.gated_kwinners(y, gate * made, bias, index, 30, ties="keep")
    sparse = dk.gated_kwinners_sparse(y, made, bias, index, 30)
    hidden = dk.linear_kwinners(sparse, weight, None, None, None, 20, relu=True)
    output = dk.sparse_linear(hidden, torch.randn(10, 120), torch.randn(10))
    grads = torch.autograd.grad(output.square().sum() + dense.square().sum(), leaves)
    return [made, winner, dense, *sparse[:2], *hidden[:2], output, *grads]


def test_same_bits_for_any_number_of_threads(implementation, threads):
    if implementation == "reference":
        pytest.skip("torch's matrix products may sum in another order with other threads")
    runs = []
    for count in (1, 2, 3, 1):
        threads(count)
        runs.append(everything())
    for run in runs[1:]:
        for mine, first in zip(run, runs[0], strict=True):
            assert_same_bits(mine, first)


def test_dense_gradients_of_a_dense_x(implementation, threads):
    """linear_kwinners' own product is torch's; its gradients are ours."""
    if implementation == "reference":
        pytest.skip("torch's matrix products may sum in another order with other threads")
    x, weight = torch.randn(64, 100, requires_grad=True), torch.randn(200, 100, requires_grad=True)
    index = torch.rand(64, 200).argsort(1)[:, :20].sort(1).values.int()
    values, grad = torch.randn(64, 20), torch.randn(64, 20)
    args = (
        grad,
        values,
        index,
        values,
        x.detach(),
        None,
        weight.detach(),
        None,
        None,
        "mul",
        False,
        [True] * 3 + [False],
    )
    runs = []
    for count in (1, 2, 3):
        threads(count)
        runs.append(torch.ops.dendrite_kernels.linear_kwinners_backward(*args)[:3])
    for run in runs[1:]:
        for mine, first in zip(run, runs[0], strict=True):
            assert_same_bits(mine, first)


def test_kernels_run_beside_each_other(threads):
    """Calls release the GIL: threads of one process may call at once."""
    threads(1)  # the new threads take torch's default count; our kernels give the same bits for any
    from concurrent.futures import ThreadPoolExecutor

    x = KSparse(torch.randn(50, 30), torch.rand(50, 400).argsort(1)[:, :30].sort(1).values.int(), 400)
    weight, y = torch.randn(333, 400), torch.randn(100, 500)
    want = dk.sparse_linear(x, weight), dk.kwinners(y, 25)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: (dk.sparse_linear(x, weight), dk.kwinners(y, 25)), range(40)))
    for result in results:
        for mine, first in zip(result, want, strict=True):
            assert_same_bits(mine, first)
