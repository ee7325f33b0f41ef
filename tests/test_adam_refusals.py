"""What optim.Adam can't do, it says: misuse of gradients kept as factors, moved models, bad arguments, copies."""

import copy
import pickle

import pytest
import torch
from test_adam import LR, backward, make_model, one_step, pytestmark, some_batch  # noqa: F401

import dendrite_kernels as dk
from dendrite_kernels.factored import FactoredGrad, _owners, owner, wanted
from dendrite_kernels.testing import assert_same_bits


@pytest.fixture
def factored():
    model = make_model(torch.float32)
    optimizer = dk.optim.Adam(model, LR)
    backward(model, some_batch("one", torch.float32))
    return model, optimizer


def test_clipping_is_refused(factored):
    for clip in (torch.nn.utils.clip_grad_norm_, torch.nn.utils.clip_grad_value_):
        with pytest.raises(RuntimeError, match=r"needs a dense gradient.*gradient clipping"):
            clip(factored[0].parameters(), 1.0)


def test_a_grad_scaler_is_refused(factored):
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(()))
    with pytest.raises(RuntimeError, match=r"needs a dense gradient.*GradScaler"):
        scaler.step(factored[1])


@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}])
def test_another_optimizer_is_refused(factored, options):
    before = [p.detach().clone() for p in factored[0].parameters()]
    with pytest.raises(RuntimeError, match=r"needs a dense gradient|another optimizer"):
        torch.optim.SGD(factored[0].parameters(), 0.1, **options).step()
    moved = [not torch.equal(p, q) for p, q in zip(factored[0].parameters(), before, strict=True)]
    assert not moved[0]


def test_an_older_adam_is_refused(factored):
    model, older = factored
    newer = dk.optim.Adam(model, LR)
    with pytest.raises(RuntimeError, match=r"a newer .* owns these modules"):
        older.step()
    newer.step()


def test_gradients_are_dense_once_the_adam_is_gone():
    model = make_model(torch.float32)
    optimizer = dk.optim.Adam(model, LR)
    batch = some_batch("one", torch.float32)
    one_step(model, optimizer, batch)
    del optimizer
    model.zero_grad()
    backward(model, batch)
    assert not any(isinstance(p.grad, FactoredGrad) for p in model.parameters())
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    torch.optim.SGD(model.parameters(), 0.1).step()


def test_copies_of_models_train_on_their_own(factored):
    model, optimizer = factored
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        backward(other, some_batch("one", torch.float32))
        assert not any(isinstance(p.grad, FactoredGrad) for p in other.parameters())
    optimizer.step()


def test_copies_of_gradients_are_refused(factored):
    grad = factored[0].layers[0].weight.grad
    for copied in (copy.deepcopy, pickle.dumps):
        with pytest.raises(RuntimeError, match="needs a dense gradient"):
            copied(grad)
    assert grad.to_dense().shape == grad.shape


def test_a_model_of_another_dtype_is_refused(factored):
    model, optimizer = factored
    with pytest.raises(RuntimeError, match="needs a dense gradient"):
        model.double()  # torch leaves it half changed
    optimizer.zero_grad()
    model.float()
    one_step(model, optimizer, some_batch("one", torch.float32))
    optimizer.zero_grad()
    model.double()
    backward(model, some_batch("one", torch.float64))
    with pytest.raises(RuntimeError, match=r"has become torch\.float64 .* make a new Adam"):
        optimizer.step()
    optimizer.zero_grad()
    fresh = dk.optim.Adam(model, LR)
    one_step(model, fresh, some_batch("one", torch.float64))


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_parameter_on_another_device_than_its_moments_needs_a_new_optimizer(name):
    """As after model.cuda(): there is one device here, so the moments are what moves."""
    model = make_model(torch.float32)
    optimizer = dk.optim.Adam(model, LR)
    p = getattr(model.layers[0], name)
    one_step(model, optimizer, some_batch("one", torch.float32))
    with pytest.raises(RuntimeError, match=r"kept as factors .* Call zero_grad\(\) first"):
        model.layers[0].weight.grad.to("meta")  # as Module.to does with every gradient
    state = optimizer.state[p]
    if name == "weight":
        state["moments"].m = state["moments"].m.to("meta")
    else:
        state["exp_avg"] = state["exp_avg"].to("meta")
    before = [q.detach().clone() for q in model.parameters()]
    with pytest.raises(RuntimeError, match=r"has become torch\.float32 on cpu since .* make a new Adam"):
        optimizer.step()
    for q, old in zip(model.parameters(), before, strict=True):
        assert_same_bits(q, old)


def test_no_factors_for_a_parameter_that_has_left_its_device():
    model = make_model()
    optimizer = dk.optim.Adam(model, LR)
    weight = model.layers[0].weight
    assert wanted(weight) and owner(weight) is optimizer
    _owners[weight] = (_owners.get(weight)[0], torch.device("meta"))  # as if it had been claimed there
    assert not wanted(weight)


def test_second_derivatives_of_owned_weights_raise():
    model = make_model()
    optimizer = dk.optim.Adam(model, LR)
    x, labels, context, _ = some_batch("one", torch.float64)
    loss = torch.nn.functional.cross_entropy(model(x, context), labels)
    bias = model.layers[0].bias
    (grad,) = torch.autograd.grad(loss, bias, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not implemented"):
        grad.sum().backward()
    assert optimizer is not None


@pytest.mark.parametrize(
    "arguments, error, sentence",
    [
        ({"modules": []}, TypeError, "modules: expected a module or several"),
        ({"modules": [torch.ones(3, requires_grad=True)]}, TypeError, "not parameters"),
        ({"weight_decay": 0.1}, ValueError, "weight_decay, amsgrad: expected 0 and False"),
        ({"amsgrad": True}, ValueError, "weight_decay, amsgrad: expected 0 and False"),
        ({"lr": -1.0}, ValueError, "lr, eps, betas: expected lr >= 0"),
        ({"eps": -1.0}, ValueError, "lr, eps, betas: expected lr >= 0"),
        ({"betas": (0.9, 1.0)}, ValueError, "lr, eps, betas: expected lr >= 0"),
    ],
)
def test_bad_arguments(arguments, error, sentence):
    with pytest.raises(error, match=sentence):
        dk.optim.Adam(**{"modules": torch.nn.Linear(2, 2), **arguments})


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickle.dumps])
def test_copies_are_refused(duplicate):
    with pytest.raises(TypeError, match=r"Adam: can't be copied or pickled.*state_dict\(\)"):
        duplicate(dk.optim.Adam(dk.nn.SparseLinear(3, 4)))


def test_another_optimizers_state_is_refused_by_what_it_lacks():
    model = dk.nn.SparseLinear(3, 4)
    with pytest.raises(ValueError, match=r"got no \['betas', 'eps'\]"):
        dk.optim.Adam(model).load_state_dict(torch.optim.SGD(model.parameters(), lr=0.1).state_dict())
