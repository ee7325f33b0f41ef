"""torch.compile without graph breaks: the ops are opaque to it, and give the eager results."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import dendrite_kernels as dk
from dendrite_kernels.nn import DendriticMLP, KWinners, KWinners2d
from dendrite_kernels.testing import assert_close


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_whole_step_of_the_mlp(backend):
    model = DendriticMLP(20, (40, 30), 5, 4, 12).double().eval()
    x, context, index = torch.randn(16, 20).double(), torch.randn(3, 12).double(), torch.randint(0, 3, (16,))
    target = torch.randint(0, 5, (16,))

    def loss_of(x, context, index):
        return torch.nn.functional.cross_entropy(model(x, context, index), target)

    compiled = torch.compile(loss_of, fullgraph=True, backend=backend)
    want, got = loss_of(x, context, index), compiled(x, context, index)
    assert_close(got, want, terms=8)
    parameters = list(model.parameters())
    for mine, theirs in zip(torch.autograd.grad(got, parameters), torch.autograd.grad(want, parameters), strict=True):
        assert_close(mine, theirs, terms=64)


def test_training_mode_compiles_once():
    model = DendriticMLP(20, (40, 30), 5, 4, 12)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x, context = torch.randn(16, 20), torch.randn(1, 12)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(12):
            compiled(x, context).square().mean().backward()
    assert int(model.layers[0].kwinners.learning_iterations) == 12 * 16


def test_every_op_in_one_graph():
    def graph(y, gate, context, segments, weight):
        made, winner = dk.segment_gate(context, segments)
        sparse = dk.gated_kwinners_sparse(y, made, None, None, 5)
        dense = dk.gated_kwinners(y, gate, None, None, 5, ties="keep")
        return dk.sparse_linear(sparse, weight).sum() + dense.sum() + dk.kwinners(y, 3).sum(), winner, sparse.indices

    shapes = [(6, 30), (1, 30), (1, 7), (30, 3, 7), (4, 30)]
    args = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    compiled = torch.compile(graph, fullgraph=True, backend="aot_eager")
    want, got = graph(*args), compiled(*args)
    assert_close(got[0], want[0], terms=64)
    assert torch.equal(got[1], want[1]) and torch.equal(got[2], want[2])
    for mine, theirs in zip(torch.autograd.grad(got[0], args), torch.autograd.grad(want[0], args), strict=True):
        assert_close(mine, theirs, terms=64)


def test_one_graph_serves_many_batch_sizes():
    weight, bias = torch.randn(30, 8, requires_grad=True), torch.randn(30)
    count = 0

    def counting(graph, inputs):
        nonlocal count
        count += 1
        return graph.forward

    compiled = torch.compile(
        lambda x: dk.linear_kwinners(x, weight, bias, None, None, 4).values,
        fullgraph=True,
        dynamic=True,
        backend=counting,
    )
    for batch in (5, 9, 17):
        x = torch.randn(batch, 8)
        assert_close(compiled(x), dk.linear_kwinners(x, weight, bias, None, None, 4).values, terms=8)
    assert count == 1


def test_export_of_the_mlp():
    model = DendriticMLP(20, (40, 30), 5, 4, 12).double().eval()
    x, context = torch.randn(16, 20).double(), torch.randn(1, 12).double()
    with torch.no_grad():
        exported = torch.export.export(model, (x, context))
        assert_close(exported.module()(x, context), model(x, context), terms=8)


def test_an_exported_program_is_saved_and_loaded(tmp_path):
    """With a dynamic batch, and autocast inside."""
    model = DendriticMLP(20, (40, 30), 5, 4, 12, percent_on=0.2).eval()
    amp = Autocast(model)
    x, context, index = torch.randn(16, 20), torch.randn(3, 12), torch.randint(0, 3, (16,))
    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(amp, (x, context, index), dynamic_shapes=({0: batch}, None, {0: batch}))
    torch.export.save(exported, tmp_path / "network.pt2")
    loaded = torch.export.load(tmp_path / "network.pt2").module()
    for size in (16, 7):
        args = torch.randn(size, 20), context, torch.randint(0, 3, (size,))
        got = loaded(*args)
        assert got.dtype == torch.bfloat16
        assert_close(got, amp(*args))


class Autocast(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, context, index):
        with torch.autocast("cpu", torch.bfloat16):
            return self.model(x, context, index)


def test_a_step_with_its_masks_is_one_graph():
    """The masks, in place, and the forward pass that reads the masked weights."""
    model = DendriticMLP(20, (40, 30), 5, 4, 12, percent_on=0.2)
    x, context = torch.randn(16, 20), torch.randn(1, 12)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step():
        for module in (*model.layers, model.output):
            module.rezero_weights()
        return model(x, context)

    with torch.no_grad():
        for module in (*model.layers, model.output):
            module.weight.add_(1)
    got = step()
    for module in (*model.layers, model.output):
        assert (module.weight[~module.weight_mask] == 0).all() and (module.weight[module.weight_mask] != 0).any()
    assert_close(got, model(x, context), terms=64)


def _checkpointed(model, nesting, reentrant, backend="aot_eager"):
    if nesting == "compiled checkpoint":
        return torch.compile(lambda *args: checkpoint(model, *args, use_reentrant=False), backend=backend)
    compiled = torch.compile(model, backend=backend)
    return lambda *args: checkpoint(compiled, *args, use_reentrant=reentrant)


nestings = pytest.mark.parametrize(
    "nesting, reentrant",
    [("compiled checkpoint", False), ("checkpoint of compiled", False), ("checkpoint of compiled", True)],
)


@nestings
def test_a_checkpoint_counts_winners_once(nesting, reentrant):
    models = [DendriticMLP(20, (40, 30), 5, 4, 12, percent_on=0.2) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    x, context = torch.randn(16, 20, requires_grad=True), torch.randn(1, 12)
    run = _checkpointed(models[1], nesting, reentrant)
    for _ in range(2):
        models[0](x, context).square().sum().backward()
        run(x, context).square().sum().backward()
    for want, got in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert_close(got.grad, want.grad, terms=1024)
    assert int(models[1].layers[0].kwinners.learning_iterations) == 32
    for want, got in zip(models[0].buffers(), models[1].buffers(), strict=True):
        assert_close(got, want) if want.is_floating_point() else torch.testing.assert_close(got, want, rtol=0, atol=0)


@nestings
@pytest.mark.parametrize("layer, shape", [(KWinners, (4, 6)), (KWinners2d, (4, 6, 3, 3))])
def test_boosted_winners_in_a_checkpoint_are_refused(nesting, reentrant, layer, shape):
    boosted = layer(6, 0.5, boost_strength=1.0)
    y = torch.randn(shape, requires_grad=True)
    z = _checkpointed(boosted, nesting, reentrant)(y)
    with pytest.raises(RuntimeError, match=f"{layer.__name__}: torch.utils.checkpoint would choose other winners"):
        z.sum().backward()
    assert int(boosted.learning_iterations) == 4
    boosted.eval()
    _checkpointed(boosted, nesting, reentrant)(y).sum().backward()
    assert torch.equal(y.grad, (boosted(y) != 0).to(y.dtype))


def test_the_question_for_a_second_pass_is_an_op_like_others():
    op = torch.ops.dendrite_kernels.second_pass.default
    assert set(torch.library.opcheck(op, (torch.randn(3), "")).values()) == {"SUCCESS"}
    assert not op(torch.randn(3), "KWinners")
    answers, leaf = [], torch.ones(2, requires_grad=True)
    leaf.register_hook(lambda grad: answers.append(bool(op(grad, ""))))
    leaf.sum().backward()
    assert answers == [True]
