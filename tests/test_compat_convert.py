"""compat.convert: live models of stand-in classes with the public names give the same values on the same parameters."""

import copy

import public_classes as public
import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

import dendrite_kernels as dk
from dendrite_kernels import compat
from dendrite_kernels.testing import assert_close, assert_same_bits

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = (12, 16, 14, 5)
KINDS = {
    "segments": {"num_segments": 3},
    "one segment": {"num_segments": 1},
    "no segments": {"num_segments": 0},
    "boosting": {"num_segments": 3, "boost_strength": 1.5, "k_inference_factor": 1.4},
    "strict": {"num_segments": 3, "break_ties": True},
    "relu winners": {"num_segments": 3, "relu": True},
    "relu": {"num_segments": 3, "percent_on": 0.0},
    "heads": {"num_segments": 3, "heads": 2},
}


def network(num_segments=3, percent_on=0.25, **options):
    return public.DendriticMLP(SIZES, num_segments, 7, percent_on, **options).double()


def batch(size=9):
    return torch.randn(size, SIZES[0], dtype=torch.float64), torch.randn(size, 7, dtype=torch.float64)


def train_step(model, optimizer, x, context, labels):
    out = model(x, context)
    optimizer.zero_grad()
    loss = sum(nn.functional.cross_entropy(o, labels) for o in (out if isinstance(out, list) else [out]))
    loss.backward()
    optimizer.step()
    model.apply(public.rezero_weights)


def plain_state(model):
    """A public model's own state dict; ours through compat."""
    converted = any(isinstance(m, dk.sparsity.MaskedParameter) for m in model.modules())
    return compat.public_state_dict(model) if converted else model.state_dict()


def assert_close_states(actual, expected, terms=256):
    assert actual.keys() == expected.keys()
    for key in expected:
        assert_close(actual[key], expected[key], terms=terms)


@pytest.mark.parametrize("ties", [None, "lowest"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_public_network_goes_on_training_as_it_was(kind, ties):
    theirs = network(**KINDS[kind])
    mine = copy.deepcopy(theirs)
    labels = torch.randint(0, SIZES[-1], (9,))
    one = kind == "one segment"
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9) for m in (theirs, mine)]
    for _ in range(2):  # duty cycles and momentum from before
        data = batch()
        for model, optimizer in zip((theirs, mine), optimizers, strict=True):
            train_step(model, optimizer, *data, labels)
    report = compat.convert(mine, ties=ties)
    assert report.model is mine and not report.left
    assert len(report.swapped) == len(theirs._layers) * (1 if kind == "relu" else 2) + len(theirs._output_layers)
    assert_close_states(plain_state(mine), theirs.state_dict())
    if one:  # the segments are new parameters, so their momentum starts anew, in both
        optimizers = [torch.optim.SGD(m.parameters(), lr=0.05) for m in (theirs, mine)]
    for _ in range(2):
        data = batch()
        for model, optimizer in zip((theirs, mine), optimizers, strict=True):
            train_step(model, optimizer, *data, labels)
        for model in (theirs, mine):
            model.apply(public.update_boost_strength)
    assert_close_states(plain_state(mine), theirs.state_dict(), terms=4096)
    theirs.eval(), mine.eval()
    data = batch()
    expected, actual = theirs(*data), mine(*data)
    for e, a in zip(expected, actual, strict=True):
        assert_close(a, e, terms=4096)


@pytest.mark.parametrize("ties, between", [(None, torch.Tensor), ("lowest", dk.KSparse)])
def test_what_flows_between_the_layers(ties, between):
    model = network()
    compat.convert(model, ties=ties)
    seen = []
    model._layers[1].register_forward_pre_hook(lambda module, args: seen.append(type(args[0])))
    model(*batch())
    assert seen == [between]


def test_parameters_buffers_modes_and_gradients_stay():
    model = network()
    model._layers[0].segments.weights.requires_grad_(False)
    model._layers[1].eval()
    model._activations[1].learning_iterations = 55
    before = dict(model.named_parameters())
    duty_cycle = model._activations[0].duty_cycle
    compat.convert(model)
    layers, head = model._layers, model._output_layers[0].output_linear
    assert layers[0].weight is before["_layers.0.module.weight"]
    assert layers[0].bias is before["_layers.0.module.bias"]
    assert layers[0].segments.weights is before["_layers.0.segments.weights"]
    assert head.weight is before["_output_layers.0.output_linear.module.weight"]
    assert layers[0].kwinners.duty_cycle.data_ptr() == duty_cycle.data_ptr()
    assert not layers[0].segments.weights.requires_grad and layers[0].weight.requires_grad
    assert (layers[0].training, layers[1].training) == (True, False)
    assert int(layers[1].kwinners.learning_iterations) == 55
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert not any(t.is_meta for t in model.state_dict().values())


