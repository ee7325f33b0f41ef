"""Two processes with gloo: dense gradients under DistributedDataParallel, factored ones by optim.Adam's process group.

Everything is compared with one process on the joined batch, which rank 0 has the first half of. In float64 no winner
lies within rounding of the k-th, so all of it agrees to rounding.
"""

import datetime
import io
import os
import re
import sys
from collections import OrderedDict

import pytest
import torch
from test_adam import BATCH, LR, backward, make_model, some_batch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import dendrite_kernels as dk
from dendrite_kernels.backends import cpu
from dendrite_kernels.factored import FactoredGrad
from dendrite_kernels.sparsity import rezero_weights
from dendrite_kernels.testing import assert_same_bits

RANKS, STEPS, LONGEST_WAIT = 2, 6, 60  # seconds

native = pytest.mark.skipif(cpu._cpu is None, reason="factored gradients need the native module: no C++ compiler here")


# ---- two processes that run functions of this file -------------------------------------------------------------------


def _serve(rank, store, pipe):
    torch.set_num_threads(1)
    torch.ones(64).sqrt()
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    wait = datetime.timedelta(seconds=LONGEST_WAIT)
    distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=RANKS, timeout=wait)
    while (task := pipe.recv()) is not None:
        function, args = task
        torch.manual_seed(0)
        try:
            answer = function(rank, *args)
        except Exception as error:
            answer = f"{type(error).__name__}: {error}"
        out = io.BytesIO()
        torch.save(answer, out)
        pipe.send_bytes(out.getvalue())
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory):
    """on_two_ranks(function, *args): what function(rank, *args) gives on each of two processes, or its error."""
    context, store = torch.multiprocessing.get_context("spawn"), tmp_path_factory.mktemp("ddp") / "store"
    pipes, processes = [], []
    for rank in range(RANKS):
        mine, theirs = context.Pipe()
        pipes.append(mine)
        processes.append(context.Process(target=_serve, args=(rank, store, theirs), daemon=True))
        processes[-1].start()

    def run(function, *args):
        for pipe in pipes:
            pipe.send((function, args))
        answers = []
        for pipe in pipes:
            assert pipe.poll(2 * LONGEST_WAIT), f"{function.__name__}: a process gave no answer"
            answers.append(torch.load(io.BytesIO(pipe.recv_bytes()), weights_only=False))
        return answers

    yield run
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(None)
        process.join(LONGEST_WAIT)
        assert process.exitcode == 0


