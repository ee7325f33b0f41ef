"""compat: public checkpoints in and out, against a writer and a forward that know nothing of us."""

import io
import re
from pathlib import Path

import public_checkpoints as public
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dendrite_kernels as dk
from dendrite_kernels import compat
from dendrite_kernels.compat_layers import MAKERS
from dendrite_kernels.nn import (
    DendriteSegments,
    DendriticConv2d,
    DendriticLinear,
    DendriticMLP,
    KWinners,
    KWinners2d,
    SparseConv2d,
    SparseLinear,
)
from dendrite_kernels.testing import assert_close, assert_same_bits, small_integers

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (12, (16, 14), 5)
PERCENT_ON = 0.25
KINDS = {
    "segments": {"count": 3},
    "one segment": {"count": 1},
    "no segments": {"count": 0},
    "masked segments": {"count": 3, "segment_sparsity": 0.4},
    "boosting": {"count": 3, "boost_strength": 1.5, "seen": True},
    "relu": {"count": 3, "kwinners": False},
    "dense": {"count": 3, "sparsity": 0.0},
}


def checkpoint(count=3, dtype=torch.float32, **options):
    return public.mlp(*SHAPE, count, 7, dtype=dtype, **options)


def assert_same_state(actual, expected):
    assert actual.keys() == expected.keys()
    for key in expected:
        assert_same_bits(actual[key], expected[key])


def inputs(dtype=torch.float32, batch=9):
    return torch.randn(batch, SHAPE[0], dtype=dtype), torch.randn(batch, 7, dtype=dtype)


def trained(state):
    """The state with its parameters as leaves that take gradients."""
    return state | {key: t.clone().requires_grad_() for key, t in public.parameters(state).items()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_comes_back_bit_for_bit_after_a_file(kind):
    state = checkpoint(**KINDS[kind])
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    model = compat.mlp_from_public(torch.load(file, weights_only=True), PERCENT_ON)
    assert_same_state(compat.public_state_dict(model), state)
    file = io.BytesIO()
    torch.save(compat.public_state_dict(model), file)
    file.seek(0)
    assert_same_state(torch.load(file, weights_only=True), state)


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 9), st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(1, 4)),
    count=st.integers(0, 4),
    dim_context=st.integers(1, 5),
    sparsity=st.sampled_from([0.0, 0.3, 0.9]),
    segment_sparsity=st.sampled_from([0.0, 0.6]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_any_shape_comes_back_bit_for_bit(sizes, count, dim_context, sparsity, segment_sparsity, dtype):
    options = {"sparsity": sparsity, "segment_sparsity": segment_sparsity, "dtype": dtype}
    state = public.mlp(sizes[0], tuple(sizes[1]), sizes[2], count, dim_context, **options)
    model = compat.mlp_from_public(state)
    assert_same_state(compat.public_state_dict(model), state)


@pytest.mark.parametrize("ties", ["keep", "lowest"])
@pytest.mark.parametrize("kind", KINDS)
def test_forward_and_gradients_are_the_public_networks(kind, ties):
    state = trained(checkpoint(dtype=torch.float64, **KINDS[kind]))
    model = compat.mlp_from_public(state, PERCENT_ON, ties=ties)
    x, context = inputs(torch.float64)
    labels = torch.randint(0, SHAPE[2], (len(x),))
    expected, actual = public.forward(state, x, context, PERCENT_ON), model(x, context)
    assert_close(actual, expected, terms=64)
    torch.nn.functional.cross_entropy(expected, labels).backward()
    torch.nn.functional.cross_entropy(actual, labels).backward()
    gradients = [t.grad for t in public.parameters(state).values()]
    assert sum(bool(g.any()) for g in gradients) == len(gradients)
    for mine, grad in zip(model.parameters(), gradients, strict=True):
        assert_close(mine.grad.view(grad.shape), grad, terms=256)


def test_all_that_tie_with_the_kth_stay_where_ties_keep():
    state = checkpoint(count=2)
    for t in public.parameters(state).values():  # whole numbers, and gates of one half: sums are exact, ties abound
        t.copy_(small_integers(*t.shape) * (t != 0))
    x, context = small_integers(9, SHAPE[0]), torch.zeros(9, 7)
    expected = public.forward(state, x, context, PERCENT_ON)
    assert_same_bits(compat.mlp_from_public(state, PERCENT_ON, ties="keep")(x, context), expected)
    strict = compat.mlp_from_public(state, PERCENT_ON, ties="lowest")(x, context)
    assert not torch.allclose(strict, expected)  # exactly k of them


@pytest.mark.parametrize("kind", ["segments", "one segment", "boosting", "relu"])
def test_a_training_step_is_the_public_networks(kind):
    state = trained(checkpoint(dtype=torch.float64, **{**KINDS[kind], "seen": False}))
    model = compat.mlp_from_public(state, PERCENT_ON, ties="keep")
    x, context = inputs(torch.float64)
    labels = torch.randint(0, SHAPE[2], (len(x),))
    theirs = torch.optim.SGD(public.parameters(state).values(), lr=0.1)
    mine = torch.optim.SGD(model.parameters(), lr=0.1)
    for network, optimizer in ((lambda *a: public.forward(state, *a, PERCENT_ON, True), theirs), (model, mine)):
        torch.nn.functional.cross_entropy(network(x, context), labels).backward()
        optimizer.step()
    public.rezero(state)
    dk.sparsity.rezero_weights(model)
    after = compat.public_state_dict(model)
    assert after.keys() == state.keys()
    for key, t in state.items():
        assert_close(after[key], t, terms=256)


def test_the_optimizer_goes_on_from_torch_adams_state():
    state = trained(checkpoint(dtype=torch.float64))
    theirs = torch.optim.Adam(public.parameters(state).values(), lr=0.01)
    x, context = inputs(torch.float64)
    labels = torch.randint(0, SHAPE[2], (len(x),))

    def step(network, optimizer):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(x, context), labels).backward()
        optimizer.step()

    def oracle(*a):
        return public.forward(state, *a, PERCENT_ON)

    step(oracle, theirs)
    public.rezero(state)
    model = compat.mlp_from_public(state, PERCENT_ON)
    mine = dk.optim.Adam(model, lr=0.01)
    mine.load_state_dict(theirs.state_dict())
    for network, optimizer in ((oracle, theirs), (model, mine)):
        step(network, optimizer)
    public.rezero(state)
    for key, t in public.parameters(compat.public_state_dict(model)).items():
        assert_close(t, state[key], terms=1024)