def test_one_segment_shares_memory_under_a_new_parameter():
    model = network(num_segments=1)
    old = model._layers[0].segments.module.weight.requires_grad_(False)
    compat.convert(model)
    new = model._layers[0].segments.weights
    assert new.shape == (16, 1, 7) and new.data_ptr() == old.data_ptr() and not new.requires_grad


def test_our_adam_takes_a_converted_network():
    theirs = network()
    mine = copy.deepcopy(theirs)
    compat.convert(mine, ties="lowest")
    optimizers = torch.optim.Adam(theirs.parameters(), lr=0.01), dk.optim.Adam(mine, lr=0.01)
    labels = torch.randint(0, SIZES[-1], (9,))
    for _ in range(3):
        data = batch()
        for model, optimizer in zip((theirs, mine), optimizers, strict=True):
            train_step(model, optimizer, *data, labels)
    for key, t in plain_state(mine).items():
        assert_close(t, theirs.state_dict()[key], terms=1 << 16)


LAYERS = {
    public.AbsoluteMaxGatingDendriticLayer: "abs_max_gate",
    public.GatingDendriticLayer: "max_gate",
    public.BiasingDendriticLayer: "bias",
}


@pytest.mark.parametrize("kind", LAYERS)
def test_each_dendritic_layer(kind):
    theirs = kind(nn.Linear(6, 8), 4, 5, 0.5, 0.4, dendrite_bias=True)
    report = compat.convert(theirs)
    mine = report.model
    assert mine.dendrite == LAYERS[kind] and list(report.swapped) == [""]
    x, context = torch.randn(7, 6), torch.randn(7, 5)
    assert_close(mine(x, context), theirs(x, context), terms=64)
    assert (mine.sparsity, mine.segments.sparsity) == (0.5, 0.4)
    assert_same_bits(mine.segments.weight_mask, theirs.segments.zero_mask == 0)


def test_one_segment_with_a_bias():
    theirs = public.OneSegmentDendriticLayer(nn.Linear(6, 8, bias=False), 5, 0.5, 0.4, dendrite_bias=True)
    mine = compat.convert(theirs).model
    x, context = torch.randn(7, 6), torch.randn(7, 5)
    assert_close(mine(x, context), theirs(x, context), terms=64)
    assert_same_bits(mine.segments.weight_mask[:, 0], theirs.segments.zero_mask == 0)


