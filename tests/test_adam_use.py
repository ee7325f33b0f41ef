"""optim.Adam among all else that a training loop may do: it works as torch.optim.Adam does, or says what to do."""

import pytest
import torch
from test_adam import LR, backward, make_model, one_step, parameters_agree, pytestmark, some_batch  # noqa: F401
from torch.multiprocessing.reductions import StorageWeakRef

import dendrite_kernels as dk
from dendrite_kernels.factored import FactoredGrad
from dendrite_kernels.sparsity import rezero_weights
from dendrite_kernels.testing import assert_close, assert_same_bits


def make_pair():
    """Ours and the same model by torch, with their optimizers."""
    ours, plain = make_model(), make_model()
    return ours, dk.optim.Adam(ours, LR), plain, torch.optim.Adam(plain.parameters(), LR)


@pytest.fixture
def pair():
    return make_pair()


def step_both(pair, make_gradients):
    ours, mine, plain, theirs = pair
    for model, optimizer in ((ours, mine), (plain, theirs)):
        optimizer.zero_grad()
        make_gradients(model)
        optimizer.step()
        rezero_weights(model)
    parameters_agree(ours, plain, torch.float64)


# ---- gradients that are not one backward pass -----------------------------------------------------------------------


@pytest.mark.parametrize("kinds", [("one", "one"), ("one", "several"), ("several", "several"), ("one", "changing")])
def test_two_backward_passes_before_a_step(pair, kinds):
    def twice(model):
        for number, kind in enumerate(kinds):
            backward(model, some_batch(kind, torch.float64, 3 * number))

    for _ in range(3):
        step_both(pair, twice)
    assert isinstance(pair[0].layers[0].weight.grad, FactoredGrad)


def test_two_batches_of_other_sizes_before_a_step(pair):
    x, labels, context, _ = some_batch("one", torch.float64)

    def twice(model):
        backward(model, (x, labels, context, None))
        backward(model, (x[:7], labels[:7], context, None))

    for _ in range(3):
        step_both(pair, twice)


@pytest.mark.parametrize("which", ["x", "context"])
def test_what_is_written_over_before_the_step_is_refused(which):
    """Its gradient reads it still; torch's dense one is made by then."""
    model, batch = make_model(), list(some_batch("one", torch.float64))
    optimizer, place = dk.optim.Adam(model, LR), {"x": 0, "context": 2}[which]
    backward(model, batch)
    batch[place].mul_(2)
    with pytest.raises(RuntimeError, match="was written to between backward and step"):
        optimizer.step()
    with pytest.raises(RuntimeError, match="was written to between backward and step"):
        [p.grad.to_dense() for p in model.parameters() if isinstance(p.grad, FactoredGrad)]
    backward(model, batch)  # beside what is gone
    with pytest.raises(RuntimeError, match="was written to between backward and step"):
        optimizer.step()
    one_step(model, optimizer, batch)


def test_a_graph_kept_and_used_twice(pair):
    def twice(model):
        x, labels, context, _ = some_batch("one", torch.float64)
        loss = torch.nn.functional.cross_entropy(model(x, context), labels)
        loss.backward(retain_graph=True)
        loss.backward()

    for _ in range(3):
        step_both(pair, twice)


@pytest.mark.parametrize("dense_first", [False, True])
def test_a_dense_part_beside_the_factors(pair, dense_first):
    """A penalty on all weights: the step is dense from then on where it must be, and factored again without it."""

    def penalised(model):
        def penalty():
            sum(p.square().sum() for p in model.parameters()).mul(0.01).backward()

        if dense_first:
            penalty()
        backward(model, some_batch("one", torch.float64))
        if not dense_first:
            penalty()

    plain_pass = lambda model: backward(model, some_batch("one", torch.float64))  # noqa: E731
    for make in (plain_pass, penalised, plain_pass, penalised, penalised, plain_pass):
        step_both(pair, make)


def test_batched_gradients_of_owned_weights_are_dense():
    model = make_model()
    optimizer = dk.optim.Adam(model, LR)
    x, _, context, _ = some_batch("one", torch.float64)
    out = model(x, context)
    several = torch.randn(3, *out.shape, dtype=out.dtype)
    got = torch.autograd.grad(out, model.parameters(), several, is_grads_batched=True)
    assert optimizer is not None
    del optimizer  # what follows gives dense gradients
    out = model(x, context)
    for i, grad in enumerate(several):
        for mine, theirs in zip(
            got, torch.autograd.grad(out, model.parameters(), grad, retain_graph=True), strict=True
        ):
            assert_close(mine[i], theirs, terms=64)


def test_layers_frozen_and_thawed(pair):
    def on(model):
        backward(model, some_batch("one", torch.float64))

    step_both(pair, on)
    for model in (pair[0], pair[2]):
        model.layers[0].segments.weights.requires_grad_(False)
        model.layers[1].weight.requires_grad_(False)
    frozen = pair[0].layers[0].segments.weights.detach().clone()
    step_both(pair, on)
    assert_same_bits(pair[0].layers[0].segments.weights.detach(), frozen)
    for model in (pair[0], pair[2]):
        model.requires_grad_(True)
    step_both(pair, on)
    assert not torch.equal(pair[0].layers[0].segments.weights, frozen)


