"""Each op on a GPU against what a user would run instead: time, bytes and the roof measured in the same run.

"ours" is the backend that is chosen by itself; for every shape that the CUDA backend claims it is raced too.

Prints a JSON line for each (op, size, rival). What disagrees with the oracle is reported as wrong, without a time; the
exit status is then 1. Times are medians of CUDA events around single calls, the cache flushed before each.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from statistics import median

import torch
from baselines import gate_by_product, gather_product, topk_kwinners
from dendrite_lab.results import provenance
from workload import finish, timed

import dendrite_kernels as dk
from dendrite_kernels import backend
from dendrite_kernels import reference as ref
from dendrite_kernels.factored import FactoredGrad, OuterFactor
from dendrite_kernels.testing import assert_close

INPUTS = CONTEXT = 784


def milliseconds(function: Callable, device: str, rounds: int = 30) -> float:
    """The median of single calls."""
    function()
    if device == "cpu":
        return median(timed(lambda _: function(), range(5)))
    flush, times = torch.empty(64 << 20, dtype=torch.int32, device=device), []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.zero_()
        start.record()
        function()
        end.record()
        finish()
        times.append(start.elapsed_time(end))
    return median(times)


def graphed(function: Callable) -> Callable:
    """The call as a CUDA graph: what its kernels cost without the host's part."""
    for _ in range(2):
        function()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def by_cuda(function: Callable) -> dict[str, Callable]:
    """The call on the CUDA backend, where it can run. By the environment: gradients have threads of their own."""
    if backend.BACKENDS["cuda"].why_not(torch.device("cuda", 0)):
        return {}

    def run():
        before = os.environ.get("DENDRITE_BACKEND")
        os.environ["DENDRITE_BACKEND"] = "cuda"
        try:
            return function()
        finally:
            os.environ.pop("DENDRITE_BACKEND") if before is None else os.environ.update(DENDRITE_BACKEND=before)

    return {"ours, CUDA": run}


def roofs(device: str) -> dict:
    """Bytes a second of a large copy and operations a second of a large product, in full float32."""
    size = 1 << (28 if device == "cuda" else 24)
    a, b = torch.empty(size, dtype=torch.uint8, device=device), torch.empty(size, dtype=torch.uint8, device=device)
    copied = 2 * size / milliseconds(lambda: b.copy_(a), device)
    n = 4096 if device == "cuda" else 1024
    x = torch.randn(n, n, device=device)
    return {"bytes_per_ms": copied, "flops_per_ms": 2 * n**3 / milliseconds(lambda: x @ x, device)}


def gates(device, segments, contexts, units):
    context = torch.randn(contexts, CONTEXT, device=device)
    weights = torch.randn(units, segments, CONTEXT, device=device) / 28
    want = ref.segment_gate(context.double(), weights.double())[0]
    rivals = {
        "ours": lambda: dk.segment_gate(context, weights)[0],
        "reference": lambda: ref.segment_gate(context, weights)[0],
        "one product": lambda: gate_by_product(context, weights),
        "compiled reference": (compiled := torch.compile(ref.segment_gate)) and (lambda: compiled(context, weights)[0]),
    }
    cost = {"bytes": weights.numel() * 4, "flops": 2 * contexts * weights.numel()}
    name = f"segment_gate, S = {segments}, G = {contexts}, O = {units}"
    return name, rivals, lambda out: assert_close(out, want, terms=CONTEXT), cost


def distinct_halves(batch: int, units: int, device) -> torch.Tensor:
    """Rows in bfloat16 without equal numbers, of which random ones have many: topk takes which it likes of those."""
    ranks = torch.rand(batch, units, device=device).argsort(1)
    return (0x3000 + ranks).to(torch.int16).view(torch.bfloat16)


def kwinners(device, batch, units, dtype=torch.float32):
    y, gate, bias = (torch.randn(*shape, device=device) for shape in ((batch, units), (1, units), (units,)))
    if dtype == torch.bfloat16:
        y, gate, bias = distinct_halves(batch, units, device), torch.ones_like(gate), torch.zeros_like(bias)
    y, gate, bias, k = y.to(dtype), gate.to(ref.compute_dtype(dtype)), bias.to(dtype), units // 20
    want = ref.gated_kwinners(y.cpu(), gate.cpu(), bias.cpu(), None, k)[0]

    def by_topk():
        return topk_kwinners(((y.to(gate.dtype) + bias.to(gate.dtype)) * gate).to(dtype), k)

    rivals = {
        "ours": (dense := lambda: dk.gated_kwinners(y, gate, bias, None, k)),
        "ours, k-sparse": (sparse := lambda: dk.gated_kwinners_sparse(y, gate, bias, None, k)),
        **by_cuda(dense),
        **{f"{label}, k-sparse": run for label, run in by_cuda(sparse).items()},
        "torch.topk + scatter": by_topk,
        "compiled topk + scatter": torch.compile(by_topk),
    }

    def check(out):
        out = out.to_dense() if isinstance(out, dk.KSparse) else out
        torch.testing.assert_close(out.cpu(), want, rtol=0, atol=0)

    name = f"gated_kwinners, B = {batch}, O = {units}"
    if dtype != torch.float32:
        name += f", {str(dtype).removeprefix('torch.')}"
    return name, rivals, check, {"bytes": 2 * y.numel() * y.element_size(), "flops": 0}


