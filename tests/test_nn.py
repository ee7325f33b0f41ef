"""The modules, against a network written plainly from the papers' equations."""

import math
import pickle

import pytest
import torch

import dendrite_kernels as dk
from dendrite_kernels import nn as dnn
from dendrite_kernels.sparsity import random_mask, rezero_weights
from dendrite_kernels.testing import assert_close, assert_same_bits

SIZES = {"input_size": 20, "hidden_sizes": (40, 30), "output_size": 5, "num_segments": 4, "dim_context": 12}


def plain_kwta(y, k):
    """The public code's rule: everything not below the k-th largest."""
    threshold = y.kthvalue(y.shape[1] - k + 1, dim=1, keepdim=True).values
    return y.masked_fill(y < threshold, 0)


def plain_forward(params, x, context, dendrite, percent_on):
    """Grewal et al. 2021, eq. 1 to 4, with the context of every row spelt out."""
    for i in range(2):
        y = torch.nn.functional.linear(x, params[f"layers.{i}.weight"], params[f"layers.{i}.bias"])
        if dendrite != "none":
            activations = torch.einsum("osc,bc->bos", params[f"layers.{i}.segments.weights"], context)
            ranked = activations.abs() if dendrite == "abs_max_gate" else activations
            strongest = activations.gather(2, ranked.argmax(2, keepdim=True)).squeeze(2)
            y = y + strongest if dendrite == "bias" else y * strongest.sigmoid()
        x = plain_kwta(y, round(y.shape[1] * percent_on))
    return torch.nn.functional.linear(x, params["output.weight"], params["output.bias"])


def contexts(kind, batch, dtype):
    """(context rows for the plain network, context, context_index)."""
    if kind == "shared":
        row = torch.randn(1, 12, dtype=dtype)
        return row.expand(batch, -1), row, None
    index = torch.randint(0, 3, (batch,))
    rows = torch.eye(12, dtype=dtype)[:3] if kind == "one-hot" else torch.randn(3, 12, dtype=dtype)
    if kind == "each":
        return rows[index], rows[index], None
    return rows[index], rows, index


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", ["shared", "mixed", "one-hot", "each"])
@pytest.mark.parametrize("dendrite", ["abs_max_gate", "max_gate", "bias", "none"])
def test_mlp_agrees_with_the_plain_network(implementation, dtype, kind, dendrite):
    model = dnn.DendriticMLP(**SIZES, weight_sparsity=0.5, percent_on=0.2, dendrite=dendrite).to(dtype)
    x, target = torch.randn(16, 20, dtype=dtype), torch.randint(0, 5, (16,))
    rows, context, index = contexts(kind, 16, dtype)
    loss = torch.nn.functional.cross_entropy(model(x, context, index), target)
    grads = torch.autograd.grad(loss, list(model.parameters()))

    params = {name: p.detach().double().requires_grad_() for name, p in model.named_parameters()}
    plain = torch.nn.functional.cross_entropy(plain_forward(params, x.double(), rows.double(), dendrite, 0.2), target)
    exact = torch.autograd.grad(plain, list(params.values()))
    if dtype == torch.float64:
        assert abs(float(loss.detach() - plain.detach())) < 1e-12
        for mine, want in zip(grads, exact, strict=True):
            torch.testing.assert_close(mine, want, rtol=0, atol=1e-10)
    else:
        assert_close(loss, plain, terms=40)
        for mine, want in zip(grads, exact, strict=True):
            assert_close(mine, want, terms=40 * 16, dtype=dtype)


def test_one_segment_is_its_own_winner():
    layer = dnn.DendriticLinear(6, 7, 1, 5)
    x, context = torch.randn(3, 6), torch.randn(3, 5)
    gate = (context @ layer.segments.weights[:, 0].T).sigmoid()
    assert_close(layer(x, context), torch.nn.functional.linear(x, layer.weight, layer.bias) * gate, terms=6)


def test_relu_network_without_winners():
    model = dnn.DendriticMLP(**SIZES, weight_sparsity=0.0, percent_on=None)
    x, context = torch.randn(4, 20), torch.randn(1, 12)
    want = x
    for layer in model.layers:
        want = (torch.nn.functional.linear(want, layer.weight, layer.bias) * layer.gate(context)).relu()
    assert_close(model(x, context), model.output(want), terms=40)