def test_a_mask_that_changes_in_between(pair):
    def on(model):
        backward(model, some_batch("one", torch.float64))

    step_both(pair, on)
    before, mask = pair[0].layers[1].weight_mask.clone(), torch.rand(37, 40) < 0.4
    for model in (pair[0], pair[2]):
        layer = model.layers[1]
        layer.set_mask(torch.empty_like(layer.weight_mask).copy_(mask))
    ours, _, plain, theirs = pair
    for key in ("exp_avg", "exp_avg_sq"):  # torch's has moments of masked weights; ours start at zero
        theirs.state[plain.layers[1].weight][key].mul_(before & mask)
    step_both(pair, on)
    assert (ours.layers[1].weight[~mask] == 0).all()


def test_no_other_mask_gets_the_address_of_the_one_in_use(pair):
    """Adam knows a mask by its address and version: a third might pass for the first."""
    layer = pair[0].layers[1]
    rows = layer.weight_mask.clone(memory_format=torch.contiguous_format)  # unlike the weight, which lies by input
    layer.set_mask(rows)
    del rows
    step_both(pair, lambda model: backward(model, some_batch("one", torch.float64)))
    memory = StorageWeakRef(layer.weight_mask.untyped_storage())
    layer.set_mask(layer.weight_mask.clone())  # the layer lets the first one go
    assert not memory.expired()
    step_both(pair, lambda model: backward(model, some_batch("one", torch.float64)))
    assert memory.expired()


def test_a_closure_and_a_scheduler(pair):
    ours, mine, plain, theirs = pair
    schedules = [torch.optim.lr_scheduler.StepLR(o, 2, gamma=3.0) for o in (mine, theirs)]
    batch = some_batch("one", torch.float64)
    for _ in range(6):
        for model, optimizer, schedule in ((ours, mine, schedules[0]), (plain, theirs, schedules[1])):

            def closure(model=model, optimizer=optimizer):
                optimizer.zero_grad()
                return backward(model, batch)

            loss = optimizer.step(closure)
            schedule.step()
            assert loss > 0
        rezero_weights(plain)
        parameters_agree(ours, plain, torch.float64)
    assert mine.param_groups[0]["lr"] == pytest.approx(27 * LR)


# ---- rows that rest -------------------------------------------------------------------------------------------------


def test_rows_that_a_step_leaves_as_they_were_rest_and_wake():
    """float32, one batch 300 times: the rows of an earlier batch come to rest, and go on as if they had not."""
    ours, plain = make_model(torch.float32), make_model(torch.float32)
    mine, theirs = dk.optim.Adam(ours, LR), torch.optim.Adam(plain.parameters(), LR)
    other, rested = some_batch("one", torch.float32, 2), []
    for step in range(304):
        x, *rest = other
        batch = other if 2 <= step < 300 else (-20 * x, *rest)  # other units win
        if step == 302:
            mine.param_groups[0]["lr"] = theirs.param_groups[0]["lr"] = 2 * LR  # all rows wake
        for model, optimizer in ((ours, mine), (plain, theirs)):
            one_step(model, optimizer, batch)
        rezero_weights(plain)
        rested.append(torch.cat([s["moments"].since > 0 for s in mine.state.values() if "moments" in s]))
        parameters_agree(ours, plain, torch.float32)
        with torch.no_grad():
            for p, q in zip(ours.parameters(), plain.parameters(), strict=True):
                q.copy_(p)
    assert not rested[1].any() and rested[299].sum() > 50 and not rested[302].any()
    assert (rested[299] & ~rested[300]).sum() > 0  # gradient woke these
    written = mine.torch_state_dict()["state"]
    for number, (p, q) in enumerate(zip(ours.parameters(), plain.parameters(), strict=True)):
        dense, state = written[number], theirs.state[q]
        for key in ("exp_avg", "exp_avg_sq"):
            want = state[key] * (p != 0)  # torch's has moments of masked weights
            large = want.abs() > 1e-4 * want.abs().max()
            # some 300 roundings of a decay against one power, and gradients that differ by theirs
            torch.testing.assert_close(dense[key][large], want[large], rtol=1e-3, atol=1e-6 * float(want.abs().max()))


# ---- checkpoints ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["one", "changing", "several"])
@pytest.mark.parametrize("segment_sparsity", [0.0, 0.5])
def test_a_checkpoint_goes_on_to_the_same_bits(tmp_path, kind, segment_sparsity):
    model = make_model(torch.float32, segment_sparsity=segment_sparsity)
    optimizer = dk.optim.Adam(model, LR)
    for step in range(6):
        one_step(model, optimizer, some_batch(kind, torch.float32, step))
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    other = make_model(torch.float32, segment_sparsity=segment_sparsity)
    other.load_state_dict(saved["model"])
    resumed = dk.optim.Adam(other, 0.5)
    resumed.load_state_dict(saved["optimizer"])
    assert resumed.param_groups[0]["lr"] == LR
    for step in range(6, 10):
        batch = some_batch(kind, torch.float32, step)
        one_step(model, optimizer, batch)
        one_step(other, resumed, batch)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert_same_bits(p.detach(), q.detach())