CONVOLUTIONS = {
    public.AbsoluteMaxGatingDendriticLayer2d: "abs_max_gate",
    public.GatingDendriticLayer2d: "max_gate",
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_convolutions_with_gated_channels(kind):
    conv = nn.Conv2d(4, 6, (3, 2), stride=2, padding=1, dilation=(1, 2), groups=2, bias=False)
    theirs = kind(conv, 3, 5, 0.5, 0.4)
    mine = compat.convert(theirs).model
    assert isinstance(mine, dk.nn.DendriticConv2d) and mine.dendrite == CONVOLUTIONS[kind]
    x, context = torch.randn(7, 4, 8, 9), torch.randn(7, 5)
    assert_close(mine(x, context), theirs(x, context), terms=64)
    assert_close(mine(x, context[:1]), theirs(x, context[:1].expand(7, 5)), terms=64)


class ConvNet(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.conv = public.SparseWeights2d(nn.Conv2d(3, 6, 3), 0.5)
        self.winners = public.KWinners2d(6, 0.2, **options)
        self.fc = nn.Linear(96, 10)
        self.head = public.SparseWeights(nn.Linear(10, 4), 0.3)

    def forward(self, x):
        return self.head(self.fc(self.winners(self.conv(x)).flatten(1)))


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("warm", [False, True])
def test_k_winners_of_images(local, warm):
    theirs = ConvNet(local=local, boost_strength=1.2, k_inference_factor=1.6)
    if warm:
        theirs(torch.randn(5, 3, 6, 6))
    mine = copy.deepcopy(theirs)
    report = compat.convert(mine, ["fc"])
    assert list(report.swapped) == ["conv", "winners", "fc", "head"] and not report.left
    for training in (True, True, False):
        theirs.train(training), mine.train(training)
        x = torch.randn(5, 3, 6, 6)
        assert_close(mine(x), theirs(x), terms=1024)
    assert_close(mine.winners.duty_cycle, theirs.winners.duty_cycle.flatten(), terms=32)
    state = compat.public_state_dict(mine, plain=["fc"])
    assert_close_states(state, theirs.state_dict())


@pytest.mark.parametrize("n, percent_on, factor", [(10, 0.25, 1.5), (30, 0.1, 1.99), (7, 0.3, 0.4), (20, 0.02, 1.5)])
def test_k_at_inference_is_rounded_as_the_public_class_does(n, percent_on, factor):
    theirs = public.KWinners(n, percent_on, k_inference_factor=factor)
    mine = compat.convert(theirs).model
    assert mine.k == theirs.k
    assert mine.eval().k == theirs.k_inference


def test_layers_that_torch_prunes():
    theirs = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    mine = copy.deepcopy(theirs)
    for model in (theirs, mine):
        torch_prune.l1_unstructured(model[0], "weight", 0.5)
    weight = mine[0].weight_orig
    report = compat.convert(mine)
    assert list(report.swapped) == ["0"] and list(report.left) == ["2"]
    assert mine[0].weight is weight and mine[0].sparsity == 0.5
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (theirs, mine)]
    x = torch.randn(5, 6)
    for _ in range(2):
        for model, optimizer in zip((theirs, mine), optimizers, strict=True):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
        dk.sparsity.rezero_weights(mine)
    assert_close(mine(x), theirs(x), terms=256)


def test_a_layer_used_twice_stays_one_layer():
    shared = public.SparseWeights(nn.Linear(6, 6), 0.5)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared)})
    compat.convert(model)
    assert model["a"] is model["b"][0] and isinstance(model["a"], dk.nn.SparseLinear)


def test_a_second_conversion_finds_nothing():
    model = network()
    compat.convert(model)
    again = compat.convert(model)
    assert not again.swapped and not again.left


class Unknown(public.SparseWeights):
    def forward(self, x):
        return super().forward(x) + 1


class BoostedDendritesAbsMaxGate1d(nn.Module):
    pass


def pruned_bias(layer):
    torch_prune.l1_unstructured(layer, "weight", 0.5)
    return torch_prune.l1_unstructured(layer, "bias", 0.5)


def hooked(module):
    module.register_forward_hook(lambda *args: None)
    return module


def with_part(module, name, part):
    module.add_module(name, part)
    return module


def changed(module, /, **attributes):
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


def dendritic():
    return public.AbsoluteMaxGatingDendriticLayer(nn.Linear(4, 3), 2, 5, 0.5, 0.0)


LEFT = {
    "a subclass of SparseWeights, whose forward may differ": lambda: Unknown(nn.Linear(4, 3), 0.5),
    "has hooks (forward_hooks)": lambda: hooked(public.SparseWeights(nn.Linear(4, 3), 0.5)),
    "has hooks (forward_hooks): remove them": lambda: public.SparseWeights(hooked(nn.Linear(4, 3)), 0.5),
    "its forward was replaced on the instance": lambda: changed(public.KWinners(8, 0.5), forward=lambda x: x),
    "expected a wrapped torch.nn.Linear exactly, got Bilinear": lambda: changed(
        public.SparseWeights(nn.Linear(4, 3), 0.5), module=nn.Bilinear(2, 2, 2)
    ),
    "has a part 'extra' that the public class does not have": lambda: with_part(dendritic(), "extra", nn.ReLU()),
    "expected its dendritic_absolute_max_gate to be a DendriticAbsoluteMaxGate1d, got ReLU": lambda: with_part(
        dendritic(), "dendritic_absolute_max_gate", nn.ReLU()
    ),
    "expected a zero_mask (3, 4) of zeros and ones, got one (2,)": lambda: changed(
        public.SparseWeights(nn.Linear(4, 3), 0.5), zero_mask=torch.zeros(2)
    ),
    "expected padding_mode 'zeros', got 'circular'": lambda: public.SparseWeights2d(
        nn.Conv2d(2, 3, 3, padding_mode="circular"), 0.5
    ),
    "expected k = 4 and k_inference up to 8 for 8 units, got 5 and 4": lambda: changed(public.KWinners(8, 0.5), k=5),
    "expected the public class's percent_on (float), got NoneType": lambda: changed(
        public.KWinners(8, 0.5), percent_on=None
    ),
    "gives the activations of all segments, ours the gate": lambda: public.DendriteSegments(3, 2, 5, 0.0),
    "boosted segments have no counterpart": lambda: BoostedDendritesAbsMaxGate1d(),
    "its weight or bias is not a plain parameter": lambda: pruned_bias(nn.Linear(4, 3)),
    "not named in layers": lambda: nn.Linear(4, 3),
}