def test_gates_computed_once_give_the_same_bits():
    model = dnn.DendriticMLP(**SIZES).eval()
    x, context, index = torch.randn(9, 20), torch.randn(3, 12), torch.randint(0, 3, (9,))
    with torch.no_grad():
        assert_same_bits(model.forward_gated(x, model.gates(context), index), model(x, context, index))


# ---- initialisation and masks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.95, 0.999])
def test_masks_keep_the_same_number_in_each_row(sparsity):
    mask = random_mask((50, 33), sparsity)
    assert (mask.sum(1) == round((1 - sparsity) * 33)).all()
    assert sparsity in (0.0, 0.999) or (mask[0] != mask[1]).any()


@pytest.mark.parametrize("input_major", [False, True])
def test_sparse_linear_starts_as_the_papers_say(input_major):
    layer = dnn.SparseLinear(400, 300, sparsity=0.5, input_density=0.05, input_major=input_major)
    assert (layer.weight != 0).sum(1).tolist() == [200] * 300
    assert (layer.weight[~layer.weight_mask] == 0).all()
    bound = 1 / math.sqrt(0.05 * 0.5 * 400)
    assert 0.999 * bound < layer.weight.abs().max() <= bound
    assert layer.weight.detach()[layer.weight_mask].std() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert layer.bias.abs().max() <= 1 / 20
    assert layer.weight.is_contiguous() != input_major


def test_a_seed_means_the_same_weights_in_either_memory_order():
    layers = []
    for input_major in (False, True):
        torch.manual_seed(3)
        layers.append(dnn.SparseLinear(30, 20, sparsity=0.5, input_major=input_major))
    assert_same_bits(layers[0].weight, layers[1].weight)


def test_segments_start_as_the_papers_say():
    segments = dnn.DendriteSegments(20, 5, 300, sparsity=0.25, context_density=0.1, bias=True)
    bound = 1 / math.sqrt(0.1 * 0.75 * 300)
    assert 0.99 * bound < segments.weights.abs().max() <= bound
    assert ((segments.weights != 0).sum(2) == 225).all() and (segments.biases == 0).all()


def test_mlp_passes_the_densities_on():
    model = dnn.DendriticMLP(**SIZES, weight_sparsity=0.5, percent_on=0.1, context_density=0.1)
    assert [m.input_density for m in (*model.layers, model.output)] == [1.0, 0.1, 0.1]
    assert model.layers[0].segments.context_density == 0.1
    relu = dnn.DendriticMLP(**SIZES, percent_on=None)
    assert [m.input_density for m in (*relu.layers, relu.output)] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop])
def test_masks_survive_any_optimizer(make):
    model = dnn.DendriticMLP(**SIZES, segment_sparsity=0.5)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    options = {"momentum": 0.9} if make is torch.optim.SGD else {}
    optimizer = make(model.parameters(), lr=0.1, weight_decay=0.1, **options)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(16, 20), torch.randn(1, 12)).square().mean().backward()
        optimizer.step()
        rezero_weights(model)
    for module in [*model.layers, model.output, *(layer.segments for layer in model.layers)]:
        weight = getattr(module, module.masked_name)
        assert (weight[~module.weight_mask] == 0).all() and (weight[module.weight_mask] != 0).any()
    moved = [name for name, p in model.named_parameters() if (p != before[name]).any()]
    assert set(moved) == set(before)


