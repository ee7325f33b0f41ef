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

from .. import backend
from ..backends.cpu import gradient_like

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
    """Registers the op `dendrite_kernels::name` and returns it.

    allocate(*args): the outputs, uninitialised (also the fake). launch(module, outputs, *args): runs the backend.
    save(ctx, args, outputs) and backward(ctx, *grads): the derivative; without them, a derivative raises.
    """
    _library.define(name + schema)
    op = getattr(getattr(torch.ops, NAMESPACE), name).default

    def kernel(*args):
        outputs, device = allocate(*args), _device(args)
        # autocast would round products inside an op whose dtypes are part of its contract
        with torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else _nothing:
            launch(backend.choose(device), outputs, *args)
        return outputs

    _library.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(op, allocate, lib=_library)
    _library.impl(name, _autograd_kernel(op, save, backward), "Autograd", with_keyset=True)
    return op


def _device(args) -> torch.device:
    return next(a.device for a in args if isinstance(a, Tensor))


def _autograd_kernel(op, save, backward):
    def below(keyset, args):
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & torch._C._after_autograd_keyset, *args)

    class Derivative(torch.autograd.Function):
        @staticmethod
        def forward(ctx, keyset, *args):
            outputs = below(keyset, args)
            ctx.set_materialize_grads(False)
            if save is not None:
                save(ctx, args, outputs)
            return outputs

        @staticmethod
        def backward(ctx, *grads):
            if backward is None:
                raise RuntimeError(f"{op}: second derivatives are not implemented; detach, or use reference.py")
            if all(g is None for g in grads):
                return (None,) * (1 + len(op._schema.arguments))
            return (None, *backward(ctx, *grads))

    Derivative.__name__ = op._schema.name.split("::")[1]

    def kernel(keyset, *args):
        if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args):
            return Derivative.apply(keyset, *args)
        if torch.autograd.forward_ad._current_level >= 0:  # a tangent passed over would be a wrong zero
            raise RuntimeError(f"{op}: forward-mode derivatives are not implemented; use reference.py")
        return below(keyset, args)

    return kernel


def wanted(needs: list[bool], like: list[Tensor | None], some: Tensor) -> list[Tensor]:
    """Uninitialised gradients of the tensors that need one; an empty tensor like `some` stands for each other one."""
    return [_empty_like(t) if need else some.new_empty(0) for need, t in zip(needs, like, strict=True)]


def _empty_like(t: Tensor) -> Tensor:
    return gradient_like(t) if t.device.type == "cpu" else torch.empty_like(t)


def given(needs: list[bool], tensors) -> list[Tensor | None]:
    """The gradients that were asked for, and None for the others."""
    return [t if need else None for need, t in zip(needs, tensors, strict=True)]