@pytest.mark.parametrize("reason", LEFT)
def test_what_is_left_stays_as_it_was_and_says_why(reason):
    module = LEFT[reason]()
    model = nn.Sequential(module)
    report = compat.convert(model)
    assert model[0] is module and not report.swapped
    assert reason in report.left["0"] and reason in str(report)


def test_layers_by_name_and_pattern():
    model = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("first", "second", "head")})
    model["conv"] = nn.Conv2d(2, 3, 3, padding=1)
    model["tanh"] = nn.Tanh()
    x, image = torch.randn(5, 4), torch.randn(2, 2, 5, 5)
    before = [model["second"](x), model["conv"](image)]
    state = torch.get_rng_state()
    report = compat.convert(model, ["*t", "sec*", "conv", "tanh"])
    assert torch.equal(torch.get_rng_state(), state)  # nothing was drawn
    assert list(report.swapped) == ["first", "second", "conv"]
    assert report.left == {
        "head": "Linear: not named in layers",
        "tanh": "Tanh: named, but not exactly torch.nn.Linear or Conv2d",
    }
    assert_close(model["second"](x), before[0], terms=4)
    assert_close(model["conv"](image), before[1], terms=18)
    assert str(report).splitlines()[0] == "swapped 3, left 2"


def test_a_star_names_every_plain_layer_and_nothing_else():
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 3), nn.Tanh()), public.SparseWeights(nn.Linear(3, 2), 0.5))
    report = compat.convert(model, ["*"])
    assert list(report.swapped) == ["0.0", "1"] and not report.left
    model = nn.Sequential(nn.Sequential(public.KWinners(4, 0.5)))
    report = compat.convert(model, ["0"])  # a container that is named is left, what is in it is not
    assert list(report.swapped) == ["0.0"] and list(report.left) == ["0"]


@pytest.mark.parametrize("which", ["_layers", "_activations"])
def test_winners_stay_outside_layers_that_are_used_twice(which):
    model = public.DendriticMLP((6, 6, 6, 2), 3, 7, 0.5, break_ties=True).double()
    getattr(model, which)[1] = getattr(model, which)[0]
    mine = copy.deepcopy(model)
    compat.convert(mine)
    x, context = torch.randn(5, 6, dtype=torch.float64), torch.randn(5, 7, dtype=torch.float64)
    assert isinstance(mine._layers[0], dk.nn.DendriticLinear) and mine._layers[0].kwinners is None
    assert_close(mine(x, context), model(x, context), terms=256)


def test_mistakes_are_named():
    with pytest.raises(
        ValueError, match="layers: expected paths or patterns of the model's Linear and Conv2d, got 'hed'"
    ):
        compat.convert(nn.Sequential(nn.Linear(2, 2)), ["hed"])
    with pytest.raises(TypeError, match="layers: expected several patterns, got the string 'head'"):
        compat.convert(nn.Linear(2, 2), "head")
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got dict"):
        compat.convert({})
    with pytest.raises(ValueError, match="ties: expected 'keep', 'lowest' or None, got 'first'"):
        compat.convert(nn.Linear(2, 2), ties="first")


def test_weights_under_a_mask_that_were_not_zero_are_reported():
    model = nn.Sequential(public.SparseWeights(nn.Linear(6, 8), 0.5), public.SparseWeights(nn.Linear(8, 3), 0.5))
    model.apply(public.rezero_weights)
    off = model[1].zero_mask.bool()
    with torch.no_grad():
        model[1].module.weight[off] = 7.0
    report = compat.convert(model)
    assert report.rezeroed == ["1"] and "rezeroed 1: weights under its mask" in str(report)
    assert (model[1].weight[off] == 0).all() and (model[1].weight[~off] != 0).any()