def test_fused_adam_takes_the_input_major_weights():
    """torch's fused kernel walks raw memory: weights and gradients must lie the same way."""
    torch.manual_seed(1)
    models = [dnn.DendriticMLP(**SIZES) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [
        torch.optim.Adam(m.parameters(), lr=0.01, fused=fused) for m, fused in zip(models, (False, True), strict=True)
    ]
    x, context = torch.randn(16, 20), torch.randn(1, 12)
    for model, optimizer in zip(models, optimizers, strict=True):
        model(x, context).square().mean().backward()
        optimizer.step()
    for mine, want in zip(models[1].parameters(), models[0].parameters(), strict=True):
        assert_close(mine, want, terms=4)


@pytest.mark.parametrize("shape", [(5, 7), (64, 33)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rezero_takes_nan_and_any_strides(implementation, shape, dtype):
    keep = torch.rand(shape) < 0.5
    for weight, mask in [
        (torch.randn(shape), keep),
        (torch.randn(shape[::-1]).T, keep.T.contiguous().T),
        (torch.randn(shape[::-1]).T, keep),
        (torch.randn(shape[0], 2 * shape[1])[:, ::2], keep),
    ]:
        weight = weight.to(dtype)
        weight[~keep] = float("nan")
        want = torch.where(keep, weight, 0)
        version = weight._version
        assert_same_bits(dk.rezero_(weight, mask), want)
        assert weight._version > version


def test_rezero_names_bad_arguments():
    with pytest.raises(ValueError, match="keep: expected shape"):
        dk.rezero_(torch.zeros(2, 3), torch.ones(3, 2, dtype=torch.bool))
    with pytest.raises(TypeError, match="keep: expected bool"):
        dk.rezero_(torch.zeros(2, 3), torch.ones(2, 3))


# ---- KWinners -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparse", [False, True])
def test_duty_cycles_follow_the_public_rule(sparse):
    layer = dnn.KWinners(30, 0.2, duty_cycle_period=50, boost_strength=1.5, sparse=sparse)
    duty, seen = torch.zeros(30), 0
    for _ in range(6):
        x = torch.randn(16, 30) - 0.5
        boosted = x * torch.exp(-1.5 * duty)
        want = torch.where(boosted >= boosted.topk(6).values[:, -1:], x, 0)
        z = layer(x)
        assert_same_bits(z.to_dense() if sparse else z, want)
        seen += 16
        period = min(50, seen)
        duty = (duty * (period - 16) + (want > 0).sum(0)) / period
        torch.testing.assert_close(layer.duty_cycle, duty)
    assert int(layer.learning_iterations) == seen
    layer.eval()
    before = layer.duty_cycle.clone()
    want = dk.kwinners(x, 6, boost=torch.exp(-1.5 * duty))  # the public rule boosts at inference too
    assert_same_bits(layer(x).to_dense() if sparse else layer(x), want)
    assert (layer.duty_cycle == before).all()


def test_a_batch_longer_than_the_period_counts_as_one_period():
    layer = dnn.KWinners(4, 0.5, duty_cycle_period=10)
    layer(torch.tensor([[1.0, 2, 3, 4]]).expand(40, -1))
    assert layer.duty_cycle.tolist() == [0, 0, 1, 1]


def test_duty_cycles_resume_from_a_checkpoint():
    first, second = (dnn.KWinners(30, 0.2, duty_cycle_period=50, boost_strength=s) for s in (1.0, 0.0))
    first(torch.randn(16, 30))
    second.load_state_dict(first.state_dict())
    x = torch.randn(16, 30)
    assert_same_bits(first(x), second(x))
    torch.testing.assert_close(first.duty_cycle, second.duty_cycle, rtol=0, atol=0)


def test_boosting_in_bfloat16():
    layer = dnn.KWinners(30, 0.2, boost_strength=1.5).bfloat16()
    z = layer(torch.randn(4, 30).bfloat16())
    assert z.dtype == torch.bfloat16 and ((z != 0).sum(1) == 6).all()


def test_models_are_pickled():
    model = dnn.DendriticMLP(**SIZES, boost_strength=1.0)
    twin = pickle.loads(pickle.dumps(model))
    x, context = torch.randn(4, 20), torch.randn(1, 12)
    assert_same_bits(twin(x, context), model(x, context))


def test_a_layer_without_winners_passes_nothing_on():
    model = dnn.DendriticMLP(20, (40, 8), 5, 3, 6, percent_on=0.05)  # k = 2 and 0
    assert [layer.kwinners.k for layer in model.layers] == [2, 0]
    logits = model(torch.randn(64, 20), torch.randn(1, 6))
    assert_same_bits(logits, model.output.bias.expand(64, -1))
    logits.square().sum().backward()
    for layer in model.layers:
        assert (layer.weight.grad == 0).all() and (layer.segments.weights.grad == 0).all()


def test_k_inference_factor_and_boost_factor():
    layer = dnn.KWinners(20, 0.25, k_inference_factor=1.6, boost_strength=2.0, boost_strength_factor=0.5)
    assert layer.k == 5 and layer.eval().k == 8
    layer.update_boost_strength()
    assert float(layer.boost_strength) == 1.0


def test_state_dict_round_trip_keeps_the_function():
    torch.manual_seed(1)
    first = dnn.DendriticMLP(**SIZES)
    torch.manual_seed(2)
    second = dnn.DendriticMLP(**SIZES)
    second.load_state_dict(first.state_dict())
    x, context = torch.randn(4, 20), torch.randn(1, 12)
    assert_same_bits(second(x, context), first(x, context))
    assert not second.layers[1].weight.is_contiguous()


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: dnn.SparseLinear(3, 4, sparsity=-0.1), r"sparsity: expected a fraction in \[0, 1\), got -0.1"),
        (lambda: dnn.SparseLinear(3, 4, sparsity=1), "sparsity: expected a fraction"),
        (lambda: dnn.SparseLinear(3, 4, input_density=0), "input_density: expected a fraction"),
        (lambda: dnn.KWinners(5, 1.5), r"percent_on: expected a fraction in \[0, 1\], got 1.5"),
        (lambda: dnn.KWinners(5, 0.5, boost_strength=-1), "boost_strength: expected 0 or more"),
        (lambda: dnn.KWinners(5, 0.5, ties="keep", sparse=True), "ties: expected 'lowest' with sparse=True"),
        (lambda: dnn.DendriteSegments(4, 0, 3), "segments: expected at least 1, got 0"),
        (lambda: dnn.DendriticLinear(3, 4, 2, 5, dendrite="soma"), "dendrite: expected one of 'abs_max_gate'"),
        (lambda: dnn.DendriticLinear(3, 4, 2, 5, kwinners=dnn.KWinners(5, 0.5)), r"kwinners: expected n = 4"),
        (lambda: dnn.DendriticLinear(3, 4, 2, 5)(torch.zeros(1, 3)), r"context: expected \[G, C\] for a layer with"),
    ],
)
def test_bad_arguments_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_nearest_prototype():
    prototypes = torch.randn(5, 30, dtype=torch.float64)
    x = prototypes[torch.tensor([3, 1, 4, 0])] + 0.1 * torch.randn(4, 30, dtype=torch.float64)
    nearest = dnn.nearest_prototype(x, prototypes)
    assert nearest.tolist() == [3, 1, 4, 0] == torch.cdist(x, prototypes).argmin(1).tolist()
    assert dnn.nearest_prototype(torch.zeros(1, 2), torch.tensor([[1.0, 0], [0, 1]])).item() == 0