def test_duty_cycles_go_on_for_a_whole_period_unless_told_otherwise():
    state = checkpoint(boost_strength=1.0, seen=True)
    seen = {n: compat.mlp_from_public(state, PERCENT_ON, learning_iterations=n) for n in (None, 0, 300)}
    counts = {n: [int(m.kwinners.learning_iterations) for m in model.layers] for n, model in seen.items()}
    assert counts == {None: [1000, 1000], 0: [0, 0], 300: [300, 300]}
    fresh = compat.mlp_from_public(checkpoint(), PERCENT_ON)
    assert [int(m.kwinners.learning_iterations) for m in fresh.layers] == [0, 0]
    x, context = inputs()
    before = state["_activations.0.duty_cycle"].clone()
    layer = seen[None].layers[0]
    won = (layer(x, context).to_dense() > 0).float()
    assert_close(layer.kwinners.duty_cycle, (before * (1000 - len(x)) + won.sum(0)) / 1000, terms=4)
    ours = {"_activations.0.learning_iterations": torch.tensor(77)}
    model = compat.mlp_from_public(state | ours, PERCENT_ON)
    assert [int(m.kwinners.learning_iterations) for m in model.layers] == [77, 1000]


def test_boosting_begins_and_ends_with_the_checkpoint():
    boosted = compat.mlp_from_public(checkpoint(boost_strength=2.0, seen=True), PERCENT_ON)
    assert boosted.layers[0].kwinners.boost() is not None
    compat.load_public(boosted, checkpoint())
    assert boosted.layers[0].kwinners.boost() is None


