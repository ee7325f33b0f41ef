"""The convolutional networks have the table's shapes, densities and active shares."""

import pytest
import torch
from dendrite_lab.conv_networks import PlainConvNet, SparseConvNet, build_conv_net

SHAPES = [(64, 3, 3, 3), (32, 64, 3, 3), (256, 2048), (128, 256), (10, 128)]
torch.manual_seed(0)  # of which no weight is 0; of one seed in thirty, one is
NETWORKS = {  # of the table: share of active values in convolutions and linear layers
    "sparse": (SparseConvNet(10, 0.2, 0.1, 0.5), 0.2, 0.1),
    "adn": (SparseConvNet(10, 0.2, 0.3, 0.5, 10, 10, 0.1), 0.2, 0.3),
}


def weights(model):
    return [p for name, p in model.named_parameters() if name.endswith("weight")]


def test_the_shapes_are_one():
    for model in (PlainConvNet(10), *(model for model, _, _ in NETWORKS.values())):
        assert [tuple(w.shape) for w in weights(model)] == SHAPES
        assert model(torch.randn(2, 3, 32, 32), torch.eye(10)[:1]).shape == (2, 10)


@pytest.mark.parametrize("name", NETWORKS)
def test_densities_and_active_shares(name):
    model, conv, linear = NETWORKS[name]
    for w in weights(model)[:2]:
        assert (w != 0).all()
    for w in weights(model)[2:]:
        assert ((w != 0).sum(1) == round(0.5 * w.shape[1])).all()
    active = []
    layers = [*model.convolutions, *model.linear]
    hooks = [m.register_forward_hook(lambda m, _, out: active.append((out != 0).flatten(1).sum(1))) for m in layers]
    model(torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)), torch.eye(10)[:1])
    for hook in hooks:
        hook.remove()
    sizes = (64 * 32 * 32, 32 * 16 * 16, 256, 128)
    want = [round(size * share) for size, share in zip(sizes, (conv, conv, linear, linear), strict=True)]
    assert [counts.tolist() for counts in active] == [[k] * 3 for k in want]


def test_segments_of_the_dendritic_network():
    model = NETWORKS["adn"][0]
    layers = [*model.convolutions, *model.linear]
    assert [tuple(layer.segments.weights.shape) for layer in layers] == [(o, 10, 10) for o in (64, 32, 256, 128)]
    assert all(layer.segments is None for layer in [*NETWORKS["sparse"][0].convolutions, *NETWORKS["sparse"][0].linear])
    bounds = [layer.segments.weights.abs().max().item() for layer in layers]
    assert bounds == pytest.approx([1.0] * 4, abs=0.01)  # 1 / sqrt(0.1 x 10)


@torch.no_grad()
def test_a_channel_is_gated_whole():
    """Without winners, the first layer of the dendritic network is a convolution times a number a channel."""
    layer = NETWORKS["adn"][0].convolutions[0]
    x, context = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2)), torch.eye(10)[3:4]
    scores = layer.segments.weights[:, :, 3]
    strongest = scores.gather(1, scores.abs().argmax(1, keepdim=True))
    y = torch.nn.functional.conv2d(x, layer.weight, layer.bias, padding=1) * strongest.sigmoid()[:, :, None]
    least = y.flatten(1).topk(round(0.2 * 64 * 1024), 1).values[:, -1]
    want = torch.where(y >= least[:, None, None, None], y, 0)
    got = layer(x, context)
    # a value that ties with the least but for rounding may win in one and not in the other
    differ = (got - want).abs() > 1e-5
    assert differ.sum() <= 2 and ((y - least[:, None, None, None]).abs()[differ] < 1e-5).all()


def test_pools_follow_the_winners():
    model = NETWORKS["sparse"][0].eval()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    want = x
    with torch.no_grad():
        for layer in model.convolutions:
            want = torch.nn.functional.max_pool2d(layer(want), 2)
        want = model.output(model.linear[1](model.linear[0](want.flatten(1))))
        torch.testing.assert_close(model(x), want)


def test_the_plain_network_starts_as_the_sparse_one_at_full_density():
    """Drawn from the seed, and spread as the sparse one with all weights and all active is."""
    config = type("C", (), {"plain": True, "classes_per_task": 10})
    one, again, other = (build_conv_net(config, seed) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    assert not torch.equal(next(one.parameters()), next(other.parameters()))
    full = weights(SparseConvNet(10, 1.0, 1.0, 1.0))
    for a, b in zip(weights(one), full, strict=True):
        fan_in = a[0].numel()
        assert max(a.abs().max(), b.abs().max()) <= fan_in**-0.5 + 1e-7
        spread = (3 * fan_in) ** -0.5  # of a uniform distribution
        near = 5 * spread / (2 * a.numel()) ** 0.5
        assert a.std().item() == pytest.approx(spread, abs=near) and b.std().item() == pytest.approx(spread, abs=near)