def products(device, batch, units):
    k = units // 20
    x = dk.gated_kwinners_sparse(torch.randn(batch, units, device=device), None, None, None, k)
    weight = torch.randn(units, units, device=device).T.requires_grad_()
    grad, dense = torch.randn(batch, units, device=device), x.to_dense()
    values, csr = x.values.requires_grad_(), dense.to_sparse_csr()
    want, indices = grad.double().T @ dense.double(), x.indices.long()

    def ours():
        y = dk.sparse_linear(dk.KSparse(values, x.indices, units), weight)
        return torch.autograd.grad(y, (values, weight), grad)[1]

    def cublas():
        x_dense = dense.detach().requires_grad_()
        return torch.autograd.grad(torch.nn.functional.linear(x_dense, weight), (x_dense, weight), grad)[1]

    def by_csr():
        return (csr.transpose(0, 1).to_sparse_csr() @ grad).T

    def by_gather():
        y = gather_product(values, indices, weight)
        return torch.autograd.grad(y, (values, weight), grad)[1]

    rivals = {"ours": ours, **by_cuda(ours), "cuBLAS": cublas, "sparse CSR (dW alone)": by_csr}
    rivals["embedding_bag"] = by_gather
    cost = {"bytes": 3 * weight.numel() * 4, "flops": 6 * batch * k * units}
    name = f"k-sparse product, forward and backward, B = {batch}, I = O = {units}"
    return name, rivals, lambda out: assert_close(out, want, terms=batch), cost