@pytest.mark.parametrize("prefix", ["module.", "_module.", "_orig_mod.module."])
def test_wrappers_prefixes_are_taken_off_and_put_back(prefix):
    state = public.named(prefix, checkpoint())
    model = compat.mlp_from_public(state, PERCENT_ON)
    assert_same_state(compat.public_state_dict(model, prefix=prefix), state)
    assert compat.load_public(model, state) == ([], [], [], [])


def test_the_module_of_a_sparse_layer_is_no_wrapper():
    state = public.masked_layer((4, 6), 0.5)
    layer = SparseLinear(6, 4, sparsity=0.5)
    compat.load_public(layer, state)
    assert_same_state(compat.public_state_dict(layer), state)
    layer = SparseLinear(6, 4)
    with pytest.raises(ValueError, match=r"missing 'module\.bias'"):
        compat.load_public(layer, {"module.weight": state["module.weight"], "zero_mask": state["zero_mask"]})


def test_the_older_name_of_the_output_layer():
    state = checkpoint()
    old = {key.replace("_output_layers.0", "_output_layer"): t for key, t in state.items()}
    model = compat.mlp_from_public(old, PERCENT_ON)
    assert_same_state(compat.public_state_dict(model), state)


def test_one_segment_is_written_either_way_and_read_either_way():
    state = checkpoint(count=1)
    model = compat.mlp_from_public(state, PERCENT_ON)
    weights = compat.public_state_dict(model, one_segment=False)
    assert weights["_layers.0.segments.weights"].shape == (16, 1, 7)
    assert_same_bits(weights["_layers.0.segments.zero_mask"][:, 0], state["_layers.0.segments.zero_mask"])
    again = compat.mlp_from_public(weights, PERCENT_ON)
    assert_same_state(compat.public_state_dict(again), state)


def test_dtypes_and_masks_are_cast_and_said():
    state = checkpoint(dtype=torch.float64)
    for key in [key for key in state if key.endswith("zero_mask")]:
        state[key] = state[key].bool()
    model = DendriticMLP(*SHAPE, 3, 7, percent_on=PERCENT_ON)
    loaded = compat.load_public(model, state)
    assert set(loaded.cast) == {key for key in state if state[key].dtype == torch.float64}
    written = compat.public_state_dict(model, mask_dtype=torch.bool)
    assert_same_state(written, {key: t.float() if t.is_floating_point() else t for key, t in state.items()})
    assert model.layers[0].weight_mask.dtype == torch.bool


def test_masked_weights_that_were_not_zero_are_said():
    state = checkpoint()
    off = state["_layers.1.zero_mask"].bool()
    state["_layers.1.module.weight"][off] = 3.0
    model = DendriticMLP(*SHAPE, 3, 7, percent_on=PERCENT_ON, weight_sparsity=0.0)
    assert compat.load_public(model, state).rezeroed == ["_layers.1.zero_mask"]
    assert not model.layers[1].weight[off].any()
    assert model.layers[1].sparsity == 0.5


def test_frozen_gates_are_read_anew_after_a_load():
    first, second = checkpoint(), checkpoint()
    model = compat.mlp_from_public(first, PERCENT_ON).eval()
    x, context = inputs()
    with torch.no_grad():
        for _ in range(5):  # gates and layouts of frozen weights are remembered by now
            model(x, context)
        compat.load_public(model, second)
        assert_close(model(x, context), public.forward(second, x, context, PERCENT_ON), terms=64)


def broken(change):
    state = checkpoint()
    change(state)
    return state


BROKEN = {
    "missing '_layers.1.zero_mask': expected a tensor (14, 16)": lambda s: s.pop("_layers.1.zero_mask"),
    "unexpected 'extra': got a tensor (2,)": lambda s: s.update(extra=torch.zeros(2)),
    "unexpected '_output_layers.1.output_linear.module.bias': got a tensor (5,)": lambda s: s.update(
        {"_output_layers.1.output_linear.module.bias": torch.zeros(5)}
    ),
    "'_layers.1.module.bias': expected shape (14,), got (3,)": lambda s: s.update(
        {"_layers.1.module.bias": torch.zeros(3)}
    ),
    "'_layers.0.module.weight': expected shape (16, 12), got (12, 16)": lambda s: s.update(
        {"_layers.0.module.weight": torch.zeros(12, 16)}
    ),
    "'_layers.0.module.bias': expected torch.float32, got torch.int64": lambda s: s.update(
        {"_layers.0.module.bias": torch.zeros(16, dtype=torch.int64)}
    ),
    "'_layers.0.zero_mask': expected zeros and ones (1 where a weight is off), got other values": lambda s: s.update(
        {"_layers.0.zero_mask": torch.full((16, 12), 0.5)}
    ),
    "'_activations.0.duty_cycle': expected a tensor (16,), got list": lambda s: s.update(
        {"_activations.0.duty_cycle": [0.0] * 16}
    ),
}


