"""optim.SynapticIntelligence against its formulas through autograd, and its use."""

import pytest
import torch
from test_adam import LR, backward, make_model, some_batch

import dendrite_kernels as dk
from dendrite_kernels.backends import cpu
from dendrite_kernels.factored import FactoredGrad
from dendrite_kernels.optim import SynapticIntelligence
from dendrite_kernels.sparsity import rezero_weights
from dendrite_kernels.testing import assert_close, assert_same_bits

needs_native = pytest.mark.skipif(cpu._cpu is None, reason="factored gradients need the native module")

pytestmark = pytest.mark.usefixtures("one_thread")


class Plainly:
    """Zenke et al. 2017, eq. 4 and 5, written out with the penalty in the loss."""

    def __init__(self, model, optimizer, c, xi, variant):
        self.model, self.optimizer, self.c, self.xi, self.tasks = model, optimizer, c, xi, 0
        self.adn = variant == "adn"
        self.named = {n: p for n, p in model.named_parameters() if not (self.adn and "segments" in n)}
        self.star = {n: p.detach().clone() for n, p in self.named.items()}
        self.omega = {n: torch.zeros_like(p) for n, p in self.named.items()}
        self.importance = {n: torch.zeros_like(p) for n, p in self.named.items()}

    def step(self, batch):
        self.optimizer.zero_grad()
        backward(self.model, batch)
        seen = {n: p.grad.clone() for n, p in self.named.items()}
        penalty = self.c * sum((self.importance[n] * (p - self.star[n]) ** 2).sum() for n, p in self.named.items())
        if self.tasks >= (2 if self.adn else 1):
            penalty.backward()
        if self.adn:
            seen = {n: p.grad.clone() for n, p in self.named.items()}
        before = {n: p.detach().clone() for n, p in self.named.items()}
        self.optimizer.step()
        rezero_weights(self.model)
        for n, p in self.named.items():
            self.omega[n] -= seen[n] * (p.detach() - before[n])
        return float(penalty.detach())

    def end_task(self):
        for n, p in self.named.items():
            self.importance[n] += self.omega[n].relu() / ((p.detach() - self.star[n]) ** 2 + self.xi)
            self.star[n], self.omega[n] = p.detach().clone(), torch.zeros_like(p)
        self.tasks += 1


def train_both(ours, si, plain, plainly, dtype, tasks=4, steps=4):
    """Four tasks of other contexts on both; parameters, omega and Omega agree after each step."""
    strength = []
    # each entry is a sum of some steps' products of gradients [24 samples x 40 units] and updates
    tolerance = {"rtol": 0, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 0, "atol": 0.02 * LR}
    for task in range(tasks):
        for step in range(steps):
            x, labels, context, index = some_batch("one", dtype, 10 * task + step)
            batch = (x, labels, context.roll(task, 1), index)
            si.optimizer.zero_grad()
            backward(ours, batch)
            held = float(si.penalty())
            si.step()
            value = plainly.step(batch)
            assert held == pytest.approx(value if si.penalised else 0, rel=1e-3, abs=1e-9)
            strength.append(held)
            for (name, p), q in zip(ours.named_parameters(), plain.parameters(), strict=True):
                torch.testing.assert_close(p, q, msg=name, **tolerance)
            for name in si.parameters:
                torch.testing.assert_close(si.omega[name], plainly.omega[name], msg=name, **tolerance)
            with torch.no_grad():  # a step of Adam makes rounding errors as large as itself
                for p, q in zip(ours.parameters(), plain.parameters(), strict=True):
                    q.copy_(p)
        si.end_task()
        plainly.end_task()
        for name in si.parameters:
            scale = float(plainly.importance[name].max())
            assert (si.importance[name] - plainly.importance[name]).abs().max() <= 0.01 * scale
            assert dtype != torch.float64 or (si.importance[name] - plainly.importance[name]).abs().max() < 1e-8
            plainly.importance[name] = si.importance[name].clone()
            plainly.star[name] = si.reference[name].clone()
    return strength


OPTIMIZERS = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), LR, momentum=0.9),
    "adam": lambda m: torch.optim.Adam(m.parameters(), LR),
    "fused": lambda m: torch.optim.Adam(m.parameters(), LR, fused=True),
    "ours": lambda m: dk.optim.Adam(m, LR),
}


