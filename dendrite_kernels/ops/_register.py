"""Registration with torch.library: one `define` for an op with its fake, kernel and derivative.

The kernel allocates the outputs (the fake does it, so both agree) and hands them to the backend's function of the
same name. The derivative is an autograd.Function under the Autograd key, which torch.compile and opcheck accept and
which costs less a call than torch.library.custom_op. Backward ops raise when differentiated again. What autocast and
vmap do to an op is in _autocast.py and _vmap.py.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace

import torch
from torch import Tensor
from torch._C import _get_tracing_state, _is_any_autocast_enabled, _len_torch_dispatch_stack
from torch._C._functorch import is_legacy_batchedtensor, peek_interpreter_stack
from torch._functorch.utils import enable_single_level_autograd_function, unwrap_dead_wrappers
from torch.autograd import profiler
from torch.nn import Parameter

from .. import backend
from ..backends.cpu import gradient_like
from ..differentiation import differentiating
from . import _autocast, _vmap

NAMESPACE = "dendrite_kernels"
_NO_FORWARD_MODE = "{}: forward-mode derivatives are not implemented; use reference.py, or reverse mode"
_PLAIN = {Tensor, Parameter, type(None), int, str, bool}  # most arguments: the quick way to know that it's no subclass
_nothing = nullcontext()
_library = torch.library.Library(NAMESPACE, "DEF")


def define(
    name: str,
    schema: str,
    allocate: Callable,
    launch: Callable,
    *,
    save: Callable | None = None,
    backward: Callable | None = None,
    autocast: str | Callable | None = None,
    by_row: tuple[int, ...] = (),
    gate: tuple[int, int] | None = None,
):
    """Registers the op `dendrite_kernels::name` and returns it as a function.

    allocate(*args): the outputs, uninitialised (also the fake). launch(module, outputs, *args): runs the backend.
    save(ctx, args, outputs) and backward(ctx, *grads): the derivative; without them, a derivative raises.
    autocast: "half", "float32" or a function in the op's place (_autocast.py). by_row, gate: as _vmap.py says.
    """
    _library.define(name + schema)
    op = getattr(getattr(torch.ops, NAMESPACE), name).default

    def kernel(*args):
        outputs, device = allocate(*args), _device(args)
        if device.type == "meta":
            return outputs
        # a backward pass may run under autocast, which has no rule for it and would round the products inside
        with (
            torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else _nothing,
            torch.cuda.device(device) if device.type == "cuda" else _nothing,  # kernels start on the current one
        ):
            launch(backend.choose(device), outputs, *args)
        return outputs

    derivative = _derivative(op, save, backward)
    _library.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(op, allocate, lib=_library)
    _library.impl(name, _autograd_kernel(op, derivative), "Autograd", with_keyset=True)
    if autocast is not None:
        _autocast.register(_library, name, op, autocast)
    _vmap.register(_library, op, by_row, gate)
    return _eager_first(op, kernel, derivative)


def _eager_first(op, kernel, derivative):
    """The op as a function that goes round the dispatcher where nothing but autograd could want to see the call.

    It takes 20 us off each call and as much off its backward, of which a training step has a dozen.
    """
    apply, name = _apply(derivative), op._schema.name

    def call(*args):
        if not only_autograd_sees(args):
            return op(*args)
        if profiler._is_profiler_enabled:  # the dispatcher would have named the call
            with profiler.record_function(name):
                return straight(*args)
        return straight(*args)

    def straight(*args):
        if _wants_derivative(args):
            return apply(kernel, *args)
        if torch.autograd.forward_ad._current_level >= 0:
            return op(*args)
        return kernel(*args)

    return call


def _apply(derivative):
    """Function.apply without its rules for functorch, which wants another form of Function.

    Here functorch has had its say: `call` goes to the dispatcher where a transform is active, and that to the Autograd
    kernel, one transform at a time.
    """
    return super(torch.autograd.Function, derivative).apply


def only_autograd_sees(args) -> bool:
    """Whether no subclass, mode, autocast, functorch transform, compiler or tracer wants to see a call of these."""
    if (
        torch.compiler.is_compiling()
        or _len_torch_dispatch_stack()
        or peek_interpreter_stack() is not None
        or _is_any_autocast_enabled()
        or _get_tracing_state() is not None
        or is_legacy_batchedtensor(args[0])  # a gradient of autograd.grad(is_grads_batched=True), which comes first
    ):
        return False
    for a in args:  # noqa: SIM110 - a dozen a step: kept quick
        if type(a) not in _PLAIN and isinstance(a, Tensor):
            return False
    return True


def _wants_derivative(args) -> bool:
    return torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args)


def _device(args) -> torch.device:
    return next(a.device for a in args if isinstance(a, Tensor))


def _derivative(op, save, backward):
    """The autograd.Function of (run, *args), where run(*args) computes the op without a derivative."""
    arguments = len(op._schema.arguments)

    class Derivative:
        @staticmethod
        def forward(ctx, run, *args):
            token = differentiating.set(True)
            try:
                outputs = run(*args)
            finally:
                differentiating.reset(token)
            ctx.set_materialize_grads(False)
            if save is not None:
                save(ctx, args, outputs)
            return outputs

        @staticmethod
        def backward(ctx, *grads):
            if backward is None:
                raise RuntimeError(f"{op}: second derivatives are not implemented; detach, or use reference.py")
            if all(g is None for g in grads):
                return (None,) * (1 + arguments)
            found = backward(ctx, *grads)
            assert isinstance(found, tuple) and len(found) == arguments, f"{op}: a gradient for each argument"
            return (None, *found)

        @staticmethod
        def jvp(ctx, *tangents):
            raise RuntimeError(_NO_FORWARD_MODE.format(op))

    # named when it is made: autograd reads the name then
    return type(op._schema.name.split("::")[1], (Derivative, torch.autograd.Function), {})


def _under_transform(derivative):
    """The Function for use inside a functorch transform, whose wrappers may be dead when vjp's function is called."""

    class Derivative:
        @staticmethod
        def backward(ctx, *grads):
            saved = unwrap_dead_wrappers(ctx.saved_tensors)
            return derivative.backward(SimpleNamespace(**vars(ctx), saved_tensors=saved), *unwrap_dead_wrappers(grads))

    return type(derivative.__name__, (Derivative, derivative), {})


