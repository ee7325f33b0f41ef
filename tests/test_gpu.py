"""The ops on a CUDA GPU, on each of its backends, against the oracle on the CPU.

Without a GPU nothing here runs: elsewhere Triton is interpreted, and the CUDA kernels are emulated.
"""

import pytest
import torch
from dendrite_lab.graphs import GraphedStep
from test_adam import divides_by_the_smallest_moments

import dendrite_kernels as dk
from dendrite_kernels import backend
from dendrite_kernels import reference as ref
from dendrite_kernels.backend import BACKENDS
from dendrite_kernels.backends.cuda import native
from dendrite_kernels.factored import FactoredGrad
from dendrite_kernels.nn import DendriticMLP
from dendrite_kernels.reference import compute_dtype
from dendrite_kernels.sparsity import rezero_weights
from dendrite_kernels.testing import DTYPES, assert_close, assert_same_bits, small_integers, special_rows

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")]


WIDTHS = [(1, 1), (5, 2), (100, 5), (257, 128), (2048, 102), (2049, 1), (4096, 1000), (8192, 400), (20000, 9)]
WIDTHS += [(65536, 3277), (262144, 20)]


def cuda(*values):
    return [v.cuda() if isinstance(v, torch.Tensor) else v for v in values]


@pytest.fixture(autouse=True, params=["triton", "cuda"], ids=["by_triton", "by_cuda"])
def on_backend(request, monkeypatch):
    """CUDA is left out where its module was not built, and then only.

    By the environment: gradients have threads of their own, which use_backend does not reach.
    """
    if request.param == "cuda" and native._cuda is None:
        pytest.skip(BACKENDS["cuda"].why_not(torch.device("cuda", 0)))
    monkeypatch.setenv("DENDRITE_BACKEND", request.param)
    assert backend.choose(torch.device("cuda", 0)) is BACKENDS[request.param]  # else it says why not
    return request.param


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 33, 10, 784), (10, 40, 10, 784), (67, 5, 3, 100), (2, 9, 4, 33), (1, 1, 1, 1)])
def test_segment_gate(dtype, shape):
    contexts, units, per_unit, width = shape
    context = small_integers(contexts, width, dtype=dtype, high=2)
    segments = small_integers(units, per_unit, width, dtype=dtype, high=2)
    bias = small_integers(units, per_unit, dtype=dtype)
    for select in ("abs_max", "max"):
        gate, winner = dk.segment_gate(*cuda(context, segments, bias), select=select, activation="none")
        want_gate, want_winner = ref.segment_gate(context, segments, bias, select, "none")
        assert_same_bits(winner.cpu(), want_winner)
        assert_same_bits(gate.cpu() + 0.0, want_gate + 0.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("contexts", [1, 3, 20])
def test_segment_gate_gradients(dtype, contexts):
    leaves = [torch.randn(*shape).to(dtype) for shape in ((contexts, 50), (30, 7, 50), (30, 7))]
    mine = [t.cuda().requires_grad_() for t in leaves]
    gate, winner = dk.segment_gate(*mine)
    grad = torch.randn(contexts, 30, dtype=gate.dtype)
    got = torch.autograd.grad(gate, mine, grad.cuda())
    wide = [t.to(compute_dtype(dtype)) for t in leaves]
    want = ref.segment_gate_backward(grad, *wide[:2], gate.cpu(), winner.cpu(), "sigmoid", (True, True, True))
    for a, b in zip(got, want, strict=True):
        assert_close(a.cpu(), b, terms=200, dtype=dtype)


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_never_chooses_winners(allowed):
    context, segments = torch.randn(30, 784), torch.randn(200, 10, 784)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        gate, _ = dk.segment_gate(*cuda(context, segments), activation="none")
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    want = ref.segment_activations(context.double(), segments.double()).abs().amax(2)
    assert_close(gate.abs().cpu(), want, terms=784)


def assert_winners(y, gate, bias, index, k, combine="mul", boost=None, relu=False):
    """Every output of both ops: values, what gradients need of them, and the mask of a dense row."""
    ops, options = torch.ops.dendrite_kernels, {"combine": combine, "boost": boost, "relu": relu}
    given = [*cuda(y, gate, bias, index), k, combine, *cuda(boost), relu]
    want = ref.gated_kwinners_sparse(y, gate, bias, index, k, **options)
    for a, b in zip(ops.gated_kwinners_sparse(*given), want, strict=True):
        assert_same_bits(a.cpu(), b)
    for ties in ("lowest", "keep"):
        want = ref.gated_kwinners(y, gate, bias, index, k, ties=ties, **options)
        for a, b in zip(ops.gated_kwinners(*given, ties), want, strict=True):
            assert_same_bits(a.cpu(), b)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("units, k", WIDTHS)
def test_winners(dtype, units, k):
    wide = compute_dtype(dtype)
    y, bias, index = torch.randn(7, units).to(dtype), torch.randn(units).to(dtype), torch.randint(0, 3, (7,))
    one, each, some = (torch.rand(rows, units, dtype=wide) for rows in (1, 7, 3))
    gates = [(some, index), (None, None), (one, None), (each, None)]
    boost = torch.rand(units, dtype=wide)
    kinds = [{"combine": "add", "relu": True, "boost": boost}, {}, {"boost": boost}]
    if units not in (257, 2048):  # each combination is another compilation
        gates, kinds = gates[:1], kinds[:1]
    for gate, at in gates:
        for options in kinds:
            assert_winners(y, gate, bias, at, k, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dropped_winners(dtype):
    """relu drops half of a row's winners, of each kernel: kept and pre say which."""
    for units in (100, 257, 2048, 4096, 8192, 65536):
        assert_winners(torch.randn(3, units).to(dtype), None, None, None, units - units // 4, relu=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("units", [301, 2000, 9001, 40_000])
def test_special_rows(dtype, units):
    rows = special_rows(units, dtype)
    for k in (0, 1, 7, units // 2, units - 1, units, units + 99):
        for ties in ("lowest", "keep"):
            got = torch.ops.dendrite_kernels.gated_kwinners(rows.cuda(), None, None, None, k, "mul", None, False, ties)
            for a, b in zip(got, ref.gated_kwinners(rows, k=k, ties=ties), strict=True):
                assert_same_bits(a.cpu(), b)


def network(dtype, device="cpu", **options):
    torch.manual_seed(0)
    return DendriticMLP(90, (200, 170), 10, 4, 60, weight_sparsity=0.5, percent_on=0.1, **options).to(device, dtype)


def loss_and_gradients(model, x, labels, context, index):
    loss = torch.nn.functional.cross_entropy(model(x, context, index), labels)
    return [loss, *torch.autograd.grad(loss, list(model.parameters()))]


@pytest.mark.parametrize("batch", [3, 40])
@pytest.mark.parametrize("groups", ["one", "index"])
def test_a_network_as_on_the_cpu(batch, groups):
    x, labels = torch.randn(batch, 90).double(), torch.randint(0, 10, (batch,))
    context = torch.randn(1 if groups == "one" else 4, 60).double()
    index = None if groups == "one" else torch.randint(0, 4, (batch,))
    want = loss_and_gradients(network(torch.float64), x, labels, context, index)
    got = loss_and_gradients(network(torch.float64, "cuda"), *cuda(x, labels, context, index))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=0, atol=1e-10)


def test_the_same_bits_twice():
    model, batch = (
        network(torch.float32, "cuda"),
        cuda(torch.randn(64, 90), torch.randint(0, 10, (64,)), torch.randn(4, 60)),
    )
    index = torch.randint(0, 4, (64,), device="cuda")
    first, second = (loss_and_gradients(model, *batch, index) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert_same_bits(a, b)


def test_a_step_in_a_cuda_graph():
    """No host synchronisation anywhere: forward, backward and torch's capturable Adam are captured and replayed."""
    models = [network(torch.float32, "cuda", boost_strength=0.0).eval() for _ in range(2)]
    x, labels, context = cuda(torch.randn(64, 90), torch.randint(0, 10, (64,)), torch.randn(1, 60))
    optimizers = [torch.optim.Adam(m.parameters(), lr=1e-3, capturable=True) for m in models]

    def step(model, optimizer):
        optimizer.zero_grad(set_to_none=False)
        torch.nn.functional.cross_entropy(model(x, context), labels).backward()
        optimizer.step()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(models[0], optimizers[0])
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(models[0], optimizers[0])
    for _ in range(2):
        graph.replay()
    for _ in range(5):
        step(models[1], optimizers[1])
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert_close(a, b, terms=200)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("segment_sparsity", [0.0, 0.5])
def test_adam_agrees_with_torch(on_backend, dtype, segment_sparsity):
    """One context, several, and the one again; parameters are made equal after each step."""
    models = [network(dtype, "cuda", segment_sparsity=segment_sparsity) for _ in range(2)]
    x, labels, contexts = cuda(torch.randn(64, 90).to(dtype), torch.randint(0, 10, (64,)), torch.randn(3, 60).to(dtype))
    one, index = contexts[:1].clone(), torch.randint(0, 3, (64,), device="cuda")
    optimizers = dk.optim.Adam(models[0], lr=1e-3), torch.optim.Adam(models[1].parameters(), lr=1e-3, fused=True)
    for step in range(5):
        given = (contexts, index) if step == 2 else (one,)
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x, *given), labels).backward()
            optimizer.step()
        factored = {p.dim() for p in models[0].parameters() if isinstance(p.grad, FactoredGrad)}
        assert factored == ({2, 3} if on_backend == "cuda" else {3})
        rezero_weights(models[1])
        moments = optimizers[0].state[models[0].layers[0].segments.weights]["moments"]
        assert moments.rank1 == (step < 2)
        for a, b in zip(*(model.parameters() for model in models), strict=True):
            # Adam divides by the gradient's own size: its rounding shows as a share of the step
            assert (a - b).abs().max() < (1e-10 if dtype == torch.float64 else 0.02 * 1e-3)
        with torch.no_grad():
            for a, b in zip(*(model.parameters() for model in models), strict=True):
                b.copy_(a)


def test_adam_without_eps():
    divides_by_the_smallest_moments("cuda")


def test_adam_in_a_graph_goes_on_counting():
    """The captured step of the experiments ends where eager steps do, bias correction and all."""
    models = [network(torch.float32, "cuda") for _ in range(2)]
    context = torch.randn(1, 60, device="cuda")
    batches = [cuda(torch.randn(64, 90), torch.randint(0, 10, (64,))) for _ in range(8)]
    ends = []
    for model, graphed in zip(models, (False, True), strict=True):
        optimizer = dk.optim.Adam(model, lr=1e-3)

        def step(x, labels, model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(x, context), labels)
            loss.backward()
            optimizer.step()
            return loss.detach()

        run = GraphedStep(step) if graphed else step
        ends.append([float(run(*batch)) for batch in batches])
        assert float(optimizer.state[model.layers[0].bias]["step"]) == len(batches)
    assert ends[0] == pytest.approx(ends[1], rel=1e-4)
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        assert (a - b).abs().max() < 0.02 * 1e-3 * len(batches)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("batch, contexts", [(1, 1), (16, 1), (16, 3), (300, 1)])
def test_a_layer_in_one_launch(monkeypatch, batch, contexts, sparse):
    """Again and again: the barrier's counter is left at zero."""
    x, context = torch.randn(batch, 784), torch.randn(contexts, 784)
    weight, bias, segments = torch.randn(2048, 784) / 28, torch.randn(2048) / 28, torch.randn(2048, 10, 784) / 28
    index = torch.randint(0, contexts, (batch,)) if contexts > 1 else None
    given = ref.gated_kwinners_sparse(x, k=40)[:2] if sparse else (x,)
    want = ref.linear_kwinners(
        given[0].double(), given[1] if sparse else None, weight.double(), bias.double(),
        ref.segment_gate(context.double(), segments.double())[0], index, 102,
    )  # fmt: skip
    dense = torch.zeros(batch, 2048).double().scatter(1, want[1].long(), want[0])
    rows = dk.KSparse(*cuda(*given), 784) if sparse else x.cuda()
    args = cuda(weight, bias, context, segments)
    monkeypatch.setenv("DENDRITE_PLAN", "one")
    for _ in range(20):
        z = dk.dendritic_linear(rows, *args, None, *cuda(index), 102)
        wrong = (z.cpu().double() - dense).abs() > 1e-4 * dense.abs().max()
        assert wrong.sum() <= 2 * max(1, batch // 100)  # a winner on an edge comes, and one goes


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("by_input", [True, False], ids=["by_input", "by_unit"])
@pytest.mark.parametrize("batch, units, k", [(1, 33, 1), (3, 70, 9), (24, 8, 40), (16, 2048, 40)])
def test_product(monkeypatch, on_backend, batch, units, k, by_input, dtype):
    """Both layouts of the weight; on CUDA by its own kernels."""
    called, call = [], native.call
    monkeypatch.setattr(native, "call", lambda name, *args: called.append(name) or call(name, *args))
    inputs = 784 if units == 2048 else 90
    values, indices, _ = ref.gated_kwinners_sparse(torch.randn(batch, inputs).to(dtype), k=k)
    bias = torch.randn(units).to(dtype)
    weight = torch.randn(inputs, units).to(dtype).T if by_input else torch.randn(units, inputs).to(dtype)
    values_, indices_, weight_, bias_ = cuda(values, indices, weight, bias)
    assert weight_.stride() == weight.stride()
    got = dk.sparse_linear(dk.KSparse(values_, indices_, inputs), weight_, bias_)
    assert_close(got.cpu(), ref.sparse_linear(values, indices, weight, bias), terms=k + 1)
    assert called == (["gather_product"] if on_backend == "cuda" else [])


@pytest.mark.parametrize("units", [10, 300])
@pytest.mark.parametrize("batch", [3, 256])
def test_gradients_of_a_k_sparse_product(batch, units):
    values, indices, _ = ref.gated_kwinners_sparse(torch.randn(batch, 400).double(), k=20)
    leaves = [values, torch.randn(400, units).double().T, torch.randn(units).double()]
    grad = torch.randn(batch, units).double()
    mine = [t.cuda().requires_grad_() for t in leaves]
    got = torch.autograd.grad(dk.sparse_linear(dk.KSparse(mine[0], indices.cuda(), 400), *mine[1:]), mine, grad.cuda())
    want = ref.sparse_linear_backward(grad, values, indices, leaves[1], [True] * 3)
    for a, b in zip(got, want, strict=True):
        assert_close(a.cpu(), b, terms=300)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch, rows, columns", [(3, 70, 9), (256, 2048, 784), (300, 500, 2048), (40, 60, 12_500)])
def test_outer_products_of_sparse_rows(dtype, batch, rows, columns):
    """dW between k-sparse rows, and between k-sparse and dense ones; the same bits twice."""
    module, sparse = backend.choose(torch.device("cuda", 0)), []
    for size in (rows, columns):
        values, indices, _ = ref.gated_kwinners_sparse(torch.randn(batch, size).to(dtype), k=size // 20 + 1)
        sparse.append(dk.KSparse(*cuda(values, indices), size))
    for other in (sparse[1], torch.randn(batch, columns, device="cuda").to(dtype)):
        out = [torch.empty(rows, columns, dtype=dtype, device="cuda") for _ in range(2)]
        for to in out:
            module.outer(to, sparse[0], other)
        dense = other if isinstance(other, torch.Tensor) else ref.ksparse_to_dense(*other)
        want = ref.ksparse_to_dense(*sparse[0]).double().T @ dense.double()
        if (
            dtype in (torch.float32, torch.float64) or module is BACKENDS["cuda"]
        ):  # torch may sum halves' products as halves
            assert_close(out[0], want, terms=batch, dtype=dtype)
        assert_same_bits(*out)


def test_a_launch_that_fails_leaves_the_process_usable(on_backend):
    if on_backend != "cuda":
        pytest.skip("Triton's errors are its own")
    y = torch.randn(2, 16, device="cuda")
    z, kept = torch.empty_like(y), torch.empty(2, 16, dtype=torch.bool, device="cuda")
    flags = (None, None, None, None, 0, False, False, 2, 16, 3, False, False, z, kept, None, None, None)
    with pytest.raises(RuntimeError, match="kwinners_by_warp: the GPU can't launch it with these sizes"):
        native.call("kwinners", torch.float32, y, *flags, "warp", 8, 99, None)  # 99 warps a block
    assert_same_bits(dk.kwinners(y, 3).cpu(), ref.gated_kwinners(y.cpu(), k=3)[0])


def test_gradcheck_on_the_gpu():
    y, gate, bias = torch.randn(6, 9), torch.rand(2, 9), torch.randn(9)
    leaves = [t.double().cuda().requires_grad_() for t in (y, gate, bias)]
    index = torch.tensor([0, 1, 1, 0, 1, 0], device="cuda")
    assert torch.autograd.gradcheck(lambda *args: dk.gated_kwinners(*args, index, 3), leaves)
    assert torch.autograd.gradcheck(lambda *args: dk.gated_kwinners_sparse(*args, index, 3).values, leaves)
