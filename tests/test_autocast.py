"""torch.autocast: products in its dtype, gates and the choice of winners in float32, against casts written out.

Inputs are small whole numbers, whose sums are exact in either half: rounding can't hide a wrong dtype.
"""

import pytest
import torch
from torch.nn import functional as F

import dendrite_kernels as dk
from dendrite_kernels import KSparse, nn
from dendrite_kernels import reference as ref
from dendrite_kernels.factored import FactoredGrad
from dendrite_kernels.sparsity import rezero_weights
from dendrite_kernels.testing import assert_close, assert_same_bits, small_integers

HALVES = [torch.bfloat16, torch.float16]
INDEX = torch.tensor([0, 2, 1, 1, 0, 2])


def autocast(dtype=torch.bfloat16):
    return torch.autocast("cpu", dtype)


def some_ksparse(batch=6, inputs=20, k=4):
    indices = torch.rand(batch, inputs).argsort(1)[:, :k].sort(1).values.int()
    return KSparse(small_integers(batch, k), indices, inputs)


def layer_by_hand(x, weight, bias, gate, index, k, half, **options):
    """Values and indices of a layer of k winners, with the casts of autocast."""
    dense = x.to_dense() if isinstance(x, KSparse) else x
    y = F.linear(dense.to(half), weight.to(half)).float()
    return ref.gated_kwinners_sparse(y, gate, bias, index, k, **options)[:2]


@pytest.mark.parametrize("half", HALVES, ids=str)
@pytest.mark.parametrize("given", [torch.float32, *HALVES], ids=str)
def test_gates_and_winners_are_chosen_in_float32(implementation, half, given):
    """Whatever came out of the layers before: a float32 gate goes with a half y, as in torch's own arithmetic."""
    y, gate, bias = torch.randn(6, 30).to(given), torch.rand(3, 30), torch.randn(30).to(given)
    context, segments = torch.randn(3, 7).to(given), torch.randn(30, 4, 7)
    with autocast(half):
        dense = dk.gated_kwinners(y, gate, bias, INDEX, 5)
        sparse = dk.gated_kwinners_sparse(y, gate, bias, INDEX, 5)
        image = dk.kwinners2d(y.view(6, 5, 3, 2), 7)
        made, winner = dk.segment_gate(context, segments)
    assert_same_bits(dense, ref.gated_kwinners(y.float(), gate, bias.float(), INDEX, 5)[0])
    values, indices, _ = ref.gated_kwinners_sparse(y.float(), gate, bias.float(), INDEX, 5)
    assert_same_bits(sparse.values, values)
    assert torch.equal(sparse.indices, indices)
    assert_same_bits(image, ref.kwinners2d(y.float().view(6, 5, 3, 2), k=7)[0])
    want, want_winner = dk.segment_gate(context.float(), segments)
    assert_same_bits(made, want)
    assert torch.equal(winner, want_winner)


@pytest.mark.parametrize("half", HALVES, ids=str)
@pytest.mark.parametrize("given", [torch.float32, *HALVES], ids=str)
def test_products_are_in_half(implementation, half, given):
    x, weight, bias = some_ksparse(), small_integers(9, 20) + 0.001, small_integers(9)
    with autocast(half):
        dense = dk.sparse_linear(x.to_dense().to(given), weight, bias)
        sparse = dk.sparse_linear(x._replace(values=x.values.to(given)), weight, bias)
    want = F.linear(x.to_dense().to(half), weight.to(half), bias.to(half))
    assert (want.float() != F.linear(x.to_dense(), weight, bias)).any()  # the rounding shows
    assert_same_bits(dense, want)
    assert_same_bits(sparse, want)


