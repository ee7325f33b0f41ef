"""Launchers of the native CPU kernels (csrc/cpu).

float32 and float64 run as they are; bfloat16 and float16 are widened to float32 here and rounded back, which is
the contract's arithmetic at a copy's cost. Dense matrix products are torch's.
"""

from __future__ import annotations

import torch

from .. import known, reference
from ..reference import check_range, combine_gate, compute_dtype

try:
    from .. import _cpu

    _import_error = None
except ImportError as error:  # built without a compiler: the report and why_not say so
    _cpu = None
    _import_error = str(error)

_SUFFIX = {torch.float32: "_f32", torch.float64: "_f64"}

# Above this share of winners a dense product beats the k-sparse one.
DENSE_SHARE = 0.25

# With at least so many rows, and at most this share of entries unlike the commonest, products leave the commonest out.
MOSTLY_CONSTANT_ROWS, MOST_OTHERS = 32, 0.35

# So few samples are worth a second copy of a weight that stays as it is, stored by input (csrc/cpu/ksparse.h).
FEW_SAMPLES = 4


def why_not(device: torch.device) -> str | None:
    if _cpu is None:
        return (
            f"dendrite_kernels._cpu is not built ({_import_error}); "
            "install a C++ compiler and the Python headers, then reinstall with `pip install -v .`"
        )
    return None if device.type == "cpu" else "its kernels run on CPU tensors only"


def _call(name: str, dtype: torch.dtype, *args):
    """Calls the kernel for a dtype, with as many threads as torch uses."""
    return getattr(_cpu, name + _SUFFIX[dtype])(*args, torch.get_num_threads())


# Smaller tensors come from torch's allocator, which reuses them anyway.
POOLED_BYTES = 1 << 20


def gradient_like(t: torch.Tensor) -> torch.Tensor:
    """Uninitialised memory like t's (shape, dtype, strides where dense), from the pool if it is large."""
    plain = type(t) in (torch.Tensor, torch.nn.Parameter) and not t.is_meta  # no fake of torch.compile's
    if _cpu is None or not plain or t.numel() * t.element_size() < POOLED_BYTES:
        return torch.empty_like(t)
    bytes_ = t.numel() * t.element_size()
    flat = torch.frombuffer(_cpu.Block(bytes_), dtype=t.dtype)
    # empty_like's strides, worked out on a tensor without memory
    strides = torch.empty_like(t, device="meta").stride()
    return flat.as_strided(t.shape, strides)


def release_memory() -> None:
    """Gives the memory that the pool keeps for the next gradients back to the system."""
    if _cpu is not None:
        _cpu.pool_release()


def _wide(t: torch.Tensor | None) -> torch.Tensor | None:
    """Contiguous, in the compute dtype."""
    if t is None or (t.dtype in _SUFFIX and t.is_contiguous()):
        return t
    return t.to(compute_dtype(t.dtype)).contiguous()


def _index(t: torch.Tensor | None, size: int, name: str) -> torch.Tensor | None:
    """An int32 contiguous index whose entries are known to lie in [0, size)."""
    if t is None:
        return None
    check_range(t, size, name)
    return t.to(torch.int32).contiguous()


class _Outputs:
    """Buffers that the kernels can write: the outputs themselves where possible, else stand-ins copied back."""

    def __init__(self, outputs, wide: torch.dtype, any_strides: bool = False):
        self.pairs, self.buffers = [], []
        for out in outputs:
            buffer = out
            if out is not None:
                dtype = wide if out.is_floating_point() else out.dtype
                if out.dtype != dtype or not (any_strides or out.is_contiguous()):
                    buffer = torch.empty_like(out, dtype=dtype) if any_strides else torch.empty(out.shape, dtype=dtype)
                    self.pairs.append((out, buffer))
            self.buffers.append(buffer)

    def __enter__(self):
        return self.buffers

    def __exit__(self, failed, *_):
        if not failed:
            for out, buffer in self.pairs:
                out.copy_(buffer)


def _group_count(gate) -> int:
    return 0 if gate is None else gate.shape[0]


# ---- segments -------------------------------------------------------------------------------------------------------


