"""The last resort on any device: computes with reference.py and copies into the outputs."""

from __future__ import annotations

import torch

from .. import reference as ref

counts_on_device = False  # step counts are ints


def why_not(device: torch.device) -> str | None:
    return None


def one_launch(*_) -> bool:
    return False


def fill(outputs, results) -> None:
    for out, result in zip(outputs, results, strict=True):
        if out is not None:
            out.copy_(result)


def _check_contexts(context_index, gate):
    ref.check_range(context_index, 0 if gate is None else len(gate), "context_index")


def _needs(outputs) -> tuple[bool, ...]:
    return tuple(out is not None for out in outputs)


def segment_gate(out, context, segments, bias, select, activation):
    fill(out, ref.segment_gate(context, segments, bias, select, activation))


def known_gate(*_):
    return None  # nothing is kept


def segment_gate_backward(out, grad_gate, context, segments, gate, winner, activation):
    fill(out, ref.segment_gate_backward(grad_gate, context, segments, gate, winner, activation, _needs(out)))


def gated_kwinners(out, y, gate, bias, context_index, k, combine, boost, relu, ties):
    _check_contexts(context_index, gate)
    fill(out, ref.gated_kwinners(y, gate, bias, context_index, k, combine, boost, relu, ties))


def gated_kwinners_backward(out, grad_z, kept, y, gate, bias, context_index, combine):
    fill(out, ref.gated_kwinners_backward(grad_z, kept, y, gate, bias, context_index, combine, _needs(out)))


def gated_kwinners_sparse(out, y, gate, bias, context_index, k, combine, boost, relu):
    _check_contexts(context_index, gate)
    fill(out, ref.gated_kwinners_sparse(y, gate, bias, context_index, k, combine, boost, relu))


def gated_kwinners_sparse_backward(out, grad_values, values, indices, pre, gate, context_index, units, combine, relu):
    grad_y, *rest = ref.winners_backward(
        grad_values, values, indices, pre, gate, context_index, units, combine, relu, _needs(out)
    )
    fill(out, (ref.ksparse_to_dense(grad_y, indices, units), *rest))


def kwinners2d(out, y, gate, context_index, k, local, combine, boost, relu, ties):
    _check_contexts(context_index, gate)
    fill(out, ref.kwinners2d(y, gate, context_index, k, local, combine, boost, relu, ties))


def kwinners2d_backward(out, grad_z, kept, y, gate, context_index, combine):
    fill(out, ref.kwinners2d_backward(grad_z, kept, y, gate, context_index, combine, _needs(out)))


def sparse_linear(out, values, indices, weight, bias):
    ref.check_range(indices, weight.shape[1], "indices")
    out.copy_(ref.sparse_linear(values, indices, weight, bias))


def sparse_linear_backward(out, grad_y, values, indices, weight, keep_sums=False):
    fill(out, ref.sparse_linear_backward(grad_y, values, indices, weight, _needs(out)))


def linear_kwinners(out, x, x_indices, weight, bias, gate, context_index, k, combine, boost, relu):
    _check_contexts(context_index, gate)
    if x_indices is not None:
        ref.check_range(x_indices, weight.shape[1], "indices")
    fill(out, ref.linear_kwinners(x, x_indices, weight, bias, gate, context_index, k, combine, boost, relu))


def linear_kwinners_backward(
    out, grad_values, values, indices, pre, x, x_indices, weight, gate, context_index, combine, relu, keep_sums=False
):
    fill(
        out,
        ref.linear_kwinners_backward(
            grad_values, values, indices, pre, x, x_indices, weight, gate, context_index, combine, relu, _needs(out)
        ),
    )


def in_stages(segment_gate, linear_kwinners):
    """A backend's dendritic_layer made of two of its launchers."""

    def dendritic_layer(
        out, x, x_indices, weight, bias, context, segments, segment_bias, context_index, k, select, activation, combine,
        boost, relu,
    ):  # fmt: skip
        segment_gate(out[:2], context, segments, segment_bias, select, activation)
        linear_kwinners(out[2:], x, x_indices, weight, bias, out[0], context_index, k, combine, boost, relu)

    return dendritic_layer


dendritic_layer = in_stages(segment_gate, linear_kwinners)


def outer(out, sparse, other):
    """out [I, O] = sparse^T other; other: a tensor [B, O] or KSparse."""
    right = other if isinstance(other, torch.Tensor) else ref.ksparse_to_dense(*other)
    out.copy_(ref.ksparse_to_dense(*sparse).T @ right)


def ksparse_to_dense(out, values, indices):
    ref.check_range(indices, out.shape[1], "indices")
    out.copy_(ref.ksparse_to_dense(values, indices, out.shape[1]))


def ksparse_gather(out, dense, indices):
    ref.check_range(indices, dense.shape[1], "indices")
    out.copy_(dense.gather(1, indices.long()))


def rezero_(weight, keep):
    weight.masked_fill_(~keep, 0)


update_duty_cycle_ = ref.update_duty_cycle_
