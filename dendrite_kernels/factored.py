"""Gradients kept as their factors, for weights that dendrite_kernels.optim.Adam owns.

The gradient of a k-sparse layer is an outer product over a few winners, and that of its segments touches one row a
unit: written out they are hundreds of times larger than their factors. An owned parameter's `.grad` is a FactoredGrad;
all others get ordinary dense gradients. Eager only: compiled code gives dense gradients.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor

from . import backend
from .identity import ByIdentity
from .ops.ksparse import KSparse

_owners = ByIdentity()  # parameter -> weak reference to its optimizer


def claim(parameters, optimizer) -> None:
    """Makes the optimizer the owner of these parameters, where they lie now; an older owner has lost them."""
    reference = weakref.ref(optimizer)
    for parameter in parameters:
        _owners[parameter] = reference, parameter.device


def owner(parameter: Tensor):
    """The optimizer that takes this parameter's gradient as factors, or None."""
    claimed = _owners.get(parameter)
    return None if claimed is None else claimed[0]()


def wanted(parameter: Tensor) -> bool:
    """Whether a backward pass now being prepared should leave factors for this parameter.

    A parameter that was moved to another device gets dense gradients: its optimizer's moments stayed behind.
    """
    if not len(_owners) or torch.compiler.is_compiling():
        return False
    claimed = _owners.get(parameter)
    return claimed is not None and claimed[1] == parameter.device and claimed[0]() is not None


def leaves(ctx, grad: Tensor) -> bool:
    """Whether this backward pass leaves factors: autograd.grad(is_grads_batched=True) stacks dense gradients only."""
    return ctx.factored and not is_legacy_batchedtensor(grad)


class _Factor:
    """What remembers in which version its tensors were: they are the user's own (x, the context), not copies."""

    def __post_init__(self):
        object.__setattr__(self, "_versions", self._now())

    def _now(self) -> list[int | None]:
        return [None if t.is_inference() else t._version for t in self._tensors()]

    def check_unwritten(self) -> None:
        """Raises RuntimeError where one was written to: the gradient that it stood for is gone."""
        if self._versions != self._now():
            raise RuntimeError(_REWRITTEN)


@dataclass(frozen=True)
class OuterFactor(_Factor):
    """The gradient of a weight [O, I]: sparse^T dense (by_input: its transpose).

    sparse: KSparse, over the units whose rows of the weight move. other: a tensor [B, n] or KSparse, the other side.
    sums: their product where it can be other than zero, as the backend made it in passing; None: not made.
    """

    sparse: KSparse
    other: Tensor | KSparse
    by_input: bool
    sums: Tensor | None = None

    def _tensors(self) -> list[Tensor]:
        others = self.other[:2] if isinstance(self.other, KSparse) else [self.other]
        return [self.sparse.values, self.sparse.indices, *others]

    def by_row(self, t: Tensor | None) -> Tensor | None:
        """What is laid out as the weight, with the rows that `sparse` names."""
        return t.T if t is not None and self.by_input else t

    def to_dense(self, like: Tensor) -> Tensor:
        out = torch.empty_like(like)
        backend.choose(like.device).outer(self.by_row(out), self.sparse, self.other)
        return out

    def joined(self, other: OuterFactor) -> OuterFactor | None:
        """Both as one, where they are of one form; else None."""
        if self.by_input != other.by_input or self.sparse.values.shape[1:] != other.sparse.values.shape[1:]:
            return None
        rights = (self.other, other.other)
        if all(isinstance(r, KSparse) for r in rights):
            if rights[0].values.shape[1:] != rights[1].values.shape[1:]:
                return None
            right = _cat(*rights)
        elif not any(isinstance(r, KSparse) for r in rights):
            right = torch.cat(rights)
        else:
            return None
        return OuterFactor(_cat(self.sparse, other.sparse), right, self.by_input)


def _cat(a: KSparse, b: KSparse) -> KSparse:
    return KSparse(torch.cat([a.values, b.values]), torch.cat([a.indices, b.indices]), a.size)


@dataclass(frozen=True)
class SegmentFactor(_Factor):
    """The gradient of segments [O, S, C]: grad [G, O] of the winning activations, winner [G, O], context [G, C]."""

    grad: Tensor
    winner: Tensor
    context: Tensor

    def _tensors(self) -> list[Tensor]:
        return [self.grad, self.winner, self.context]

    def to_dense(self, like: Tensor) -> Tensor:
        out = torch.empty_like(like, memory_format=torch.contiguous_format)
        args = (self.grad, self.context, like.detach(), self.grad, self.winner, "none")
        with torch.cuda.device_of(like):
            backend.choose(like.device).segment_gate_backward((None, out, None), *args)
        return out

    def joined(self, other: SegmentFactor) -> SegmentFactor | None:
        """Both as one: the contexts of one backward pass after those of the other, or one context's gradients added."""
        alone = len(self.grad) == len(other.grad) == 1 and self.grad.device.type == "cpu"  # elsewhere a look would wait
        same = alone and torch.equal(self.context, other.context)
        if same and torch.equal(self.winner, other.winner):
            return SegmentFactor(self.grad + other.grad, self.winner, self.context)
        pairs = ((self.grad, other.grad), (self.winner, other.winner), (self.context, other.context))
        return SegmentFactor(*(torch.cat(pair) for pair in pairs))