def segment_gate(out, context, segments, bias, select, activation):
    options = (select, activation, _cpu.isa())
    ready = known.gates(context, segments, bias, *options)
    if ready is not None and not known.checking():
        for to, value in zip(out, ready, strict=True):
            to.copy_(value)
        return
    kept = kept_activations(context, segments)
    if kept is not None and known.checking():
        known.check_same(kept, _activations(context, segments), "the activations that were kept")
    fresh = None
    if kept is None and known.followed(context, segments):
        fresh = segments.new_empty(segments.shape[:2])
    _segment_gate(out, context, segments, bias, select, activation, kept, fresh)
    if ready is not None:
        known.check_same(ready[0], out[0], "the gates that were kept")
    if fresh is not None:
        known.keep_activations(fresh, context, segments, _cpu.isa())
    elif kept is None:
        known.keep_gates(*out, context, segments, bias, *options)


def known_gate(context, segments, bias, select, activation):
    """The gate that is kept of these arguments, not to be written to; None: not known."""
    ready = None if known.checking() else known.gates(context, segments, bias, select, activation, _cpu.isa())
    return None if ready is None else ready[0]


def _activations(context, segments):
    """The activations [O, S] of the one context, computed afresh."""
    gate, fresh = segments.new_empty(1, len(segments)), segments.new_empty(segments.shape[:2])
    _segment_gate((gate, gate.int()), context, segments, None, "max", "none", None, fresh)
    return fresh


def _segment_gate(out, context, segments, bias, select, activation, kept, fresh):
    """kept: activations [O, S] of the one context, known already; fresh: takes them. Either may be None."""
    wide, shape = compute_dtype(segments.dtype), (len(context), *segments.shape)
    with _Outputs(out, wide) as (gate, winner):
        context, segments, bias = _wide(context), None if kept is not None else _wide(segments), _wide(bias)
        flags = (select == "abs_max", activation == "sigmoid")
        _call("segment_gate", wide, context, segments, bias, *shape, *flags, gate, winner, kept, fresh)


def segment_gate_backward(out, grad_gate, context, segments, gate, winner, activation):
    wide = compute_dtype(segments.dtype)
    units, per_unit, width = segments.shape
    with _Outputs(out, wide) as grads:
        read_segments = out[0] is not None  # only the context's gradient reads them
        _call(
            "segment_gate_backward",
            wide,
            _wide(grad_gate),
            _wide(context),
            _wide(segments) if read_segments else None,
            gate.contiguous(),
            winner.contiguous(),
            len(context),
            units,
            per_unit,
            width,
            activation == "sigmoid",
            *grads,
        )


# ---- gate and k winners ---------------------------------------------------------------------------------------------


def _kwinners(y, gate, bias, context_index, k, combine, boost, relu, keep, z, kept, values, pre, indices):
    """The row kernel. Halves are combined and rounded by torch first, so that ranks are those of rounded values."""
    wide = compute_dtype(y.dtype)
    context_index = _index(context_index, _group_count(gate), "context_index")
    rows, gate, bias = _wide(y), _wide(gate), _wide(bias)
    if y.dtype != wide:
        if pre is not None:
            unrounded = rows if bias is None else rows + bias
        rows, gate, bias, context_index = _wide(combine_gate(y, gate, bias, context_index, combine)), None, None, None
    _call(
        "kwinners", wide, rows, bias, gate, _wide(boost), context_index, _group_count(gate), combine == "add",
        *y.shape, min(k, y.shape[1]), relu, keep, z, kept, values, pre, indices,
    )  # fmt: skip
    if y.dtype != wide and pre is not None:
        pre.copy_(unrounded.gather(1, indices.long()))


def gated_kwinners(out, y, gate, bias, context_index, k, combine, boost, relu, ties):
    with _Outputs(out, compute_dtype(y.dtype)) as (z, kept):
        _kwinners(
            y, gate, bias, context_index, k, combine, boost, relu, ties == "keep", z, kept, None, None, None
        )  # fmt: skip


def gated_kwinners_sparse(out, y, gate, bias, context_index, k, combine, boost, relu):
    with _Outputs(out, compute_dtype(y.dtype)) as (values, indices, pre):
        _kwinners(
            y, gate, bias, context_index, k, combine, boost, relu, False, None, None, values, pre, indices
        )  # fmt: skip


def gated_kwinners_backward(out, grad_z, kept, y, gate, bias, context_index, combine):
    wide = compute_dtype(y.dtype)
    with _Outputs(out, wide) as grads:
        index = _index(context_index, _group_count(gate), "context_index")
        _call(
            "kwinners_backward", wide, _wide(grad_z), _wide(y), kept.contiguous(), _wide(bias), _wide(gate), index,
            _group_count(gate), combine == "add", *y.shape, *grads,
        )  # fmt: skip