@pytest.mark.parametrize("sentence", BROKEN)
def test_what_does_not_fit_is_named_and_nothing_is_written(sentence):
    model = DendriticMLP(*SHAPE, 3, 7, percent_on=PERCENT_ON)
    before = {key: t.clone() for key, t in model.state_dict().items()}
    with pytest.raises(ValueError) as error:
        compat.load_public(model, broken(BROKEN[sentence]))
    assert sentence in str(error.value)
    assert_same_state(dict(model.state_dict()), before)


def test_without_strict_what_fits_is_loaded_and_the_rest_is_said():
    state = broken(lambda s: (s.pop("_layers.1.zero_mask"), s.update(extra=torch.zeros(2))))
    model = DendriticMLP(*SHAPE, 3, 7, percent_on=PERCENT_ON)
    mask = model.layers[1].weight_mask.clone()
    loaded = compat.load_public(model, state, strict=False)
    assert (loaded.missing, loaded.unexpected) == (["_layers.1.zero_mask"], ["extra"])
    expected = state["_layers.1.module.weight"] * mask  # our own mask stays, and holds
    assert torch.equal(model.layers[1].weight.detach(), expected)
    assert_same_bits(model.layers[0].weight.detach().contiguous(), state["_layers.0.module.weight"])


def test_what_is_no_state_dict_is_said():
    with pytest.raises(TypeError, match="state_dict: expected a mapping of names to tensors, got str"):
        compat.load_public(DendriticMLP(*SHAPE, 3, 7), "checkpoint.pt")
    with pytest.raises(ValueError, match=r"expected '_layers.0.module.weight' \[O, I\].*got 'model'"):
        compat.mlp_from_public({"model": checkpoint()})
    with pytest.raises(ValueError, match="names: expected paths of the model's modules, got 'conv'"):
        compat.public_state_dict(DendriticMLP(*SHAPE, 3, 7), names={"conv": "cnn"})


class ConvNet(torch.nn.Module):
    """A convolution with gated channels and k winners, batch norm, a plain head: what compat has to tell apart."""

    def __init__(self):
        super().__init__()
        self.conv = DendriticConv2d(3, 6, 3, 4, 5, sparsity=0.5, kwinners=KWinners2d(6, 0.2))
        self.first = SparseConv2d(3, 3, 1)
        self.norm = torch.nn.BatchNorm2d(6)
        self.act = KWinners(10, 0.3)
        self.head = SparseLinear(6 * 4 * 4, 10)

    def forward(self, x, context):
        return self.act(self.head(self.norm(self.conv(self.first(x), context)).flatten(1)))


def conv_checkpoint():
    norm = {"weight": torch.rand(6), "bias": torch.randn(6), "running_mean": torch.randn(6)}
    norm |= {"running_var": torch.rand(6), "num_batches_tracked": torch.tensor(3)}
    state = public.named("cnn.", public.masked_layer((6, 3, 3, 3), 0.5))
    state |= public.named("cnn.segments.", public.segments(6, 4, 5, 0.4))
    state |= {"cnn_act.boost_strength": torch.tensor(1.25), "cnn_act.duty_cycle": torch.rand(1, 6, 1, 1)}
    state |= public.named("first.", public.masked_layer((3, 3, 1, 1), 0.0)) | public.named("norm.", norm)
    state |= public.named("act.", public.winners(10))
    return state | {"head.weight": torch.randn(10, 96), "head.bias": torch.randn(10)}


NAMES = {"conv": "cnn", "conv.kwinners": "cnn_act"}