def share(batch, rank, sizes=(BATCH // 2, BATCH // 2)):
    """The rows of a batch that this rank has."""
    x, labels, context, index = batch
    rows = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    return x[rows], labels[rows], context, None if index is None else index[rows]


def values(model):
    return [p.detach().clone() for p in model.parameters()]


def agree(ranks, alone, atol=1e-10):
    """Both ranks have the same bits, and one process' values up to rounding (Adam divides by a gradient's size)."""
    for first, second, p in zip(*ranks, alone, strict=True):
        assert_same_bits(first, second)
        torch.testing.assert_close(first, p, rtol=0, atol=atol)


# ---- dense gradients, under DistributedDataParallel -----------------------------------------------------------------

OPTIMIZERS = {
    "adam": lambda parameters: torch.optim.Adam(parameters, LR),
    "sgd": lambda parameters: torch.optim.SGD(parameters, 0.5, momentum=0.9),
}


def train_dense(rank, optimizer, kind):
    """Losses, parameters and buffers; rank None: one process with the whole batch."""
    model = make_model()
    net = model if rank is None else DistributedDataParallel(model)
    stepper, losses = OPTIMIZERS[optimizer](model.parameters()), []
    for step in range(STEPS):
        batch = some_batch(kind, torch.float64, step)
        stepper.zero_grad()
        losses.append(backward(net, batch if rank is None else share(batch, rank)))
        stepper.step()
        rezero_weights(model)
    return torch.stack(losses), values(model), dict(model.named_buffers())


@pytest.mark.parametrize("optimizer, kind", [("adam", "several"), ("sgd", "one")])
def test_dense_gradients_under_ddp_are_those_of_the_joined_batch(on_two_ranks, optimizer, kind):
    (losses, *rest), (other_losses, *other_rest) = on_two_ranks(train_dense, optimizer, kind)
    joined, parameters, _ = train_dense(None, optimizer, kind)
    torch.testing.assert_close((losses + other_losses) / 2, joined, rtol=0, atol=1e-10)
    assert joined[-1] != joined[0]
    agree((rest[0], other_rest[0]), parameters)


def count_duty_cycles(rank, broadcast):
    """The duty cycle after some batches, other ones on each rank, and after one more forward pass has begun."""
    model = nn.Sequential(nn.Linear(6, 30, dtype=torch.float64), dk.nn.KWinners(30, 0.2, duty_cycle_period=40))
    net = model if rank is None else DistributedDataParallel(model, broadcast_buffers=broadcast)
    generator = torch.Generator().manual_seed(1 if rank is None else rank)
    for _ in range(STEPS):
        net(torch.randn(10, 6, dtype=torch.float64, generator=generator)).sum().backward()
    before = model[1].duty_cycle.clone()
    net(torch.zeros(0, 6, dtype=torch.float64)).sum().backward()  # an empty batch counts nothing
    return before, model[1].duty_cycle, model[1].learning_iterations


def test_ddp_broadcasts_the_duty_cycles_of_rank_0(on_two_ranks):
    """Before each forward pass: what the others count is lost, and only rank 0's samples are in the average."""
    (first, first_after, seen), (second, second_after, other_seen) = on_two_ranks(count_duty_cycles, True)
    assert_same_bits(first, first_after)
    assert not torch.equal(second, first)  # rank 1's last batch on top of rank 0's average
    assert_same_bits(second_after, first)
    assert seen == other_seen == 10 * STEPS
    apart = on_two_ranks(count_duty_cycles, False)
    assert_same_bits(apart[0][0], first)
    assert_same_bits(apart[1][0], apart[1][1])
    assert not torch.equal(apart[1][0], second)


# ---- a user's script ------------------------------------------------------------------------------------------------


class PlainKWinners(nn.Module):
    """As a user would have it before knowing of this package."""

    def forward(self, x):
        winners = x.topk(8, dim=1)
        return torch.zeros_like(x).scatter(1, winners.indices, winners.values)


def plain_model():
    torch.manual_seed(0)
    layers = {"first": nn.Linear(20, 40), "winners": PlainKWinners(), "second": nn.Linear(40, 5)}
    return nn.Sequential(OrderedDict(layers)).double()


def swapped_model():
    plain = plain_model()
    layers = {
        "first": dk.nn.SparseLinear(20, 40),
        "winners": dk.nn.KWinners(40, 0.2, sparse=True),
        "second": dk.nn.SparseLinear(40, 5, input_major=True),
    }
    model = nn.Sequential(OrderedDict(layers)).double()
    missing, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and all(name.startswith("winners.") for name in missing)
    return model


def user_script(rank, make):
    """A plain training script; under DDP where there are ranks."""
    model = make()
    net = model if rank is None else DistributedDataParallel(model)
    optimizer, losses = torch.optim.Adam(net.parameters(), LR), []
    batch = some_batch("one", torch.float64)
    x, labels, *_ = batch if rank is None else share(batch, rank)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def test_a_plain_script_with_our_layers_gives_the_same_losses_with_and_without_ddp(on_two_ranks):
    plain, ours = user_script(None, plain_model), user_script(None, swapped_model)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-10)
    for make in (plain_model, swapped_model):
        torch.testing.assert_close(sum(on_two_ranks(user_script, make)) / 2, plain, rtol=0, atol=1e-10)
    assert plain[-1] < plain[0]


# ---- factored gradients, in optim.Adam's process group ---------------------------------------------------------------


def train_factored(rank, kind, sizes=(BATCH // 2, BATCH // 2), dtype=torch.float64, passes=1):
    """Losses, parameters and whether the first layer's segments have rank-1 moments."""
    model = make_model(dtype)
    optimizer = dk.optim.Adam(model, LR, process_group=rank is not None)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        for number in range(passes):
            batch = some_batch(kind, dtype, step + number)
            losses.append(backward(model, batch if rank is None else share(batch, rank, sizes)))
        optimizer.step()
    assert isinstance(model.layers[1].weight.grad, FactoredGrad)
    return torch.stack(losses), values(model), optimizer.state[model.layers[0].segments.weights]["moments"].rank1


@native
@pytest.mark.parametrize("kind", ["one", "several", "changing"])
@pytest.mark.parametrize("passes", [1, 2])
def test_factors_of_two_ranks_step_as_those_of_the_joined_batch(on_two_ranks, kind, passes):
    (losses, *rest), (other_losses, *other_rest) = on_two_ranks(
        train_factored, kind, (BATCH // 2, BATCH // 2), torch.float64, passes
    )
    joined, parameters, rank1 = train_factored(None, kind, passes=passes)
    torch.testing.assert_close((losses + other_losses) / 2, joined, rtol=0, atol=1e-10)
    agree((rest[0], other_rest[0]), parameters)
    assert rest[1] == other_rest[1] == rank1 == (kind == "one")


@native
def test_ranks_stay_equal_bit_for_bit_in_float32(on_two_ranks):
    (_, first, _), (_, second, _) = on_two_ranks(train_factored, "changing", (BATCH // 2, BATCH // 2), torch.float32, 1)
    for p, q in zip(first, second, strict=True):
        assert_same_bits(p, q)


@native
@pytest.mark.parametrize("kind", ["one", "several"])
@pytest.mark.parametrize("sizes", [(17, 7), (24, 0)])
def test_batches_of_other_sizes_count_by_process_as_under_ddp(on_two_ranks, kind, sizes):
    """An empty batch is a rank without gradient, which counts as zero."""

    def mean_of_both(step, model):
        batch = some_batch(kind, torch.float64, step)
        parts = [share(batch, rank, sizes) for rank in range(RANKS)]
        for x, labels, context, index in parts:
            if len(x):
                (nn.functional.cross_entropy(model(x, context, index), labels) / RANKS).backward()

    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), LR)
    for step in range(STEPS):
        optimizer.zero_grad()
        mean_of_both(step, model)
        optimizer.step()
        rezero_weights(model)
    agree(on_two_ranks(train_uneven, kind, sizes), values(model))


def train_uneven(rank, kind, sizes):
    model = make_model()
    optimizer = dk.optim.Adam(model, LR, process_group=distributed.group.WORLD)
    for step in range(STEPS):
        optimizer.zero_grad()
        batch = share(some_batch(kind, torch.float64, step), rank, sizes)
        if len(batch[0]):
            backward(model, batch)
        optimizer.step()
    return values(model)


def average_once(rank, which):
    """The averaged gradients of a backward pass in which the ranks do not do the same, and this rank's own."""
    torch.manual_seed(rank)  # other weights, until the optimizer gives all those of rank 0
    model = dk.nn.DendriticMLP(20, (40, 37), 5, 4, 13, percent_on=0.2).double()
    optimizer = dk.optim.Adam(model, LR, process_group=True)
    if which == "a dense part on rank 1" and rank == 1:
        model.layers[1].weight.square().sum().backward()
    if which == "the second layer on rank 0 alone" and rank == 1:
        model.layers[1].requires_grad_(False)
    if which == "other winners on rank 1" and rank == 1:
        model.layers[0].kwinners.percent_on = 0.3
    if which != "nowhere a gradient of the output":
        backward(model, share(some_batch("one", torch.float64), rank))
    else:
        x, _, context, _ = share(some_batch("one", torch.float64), rank)
        model.layers[0](x, context).values.sum().backward()
    own = [dense(p.grad) for p in model.parameters()]
    optimizer.average_gradients()
    optimizer.average_gradients()  # the mean of equal means
    return (
        own,
        [dense(p.grad) for p in model.parameters()],
        [isinstance(p.grad, FactoredGrad) for p in model.parameters()],
    )


def dense(grad):
    return grad.to_dense() if isinstance(grad, FactoredGrad) else grad if grad is None else grad.clone()


UNEQUAL = {
    "a dense part on rank 1": 4,  # the number of weights that are sent as factors, of 5
    "the second layer on rank 0 alone": 5,
    "other winners on rank 1": 3,
    "nowhere a gradient of the output": 2,
}


@native
@pytest.mark.parametrize("which", UNEQUAL)
def test_ranks_whose_gradients_have_other_forms_still_get_the_mean(on_two_ranks, which):
    (own, mean, factors), (other_own, other_mean, other_factors) = on_two_ranks(average_once, which)
    for a, b, first, second in zip(own, other_own, mean, other_mean, strict=True):
        if a is None and b is None:
            assert first is second is None
            continue
        want = sum(g for g in (a, b) if g is not None) / 2
        torch.testing.assert_close(first, want, rtol=0, atol=1e-14)
        assert_same_bits(first, second)
    assert factors == other_factors and sum(factors) == UNEQUAL[which]


def boosted(rank):
    """Duty cycles and learning iterations after some steps with boosting; rank None: on the joined batches."""
    model = make_model(boost_strength=1.5, duty_cycle_period=RANKS * 30 if rank is None else 30)
    optimizer = dk.optim.Adam(model, LR, process_group=rank is not None)
    for step in range(STEPS):
        batch = some_batch("one", torch.float64, step)
        optimizer.zero_grad()
        backward(model, batch if rank is None else share(batch, rank))
        optimizer.step()
    winners = [layer.kwinners for layer in model.layers]
    return values(model), [w.duty_cycle for w in winners], [int(w.learning_iterations) for w in winners]


@native
def test_duty_cycles_are_averaged_so_that_boosting_is_that_of_the_joined_batch(on_two_ranks):
    """A rank's period is over its own samples: half of one process' period, to be the same."""
    (first, cycles, seen), (second, other_cycles, _) = on_two_ranks(boosted)
    alone, want, want_seen = boosted(None)
    agree((first, second), alone)
    agree((cycles, other_cycles), want)
    assert [RANKS * n for n in seen] == want_seen and STEPS * BATCH > RANKS * 30


def train_interpreted(rank):
    """train_factored with the kernels of a device, which knows a context by its identity: kept from step to step."""
    with dk.use_backend("triton"):
        model = make_model(torch.float32, hidden_sizes=(8,), num_segments=2)
        optimizer = dk.optim.Adam(model, LR, process_group=rank is not None)
        batch = some_batch("one", torch.float32)
        for _ in range(2):
            optimizer.zero_grad()
            backward(model, batch if rank is None else share(batch, rank))
            optimizer.step()
    return values(model), optimizer.state[model.layers[0].segments.weights]["moments"].rank1


def test_on_a_device_a_context_that_all_ranks_share_stays_one(on_two_ranks, interpreted):
    (first, rank1), (second, other_rank1) = on_two_ranks(train_interpreted)
    alone, want = train_interpreted(None)
    agree((first, second), alone, atol=0.02 * LR)
    assert rank1 and other_rank1 and want


def protected(rank):
    """Importances and parameters of Synaptic Intelligence after two tasks."""
    model = make_model()
    si = dk.optim.SynapticIntelligence(model, dk.optim.Adam(model, LR, process_group=rank is not None), c=0.5)
    for task in range(2):
        for step in range(3):
            batch = some_batch("several", torch.float64, 3 * task + step)
            model.zero_grad()
            si.optimizer.zero_grad()
            backward(model, batch if rank is None else share(batch, rank))
            si.step()
        si.end_task()
        si.optimizer = dk.optim.Adam(model, LR, process_group=rank is not None)
    return values(model), list(si.importance.values())


@native
def test_synaptic_intelligence_sees_the_mean_gradient(on_two_ranks):
    (first, importance), (second, other) = on_two_ranks(protected)
    alone, want = protected(None)
    agree((first, second), alone)
    agree((importance, other), want, atol=1e-8)


# ---- what can't be done says so -------------------------------------------------------------------------------------


def refused(rank, which):
    if which == "wrapped before":
        return dk.optim.Adam(DistributedDataParallel(make_model()))
    if which == "wrapped after":
        model = make_model()
        optimizer = dk.optim.Adam(model)
        return backward(DistributedDataParallel(model), some_batch("one", torch.float64)), optimizer
    if which == "no group":
        return dk.optim.Adam(make_model(), process_group=None)
    parts = make_model().layers
    if which == "another order":
        return dk.optim.Adam([parts[rank], parts[1 - rank]], process_group=True)
    if which == "one more":
        return dk.optim.Adam([nn.Linear(2, 3) for _ in range(1 + rank)], process_group=True)
    return dk.optim.Adam([parts[0], nn.Linear(2, 2, device=["cpu", "meta"][rank])], process_group=True)


ORDER = "modules: expected the same parameters and buffers in the same order in every process, but number"
SENTENCES = {
    "wrapped before": r"TypeError: modules: .* got DistributedDataParallel.* use Adam\(model, process_group=True\)",
    "wrapped after": r"RuntimeError: .*kept as factors .*Instead of DistributedDataParallel .*process_group=True",
    "no group": r"TypeError: process_group: expected True .* got None .*init_process_group",
    "another order": rf"ValueError: {ORDER} 0 is 0\.weight \(37, 40\) float64 on rank 1 and 0\.weight \(40, 20\)",
    "one more": rf"ValueError: {ORDER} 2 is 1\.weight \(3, 2\) float32 on rank 1 and absent on rank 0",
    "two devices": r"ValueError: modules: expected one device in each process, got cpu, meta on rank 1",
}


@native
@pytest.mark.parametrize("which", SENTENCES)
def test_what_is_refused_is_refused_on_both_ranks(on_two_ranks, which):
    for answer in on_two_ranks(refused, which):
        assert isinstance(answer, str) and re.match(SENTENCES[which], answer), answer


def test_a_group_is_wanted_before_a_process_group():
    with pytest.raises(RuntimeError, match=r"expected torch\.distributed\.init_process_group\(\) to have been called"):
        dk.optim.Adam(nn.Linear(2, 2), process_group=True)


def test_no_rows_on_any_process_join_to_none():
    from dendrite_kernels.distributed import _joined_segments

    empty = [torch.zeros(0, 4), torch.zeros(0, 4, dtype=torch.int32), torch.zeros(0, 3)]
    joined = _joined_segments([empty, empty], None)
    assert joined.grad.shape == (0, 4) and joined.winner.shape == (0, 4) and joined.context.shape == (0, 3)
