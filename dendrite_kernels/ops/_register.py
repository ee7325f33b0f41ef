"""Registration with torch.library: one `define` for an op with its fake, kernel and derivative.

The kernel allocates the outputs (the fake does it, so both agree) and hands them to the backend's function of the
same name. The derivative is an autograd.Function under the Autograd key, which torch.compile and opcheck accept and
which costs less a call than torch.library.custom_op. Backward ops raise when differentiated again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor
from torch._C import _len_torch_dispatch_stack
from torch._C._functorch import peek_interpreter_stack
from torch.nn import Parameter

from .. import backend
from ..backends.cpu import gradient_like
from ..differentiation import differentiating

NAMESPACE = "dendrite_kernels"
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
):
    """Registers the op `dendrite_kernels::name` and returns it as a function.

    allocate(*args): the outputs, uninitialised (also the fake). launch(module, outputs, *args): runs the backend.
    save(ctx, args, outputs) and backward(ctx, *grads): the derivative; without them, a derivative raises.
    """
    _library.define(name + schema)
    op = getattr(getattr(torch.ops, NAMESPACE), name).default

    def kernel(*args):
        outputs, device = allocate(*args), _device(args)
        # autocast would round products inside an op whose dtypes are part of its contract
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
    return _eager_first(op, kernel, derivative)


def _eager_first(op, kernel, derivative):
    """The op as a function that goes round the dispatcher where nothing but autograd could want to see the call.

    It takes 20 us off each call and as much off its backward, of which a training step has a dozen.
    """
    # what Function.apply comes to where no functorch transform is active, which `call` has seen to
    apply = super(torch.autograd.Function, derivative).apply

    def call(*args):
        if not only_autograd_sees(args):
            return op(*args)
        if _wants_derivative(args):
            return apply(kernel, *args)
        if torch.autograd.forward_ad._current_level >= 0:
            return op(*args)
        return kernel(*args)

    return call


def only_autograd_sees(args) -> bool:
    """Whether no subclass, mode, functorch transform or compiler could want to see a call with these arguments."""
    for a in args:
        if isinstance(a, Tensor) and type(a) is not Tensor and type(a) is not Parameter:
            return False
    return not (torch.compiler.is_compiling() or _len_torch_dispatch_stack() or peek_interpreter_stack() is not None)


def _wants_derivative(args) -> bool:
    return torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args)


def _device(args) -> torch.device:
    return next(a.device for a in args if isinstance(a, Tensor))


def _derivative(op, save, backward):
    """The autograd.Function of (run, *args), where run(*args) computes the op without a derivative."""
    arguments = len(op._schema.arguments)

    class Derivative(torch.autograd.Function):
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
            return (None, *backward(ctx, *grads))

    Derivative.__name__ = op._schema.name.split("::")[1]
    return Derivative


def _autograd_kernel(op, derivative):
    def kernel(keyset, *args):
        def below(*args):
            with torch._C._AutoDispatchBelowAutograd():
                return op.redispatch(keyset & torch._C._after_autograd_keyset, *args)

        if _wants_derivative(args):
            return derivative.apply(below, *args)
        if torch.autograd.forward_ad._current_level >= 0:  # a tangent passed over would be a wrong zero
            raise RuntimeError(f"{op}: forward-mode derivatives are not implemented; use reference.py")
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
