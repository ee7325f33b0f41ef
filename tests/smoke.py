"""An installation, tried where there is nothing but it and torch: python -P tests/smoke.py [version of torch].

Each op against the reference, values and gradients; steps of optim.Adam against torch's; one OpenMP for both.
"""

import sys
from pathlib import Path

import torch

import dendrite_kernels as dk
from dendrite_kernels.backends import cpu
from dendrite_kernels.nn import DendriticMLP
from dendrite_kernels.sparsity import rezero_weights
from dendrite_kernels.testing import assert_close, assert_same_bits

BATCH, INPUTS, UNITS, SEGMENTS, CONTEXT, K = 9, 33, 40, 5, 17, 6


def both(call, *tensors: torch.Tensor, terms: int) -> None:
    """A call's outputs and gradients by the native kernels, against those by the reference."""
    found = []
    for name in ("cpu", "reference"):
        leaves = [t.clone().requires_grad_() for t in tensors]
        with dk.use_backend(name):
            out = call(*leaves)
            outputs = [t for t in (out if isinstance(out, tuple) else (out,)) if isinstance(t, torch.Tensor)]
            slopes = torch.linspace(-1, 1, outputs[0].numel()).view(outputs[0].shape)
            (outputs[0] * slopes).sum().backward()
        found.append([*(t.detach() for t in outputs), *(leaf.grad for leaf in leaves)])
    for mine, theirs in zip(*found, strict=True):
        if mine.is_floating_point():
            assert_close(mine, theirs, terms=terms)
        else:
            assert_same_bits(mine, theirs)


def ops() -> None:
    x, y, images = torch.randn(BATCH, INPUTS), torch.randn(BATCH, UNITS), torch.randn(BATCH, 4, 5, 6)
    weight, bias = torch.randn(UNITS, INPUTS), torch.randn(UNITS)
    context, segments = torch.randn(3, CONTEXT), torch.randn(UNITS, SEGMENTS, CONTEXT)
    index, gate = torch.arange(BATCH) % 3, torch.rand(3, UNITS)
    winners = dk.gated_kwinners_sparse(x, None, None, None, K).indices

    def sparse(values):
        return dk.KSparse(values, winners, INPUTS)

    values, product = torch.randn(BATCH, K), K * BATCH
    both(dk.segment_gate, context, segments, terms=BATCH * CONTEXT)
    both(lambda y: dk.kwinners(y, K), y, terms=1)
    both(lambda y, g: dk.kwinners2d(y, 30, g, index), images, torch.rand(3, 4), terms=30 * BATCH)
    both(lambda y, g, b: dk.gated_kwinners(y, g, b, index, K), y, gate, bias, terms=product)
    both(lambda y, g, b: dk.gated_kwinners_sparse(y, g, b, index, K), y, gate, bias, terms=product)
    both(lambda v, w, b: dk.sparse_linear(sparse(v), w, b), values, weight, bias, terms=UNITS * BATCH)
    both(lambda v: sparse(v).to_dense(), values, terms=1)
    both(
        lambda v, w, b, g: dk.linear_kwinners(sparse(v), w, b, g, index, K),
        *(values, weight, bias, gate),
        terms=product,
    )
    both(
        lambda x, w, b, c, s: dk.dendritic_linear(x, w, b, c, s, context_index=index, k=K),
        *(x, weight, bias, context, segments),
        terms=UNITS * INPUTS,
    )
    keep = torch.rand(UNITS, INPUTS) < 0.5
    assert_same_bits(dk.rezero_(weight.clone(), keep), torch.where(keep, weight, 0.0))


def adam() -> None:
    """Three steps in float64, in which sums in another order differ by 1e-15 of their terms."""
    first = DendriticMLP(INPUTS, (UNITS, UNITS), 4, SEGMENTS, CONTEXT, percent_on=0.2).double()
    second = DendriticMLP(INPUTS, (UNITS, UNITS), 4, SEGMENTS, CONTEXT, percent_on=0.2).double()
    second.load_state_dict(first.state_dict())
    ours, theirs = dk.optim.Adam(first, lr=0.01), torch.optim.Adam(second.parameters(), lr=0.01)
    context = torch.randn(1, CONTEXT).double()
    for _ in range(3):
        x, labels = torch.randn(BATCH, INPUTS).double(), torch.randint(0, 4, (BATCH,))
        for model, optimizer in ((first, ours), (second, theirs)):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x, context), labels).backward()
            optimizer.step()
        rezero_weights(second)
    assert type(first.layers[0].weight.grad).__name__ == "FactoredGrad"
    for (name, mine), (_, other) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-9, msg=lambda told, name=name: f"{name}: {told}")


def openmp() -> str:
    """The one libgomp that this process has loaded: torch's, where its wheel brings one."""
    loaded = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libgomp" in line}
    assert len(loaded) == 1, f"expected one libgomp, got {sorted(loaded)}"
    return loaded.pop()


if __name__ == "__main__":
    asked = sys.argv[1] if len(sys.argv) > 1 else torch.__version__
    assert torch.__version__.split("+")[0] == asked.split("+")[0], (torch.__version__, asked)
    assert cpu._cpu is not None, "the native module is not there"
    torch.manual_seed(0)
    torch.ones(64).sqrt()  # torch's first vectorised square root was seen to be off in fresh processes
    ops()
    adam()
    print(f"torch {torch.__version__}, {cpu._cpu.isa()}, {openmp()}: all as the reference")
