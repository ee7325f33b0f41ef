"""A user's program, for mypy to read (make types) and never run: what the hints promise of the public names."""

from collections.abc import Callable

import torch
from torch import Tensor
from typing_extensions import assert_type

import dendrite_kernels as dk
from dendrite_kernels.nn import DendriticMLP, KWinners, SparseLinear
from dendrite_kernels.optim import Adam, SynapticIntelligence
from dendrite_kernels.sparsity import densities, prune, random_mask, rezero_weights


def ops(x: Tensor, weight: Tensor, context: Tensor, segments: Tensor, keep: Tensor) -> None:
    gate, winner = dk.segment_gate(context, segments)
    assert_type(gate, Tensor)
    assert_type(winner, Tensor)
    assert_type(dk.kwinners(x, 3), Tensor)
    assert_type(dk.gated_kwinners(x, gate, None, None, 3), Tensor)
    sparse = dk.gated_kwinners_sparse(x, None, None, None, 3)
    assert_type(sparse, dk.KSparse)
    assert_type(sparse.values, Tensor)
    assert_type(sparse.to_dense(), Tensor)
    assert_type(dk.sparse_linear(sparse, weight), Tensor)
    assert_type(dk.linear_kwinners(sparse, weight, None, gate, None, 3), dk.KSparse)
    assert_type(dk.dendritic_linear(x, weight, None, context, segments, k=3), Tensor | dk.KSparse)
    assert_type(dk.rezero_(weight, keep), Tensor)
    assert_type(dk.invalidate(), None)
    with dk.use_backend("reference"):
        dk.kwinners(x, k="three")  # type: ignore[arg-type]
        dk.segment_gate(context)  # type: ignore[call-arg]


def training(model: DendriticMLP, x: Tensor, loss: Callable[[Tensor], Tensor]) -> None:
    optimizer = Adam(model, lr=1e-3)
    si = SynapticIntelligence(model, torch.optim.SGD(model.parameters(), lr=0.1), c=0.1)
    loss(model.forward(x)).backward()
    assert_type(optimizer.state_dict(), dict)
    optimizer.step()
    si.step()
    assert_type(si.omega, dict[str, Tensor])
    assert_type(si.penalty(), Tensor)
    Adam(3)  # type: ignore[arg-type]


def modules(x: Tensor) -> None:
    assert_type(KWinners(10, 0.1).k, int)
    assert_type(SparseLinear(4, 2).forward(x), Tensor)
    assert_type(SparseLinear(4, 2).weight_mask, Tensor | None)
    assert_type(random_mask((2, 4), 0.5), Tensor)
    model = rezero_weights(SparseLinear(4, 2))
    assert_type(model, torch.nn.Module)
    assert_type(prune(model, 0.1), None)
    assert_type(densities(model).total, float)