def _winners_backward(grads, grad_values, values, indices, pre, gate, context_index, units, combine, relu):
    """grads: grad of y at the winners [B, k], of gate and of bias, all wide and contiguous."""
    index = _index(context_index, _group_count(gate), "context_index")
    bad = _call(
        "winners_backward", pre.dtype, _wide(grad_values), _wide(values), pre.contiguous(), indices.contiguous(),
        _wide(gate), index, _group_count(gate), combine == "add", len(values), units, values.shape[1], relu, *grads,
    )  # fmt: skip
    _indices_error(bad, indices, units)


def gated_kwinners_sparse_backward(out, grad_values, values, indices, pre, gate, context_index, units, combine, relu):
    indices = indices.contiguous()
    with _Outputs(out, pre.dtype) as (grad_y, grad_gate, grad_bias):
        grad_winners = torch.empty(pre.shape, dtype=pre.dtype)
        _winners_backward(
            (grad_winners, grad_gate, grad_bias),
            grad_values, values, indices, pre, gate, context_index, units, combine, relu,
        )  # fmt: skip
        if grad_y is not None:
            _densify(grad_winners, indices, grad_y, gather=False)


# ---- k-sparse linear algebra ----------------------------------------------------------------------------------------


def _indices_error(position: int, indices, size: int) -> None:
    if position >= 0:
        raise IndexError(f"indices: expected values in [0, {size}), got {int(indices.reshape(-1)[position])}")


def _densify(values, indices, z, gather, place=None):
    """z[b, indices[b, j]] = values[b, j] and zeros elsewhere, or (gather) the reverse; place: z's column of a unit."""
    bad = _call("densify", z.dtype, values, indices, place, *indices.shape, z.shape[1], z, gather)
    _indices_error(bad, indices, z.shape[1])


def _matmul(y, values, indices, matrix, bias):
    """y = x @ matrix + bias for k-sparse x; matrix [I, O] with any strides."""
    bad = _call(
        "ksparse_matmul", y.dtype, values, indices, *indices.shape, *matrix.shape, matrix, *matrix.stride(), bias, y
    )
    _indices_error(bad, indices, matrix.shape[0])


class UnitLists:
    """The entries of indices [B, k] by unit (start, entry, sample: see csrc/cpu/kernels.h), and the units in use.

    used: their numbers, ascending. place [units]: the reverse.
    """

    def __init__(self, indices: torch.Tensor, units: int):
        self.shape = indices.shape
        sizes = (units + 1, indices.numel(), indices.numel(), units, units)
        self.start, self.entry, self.sample, used, self.place = (torch.empty(n, dtype=torch.int32) for n in sizes)
        lists = (self.start, self.entry, self.sample, used, self.place)
        count = _cpu.unit_lists(indices, *indices.shape, units, *lists)
        _indices_error(-1 - count, indices, units)
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


def _outer(values, indices, r, cols, weight, grad_weight, grad_values, keep_sums=False):
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
    _call(
        "ksparse_outer", r.dtype, values, *lists.arguments(), *weight.T.shape, r, r.shape[1], cols, weight,
        *weight.T.stride(), grad_weight, *strides, grad_values, *_sums_arguments(sums, lists),
    )  # fmt: skip
    return sums


def _sums_arguments(sums, lists):
    return (None, 0, None) if sums is None else (sums, sums.shape[1], lists.place)


def _dense_matmul(x, weight):
    """x @ weight.T; where most entries of x equal one number (a background), only the others are multiplied.

    A few samples have too few rows for that, but where the weight stays as it is they read a copy stored by input.
    """
    few = len(x) <= FEW_SAMPLES and not torch.is_grad_enabled()
    if x.dtype in _SUFFIX and (few or len(x) >= MOSTLY_CONSTANT_ROWS):
        copied = known.of_frozen(weight, _by_input, _cpu.isa()) if few else None
        y = _mostly_constant_matmul(x, *(copied or (weight.T, None)))
        if y is not None:
            if few and copied is None:
                known.count_frozen(weight, _by_input, _cpu.isa())
            return y
    return x @ weight.T