@pytest.mark.parametrize("layer, shape", [(dnn.KWinners, (1, 4)), (dnn.KWinners2d, (1, 4, 1, 1))])
def test_the_boost_strength_is_the_buffer(layer, shape):
    """Whoever writes it, or puts another in its place: units 0 and 1 were on most, and lose to 2 and 3."""
    winners, y = layer(4, 0.5).eval(), torch.tensor([4.0, 3.0, 2.0, 1.0]).view(shape)
    plain, boosted = [[4.0, 3.0, 0.0, 0.0], [0.0, 0.0, 2.0, 1.0]]
    winners.duty_cycle.copy_(torch.tensor([1.0, 1.0, 0.0, 0.0]))
    assert winners(y).flatten().tolist() == plain
    swapped = {"boost_strength": torch.tensor(5.0)}
    assert torch.func.functional_call(winners, swapped, (y,)).flatten().tolist() == boosted
    assert winners(y).flatten().tolist() == plain
    mapped = torch.func.vmap(lambda s: torch.func.functional_call(winners, {"boost_strength": s}, (y,)))
    assert mapped(torch.tensor([0.0, 5.0])).view(2, 4).tolist() == [plain, boosted]
    winners.boost_strength.fill_(5.0)
    assert winners(y).flatten().tolist() == boosted
    winners.boost_strength.zero_()
    assert winners(y).flatten().tolist() == plain and winners.boost() is None
    winners.load_state_dict({**winners.state_dict(), "boost_strength": torch.tensor(5.0)})
    assert torch.compile(winners, backend="eager")(y).flatten().tolist() == boosted
