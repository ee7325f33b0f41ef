"""The columns of the feature matrix: what each op and module is tried for. A check takes a Case (matrix_cases.py)."""

import copy
import io
import pickle
from functools import partial

import torch
import torch.utils.checkpoint
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import dendrite_kernels as dk
from dendrite_kernels.testing import assert_close, assert_same_bits

BATCH = 6


# ---- running a case -------------------------------------------------------------------------------------------------


def tensors(out):
    """The results as a tuple of tensors."""
    if isinstance(out, torch.Tensor):
        return (out,)
    return tuple(t for t in out if isinstance(t, torch.Tensor))


def flat(f):
    return lambda *args: tensors(f(*args))


def floats(some):
    return [t for t in some if t.is_floating_point()]


def set_up(case, batch=BATCH, dtype=None):
    """The function or module, its arguments, and all that gets a gradient of it."""
    torch.manual_seed(1)
    f, args = case.make(), case.example(batch)
    if dtype is not None:
        args = [t.to(dtype) if t.is_floating_point() else t for t in args]
        f = f.to(dtype) if case.is_module else f
    leaves = [t.requires_grad_() for t in floats(args)]
    return f, args, leaves + (list(f.parameters()) if case.is_module else [])


def loss(out):
    return sum(t.float().square().sum() for t in floats(tensors(out)))


def run(f, args, leaves):
    """Results and gradients."""
    out = f(*args)
    return [*tensors(out), *torch.autograd.grad(loss(out), leaves)]


def assert_alike(got, want):
    """Equal up to the rounding of sums of a few dozen terms, and integers exactly."""
    assert len(got) == len(want)
    for mine, theirs in zip(got, want, strict=True):
        assert mine.dtype == theirs.dtype
        if mine.is_floating_point():
            assert_close(mine, theirs, terms=64)
        else:
            assert torch.equal(mine, theirs)


# ---- the columns ----------------------------------------------------------------------------------------------------


def compiles(case, backend="aot_eager"):
    f, args, leaves = set_up(case)
    torch._dynamo.reset()
    assert_alike(run(torch.compile(f, fullgraph=True, backend=backend), args, leaves), run(f, args, leaves))


def compiles_once_for_all_batch_sizes(case):
    f, _, _ = set_up(case)
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(f, fullgraph=True, dynamic=True, backend=counting)
    # no other size in the examples, as equal ones would be taken for one; torch's convolution has others from 16
    for batch in (8, 11, 13):
        args = case.example(batch)
        assert_alike(tensors(compiled(*args)), tensors(f(*args)))
    assert len(graphs) == 1


def form(t):
    return t.shape, t.dtype, t.stride()


def runs_on_meta(case):
    """Nothing is computed; shapes, dtypes and strides of results and gradients are those that they would have."""
    f, args, leaves = set_up(case)
    want = run(f, args, leaves)
    f, args, leaves = set_up(case)
    args = [t.detach().to("meta").requires_grad_(t.requires_grad) for t in args]
    f = f.to("meta") if case.is_module else f
    got = run(f, args, [t for t in args if t.requires_grad] + (list(f.parameters()) if case.is_module else []))
    assert [form(t) for t in got] == [form(t) for t in want] and all(t.device.type == "meta" for t in got)


class Flat(torch.nn.Module):
    """f as a module whose results are a tuple of tensors."""

    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, *args):
        return tensors(self.f(*args))


def exports_with_a_dynamic_batch(case):
    f, args, _ = set_up(case)
    batch = torch.export.Dim("batch", min=2)
    shapes = tuple({0: batch} if i in case.by_row else None for i in range(len(args)))
    exported = torch.export.export(Flat(f), tuple(args), dynamic_shapes=(shapes,))
    for size in (BATCH, 11):
        args = case.example(size)
        assert_alike(exported.module()(*args), tensors(f(*args)))


def traces_ahead_of_time(case):
    from functorch.compile import aot_function, aot_module, nop

    f, args, leaves = set_up(case)
    compiled = aot_module(Flat(f), nop) if case.is_module else aot_function(flat(f), nop)
    assert_alike(run(compiled, args, leaves), run(f, args, leaves))


def is_differentiated_by_torch_func(case):
    f, args, _ = set_up(case)
    places = tuple(i for i, t in enumerate(args) if t.is_floating_point())
    want = torch.autograd.grad(loss(f(*args)), floats(args))
    args = [t.detach() for t in args]
    got = torch.func.grad(lambda *args: loss(f(*args)), argnums=places)(*args)
    assert_alike(got, want)
    out, pull = torch.func.vjp(lambda *some: floats(tensors(f(*_replaced(args, places, some)))), *floats(args))
    assert_alike(pull([2 * t for t in out]), want)


def _replaced(args, places, some):
    args = list(args)
    for place, value in zip(places, some, strict=True):
        args[place] = value
    return args


