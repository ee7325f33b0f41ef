"""Matrix products with k-sparse or mostly constant rows."""

from __future__ import annotations

import torch

from ... import known
from ...differentiation import differentiating
from .native import SUFFIX, _cpu, call

# Above this share of winners a dense product beats the k-sparse one.
DENSE_SHARE = 0.25

# With at least so many rows, and at most this share of entries unlike the commonest, products leave the commonest out.
MOSTLY_CONSTANT_ROWS, MOST_OTHERS = 16, 0.35

# So few samples are worth a second copy of a weight that stays as it is, stored by input: they read its rows in place.
FEW_SAMPLES = 16


def indices_error(position: int, indices, size: int) -> None:
    if position >= 0:
        raise IndexError(f"indices: expected values in [0, {size}), got {int(indices.reshape(-1)[position])}")


def densify(values, indices, z, gather, place=None):
    """z[b, indices[b, j]] = values[b, j] and zeros elsewhere, or (gather) the reverse; place: z's column of a unit."""
    bad = call("densify", z.dtype, values, indices, place, *indices.shape, z.shape[1], z, gather)
    indices_error(bad, indices, z.shape[1])


def matmul(y, values, indices, matrix, bias):
    """y = x @ matrix + bias for k-sparse x; matrix [I, O] with any strides."""
    bad = call(
        "ksparse_matmul", y.dtype, values, indices, *indices.shape, *matrix.shape, matrix, *matrix.stride(), bias, y
    )
    indices_error(bad, indices, matrix.shape[0])


class UnitLists:
    """The entries of indices [B, k] by unit (start, entry, sample: see csrc/cpu/kernels.h), and the units in use.

    used: their numbers, ascending. place [units]: the reverse.
    """

    def __init__(self, indices: torch.Tensor, units: int):
        self.shape = indices.shape
        sizes = (units + 1, indices.numel(), indices.numel(), units, units)
        memory = torch.empty(sum(sizes), dtype=torch.int32)
        self.start, self.entry, self.sample, used, self.place = memory.split(sizes)
        lists = (self.start, self.entry, self.sample, used, self.place)
        count = _cpu.unit_lists(indices, *indices.shape, units, *lists)
        indices_error(-1 - count, indices, units)
        self.used = used[:count]

    @classmethod
    def of(cls, indices: torch.Tensor, units: int) -> UnitLists:
        """Made once for a tensor, and kept with it: a step asks up to three times for the same winners."""
        kept = getattr(indices, "_unit_lists", None)
        version = None if indices.is_inference() else indices._version
        if kept is None or kept[0] != (version, units) or version is None:
            kept = (version, units), cls(indices.contiguous(), units)
            indices._unit_lists = kept
        return kept[1]

    def arguments(self):
        return self.start, self.entry, self.sample, *self.shape


def outer(values, indices, r, cols, weight, grad_weight, grad_values, keep_sums=False):
    """For y = x W^T with k-sparse x [B, I] and dy = r (its columns cols; None: all): dW [O, I] and dx's values.

    Either gradient may be None: not wanted. With keep_sums, returns dW where it can be other than zero: [units of x in
    use, columns of r rounded up to 16].
    """
    lists, sums = UnitLists.of(indices, weight.shape[1]), None
    if keep_sums:
        sums = r.new_empty(len(lists.used) + 1, -(-r.shape[1] // 16) * 16)  # rows are read in whole vectors: one more
    elif grad_weight is None and grad_values is None:
        return None
    strides = (0, 0) if grad_weight is None else grad_weight.T.stride()
    call(
        "ksparse_outer", r.dtype, values, *lists.arguments(), *weight.T.shape, r, r.shape[1], cols, weight,
        *weight.T.stride(), grad_weight, *strides, grad_values, *sums_arguments(sums, lists),
    )  # fmt: skip
    return sums


def sums_arguments(sums, lists):
    return (None, 0, None) if sums is None else (sums, sums.shape[1], lists.place)


def dense_matmul(x, weight):
    """x @ weight.T; where most entries of x equal one number (a background), only the others are multiplied.

    In training a few samples don't repay the packing. Else a few read a copy stored by input, once the weight is seen
    to stay as it is: to the bits of the calls before that.
    """
    few = len(x) <= FEW_SAMPLES and not differentiating.get()
    if x.dtype in SUFFIX and (few or len(x) >= MOSTLY_CONSTANT_ROWS):
        copied = known.of_frozen(weight, by_input, _cpu.isa()) if few else None
        y = mostly_constant_matmul(x, *(copied or (weight.T, None)), few)
        if y is not None:
            if few and copied is None:
                known.count_frozen(weight, by_input, _cpu.isa())
            return y
    return x @ weight.T


def mostly_constant_matmul(x, matrix, sums, few=False):
    """x @ matrix, or None where x or the matrix are not for this kernel; sums: the matrix' columns', where known.

    few: of few samples, whose bits are those of rows read in place.
    """
    (inputs, units), y = matrix.shape, x.new_empty(len(x), matrix.shape[1])
    done = call(
        "mostly_constant_matmul", x.dtype, x.contiguous(), len(x), inputs, units, matrix, *matrix.stride(),
        MOST_OTHERS, few, sums, y,
    )  # fmt: skip
    return y if done else None


def by_input(weight):
    """The weight stored by input, and its sums over the inputs with the bits that the kernel finds afresh."""
    matrix = weight.detach().T.contiguous()
    sums = mostly_constant_matmul(matrix.new_ones(1, len(matrix)), matrix, None)
    return None if sums is None else (matrix, sums)


def gradients_of_dense_x(grad_y, indices, x, weight, grad_x, grad_weight):
    """dx = dy W and dW = dy^T x, where dy is k-sparse: only the winners' rows of W are read and of dW nonzero."""
    if indices.shape[1] > DENSE_SHARE * len(weight):
        dense = torch.empty(len(x), len(weight), dtype=x.dtype)
        densify(grad_y, indices.contiguous(), dense, gather=False)
        if grad_x is not None:
            torch.mm(dense, weight, out=grad_x)
        if grad_weight is not None:
            grad_weight.copy_(dense.T @ x)
        return
    if grad_x is not None:
        matmul(grad_x, grad_y, indices.contiguous(), weight, None)
    transposed = None if grad_weight is None else grad_weight.T
    outer(grad_y, indices, x, None, weight.T, transposed, None)


def compacted(values, indices, size):
    """The columns in use, ascending, and the k-sparse rows written densely over just those."""
    lists = UnitLists.of(indices, size)
    compact = torch.empty(len(values), len(lists.used), dtype=values.dtype)
    densify(values, indices.contiguous(), compact, gather=False, place=lists.place)
    return lists.used, compact
