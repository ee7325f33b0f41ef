"""What is kept of segments between calls: the same gates as a fresh computation, whoever writes the segments."""

import copy

import pytest
import torch

import dendrite_kernels as dk
from dendrite_kernels import known
from dendrite_kernels.backends import cpu
from dendrite_kernels.nn import DendriteSegments, DendriticMLP
from dendrite_kernels.testing import assert_close, assert_same_bits

pytestmark = pytest.mark.skipif(cpu._cpu is None, reason="only the native module keeps gates: no C++ compiler here")


@pytest.fixture
def reads(monkeypatch):
    """A list that grows by True for each call that reads the segments, by False for one that uses activations."""
    calls, call = [], cpu._segment_gate

    def spy(*args):
        calls.append(args[-2] is None)
        return call(*args)

    monkeypatch.setattr(cpu, "_segment_gate", spy)
    return calls


@pytest.fixture
def segments():
    return DendriteSegments(30, 4, 12, bias=True)


def fresh(module, context):
    """gate and winner of a plain tensor of the same values, of which nothing is kept."""
    bias = None if module.biases is None else module.biases.detach().clone()
    return dk.segment_gate(context, module.weights.detach().clone(), bias)


def check(module, context):
    for mine, want in zip(module(context), fresh(module, context), strict=True):
        assert_same_bits(mine, want)


def test_frozen_segments_are_read_once(segments, reads):
    context = torch.randn(5, 12)
    first = segments(context)
    again = segments(context.clone())  # equal numbers are the same context
    assert reads == [True]
    for a, b in zip(first, again, strict=True):
        assert_same_bits(a, b)
    again[0].detach().zero_()  # what is kept is no one else's
    check(segments, context)


def test_a_layer_without_grad_takes_the_gates_that_are_kept(reads):
    model, context, x, index = make_model(), torch.randn(3, 13), torch.randn(5, 20), torch.tensor([2, 0, 1, 1, 2])
    hooked = []
    with torch.no_grad():
        first = model(x, context, index)
        assert len(reads) == 2
        assert_same_bits(model(x, context, index), first)
        assert len(reads) == 2  # one for each layer
        gates = model.gates(context)
        gates[0].zero_()  # a caller's own
        assert_same_bits(model(x, context, index), first)
        model.layers[0].segments.register_forward_hook(lambda *_: hooked.append(True))
        assert_same_bits(model(x, context, index), first)
    assert hooked == [True]


@pytest.mark.parametrize("context", [[1.0] * 13, torch.randn(3, 13).double(), torch.randn(3, 12), None])
def test_a_wrong_context_is_named_where_gates_are_kept(context):
    model, x, index = make_model(), torch.randn(2, 20), torch.tensor([0, 2])
    with torch.no_grad():
        model(x, torch.randn(3, 13), index)
        with pytest.raises((TypeError, ValueError), match="context: expected"):
            model(x, context, index)


def test_plain_tensors_are_not_kept(reads):
    context, weights = torch.randn(5, 12), torch.randn(30, 4, 12)
    dk.segment_gate(context, weights)
    dk.segment_gate(context, weights)
    assert reads == [True, True]


def foreign_step(module, **options):
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0, **options)
    for p in module.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()


WRITES = {
    "in place": lambda m: m.weights.detach().add_(torch.randn_like(m.weights)),
    "bias in place": lambda m: m.biases.detach().add_(torch.randn_like(m.biases)),
    "optimizer": lambda m: foreign_step(m),
    "fused optimizer": lambda m: foreign_step(m, fused=True),
    "load_state_dict": lambda m: m.load_state_dict({k: torch.randn_like(v) for k, v in m.state_dict().items()}),
    "new data": lambda m: setattr(m.weights, "data", torch.randn(30, 4, 12)),
    "mask": lambda m: m.set_mask(torch.rand(30, 4, 12) < 0.5),
    "double": lambda m: m.double().float().weights.detach().mul_(2),
    ".data and invalidate": lambda m: (m.weights.data.normal_(), dk.invalidate(m)),
    ".data and invalidate all": lambda m: (m.weights.data.normal_(), dk.invalidate()),
}


@pytest.mark.parametrize("write", WRITES)
def test_writes_are_seen(segments, write):
    context = torch.randn(5, 12)
    before = segments(context)[0].detach().clone()
    WRITES[write](segments)
    check(segments, context)
    assert not torch.equal(segments(context)[0], before)


def test_other_contexts_options_and_biases_are_others(segments):
    context = torch.randn(5, 12)
    segments(context)
    check(segments, torch.randn(5, 12))
    check(segments, context[:3])
    segments(context)
    for select in ("max", "abs_max"):
        for activation in ("none", "sigmoid"):
            gate, winner = segments(context, select, activation)
            want = dk.segment_gate(
                context,
                segments.weights.detach().clone(),
                segments.biases.detach().clone(),
                select=select,
                activation=activation,
            )
            assert_same_bits(gate, want[0])
            assert_same_bits(winner, want[1])


def test_gates_that_were_kept_carry_gradients(segments):
    context = torch.randn(5, 12)
    grads = []
    for _ in range(2):
        segments.zero_grad()
        segments(context)[0].square().sum().backward()
        grads.append([p.grad.clone() for p in segments.parameters()])
    for a, b in zip(*grads, strict=True):
        assert a.abs().sum() > 0
        assert_same_bits(a, b)


def test_a_copy_has_nothing_kept(segments):
    context = torch.randn(5, 12)
    segments(context)
    other = copy.deepcopy(segments)
    other.weights.detach().mul_(-2)
    check(other, context)
    check(segments, context)