def is_mapped_by_vmap(case):
    """Over rows, over everything, and for the gradient of each sample; each against a loop."""
    f, args, _ = set_up(case)
    samples = [case.example(BATCH) for _ in range(3)]
    places = [i for i, t in enumerate(args) if t.is_floating_point()]
    for mapped in (set(case.by_row), set(range(len(args)))):
        dims = tuple(0 if i in mapped else None for i in range(len(args)))
        stacked = [torch.stack([s[i] for s in samples]) if i in mapped else args[i] for i in range(len(args))]
        loop = [[s[i] if i in mapped else args[i] for i in range(len(args))] for s in samples]
        got = torch.func.vmap(flat(f), dims)(*stacked)
        assert_alike(got, [torch.stack(t) for t in zip(*(tensors(f(*a)) for a in loop), strict=True)])
        grad = torch.func.grad(lambda *a: loss(f(*a)), argnums=tuple(places))
        got = torch.func.vmap(grad, dims)(*(t.detach() for t in stacked))
        want = [grad(*(t.detach() for t in a)) for a in loop]
        assert_alike(got, [torch.stack(t) for t in zip(*want, strict=True)])


def has_batched_gradients(case):
    """autograd.grad(is_grads_batched=True), also behind jacobian(vectorize=True), against a loop."""
    f, args, leaves = set_up(case)
    out = [t for t in tensors(f(*args)) if t.requires_grad]
    several = [torch.stack([torch.randn_like(t) for _ in range(3)]) for t in out]
    got = torch.autograd.grad(out, leaves, several, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(out, leaves, some, retain_graph=True) for some in zip(*several, strict=True)]
    assert_alike(got, [torch.stack(t) for t in zip(*each, strict=True)])


def is_checkpointed(case):
    f, args, leaves = set_up(case)
    want = run(f, args, leaves)
    for reentrant in (False, True):
        out = torch.utils.checkpoint.checkpoint(flat(f), *args, use_reentrant=reentrant)
        loss(out).backward()
        assert_alike([*out, *(t.grad for t in leaves)], want)
        for t in leaves:
            t.grad = None


def follows_autocast(case):
    """The dtypes that are documented, gradients in float32, and the same on the reference backend, compiled or not."""
    f, args, leaves = set_up(case)

    def amp(*args):
        with torch.autocast("cpu", torch.bfloat16):
            return tensors(f(*args))

    got = run(amp, args, leaves)
    results = len(got) - len(leaves)
    assert {t.dtype for t in floats(got[:results])} == {case.autocast}
    assert {t.dtype for t in got[results:]} == {torch.float32}
    with dk.use_backend("reference"):
        want = run(amp, args, leaves)
    for mine, theirs in zip(got, want, strict=True):  # one rounding of a half in between may go the other way
        assert_close(mine, theirs, terms=64, dtype=torch.bfloat16)
    torch._dynamo.reset()
    assert_alike(run(torch.compile(amp, fullgraph=True, backend="aot_eager"), args, leaves), got)


class Recorded(TorchDispatchMode):
    """Keeps the calls of our ops, those of backward passes too."""

    def __init__(self):
        super().__init__()
        self.calls = {}

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op.namespace == "dendrite_kernels":
            self.calls[op] = args
        return op(*args, **(kwargs or {}))


def recorded(case):
    f, args, leaves = set_up(case)
    with Recorded() as mode:
        run(f, args, leaves)
    return mode.calls


def passes_opcheck(case):
    """All of torch.library.opcheck, for each op that the call and its backward pass come to."""
    for op, args in recorded(case).items():
        again = [t.detach().clone() if isinstance(t, torch.Tensor) else t for t in args]
        if not op._schema.name.endswith(("_backward", "_gather")):  # these refuse to be differentiated
            floats([t.requires_grad_() for t in again if isinstance(t, torch.Tensor) and t.is_floating_point()])
        assert set(torch.library.opcheck(op, again).values()) == {"SUCCESS"}


def is_named_in_a_profile(case):
    """Eager calls go round the dispatcher, which would have named them."""
    f, args, leaves = set_up(case)
    with torch.profiler.profile() as profile:
        run(f, args, leaves)
        with torch.no_grad():
            f(*args)
    names = {event.name for event in profile.events()}
    assert {op._schema.name for op in recorded(case)} <= names


def is_deterministic(case):
    """Under torch.use_deterministic_algorithms, which the fixture `poisoned` turns on: no error, and the same bits."""
    assert torch.are_deterministic_algorithms_enabled()
    f, args, leaves = set_up(case)
    for first, second in zip(run(f, args, leaves), run(f, args, leaves), strict=True):
        assert_same_bits(first, second)