class FactoredGrad(torch.Tensor):
    """A gradient of a parameter as a list of factors, and a dense part once one was added.

    It takes another backward pass (factored or dense), zero_grad and `to_dense()`. Everything else that reads a
    gradient raises: it would have to write out what the factors stand for.
    """

    @staticmethod
    def __new__(cls, like: Tensor, factors=()):
        return torch.Tensor._make_wrapper_subclass(
            cls, like.shape, strides=like.stride(), dtype=like.dtype, device=like.device
        )

    def __init__(self, like: Tensor, factors: Iterable[OuterFactor | SegmentFactor] = ()):
        self.like, self.factors, self.dense = like.detach(), list(factors), None

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __repr__(self):
        parts = [type(factor).__name__ for factor in self.factors] + ["a dense part"] * (self.dense is not None)
        return f"FactoredGrad(shape={tuple(self.shape)}, dtype={self.dtype}, made of {' + '.join(parts) or 'zeros'})"

    def to_dense(self) -> Tensor:
        """The gradient as an ordinary tensor, laid out as the parameter."""
        for factor in self.factors:
            factor.check_unwritten()
        first, *others = [factor.to_dense(self.like) for factor in self.factors] or [torch.zeros_like(self.like)]
        for other in others:
            first += other
        if first.stride() != self.like.stride():  # a kernel's own layout
            first = torch.empty_like(self.like).copy_(first)
        return first if self.dense is None else first + self.dense

    def one_factor(self) -> OuterFactor | SegmentFactor | None:
        """The single factor that stands for all of them, or None where there is a dense part or they do not join."""
        for factor in self.factors:
            factor.check_unwritten()
        if self.dense is not None or not self.factors:
            return None
        first, *rest = self.factors
        for factor in rest:
            first = first.joined(factor) if type(first) is type(factor) else None
            if first is None:
                return None
        return first

    def copy(self) -> FactoredGrad:
        out = FactoredGrad(self.like, self.factors)
        out.dense = self.dense
        return out

    def add_to(self, other: Tensor) -> FactoredGrad:
        """Adds a gradient, factored or dense, to this one."""
        if isinstance(other, FactoredGrad):
            self.factors = self.factors + other.factors
            other = other.dense
        if other is not None:
            self.dense = other.detach().clone() if self.dense is None else self.dense + other
        return self

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        handler = _HANDLERS.get(function)
        if handler is None or kwargs:
            raise RuntimeError(_REFUSAL.format(function))
        return handler(*args)

    def __deepcopy__(self, memo):
        raise RuntimeError(_REFUSAL.format("copy.deepcopy"))

    def __reduce_ex__(self, protocol):
        raise RuntimeError(_REFUSAL.format("pickle"))


_REWRITTEN = (
    "a tensor of the forward pass (x, activations or a context) was written to between backward and step, while a "
    "gradient for dendrite_kernels.optim.Adam still reads it: step first, or give each pass a tensor of its own"
)
_REFUSAL = (
    "{} needs a dense gradient, and this parameter's is kept as factors for dendrite_kernels.optim.Adam. "
    "Call zero_grad() first, or read grad.to_dense(); for another optimizer, gradient clipping or GradScaler, drop "
    "that Adam (or do not give it this module): the gradients are then ordinary tensors. Instead of "
    "DistributedDataParallel give it the bare model, as dendrite_kernels.optim.Adam(model, process_group=True)"
)


def _add(a, b, alpha=1):
    if alpha != 1:
        raise RuntimeError(_REFUSAL.format("add with alpha"))
    if isinstance(a, FactoredGrad):
        return a.copy().add_to(b)
    return a + b.to_dense()


def _add_in_place(a, b, alpha=1):
    if alpha != 1:
        raise RuntimeError(_REFUSAL.format("add_ with alpha"))
    return a.add_to(b) if isinstance(a, FactoredGrad) else a.add_(b.to_dense())


def _zero(grad):
    grad.factors, grad.dense = [], None
    return grad


_aten = torch.ops.aten
_HANDLERS = {
    _aten.detach.default: FactoredGrad.copy,
    _aten.alias.default: FactoredGrad.copy,
    _aten.clone.default: FactoredGrad.copy,
    _aten.detach_.default: lambda grad: grad,
    _aten.zero_.default: _zero,
    _aten.add.Tensor: _add,
    _aten.add_.Tensor: _add_in_place,
}