@pytest.mark.parametrize("half", HALVES, ids=str)
@pytest.mark.parametrize("kind", ["dense", "k-sparse"])
@pytest.mark.parametrize("combine", ["mul", "add"])
def test_a_layer_is_the_two_in_turn(implementation, half, kind, combine):
    x, weight, bias, gate = some_ksparse(), small_integers(30, 20), torch.randn(30), torch.rand(3, 30)
    x = x.to_dense() if kind == "dense" else x
    with autocast(half):
        got = dk.linear_kwinners(x, weight, bias, gate, INDEX, 5, combine=combine, relu=True)
    values, indices = layer_by_hand(x, weight, bias, gate, INDEX, 5, half, combine=combine, relu=True)
    assert_same_bits(got.values, values)
    assert torch.equal(got.indices, indices)


@pytest.mark.parametrize("kind", ["dense", "k-sparse"])
def test_gradients_are_float32_and_come_through_the_casts(implementation, kind):
    x, weight, bias, gate = some_ksparse(), small_integers(30, 20), small_integers(30), small_integers(3, 30) / 4
    entries = x.to_dense() if kind == "dense" else x.values
    leaves = [t.requires_grad_() for t in (entries, weight, bias, gate)]
    x = entries if kind == "dense" else x._replace(values=entries)
    with autocast():
        got = dk.linear_kwinners(x, weight, bias, gate, INDEX, 5).values
    want, _ = layer_by_hand(x, weight, bias, gate, INDEX, 5, torch.bfloat16)
    for mine, theirs in zip(*(torch.autograd.grad(v, leaves, torch.ones(6, 5)) for v in (got, want)), strict=True):
        assert mine.dtype == torch.float32
        assert_same_bits(mine + 0.0, theirs + 0.0)


def test_the_whole_layer_as_one_op():
    """torch.ops.dendrite_kernels.dendritic_layer, which a GPU may be given, follows the same rule."""
    x, weight, context, segments = (
        small_integers(6, 20),
        small_integers(30, 20),
        torch.randn(3, 7),
        torch.randn(30, 4, 7),
    )
    with autocast():
        gate, winner, values, indices, _ = torch.ops.dendrite_kernels.dendritic_layer(
            x, None, weight, None, context, segments, None, INDEX, 5, "abs_max", "sigmoid", "mul", None, False
        )
        want = dk.dendritic_linear(x, weight, None, context, segments, None, INDEX, 5, sparse=True)
    assert_same_bits(values, want.values)
    assert torch.equal(indices, want.indices)
    assert_same_bits(gate, dk.segment_gate(context, segments)[0])
    assert winner.dtype == torch.int32


def test_float64_is_left_alone():
    y, gate = torch.randn(6, 30).double(), torch.rand(1, 30).double()
    weight = torch.randn(9, 30).double()
    want = dk.gated_kwinners_sparse(y, gate, None, None, 5)
    with autocast():
        got = dk.gated_kwinners_sparse(y, gate, None, None, 5)
        product = dk.sparse_linear(got, weight)
    assert_same_bits(got.values, want.values)
    assert_same_bits(product, dk.sparse_linear(want, weight))


def test_without_autocast_dtypes_must_agree_and_a_switch_for_another_device_changes_nothing():
    y, gate, weight = torch.randn(6, 30).bfloat16(), torch.rand(1, 30).bfloat16(), torch.randn(9, 30)
    with pytest.raises(TypeError, match=r"gate: expected torch.float32 to go with y \(torch.bfloat16\)"):
        dk.gated_kwinners(y, gate, None, None, 5)
    with pytest.raises(TypeError, match=r"weight: expected torch\.bfloat16 to go with x"):
        dk.sparse_linear(y, weight)
    if torch.cuda.is_available():
        with torch.autocast("cuda", torch.bfloat16), pytest.raises(TypeError, match="gate: expected"):
            dk.gated_kwinners(y, gate, None, None, 5)


def test_a_backward_pass_under_autocast_is_that_outside():
    x, weight = torch.randn(6, 20), torch.randn(30, 20, requires_grad=True)
    z = dk.linear_kwinners(x, weight, None, None, None, 20).values.square().sum()
    (want,) = torch.autograd.grad(z, weight, retain_graph=True)
    with autocast():
        (got,) = torch.autograd.grad(z, weight)
    assert_same_bits(got, want)