def is_traced_by_torch_jit(case):
    """The trace calls the ops: results of another batch are those of that batch."""
    f, args, _ = set_up(case)
    traced = torch.jit.trace(Flat(f).eval(), tuple(t.detach() for t in args))
    args = case.example(11)
    assert_alike(traced(*args), tensors(f(*args)))


def is_compiled_by_torchscript(case):
    torch.jit.script(set_up(case)[0])


def has_forward_mode_derivatives(case):
    f, args, _ = set_up(case, dtype=torch.float64)
    with forward_ad.dual_level():  # a refusal comes here, before the numbers
        f(*(forward_ad.make_dual(t, torch.ones_like(t)) if t.is_floating_point() else t for t in args))
    assert torch.autograd.gradcheck(flat(f), args, check_forward_ad=True, check_backward_ad=False)


def has_second_derivatives(case):
    f, args, leaves = set_up(case, dtype=torch.float64)
    grads = torch.autograd.grad(loss(f(*args)), leaves, create_graph=True)
    loss(grads).backward()  # a refusal comes here, before the numbers
    assert torch.autograd.gradgradcheck(flat(f), args)


def is_outside_autograd(case):
    """rezero_ leaves derivatives of either mode as they are."""
    _, (weight, keep), _ = set_up(case)
    (grad,) = torch.autograd.grad(dk.rezero_(weight.clone(), keep).sum(), weight)
    assert (grad == 1).all()
    tangent = torch.randn_like(weight)
    with forward_ad.dual_level():
        primal, passed = forward_ad.unpack_dual(
            dk.rezero_(forward_ad.make_dual(weight.detach().clone(), tangent), keep)
        )
        assert torch.equal(primal, weight * keep)
        assert torch.equal(passed, tangent)


def is_captured_in_a_cuda_graph(case):
    f, args, leaves = set_up(case)
    moved = [t.detach().cuda().requires_grad_(t.requires_grad) for t in args]
    f = f.cuda() if case.is_module else f
    leaves = floats(moved) + (list(f.parameters()) if case.is_module else [])
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):  # compiles the kernels
        want = run(f, moved, leaves)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = run(f, moved, leaves)
    graph.replay()
    torch.cuda.synchronize()
    assert_alike([t.cpu() for t in got], [t.cpu() for t in want])


def is_called_functionally(case):
    """torch.func.functional_call with another module's parameters, and an ensemble of three by vmap."""
    f, args, _ = set_up(case)
    models = [f, *(copy.deepcopy(f) for _ in range(2))]
    with torch.no_grad():
        for model in models[1:]:
            for p in model.parameters():
                p.mul_(torch.randn(()))
    state = {**dict(models[1].named_parameters()), **dict(models[1].named_buffers())}
    assert_alike(tensors(torch.func.functional_call(f, state, tuple(args))), tensors(models[1](*args)))
    if list(f.parameters()):
        parameters, buffers = torch.func.stack_module_state(models)
        got = torch.func.vmap(lambda p, b: tensors(torch.func.functional_call(f, (p, b), tuple(args))))(
            parameters, buffers
        )
        want = zip(*(tensors(model(*args)) for model in models), strict=True)
        assert_alike(got, [torch.stack(t) for t in want])


def is_copied_and_saved(case):
    """copy.deepcopy, pickle, and a state_dict that torch.load reads with weights_only."""
    f, args, _ = set_up(case)
    file = io.BytesIO()
    torch.save(f.state_dict(), file)
    file.seek(0)
    fresh = case.make()
    fresh.load_state_dict({name: torch.full_like(t, 3) for name, t in f.state_dict().items()})
    fresh.load_state_dict(torch.load(file, weights_only=True))
    for twin in (copy.deepcopy(f), pickle.loads(pickle.dumps(f)), fresh):
        for mine, theirs in zip(tensors(twin(*args)), tensors(f(*args)), strict=True):
            assert_same_bits(mine, theirs)


COLUMNS = {
    "compile": compiles,
    "inductor": partial(compiles, backend="inductor"),
    "dynamic": compiles_once_for_all_batch_sizes,
    "export": exports_with_a_dynamic_batch,
    "AOT": traces_ahead_of_time,
    "func": is_differentiated_by_torch_func,
    "vmap": is_mapped_by_vmap,
    "batched grad": has_batched_gradients,
    "checkpoint": is_checkpointed,
    "autocast": follows_autocast,
    "opcheck": passes_opcheck,
    "meta": runs_on_meta,
    "profiler": is_named_in_a_profile,
    "deterministic": is_deterministic,
    "jit.trace": is_traced_by_torch_jit,
    "jvp": has_forward_mode_derivatives,
    "2nd order": has_second_derivatives,
    "CUDA graph": is_captured_in_a_cuda_graph,
}
OF_MODULES = {
    "functional_call": is_called_functionally,
    "copy, save": is_copied_and_saved,
    "jit.script": is_compiled_by_torchscript,
}