def test_convolutions_and_modules_that_are_not_ours():
    state, model = conv_checkpoint(), ConvNet().eval()
    compat.load_public(model, state, names=NAMES)
    assert_same_state(compat.public_state_dict(model, names=NAMES, plain=["head"]), state)
    x, context = torch.randn(5, 3, 6, 6), torch.randn(5, 5)
    y = torch.nn.functional.conv2d(x, state["first.module.weight"], state["first.module.bias"])
    y = torch.nn.functional.conv2d(y, state["cnn.module.weight"], state["cnn.module.bias"])
    y = y * public.gate(state, "cnn", context)[:, :, None, None]
    duty_cycle = state["cnn_act.duty_cycle"].expand(1, 6, 4, 4).flatten(1)
    y = public.kwinners(y.flatten(1), round(96 * 0.2), state["cnn_act.boost_strength"], duty_cycle).view(y.shape)
    norm = [state[f"norm.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
    y = torch.nn.functional.batch_norm(y, *norm).flatten(1)
    y = public.kwinners(torch.nn.functional.linear(y, state["head.weight"], state["head.bias"]), 3)
    assert_close(model(x, context), y, terms=256)
    assert model.conv.sparsity == 0.5 and model.conv.weight_mask.sum() == 6 * round(27 * 0.5)


def test_layers_by_themselves():
    units = DendriticLinear(6, 8, 2, 5, kwinners=None, segment_bias=True)
    state = public.masked_layer((8, 6), 0.5) | public.named("segments.", public.segments(8, 2, 5, 0.0))
    state["segments.biases"] = torch.randn(8, 2)
    compat.load_public(units, state)
    assert_same_state(compat.public_state_dict(units), state)
    alone = DendriteSegments(8, 2, 5, bias=True)
    state = {key.removeprefix("segments."): t for key, t in state.items() if key.startswith("segments.")}
    compat.load_public(alone, state)
    assert_same_state(compat.public_state_dict(alone), state)
    layers = torch.nn.Sequential(SparseLinear(6, 8), KWinners(8, 0.5))
    state = public.named("0.", public.masked_layer((8, 6), 0.5)) | public.named("1.", public.winners(8, 0.5, True))
    compat.load_public(layers, state)
    assert_same_state(compat.public_state_dict(layers), state)


def test_the_guide_runs_and_names_what_is_there(tmp_path, monkeypatch, capsys):
    guide = (Path(__file__).resolve().parent.parent / "docs" / "migration.md").read_text()
    monkeypatch.chdir(tmp_path)
    names = {}
    for snippet in re.findall(r"```python\n(.*?)```", guide, flags=re.S):
        exec(snippet, names)
    assert "swapped 2, left 0" in capsys.readouterr().out
    rows = [line.split("|")[1:3] for line in guide.splitlines() if line.startswith("| `")]
    known = {name for public_classes, _ in rows for name in re.findall(r"`(\w+)`", public_classes)}
    assert known >= set(MAKERS)
    ours = {re.match(r"\w+", name).group() for _, ours in rows for name in re.findall(r"`([A-Z][^`]*)`", ours)}
    assert len(ours) == 8 and all(hasattr(dk.nn, name) for name in ours)


@pytest.mark.parametrize("form, words", [("sparse", "layout torch.sparse_coo"), ("meta", "on meta")])
def test_tensors_that_can_not_be_copied_leave_the_model_as_it_was(form, words):
    model, other = DendriticMLP(6, (8,), 3, 2, 4), DendriticMLP(6, (8,), 3, 2, 4)
    state, before = compat.public_state_dict(other), [t.clone() for t in model.state_dict().values()]
    key = "_output_layers.0.output_linear.module.weight"
    state[key] = state[key].to_sparse() if form == "sparse" else state[key].to("meta")
    with pytest.raises(ValueError, match=f"{key}': expected a dense tensor with values, got one .*{words}"):
        compat.load_public(model, state)
    with pytest.raises(ValueError, match="learning_iterations: expected 0 or more, or None, got -1"):
        compat.load_public(model, compat.public_state_dict(other), learning_iterations=-1)
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))
