"""Launchers of the linear layers, and of a whole layer in one launch.

Large dense products are torch's and obey its switches (TF32, reductions of halves); k-sparse rows are gathered if few.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ... import reference as ref
from ...reference import check_range, compute_dtype
from ..reference import fill, in_stages
from . import ksparse, layer, settings
from .gates import gate_kind, gated_kwinners_sparse, gated_kwinners_sparse_backward, segment_gate
from .memory import contiguous, ready
from .numbers import TYPES


def _product(values, indices, weight, bias) -> Tensor:
    """x W^T + bias for k-sparse x: a few rows gather, many are written out for torch's product."""
    batch, wide = len(values), compute_dtype(values.dtype)
    if batch > settings.MOST_GATHERED_ROWS:
        dense = _written_out(values.to(wide), indices, weight.shape[1])
        y = ref.linear(dense, weight.to(wide), None if bias is None else bias.to(wide))
        return y.to(values.dtype)
    y, block = values.new_empty(batch, len(weight)), 256
    if y.numel():
        values, indices, bias = contiguous(values, indices, bias)
        ksparse.gather_product[(batch, -(-len(weight) // block))](
            values, indices, weight, values if bias is None else bias, y, len(weight), values.shape[1],
            *weight.stride(), BIAS=bias is not None, WIDE=TYPES[wide], BLOCK=block,
        )  # fmt: skip
    return y


def _written_out(values, indices, size, by_input=False) -> Tensor:
    """The dense rows [B, size], or their transpose."""
    values, indices = contiguous(values, indices)
    shape = (size, len(values)) if by_input else (len(values), size)
    out = torch.zeros(shape, dtype=values.dtype, device=values.device)
    strides = out.stride()[::-1] if by_input else out.stride()
    if values.numel():
        ksparse.spread[(len(values),)](values, indices, out, values.shape[1], *strides, BLOCK=128, num_warps=1)
    return out


def ksparse_to_dense(out, values, indices):
    check_range(indices, out.shape[1], "indices")
    fill([out], [_written_out(values, indices, out.shape[1])])


def sparse_linear(out, values, indices, weight, bias):
    check_range(indices, weight.shape[1], "indices")
    out.copy_(_product(values, indices, weight, bias))


def linear_kwinners(out, x, x_indices, weight, bias, gate, context_index, k, combine, boost, relu):
    if x_indices is None:
        y = ref.linear(x, weight)
    else:
        check_range(x_indices, weight.shape[1], "indices")
        y = _product(x, x_indices, weight, None)
    gated_kwinners_sparse(out, y, gate, bias, context_index, k, combine, boost, relu)


# ---- gradients ------------------------------------------------------------------------------------------------------


def sparse_linear_backward(out, grad_y, values, indices, weight, keep_sums=False):
    grad_values, grad_weight, grad_bias = out
    check_range(indices, weight.shape[1], "indices")
    _gradients_of_sparse_x(grad_values, grad_weight, grad_y.contiguous(), None, None, values, indices, weight)
    if grad_bias is not None:
        grad_bias.copy_(grad_y.to(compute_dtype(grad_y.dtype)).sum(0))


def linear_kwinners_backward(
    out, grad_values, values, indices, pre, x, x_indices, weight, gate, context_index, combine, relu, keep_sums=False
):
    grad_x, grad_weight, grad_bias, grad_gate, grad_winners = out
    units = len(weight)
    dense = values.new_empty(len(values), units)
    rest = (indices, pre, gate, context_index, units, combine, relu)
    gated_kwinners_sparse_backward((dense, grad_gate, grad_bias), grad_values, values, *rest)
    grad_winners.copy_(dense.gather(1, indices.long()))
    if x_indices is None:
        fill((grad_x, grad_weight), (_matmul(grad_x, dense, weight), _matmul(grad_weight, dense.T, x)))
    else:
        check_range(x_indices, weight.shape[1], "indices")
        _gradients_of_sparse_x(grad_x, grad_weight, dense, grad_winners, indices, x, x_indices, weight)


def _matmul(wanted, a, b):
    return None if wanted is None else a @ b


def _gradients_of_sparse_x(grad_values, grad_weight, dense, sparse, units, values, indices, weight):
    """Gradients of x's values and of the weight; dense: dy [B, O], and where it is sparse its entries at `units`."""
    indices = indices.contiguous()
    if grad_values is not None and grad_values.numel():
        _values_gradient(grad_values, dense, sparse, units, indices, weight)
    if grad_weight is not None and grad_weight.numel():
        _weight_gradient(grad_weight, dense, values, indices)


def _values_gradient(out, dense, sparse, units, indices, weight):
    (batch, k), (all_units, _), wide = indices.shape, weight.shape, compute_dtype(weight.dtype)
    gathered = sparse is not None and sparse.shape[1] <= settings.MOST_GATHERED_SHARE * all_units
    if not gathered and all_units > settings.MOST_GATHERED_UNITS:
        out.copy_((dense @ weight).gather(1, indices.long()))
        return
    dy, units = contiguous(sparse, units) if gathered else (dense, indices)
    grad, how = ready(out), settings.products(all_units, k, dy.shape[1])
    ksparse.values_gradient[(batch, -(-k // how.block_entries))](
        dy, units, indices, weight, grad, dy.shape[1], k, *weight.stride(),
        SPARSE=gathered, WIDE=TYPES[wide], BLOCK_K=how.block_entries, BLOCK_L=how.block_inner,
    )  # fmt: skip
    fill([out], [grad])


def _weight_gradient(out, dense, values, indices):
    (batch, k), (units, inputs), wide = values.shape, out.shape, compute_dtype(out.dtype)
    if k > settings.MOST_GATHERED_SHARE * inputs:
        out.copy_(dense.T @ _written_out(values, indices, inputs))
        return
    by_input = _written_out(values.to(wide), indices, inputs, by_input=True)
    block = settings.products(units, k, units).block_units
    ksparse.weight_gradient[(inputs, -(-units // block))](
        by_input, dense, out, batch, units, *out.stride(), WIDE=TYPES[wide], BLOCK=block
    )


# ---- the whole layer ------------------------------------------------------------------------------------------------


_layer_in_stages = in_stages(segment_gate, linear_kwinners)


def dendritic_layer(
    out, x, x_indices, weight, bias, context, segments, segment_bias, context_index, k, select, activation, combine,
    boost, relu,
):  # fmt: skip
    """gate, winner, and the winners' values, indices and pre, in one launch."""
    (batch, entries), (units, inputs), wide = x.shape, weight.shape, compute_dtype(x.dtype)
    if not (batch and units and k and len(context)) or units > settings.LONGEST_ROW or wide == torch.float64:
        rest = (context_index, k, select, activation, combine, boost, relu)
        _layer_in_stages(out, x, x_indices, weight, bias, context, segments, segment_bias, *rest)
        return
    check_range(context_index, len(context), "context_index")
    check_range(x_indices, inputs, "indices")
    results = [ready(t) for t in out]
    to_gate, to_winner, to_values, to_indices, to_pre = results
    y, width, sparse = x.new_empty(batch, units), segments.shape[2], x_indices is not None
    how = settings.layer(units, width, segments.dtype, sparse)
    tensors = contiguous(x, x_indices), contiguous(bias, context, segments, segment_bias, boost, context_index)
    absent = [x if t is None else t for part in tensors for t in part]
    flags = {
        "S": segments.shape[1], "C": width, "ABS": select == "abs_max", "SIGMOID": activation == "sigmoid",
        "SEGMENT_BIAS": segment_bias is not None, "SPARSE_X": sparse, "GATE": gate_kind(to_gate, context_index, batch),
        "BIAS": bias is not None, "ADD": combine == "add", "BOOST": boost is not None, "RELU": relu,
        "PRECISION": "tf32" if x.is_cuda and _tf32() else "ieee", "WIDE": TYPES[wide],
        "BLOCK_GATE": how.gate.block_units, "BLOCK_C": how.gate.block_width, "BLOCK_B": how.block_batch,
        "BLOCK_O": how.block_units, "BLOCK_I": how.block_inputs, "BLOCK_ROW": how.rows.block,
        "num_warps": how.rows.warps,
    }  # fmt: skip
    sizes = (batch, units, inputs, entries, len(context), min(k, units), *weight.stride())
    written = (to_gate, to_winner, y, to_values, to_pre, to_indices, _arrived(x.device))
    args = (*absent[:2], weight, *absent[2:], *written, *sizes)
    for phase, options in _phases(x.device):
        layer.layer[(_programs(x.device),)](*args, **flags, PHASE=phase, **options)
    fill(out, results)


def _tf32() -> bool:
    try:
        return torch.backends.cuda.matmul.allow_tf32
    except RuntimeError:  # set by torch's newer switch
        return torch.backends.cuda.matmul.fp32_precision == "tf32"


def _phases(device):
    if device.type == "cuda":
        return [(layer.ALL_PHASES, {"launch_cooperative_grid": True})]
    return [(layer.BEFORE_BARRIER, {}), (layer.AFTER_BARRIER, {})]


@functools.cache
def _programs(device) -> int:
    """As many as run at once."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 3


_counters: dict[tuple, Tensor] = {}


def _arrived(device) -> Tensor:
    """The barrier's counter, zero between launches: one for each stream, as launches of two may overlap."""
    if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return torch.zeros(1, dtype=torch.int32, device=device)
    key = (device, torch.cuda.current_stream(device).cuda_stream)
    if key not in _counters:
        _counters[key] = torch.zeros(1, dtype=torch.int32, device=device)
    return _counters[key]