@pytest.mark.parametrize("half", HALVES, ids=str)
def test_modules(half):
    """Each takes what torch.nn.Linear leaves there, and gives what the next takes."""
    x, context = small_integers(6, 20), torch.randn(1, 7)
    first = torch.nn.Linear(20, 20)
    with autocast(half):
        y = first(x)
        assert nn.SparseLinear(20, 9)(y).dtype == y.dtype == half
        assert nn.KWinners(20, 0.2)(y).dtype == torch.float32
        winners = nn.DendriticLinear(20, 30, 4, 7, kwinners=nn.KWinners(30, 0.2, sparse=True))(y, context)
        assert winners.values.dtype == torch.float32
        assert nn.SparseLinear(30, 9)(winners).dtype == half
        assert nn.DendriticLinear(20, 30, 4, 7, relu=True)(y, context).dtype == torch.float32
        conv = nn.DendriticConv2d(3, 8, 3, 4, 7, kwinners=nn.KWinners2d(8, 0.2))
        assert conv(torch.randn(2, 3, 9, 9), context).dtype == torch.float32


@pytest.mark.parametrize("options", [{}, {"ties": "keep"}, {"percent_on": None}, {"dendrite": "bias"}])
def test_a_network_layer_by_layer(options):
    """Each layer on the input of ours, as one winner that rounding flips would change all that follows."""
    model = nn.DendriticMLP(20, (40, 30), 5, 4, 7, **{"percent_on": 0.2, **options}).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(small_integers(*p.shape, high=2) / 4)
    x, context = small_integers(6, 20), small_integers(3, 7)
    with autocast():
        for layer in model.layers:
            z = layer(x, context, INDEX)
            inputs = x.to_dense() if isinstance(x, KSparse) else x
            y = F.linear(inputs.bfloat16(), layer.weight.bfloat16()).float()
            k = 10**6 if layer.kwinners is None else layer.kwinners.k
            ties = "lowest" if layer.kwinners is None else layer.kwinners.ties
            rest = {"combine": layer.combine, "relu": layer.relu, "ties": ties}
            want, _ = ref.gated_kwinners(y, layer.gate(context), layer.bias, INDEX, k, **rest)
            assert_same_bits(z.to_dense() if isinstance(z, KSparse) else z, want)
            x = z
        logits = model.output(x)
    inputs = x.to_dense() if isinstance(x, KSparse) else x
    out = model.output
    assert_close(logits, F.linear(inputs.bfloat16(), out.weight.bfloat16(), out.bias.bfloat16()), terms=2)


def test_the_nearest_prototype_is_that_without_autocast():
    x, prototypes = torch.randn(400, 50), torch.randn(30, 50)
    want = nn.nearest_prototype(x, prototypes)
    assert ((prototypes**2).sum(1) - 2 * (x.bfloat16() @ prototypes.T.bfloat16()).float()).argmin(1).ne(want).any()
    with autocast():
        assert torch.equal(nn.nearest_prototype(x, prototypes), want)


def test_our_adam_takes_the_gradients_of_autocast():
    """The weights' are dense, as they come through a cast; those of the segments stay factors."""
    models = [nn.DendriticMLP(20, (40, 30), 5, 4, 7, percent_on=0.2) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = dk.optim.Adam(models[0], lr=0.01), torch.optim.Adam(models[1].parameters(), lr=0.01)
    x, context, labels = torch.randn(16, 20), torch.randn(1, 7), torch.randint(0, 5, (16,))
    for model, optimizer in zip(models, optimizers, strict=True):
        with autocast():
            loss = F.cross_entropy(model(x, context), labels)
        loss.backward()
        optimizer.step()
        rezero_weights(model)
    assert type(models[0].layers[0].weight.grad) is torch.Tensor
    assert isinstance(models[0].layers[0].segments.weights.grad, FactoredGrad)
    for mine, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert_close(mine, theirs, terms=16)