def _autograd_kernel(op, derivative):
    apply, apply_transformed = _apply(derivative), _apply(_under_transform(derivative))

    def kernel(keyset, *args):
        def below(*args):
            with torch._C._AutoDispatchBelowAutograd():
                return op.redispatch(keyset & torch._C._after_autograd_keyset, *args)

        def next_transform(*args):
            with torch.enable_grad():  # which a Function's forward turned off, also for transforms further out
                return below(*args)

        if _wants_derivative(args):
            if peek_interpreter_stack() is None:
                return apply(below, *args)
            with enable_single_level_autograd_function():
                return apply_transformed(next_transform, *args)
        if torch.autograd.forward_ad._current_level >= 0:  # a tangent passed over would be a wrong zero
            raise RuntimeError(_NO_FORWARD_MODE.format(op))
        return below(*args)

    return kernel


def wanted(needs: list[bool], like: list[Tensor | None], some: Tensor) -> list[Tensor]:
    """Uninitialised gradients of the tensors that need one; an empty tensor like `some` stands for each other one."""
    return [_empty_like(t) if need else some.new_empty(0) for need, t in zip(needs, like, strict=True)]


def _empty_like(t: Tensor) -> Tensor:
    return gradient_like(t) if t.device.type == "cpu" else torch.empty_like(t)


def given(needs: list[bool], tensors) -> list[Tensor | None]:
    """The gradients that were asked for, and None for the others."""
    return [t if need else None for need, t in zip(needs, tensors, strict=True)]