def gathers(device, batch, units):
    """The forward product of few rows."""
    x = dk.gated_kwinners_sparse(torch.randn(batch, units, device=device), None, None, None, units // 20)
    weight, dense = torch.randn(units, units, device=device).T, x.to_dense()
    want, indices = dense.double() @ weight.double().T, x.indices.long()

    def ours():
        return dk.sparse_linear(x, weight)

    rivals = {"ours": ours, **by_cuda(ours), "cuBLAS": lambda: torch.nn.functional.linear(dense, weight)}
    rivals["embedding_bag"] = lambda: gather_product(x.values, indices, weight)
    cost = {"bytes": min(batch * (units // 20), units) * units * 4, "flops": 2 * batch * units // 20 * units}
    name = f"k-sparse product, B = {batch}, I = O = {units}"
    return name, rivals, lambda out: assert_close(out, want, terms=units), cost


def outers(device, batch, sparse_x):
    """dW [2048, 2048 or 784] between k-sparse rows, or of a first layer whose x is dense."""
    units, columns = 2048, 2048 if sparse_x else INPUTS
    dy, x = (dk.kwinners(torch.randn(batch, n, device=device), n // 20) for n in (units, columns))
    rows = [dk.gated_kwinners_sparse(t, None, None, None, t.shape[1] // 20) for t in (dy, x)]
    other, out = rows[1] if sparse_x else x, torch.empty(units, columns, device=device)
    want = dy.double().T @ x.double()

    def ours():
        backend.choose(out.device).outer(out, rows[0], other)
        return out

    rivals = {"ours": ours, **by_cuda(ours), "cuBLAS": lambda: torch.mm(dy.T, x, out=out)}
    cost = {"bytes": out.numel() * 4, "flops": 2 * batch * (units // 20) * (columns // 20 if sparse_x else columns)}
    name = f"dW, B = {batch}, {'k-sparse' if sparse_x else 'dense'} x, {units} x {columns}"
    return name, rivals, lambda out: assert_close(out, want, terms=batch), cost


def steps(device, batch, sparse_x):
    """dW and Adam's step, a weight a rival: ours from factors in one pass, else the product as backward makes it."""
    units, columns = 2048, 2048 if sparse_x else INPUTS
    dy, x = (dk.kwinners(torch.randn(batch, n, device=device), n // 20) for n in (units, columns))
    rows = [dk.gated_kwinners_sparse(t, None, None, None, t.shape[1] // 20) for t in (dy, x)]
    factor = OuterFactor(rows[1], rows[0], by_input=True) if sparse_x else OuterFactor(rows[0], x, by_input=False)
    begin = torch.randn(units, columns, device=device)
    begin = begin.T.contiguous().T if sparse_x else begin  # as such a layer has it

    def one(make, gradient):
        layer = torch.nn.Linear(columns, units, bias=False, device=device)
        layer.weight = torch.nn.Parameter(begin.clone())
        optimizer = make(layer)

        def step():
            layer.weight.grad = gradient(layer.weight)
            optimizer.step()
            return layer.weight.detach()

        return step

    def gradient(p):
        module = backend.choose(p.device)
        if hasattr(module, "adam_outer"):
            return FactoredGrad(p, [factor])
        grad, values = torch.empty_like(p), rows[0].values
        saved = (values, values, rows[0].indices, values, rows[1].values if sparse_x else x)  # k winners' own gradient
        more = (rows[1].indices if sparse_x else None, p.detach(), None, None, "mul", False)
        module.linear_kwinners_backward((None, grad, None, None, torch.empty_like(values)), *saved, *more)
        return grad

    def ours():
        return one(dk.optim.Adam, gradient)

    def fused(layer):
        return torch.optim.Adam(layer.parameters(), fused=True, capturable=device == "cuda")

    def check(out):  # Adam divides by the gradient's own size: its rounding shows as a share of the step
        assert float((out.double() - want).abs().max()) < 0.02 * 1e-3

    def product(dtype=torch.float32):  # laid out as the weight, which the fused Adam takes for granted
        return (x.to(dtype).T @ dy.to(dtype)).T if sparse_x else dy.to(dtype).T @ x.to(dtype)

    want = one(lambda layer: torch.optim.Adam(layer.double().parameters()), lambda p: product(torch.float64))()
    rivals = {"ours": ours(), **by_cuda(ours()), "cuBLAS + fused Adam": one(fused, lambda p: product())}
    terms = units // 20 * (columns // 20 if sparse_x else columns)
    cost = {"bytes": 6 * 4 * begin.numel(), "flops": 2 * batch * terms}
    name = f"dW and Adam, B = {batch}, {'k-sparse' if sparse_x else 'dense'} x, {units} x {columns}"
    return name, rivals, check, cost


def layers(device, batch):
    units, k = 2048, 102
    shapes = ((batch, INPUTS), (units, INPUTS), (units,), (1, CONTEXT), (units, 10, CONTEXT))
    args = [torch.randn(*shape, device=device) / 28 for shape in shapes]

    def plain(x, weight, bias, context, segments):
        y = torch.nn.functional.linear(x, weight, bias)
        return topk_kwinners(y * ref.segment_gate(context, segments)[0], k)

    def planned(plan):
        def run():
            os.environ["DENDRITE_PLAN"] = plan
            try:
                return dk.dendritic_linear(*args, k=k)
            finally:
                del os.environ["DENDRITE_PLAN"]

        return run

    want, compiled = plain(*(t.double() for t in args)), torch.compile(plain)
    rivals = {
        "ours": planned("many"),
        "ours, one launch": planned("one"),
        "plain": lambda: plain(*args),
        "compiled plain": lambda: compiled(*args),
    }

    def check(out):  # a winner on an edge may differ
        assert float((out.double() - want).norm() / want.norm()) < 0.02

    cost = {"bytes": (args[1].numel() + args[4].numel()) * 4, "flops": 2 * batch * args[1].numel()}
    return f"dendritic_linear, S = 10, B = {batch}, O = {units}", rivals, check, cost


CASES = [
    *((gates, (segments, contexts, 2048)) for segments in (10, 100) for contexts in (1, 10)),
    (gates, (10, 1, 8192)),
    *((kwinners, shape) for shape in ((256, 2048), (1024, 2048), (16, 2048), (256, 4096), (256, 8192))),
    *((kwinners, shape) for shape in ((64, 65536), (256, 65536), (16, 262_144))),
    *((kwinners, (256, 2048, dtype)) for dtype in (torch.bfloat16, torch.float64)),
    *((gathers, (batch, 2048)) for batch in (1, 8, 24)),
    *((outers, (batch, sparse_x)) for batch in (256, 1024) for sparse_x in (True, False)),
    *((steps, (batch, sparse_x)) for batch in (256, 1024) for sparse_x in (True, False)),
    *((products, (batch, 2048)) for batch in (256, 1024)),
    *((layers, (batch,)) for batch in (1, 16, 256)),
]


def race(case, sizes, device: str, roof: dict):
    """A row for each rival."""
    torch.manual_seed(0)
    name, rivals, check, cost = case(device, *sizes)
    floor = max(cost["bytes"] / roof["bytes_per_ms"], cost["flops"] / roof["flops_per_ms"])
    for label, function in rivals.items():
        row = {"op": name, "label": label, "device": device, **cost, "roof_ms": round(floor, 5)}
        try:
            check(function())
            row["ms"] = round(milliseconds(function, device), 5)
            if device == "cuda" and "CSR" not in label:
                row["graph_ms"] = round(milliseconds(graphed(function), device), 5)
        except Exception as error:  # a rival that fails is a result, and the others go on
            row["wrong" if isinstance(error, AssertionError) else "failed"] = str(error)[:400]
        yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda", help="cpu is for trying this script")
    parser.add_argument("--only", help="cases whose name contains this")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no CUDA GPU here")
    roof, wrong, about = roofs(args.device), False, provenance()
    print(json.dumps({"op": "roofs", **roof, **about}), flush=True)
    for case, sizes in CASES:
        if args.only and args.only not in case.__name__:
            continue
        for row in race(case, sizes, args.device, roof):
            wrong |= row["label"].startswith("ours") and "ms" not in row
            print(json.dumps(row), flush=True)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