@pytest.mark.parametrize("variant", ["zenke", "adn"])
@pytest.mark.parametrize("name", ["sgd", "adam", "fused", pytest.param("ours", marks=needs_native)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_dendritic_network_agrees_with_the_penalty_in_the_loss(variant, name, dtype):
    ours, plain = make_model(dtype, segment_sparsity=0.5), make_model(dtype, segment_sparsity=0.5)
    theirs = OPTIMIZERS["adam" if name == "ours" else name](plain)
    si = SynapticIntelligence(ours, OPTIMIZERS[name](ours), c=30.0, xi=1e-3, variant=variant)
    strength = train_both(ours, si, plain, Plainly(plain, theirs, 30.0, 1e-3, variant), dtype)
    free = 4 if variant == "zenke" else 8  # steps; a task's first step finds the weights where the last left them
    assert max(strength[: free + 1]) == 0 and all(s > 0 for s in strength[free + 1 : free + 4])
    for layer in (*ours.layers, ours.output):
        assert (layer.weight[~layer.weight_mask] == 0).all()
        assert (si.omega[next(n for n, p in si.parameters.items() if p is layer.weight)][~layer.weight_mask] == 0).all()


@needs_native
@pytest.mark.parametrize("variant", ["zenke", "adn"])
def test_our_pass_on_each_instruction_set(isa, variant):
    ours, plain = make_model(torch.float32), make_model(torch.float32)
    si = SynapticIntelligence(ours, dk.optim.Adam(ours, LR), c=30.0, xi=1e-3, variant=variant)
    train_both(ours, si, plain, Plainly(plain, OPTIMIZERS["adam"](plain), 30.0, 1e-3, variant), torch.float32)


@needs_native
def test_a_fresh_optimizer_within_a_task_still_feels_the_pull():
    """Rows that it has seen no gradient of, but which are away from where the last task left them."""
    ours, plain = make_model(torch.float64), make_model(torch.float64)
    si = SynapticIntelligence(ours, dk.optim.Adam(ours, LR), c=30.0, xi=1e-3)
    plainly = Plainly(plain, OPTIMIZERS["adam"](plain), 30.0, 1e-3, "zenke")
    train_both(ours, si, plain, plainly, torch.float64, tasks=1)
    for fresh in range(2):
        if fresh:
            si.optimizer, plainly.optimizer = dk.optim.Adam(ours, LR), OPTIMIZERS["adam"](plain)
        for step in range(3):
            batch = some_batch("one", torch.float64, step)
            if fresh:  # a single sample: most units have no gradient
                batch = (batch[0][:1], batch[1][:1], *batch[2:])
            si.optimizer.zero_grad()
            backward(ours, batch)
            si.step()
            plainly.step(batch)
            for (name, p), q in zip(ours.named_parameters(), plain.parameters(), strict=True):
                torch.testing.assert_close(p, q, rtol=0, atol=1e-10, msg=name)


@needs_native
def test_gradients_stay_factors_and_are_left_as_they_were():
    model = make_model(torch.float32)
    si = SynapticIntelligence(model, dk.optim.Adam(model, LR), c=1.0, variant="adn")
    for _task in range(3):
        model.zero_grad()
        backward(model, some_batch("one", torch.float32))
        grads = [p.grad for p in model.parameters()]
        si.step()
        assert all(p.grad is g for p, g in zip(model.parameters(), grads, strict=True))
        assert isinstance(model.layers[0].weight.grad, FactoredGrad)
        for p in (model.layers[0].weight, model.layers[0].segments.weights):
            assert "moments" in si.optimizer.state[p]  # stepped from factors, with the penalty too
        si.end_task()
    assert si.tasks == 3


def test_the_penalty_holds_what_mattered():
    """Two weights, one of which the first task needed: the second task moves the other one."""
    kept = {}
    for c in (0.0, 10.0):
        weight = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
        model = torch.nn.ParameterList([weight])
        si = SynapticIntelligence(model, torch.optim.SGD([weight], 0.05), c=c, xi=0.1)
        for loss in (lambda w: (w[0] - 1) ** 2, lambda w: (w.sum() + 1) ** 2):
            for _ in range(400):
                si.optimizer.zero_grad()
                loss(weight).backward()
                si.step()
            si.end_task()
        kept[c] = weight.detach()
    assert kept[0.0].tolist() == pytest.approx([0, -1], abs=1e-6)  # both moved by -1
    # the minimum of (a + b + 1)^2 + c Omega (a - 1)^2: b, which nothing holds, makes up for a
    assert kept[10.0].tolist() == pytest.approx([1, -2], abs=1e-6)


# ---- use ------------------------------------------------------------------------------------------------------------


def tiny(c=1.0, heads=1, **options):
    model = torch.nn.ModuleDict({"trunk": torch.nn.Linear(3, 4)})
    for head in range(heads):
        model[f"head{head}"] = torch.nn.Linear(4, 2)
    si = SynapticIntelligence(model, torch.optim.Adam(model.parameters(), 0.1), c=c, xi=0.01, **options)
    return model, si


def tiny_step(model, si, head=0):
    si.optimizer.zero_grad()
    model[f"head{head}"](model["trunk"](torch.randn(5, 3))).square().mean().backward()
    si.step()


def test_a_head_without_a_gradient_is_left_alone_and_stays_with_a_fresh_optimizer():
    model, si = tiny(heads=2)
    for task in range(2):
        if task:
            si.optimizer = torch.optim.Adam(model.parameters(), 0.1)
            held = model["head0"].weight.detach().clone()
        other = model[f"head{1 - task}"].weight.detach().clone()
        for _ in range(3):
            tiny_step(model, si, task)
        assert_same_bits(model[f"head{1 - task}"].weight.detach(), other)
        assert (si.omega[f"head{1 - task}.weight"] == 0).all() and (si.omega[f"head{task}.weight"] != 0).any()
        si.end_task()
    assert_same_bits(model["head0"].weight.detach(), held)


def test_the_reference_is_that_of_the_first_step():
    model, si = tiny()
    with torch.no_grad():
        model["trunk"].weight.fill_(2.0)  # as loading a checkpoint does
    tiny_step(model, si)
    assert (si.reference["trunk.weight"] == 2).all()


@pytest.mark.parametrize("when", ["before", "within", "after"])
def test_a_checkpoint_goes_on_to_the_same_bits(tmp_path, when):
    model, si = tiny()
    if when != "before":
        for _ in range(3):
            tiny_step(model, si)
    if when == "after":
        si.end_task()
        tiny_step(model, si)
    path = tmp_path / "state.pt"
    torch.save([model.state_dict(), si.optimizer.state_dict(), si.state_dict()], path)
    other, resumed = tiny(c=5.0)
    saved = torch.load(path, weights_only=True)
    for part, state in zip((other, resumed.optimizer, resumed), saved, strict=True):
        part.load_state_dict(state)
    assert resumed.c == 1.0
    for m, s in ((model, si), (other, resumed)):
        torch.manual_seed(5)
        tiny_step(m, s)
        s.end_task()
        for _ in range(2):
            tiny_step(m, s)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert_same_bits(p.detach(), q.detach())
    for key in ("omega", "importance", "reference"):
        for name in si.parameters:
            assert_same_bits(getattr(si, key)[name], getattr(resumed, key)[name])


def test_a_checkpoint_is_not_moved_by_later_steps():
    model, si = tiny()
    tiny_step(model, si)
    saved = si.state_dict()
    before = saved["omega"]["trunk.weight"].clone()
    tiny_step(model, si)
    assert_same_bits(saved["omega"]["trunk.weight"], before)


def test_adding_the_penalty_to_the_loss_changes_the_number_alone():
    model, si = tiny()
    tiny_step(model, si)
    si.end_task()
    tiny_step(model, si)
    grads = []
    for penalised in (False, True):
        torch.manual_seed(7)
        si.optimizer.zero_grad()
        loss = model["head0"](model["trunk"](torch.randn(5, 3))).square().mean()
        (loss + si.penalty() if penalised else loss).backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    assert float(si.penalty()) > 0
    for mine, want in zip(*grads, strict=True):
        assert_same_bits(mine, want)


def test_several_modules_and_frozen_parameters():
    first, second = torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)
    second.bias.requires_grad_(False)
    optimizer = torch.optim.SGD([*first.parameters(), *second.parameters()], 0.1)
    si = SynapticIntelligence([first, second], optimizer)
    assert list(si.parameters) == ["0.weight", "0.bias", "1.weight"]
    first.requires_grad_(False)
    second.requires_grad_(False)
    si.step()  # nothing to hold
    with pytest.raises(RuntimeError, match="end_task: expected at least one"):
        si.end_task()


def test_gradients_come_back_when_the_optimizer_raises():
    model, si = tiny()
    tiny_step(model, si)
    si.end_task()
    tiny_step(model, si)
    grad = model["trunk"].weight.grad
    si.optimizer.step = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        si.step()
    assert model["trunk"].weight.grad is grad


def test_penalised_steps_match_hand_computation():
    weight = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    si = SynapticIntelligence(torch.nn.ParameterList([weight]), torch.optim.SGD([weight], 0.5), c=0.25, xi=1.0)
    weight.grad = torch.tensor([2.0], dtype=torch.float64)
    si.step()  # 1 -> 0; omega = 2
    assert weight.item() == 0 and si.omega["0"].item() == 2
    si.end_task()  # Omega = 2 / (1 + 1)
    assert si.importance["0"].item() == 1 and si.reference["0"].item() == 0
    si.step()  # 0 -> -1: no pull at the reference; omega = 2
    si.step()  # gradient 2 + 2 * .25 * 1 * -1 = 1.5: -1 -> -1.75; omega = 2 + 2 * .75
    assert weight.item() == -1.75 and si.omega["0"].item() == 3.5
    assert float(si.penalty()) == 0.25 * 1.75**2
    si.end_task()  # Omega = 1 + 3.5 / (1.75^2 + 1)
    assert si.importance["0"].item() == 1 + 3.5 / (1.75**2 + 1)


def test_omega_of_a_harmful_move_counts_as_nothing_and_no_damping_makes_no_nan():
    weight = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
    si = SynapticIntelligence(torch.nn.ParameterList([weight]), torch.optim.SGD([weight], 0.5, maximize=True), xi=0.0)
    weight.grad = torch.tensor([2.0, 0.0])
    si.step()  # up the gradient, and not at all
    assert si.omega["0"].tolist() == [-2, 0]
    si.end_task()
    assert si.importance["0"].tolist() == [0, 0]


def test_misuse_is_named():
    layer, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    for options, words in (
        ({"c": -1.0}, "c: expected 0 or more, got -1.0"),
        ({"xi": float("nan")}, "xi: expected 0 or more, got nan"),
        ({"variant": "ewc"}, "variant: expected one of 'zenke', 'adn', got 'ewc'"),
    ):
        with pytest.raises(ValueError, match=words):
            SynapticIntelligence(layer, optimizer, **options)
    with pytest.raises(ValueError, match=r"optimizer: expected one that steps every .* lacks 'weight'"):
        SynapticIntelligence(other, optimizer)
    with pytest.raises(ValueError, match="modules: expected at least one parameter"):
        SynapticIntelligence(torch.nn.ReLU(), optimizer)
    with pytest.raises(TypeError, match="modules: expected a module or several"):
        SynapticIntelligence(layer.parameters(), optimizer)
    with pytest.raises(TypeError, match="optimizer: expected a torch optimizer, got Linear"):
        SynapticIntelligence(layer, layer)
    half = torch.nn.Linear(2, 2).bfloat16()
    with pytest.raises(TypeError, match=r"expected float32 or float64 parameters, got torch\.bfloat16 for 'weight'"):
        SynapticIntelligence(half, torch.optim.SGD(half.parameters(), 0.1))
    si = SynapticIntelligence(layer, optimizer)
    with pytest.raises(ValueError, match="optimizer: expected one that steps"):
        si.optimizer = torch.optim.SGD(other.parameters(), 0.1)
    with pytest.raises(TypeError, match="closure: expected none"):
        si.step(lambda: 0)
    with pytest.raises(RuntimeError, match=r"end_task: expected at least one si\.step\(\)"):
        si.end_task()


def test_checkpoints_that_do_not_fit_are_refused():
    model, si = tiny()
    tiny_step(model, si)
    with pytest.raises(ValueError, match="state_dict: expected variant 'adn', got 'zenke'"):
        tiny(variant="adn")[1].load_state_dict(si.state_dict())
    with pytest.raises(ValueError, match=r"expected omega of 'head1.weight' to be \(2, 4\), got None"):
        tiny(heads=2)[1].load_state_dict(si.state_dict())
    assert_close(si.omega["trunk.weight"], si.state_dict()["omega"]["trunk.weight"])