def _mostly_constant_matmul(x, matrix, sums):
    """x @ matrix, or None where x or the matrix are not for this kernel; sums: the matrix' columns', where known."""
    (inputs, units), y = matrix.shape, x.new_empty(len(x), matrix.shape[1])
    done = _call(
        "mostly_constant_matmul", x.dtype, x.contiguous(), len(x), inputs, units, matrix, *matrix.stride(),
        MOST_OTHERS, sums, y,
    )  # fmt: skip
    return y if done else None


def _by_input(weight):
    """The weight stored by input, and its sums over the inputs with the bits that the kernel finds afresh."""
    matrix = weight.detach().T.contiguous()
    sums = _mostly_constant_matmul(matrix.new_ones(1, len(matrix)), matrix, None)
    return None if sums is None else (matrix, sums)


def _strided(t):
    """In the compute dtype, with its own strides: weights may be stored either way round."""
    return t.to(compute_dtype(t.dtype))


def sparse_linear(out, values, indices, weight, bias):
    with _Outputs([out], compute_dtype(out.dtype)) as (y,):
        _matmul(y, _wide(values), indices.contiguous(), _strided(weight).T, _wide(bias))


def sparse_linear_backward(out, grad_y, values, indices, weight, keep_sums=False):
    wide = compute_dtype(values.dtype)
    grad_values, grad_weight, grad_bias = out
    if grad_bias is not None:
        torch.sum(grad_y, 0, out=grad_bias)
    with _Outputs([grad_values], wide) as (gv,), _Outputs([grad_weight], wide, any_strides=True) as (gw,):
        return _outer(_wide(values), indices, _wide(grad_y), None, _strided(weight), gw, gv, keep_sums)


def linear_kwinners(out, x, x_indices, weight, bias, gate, context_index, k, combine, boost, relu):
    if x_indices is None:
        y = _dense_matmul(x, weight)
    else:
        y = torch.empty(len(x), len(weight), dtype=x.dtype)
        sparse_linear(y, x, x_indices, weight, None)
    gated_kwinners_sparse(out, y, gate, bias, context_index, k, combine, boost, relu)


def linear_kwinners_backward(
    out, grad_values, values, indices, pre, x, x_indices, weight, gate, context_index, combine, relu, keep_sums=False
):
    wide, units = pre.dtype, len(weight)
    grad_x, grad_weight, grad_bias, grad_gate, grad_winners = out
    with (
        _Outputs([grad_x, grad_bias, grad_gate, grad_winners], wide) as (gx, gb, gg, grad_y),
        _Outputs([grad_weight], wide, any_strides=True) as (gw,),
    ):
        _winners_backward(
            (grad_y, gg, gb), grad_values, values, indices, pre, gate, context_index, units, combine, relu
        )
        if x_indices is None:
            _gradients_of_dense_x(grad_y, indices, _wide(x), _strided(weight), gx, gw)
            return None
        used, compact = _compact(grad_y, indices, units)
        return _outer(_wide(x), x_indices, compact, used, _strided(weight), gw, gx, keep_sums)


def _gradients_of_dense_x(grad_y, indices, x, weight, grad_x, grad_weight):
    """dx = dy W and dW = dy^T x, where dy is k-sparse: only the winners' rows of W are read and of dW nonzero."""
    if indices.shape[1] > DENSE_SHARE * len(weight):
        dense = torch.empty(len(x), len(weight), dtype=x.dtype)
        _densify(grad_y, indices.contiguous(), dense, gather=False)
        if grad_x is not None:
            torch.mm(dense, weight, out=grad_x)
        if grad_weight is not None:
            grad_weight.copy_(dense.T @ x)
        return
    if grad_x is not None:
        _matmul(grad_x, grad_y, indices.contiguous(), weight, None)
    transposed = None if grad_weight is None else grad_weight.T
    _outer(grad_y, indices, x, None, weight.T, transposed, None)


def _compact(values, indices, size):
    """The columns in use, ascending, and the k-sparse rows written densely over just those."""
    lists = UnitLists.of(indices, size)
    compact = torch.empty(len(values), len(lists.used), dtype=values.dtype)
    _densify(values, indices.contiguous(), compact, gather=False, place=lists.place)
    return lists.used, compact


def ksparse_to_dense(out, values, indices):
    with _Outputs([out], compute_dtype(out.dtype)) as (z,):
        _densify(_wide(values), indices.contiguous(), z, gather=False)


