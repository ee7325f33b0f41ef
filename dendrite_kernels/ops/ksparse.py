"""KSparse: k values a row with their columns, as k winners leave them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from . import _checks as check
from ._register import define


class KSparse(NamedTuple):
    """A matrix [B, size] with k entries a row; the gradient flows through values only.

    values: [B, k]. indices: [B, k], int32, ascending in each row. size: the number of columns.
    """

    values: Tensor
    indices: Tensor
    size: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape[0], self.size

    def __repr__(self) -> str:
        v, gradient = self.values, ", requires_grad=True" if self.values.requires_grad else ""
        return f"KSparse(shape={tuple(self.shape)}, k={v.shape[1]}, dtype={v.dtype}, device={v.device}{gradient})"

    def to_dense(self) -> Tensor:
        """[B, size], zero where there is no entry.

        Equivalent to: torch.zeros(B, size).scatter_add(1, indices.long(), values)
        """
        check.ksparse("self", *self)
        return _to_dense(self.values, self.indices, self.size)

    def detach(self) -> KSparse:
        return KSparse(self.values.detach(), self.indices, self.size)


def _save(ctx, args, outputs):
    ctx.save_for_backward(args[1])
    ctx.size = args[2]


def _backward(ctx, grad):
    return _gather(grad, *ctx.saved_tensors), None, None


def _allocate(values, indices, size):
    check.sizes("self", values.numel())
    return values.new_empty(values.shape[0], size)


_gather = define(
    "ksparse_gather",
    "(Tensor dense, Tensor indices) -> Tensor",
    lambda dense, indices: dense.new_empty(indices.shape),
    lambda module, out, *args: module.ksparse_gather(out, *args),
    by_row=(0, 1),
)

_to_dense = define(
    "ksparse_to_dense",
    "(Tensor values, Tensor indices, SymInt size) -> Tensor",
    _allocate,
    lambda module, out, values, indices, size: module.ksparse_to_dense(out, values, indices),
    save=_save,
    backward=_backward,
    by_row=(0, 1),
)