@pytest.mark.parametrize("weights", ["saved", "others"])
def test_rows_of_a_checkpoint_go_on_resting_where_their_weights_are_the_same(tmp_path, weights):
    """Those that wake have moments decayed by one power, and then step by step: other bits."""
    model = make_model(torch.float32)
    optimizer = dk.optim.Adam(model, LR)
    x, *rest = other = some_batch("one", torch.float32, 2)
    for step in range(300):
        one_step(model, optimizer, other if step >= 2 else (-20 * x, *rest))
    resting = [s["moments"].since > 0 for s in optimizer.state.values() if "moments" in s]
    assert sum(int(r.sum()) for r in resting) > 50
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    loaded = make_model(torch.float32)
    loaded.load_state_dict(saved["model"])
    if weights == "others":
        with torch.no_grad():
            for p in loaded.parameters():
                p.mul_(2)
    resumed = dk.optim.Adam(loaded, LR)
    resumed.load_state_dict(saved["optimizer"])
    for batch in (other, other, (-20 * x, *rest), other):
        one_step(loaded, resumed, batch)
        if weights == "others":
            awake = [s["moments"].since <= 0 for s in resumed.state.values() if "moments" in s]
            assert all(a[r].all() for a, r in zip(awake, resting, strict=True))
            return
        one_step(model, optimizer, batch)
        for p, q in zip(model.parameters(), loaded.parameters(), strict=True):
            assert_same_bits(p.detach(), q.detach())
    moments = ([s["moments"] for s in o.state.values() if "moments" in s] for o in (optimizer, resumed))
    for mine, theirs in zip(*moments, strict=True):
        assert_same_bits(mine.m, theirs.m)
        assert_same_bits(mine.v, theirs.v)


def test_a_checkpoint_is_not_moved_by_later_steps():
    model = make_model(torch.float32)
    optimizer = dk.optim.Adam(model, LR)
    one_step(model, optimizer, some_batch("one", torch.float32))
    saved = optimizer.state_dict()
    before = {n: s["moments"]["m"].clone() for n, s in saved["state"].items() if "moments" in s}
    one_step(model, optimizer, some_batch("one", torch.float32, 1))
    assert before and all(torch.equal(saved["state"][n]["moments"]["m"], m) for n, m in before.items())


@pytest.mark.parametrize("to_torch", [True, False])
def test_conversion_from_and_to_torch(to_torch):
    ours, mine, plain, theirs = make_pair()
    for step in range(4):
        step_both(
            (ours, mine, plain, theirs),
            lambda model, step=step: backward(model, some_batch("changing", torch.float64, step)),
        )
    if to_torch:  # the optimizers trade places
        converted = torch.optim.Adam(ours.parameters(), LR)
        converted.load_state_dict(mine.torch_state_dict())
        del mine
        pair = (ours, converted, plain, theirs)
    else:
        fresh = dk.optim.Adam(ours, LR)
        fresh.load_state_dict(theirs.state_dict())
        pair = (ours, fresh, plain, theirs)
    for step in range(4, 8):
        step_both(pair, lambda model, step=step: backward(model, some_batch("changing", torch.float64, step)))


def test_checkpoints_that_do_not_fit_are_refused(pair):
    ours, mine, plain, _ = pair
    one_step(ours, mine, some_batch("one", torch.float64))
    with pytest.raises(ValueError, match="expected as many parameters in each group"):
        mine.load_state_dict(torch.optim.Adam(plain.layers.parameters()).state_dict())
    with pytest.raises(ValueError, match="expected one without weight_decay and amsgrad"):
        mine.load_state_dict(torch.optim.Adam(plain.parameters(), weight_decay=0.1).state_dict())
    wide = make_model(input_size=21)
    other = torch.optim.Adam(wide.parameters())
    for p in wide.parameters():
        p.grad = torch.ones_like(p)
    other.step()
    with pytest.raises(ValueError, match="expected moments"):
        mine.load_state_dict(other.state_dict())
    unmasked = dk.optim.Adam(make_model(weight_sparsity=0.0))
    with pytest.raises(ValueError, match="the weight's mask"):
        unmasked.load_state_dict(mine.state_dict())
    assert mine.state[ours.layers[0].weight]["step"] == 1  # a state that is refused replaces nothing


def test_a_scheduler_resumes_from_a_loaded_state():
    """Its initial_lr lies in the group: 1, halved twice."""
    model = dk.nn.SparseLinear(3, 4)
    first, second = dk.optim.Adam(model, lr=1.0), dk.optim.Adam(model, lr=3.0)
    torch.optim.lr_scheduler.StepLR(first, 1, 0.5)
    second.load_state_dict(first.state_dict())
    assert second.param_groups[0]["initial_lr"] == 1.0
    scheduler = torch.optim.lr_scheduler.LambdaLR(second, lambda epoch: 0.5**epoch, last_epoch=1)
    assert scheduler.get_last_lr() == [0.25]