def ksparse_gather(out, dense, indices):
    with _Outputs([out], compute_dtype(out.dtype)) as (values,):
        _densify(values, indices.contiguous(), _wide(dense), gather=True)


# ---- Adam from factors ----------------------------------------------------------------------------------------------


def outer(out, sparse, other):
    """out [I, O] = sparse^T other, any strides; other: a tensor [B, O] or KSparse."""
    used, other = _dense_side(other)
    _outer(sparse.values.contiguous(), sparse.indices, other, used, out.T, out.T, None)


def _dense_side(other):
    """(columns in use or None, the rows over them)."""
    if isinstance(other, torch.Tensor):
        return None, other.contiguous()
    return _compact(other.values.contiguous(), other.indices, other.size)


def adam_outer(weight, sparse, other, sums, rule, m, v, start, bits, since):
    """Adam on a contiguous weight [I, O] whose gradient is sparse^T other [B, O] (a tensor or KSparse).

    sums: the gradient as _outer left it with keep_sums; None: it is made.
    """
    lists = UnitLists.of(sparse.indices, len(weight))
    if sums is None:
        used, other = _dense_side(other)
    else:
        used = None if isinstance(other, torch.Tensor) else UnitLists.of(other.indices, other.size).used
    width = other.shape[1] if used is None else len(used)
    _call(
        "adam_outer", weight.dtype, sparse.values.contiguous(), *lists.arguments(), *weight.shape,
        other if sums is None else None, width, used, *_sums_arguments(sums, lists), *rule,
        weight, m, v, start, bits, since,
    )  # fmt: skip


def adam_dense(p, m, v, grad, rule) -> bool:
    """Adam in place, where dtypes and memory order allow; whether they did."""
    native = p.dtype in _SUFFIX and p.dtype == grad.dtype == m.dtype == v.dtype
    if not native or not (p.stride() == grad.stride() == m.stride() == v.stride() and _is_dense(p)):
        return False
    _call("adam_dense", p.dtype, p, m, v, grad, p.numel(), *rule)
    return True


def touch_segments(grad, winner, per_unit, place, rows, since, count):
    """Gives segments that won with gradient a place among the touched rows; returns their number."""
    # no thread count in this one: it walks the winners once
    kernel = getattr(_cpu, "touch_segments" + _SUFFIX[grad.dtype])
    return kernel(grad, winner, *grad.shape, per_unit, place, rows, since, count)


def adam_segments(segments, grad, context, winner, rule, rows, since, count, rank1, m, v, keep, activations):
    """Adam on the touched rows of segments [O, S, C]; `activations` [O, S] of one context follow where given."""
    shape = (len(context), *segments.shape)
    _call(
        "adam_segments", segments.dtype, grad, context, winner, *shape, *rule, rows, since, count, rank1, segments,
        m, v, keep, activations,
    )  # fmt: skip


def kept_activations(context, segments):
    """The known activations [O, S] of one context [1, C], for adam_segments to move; None: not known."""
    return known.activations(context, segments, _cpu.isa())


def moved(segments):
    """Adam has written the segments, and their known activations with them."""
    known.moved(segments, _cpu.isa())


def update_duty_cycle_(duty_cycle, seen, values, indices, longest):
    native = indices is not None and duty_cycle.dtype == values.dtype in _SUFFIX and duty_cycle.is_contiguous()
    if not native:
        reference.update_duty_cycle_(duty_cycle, seen, values, indices, longest)
        return
    kernel = getattr(_cpu, "duty_cycle" + _SUFFIX[values.dtype])  # in one thread: it walks the winners once
    kernel(duty_cycle, values.contiguous(), indices.contiguous(), seen, duty_cycle.shape[0], *values.shape, longest)
    torch.autograd.graph.increment_version((duty_cycle, seen))


def rezero_(weight, keep):
    in_order = weight.stride() == keep.stride() and _is_dense(weight)
    if weight.dtype in _SUFFIX and in_order:
        _call("rezero", weight.dtype, weight, keep, weight.numel())
    else:
        weight.masked_fill_(~keep, 0)


def _is_dense(t):
    """Whether t fills its memory without gaps or overlaps, in whatever order of dims."""
    if t.is_contiguous():
        return True
    order = sorted(range(t.dim()), key=t.stride, reverse=True)
    return t.permute(order).is_contiguous()