def test_inference_tensors_are_not_kept(reads):
    with torch.inference_mode():
        module = DendriteSegments(30, 4, 12)
        context = torch.randn(5, 12)
        module(context)
        module.weights.mul_(-3)
        check(module, context)


def test_many_contexts_are_not_kept(segments, reads):
    contexts = torch.randn(known.MOST_CONTEXTS + 1, 12)
    segments(contexts)
    segments(contexts)
    assert reads == [True, True]


# ---- activations that optim.Adam moves ------------------------------------------------------------------------------


def make_model():
    torch.manual_seed(3)
    return DendriticMLP(20, (40, 37), 5, 4, 13, weight_sparsity=0.5, percent_on=0.2)


def step(model, optimizer, context, index=None):
    optimizer.zero_grad()
    labels = torch.randint(0, 5, (24,))
    torch.nn.functional.cross_entropy(model(torch.randn(24, 20), context, index), labels).backward()
    optimizer.step()


def check_model(model, context):
    for layer in model.layers:
        check(layer.segments, context)


def test_training_reads_segments_once_a_context(reads):
    model, context = make_model(), torch.randn(1, 13)
    optimizer = dk.optim.Adam(model, lr=0.05)
    for _ in range(6):
        step(model, optimizer, context)
    assert reads == [True, True] + 5 * [False, False]
    check_model(model, context)


@pytest.mark.parametrize("isa", cpu._cpu.supported_isas() if cpu._cpu else [])
def test_kept_activations_have_the_bits_of_fresh_ones(isa, monkeypatch, reads):
    """One context (rank 1), then another with the same optimizer (moments written out), then several at once."""
    before = cpu._cpu.isa()
    cpu._cpu.set_isa(isa)
    try:
        model, contexts = make_model(), torch.randn(3, 13)
        optimizer = dk.optim.Adam(model, lr=0.05)
        for n, context in enumerate([contexts[:1], contexts[1:2], contexts[:1]]):
            for _ in range(4):
                step(model, optimizer, context)
                for layer in model.layers:
                    kept = cpu.kept_activations(context, layer.segments.weights)
                    weights = layer.segments.weights.detach()
                    assert_same_bits(kept, cpu._activations(context, weights.clone()))
            if n == 1:
                step(model, optimizer, contexts, torch.randint(0, 3, (24,)))
        assert False in reads
    finally:
        cpu._cpu.set_isa(before)


INTERFERENCE = {
    "in place": lambda m: m.layers[0].segments.weights.detach().mul_(-1.5),
    "load_state_dict": lambda m: m.load_state_dict({k: v * -1.5 for k, v in m.state_dict().items()}),
    "foreign optimizer": lambda m: foreign_step(m.layers[0].segments, fused=True),
    "invalidate": lambda m: (m.layers[0].segments.weights.data.mul_(-1.5), dk.invalidate(m)),
}


@pytest.mark.parametrize("write", INTERFERENCE)
def test_writes_between_steps_are_seen(write):
    model, context = make_model(), torch.randn(1, 13)
    optimizer = dk.optim.Adam(model, lr=0.05)
    step(model, optimizer, context)
    optimizer.zero_grad()
    INTERFERENCE[write](model)
    check_model(model, context)
    step(model, optimizer, context)
    check_model(model, context)


def test_a_write_between_backward_and_step_is_seen():
    model, context = make_model(), torch.randn(1, 13)
    optimizer = dk.optim.Adam(model, lr=0.05)
    step(model, optimizer, context)
    torch.nn.functional.cross_entropy(model(torch.randn(24, 20), context), torch.randint(0, 5, (24,))).backward()
    with torch.no_grad():
        model.layers[0].segments.weights.mul_(-1.5)
    optimizer.step()
    check_model(model, context)


def test_dense_gradients_of_followed_segments_are_seen():
    model, context = make_model(), torch.randn(1, 13)
    optimizer = dk.optim.Adam(model, lr=0.05)
    step(model, optimizer, context)
    weights = model.layers[0].segments.weights
    optimizer.zero_grad()
    weights.grad = torch.ones_like(weights)
    optimizer.step()
    check_model(model, context)


@pytest.mark.parametrize("kept", ["gates", "activations"])
def test_dendrite_check_finds_an_unseen_write(monkeypatch, kept):
    monkeypatch.setenv("DENDRITE_CHECK", "1")
    model, context = make_model(), torch.randn(1, 13)
    optimizer = dk.optim.Adam(model, lr=0.05)
    if kept == "gates":
        context = torch.randn(2, 13)
        model.gates(context)
    else:
        step(model, optimizer, context)
        step(model, optimizer, context)
    model.layers[0].segments.weights.data.mul_(-1.5)
    with pytest.raises(RuntimeError, match=r"call dendrite_kernels\.invalidate\(model\) after such writes"):
        model.gates(context)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_turned_to_halves_under_its_optimizer(dtype):
    """No optimizer of ours steps halves, but the model may be evaluated in them, again and again."""
    layer, context = dk.nn.DendriteSegments(30, 4, 12), torch.randn(1, 12)
    dk.optim.Adam(layer)
    layer(context)  # from now on its activations are kept
    layer.to(dtype)
    for _ in range(2):
        gate, winner = layer(context.to(dtype))
        want = dk.reference.segment_gate(context.to(dtype).float(), layer.weights.detach().float())
        assert gate.dtype == torch.float32 and torch.equal(winner, want[1])
        assert_close(gate, want[0].double(), terms=12)
    layer.float()
    gate, _ = layer(context)
    assert_close(gate, dk.reference.segment_gate(context, layer.weights.detach())[0].double(), terms=12)
