"""The mathematics in plain PyTorch: the specification, the oracle of the tests and the last-resort backend.

Nothing here is fast. Forward functions are differentiable by autograd; the ``*_backward`` functions spell out the
same derivatives for the backends, and the tests hold the two against each other.

Sources: Grewal et al. 2021, "Going Beyond the Point Neuron: Active Dendrites and Sparse Representations for
Continual Learning" (eq. 1-3: segments, gate, kWTA); Ahmad & Scheinkman 2019, "How Can We Be So Dense?" (k-winners,
boosting). Short names: B batch, I inputs, O units, S segments a unit, C context length, G distinct contexts.
"""

from __future__ import annotations

import torch
from torch import Tensor


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that sums, gates and ranks are computed in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def exact_einsum(equation: str, *tensors: Tensor) -> Tensor:
    """einsum whatever torch's precision switches say: TF32 or bf16 shortcuts would flip winners."""
    dtype = tensors[0].dtype
    if dtype == torch.float32 and not _full_precision():
        return torch.einsum(equation, *(t.double() for t in tensors)).to(dtype)
    return torch.einsum(equation, *tensors)


def _full_precision() -> bool:
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # set per backend, by torch's newer switches
        return False


def check_range(index: Tensor | None, size: int, name: str) -> None:
    """Raises IndexError for an entry outside [0, size), where a look does not stall a device."""
    if index is not None and index.device.type == "cpu" and index.numel():
        low, high = (int(v) for v in index.aminmax())
        if low < 0 or high >= size:
            raise IndexError(f"{name}: expected values in [0, {size}), got {low if low < 0 else high}")


def is_dense(t: Tensor) -> bool:
    """Whether t fills its memory without gaps or overlaps, in whatever order of dims."""
    if t.is_contiguous():
        return True
    order = sorted(range(t.dim()), key=t.stride, reverse=True)
    return t.permute(order).is_contiguous()


# ---- segments -------------------------------------------------------------------------------------------------------


def segment_activations(context: Tensor, segments: Tensor, bias: Tensor | None = None) -> Tensor:
    """a[g, o, s] = u[o, s] . c[g] (+ bias[o, s]), in the compute dtype; [G, O, S]."""
    wide = compute_dtype(segments.dtype)
    activations = exact_einsum("gc,osc->gos", context.to(wide), segments.to(wide))
    return activations if bias is None else activations + bias.to(wide)


def first_largest(key: Tensor) -> Tensor:
    """Index of the largest entry along the last dim: NaN above +inf, the lowest index among equals; int32."""
    top = key.amax(-1, keepdim=True)  # amax carries NaN
    is_top = (key == top) | (key.isnan() & top.isnan())
    positions = torch.arange(key.shape[-1], device=key.device, dtype=torch.int32).expand_as(key)
    return torch.where(is_top, positions, key.shape[-1]).amin(-1).to(torch.int32)


def segment_gate(context, segments, bias=None, select="abs_max", activation="sigmoid") -> tuple[Tensor, Tensor]:
    """gate[g, o] = act(a[g, o, s*]), s* = argmax_s |a| (the winner's sign is kept) or argmax_s a (Grewal eq. 2-3)."""
    activations = segment_activations(context, segments, bias)
    winner = first_largest(activations.abs() if select == "abs_max" else activations)
    strongest = activations.gather(2, winner.long().unsqueeze(2)).squeeze(2)
    return (strongest.sigmoid() if activation == "sigmoid" else strongest), winner


def segment_gate_backward(grad_gate, context, segments, gate, winner, activation, needs):
    """Gradients of context, segments and bias: only the winning segment of each (context, unit) gets any."""
    grad = grad_gate * gate * (1 - gate) if activation == "sigmoid" else grad_gate  # [G, O]
    wide, index = grad.dtype, winner.long()
    grad_context = grad_segments = grad_bias = None
    if needs[0]:
        rows = torch.arange(segments.shape[0], device=segments.device)
        won = segments[rows, index].to(wide)  # [G, O, C]
        grad_context = (grad.unsqueeze(2) * won).sum(1).to(context.dtype)
    if needs[1] or needs[2]:
        one_hot = torch.zeros(*grad.shape, segments.shape[1], dtype=wide, device=grad.device)
        one_hot.scatter_(2, index.unsqueeze(2), grad.unsqueeze(2))  # [G, O, S]
    if needs[1]:
        grad_segments = exact_einsum("gos,gc->osc", one_hot, context.to(wide)).to(segments.dtype)
    if needs[2]:
        grad_bias = one_hot.sum(0).to(segments.dtype)
    return grad_context, grad_segments, grad_bias


# ---- gate and k winners ---------------------------------------------------------------------------------------------


def combine_gate(y, gate=None, bias=None, context_index=None, combine="mul") -> Tensor:
    """(y + bias) times or plus its row's gate, computed wide and rounded to y's dtype; [B, O] (Grewal eq. 1)."""
    out = y.to(compute_dtype(y.dtype))
    if bias is not None:
        out = out + bias
    if gate is not None:
        row_gate = gate if context_index is None else gate[context_index.long()]
        out = out * row_gate if combine == "mul" else out + row_gate
    return out.to(y.dtype)


def rank(a: Tensor, boost: Tensor | None) -> Tensor:
    """What winners are chosen by: a (times boost), in the compute dtype, with -0.0 made equal to 0.0."""
    key = a.to(compute_dtype(a.dtype))
    return (key if boost is None else key * boost) + 0.0


def winner_indices(key: Tensor, k: int) -> Tensor:
    """The k winners of each row, ascending int32 [B, min(k, O)]: NaN first, ties to the lowest index."""
    order = key.sort(dim=1, descending=True, stable=True).indices
    return order[:, :k].sort(dim=1).values.to(torch.int32)


def winner_mask(key: Tensor, k: int, ties: str) -> Tensor:
    """Bool [B, O]: exactly k a row ("lowest"), or all that equal the k-th as well ("keep")."""
    if k == 0:
        return torch.zeros_like(key, dtype=torch.bool)
    if k >= key.shape[1] or key.numel() == 0:
        return torch.ones_like(key, dtype=torch.bool)
    if ties == "lowest":
        mask = torch.zeros_like(key, dtype=torch.bool)
        return mask.scatter_(1, winner_indices(key, k).long(), True)
    kth = key.sort(dim=1, descending=True, stable=True).values[:, k - 1 : k]
    return (key >= kth) | key.isnan()


def positive_or_nan(a: Tensor) -> Tensor:
    """Where relu lets a value through."""
    return ~(a <= 0)


def gated_kwinners(
    y, gate=None, bias=None, context_index=None, k=0, combine="mul", boost=None, relu=False, ties="lowest"
) -> tuple[Tensor, Tensor]:
    """z = kWTA((y + bias) combined with the gate) and the bool mask of what was kept; both [B, O]."""
    a = combine_gate(y, gate, bias, context_index, combine)
    kept = winner_mask(rank(a.detach(), boost), k, ties)
    if relu:
        kept = kept & positive_or_nan(a.detach())
    return torch.where(kept, a, 0), kept


def gated_kwinners_sparse(
    y, gate=None, bias=None, context_index=None, k=0, combine="mul", boost=None, relu=False
) -> tuple[Tensor, Tensor, Tensor]:
    """Values [B, k], ascending int32 indices [B, k], and y + bias at the winners (wide, for the gate's gradient)."""
    a = combine_gate(y, gate, bias, context_index, combine)
    indices = winner_indices(rank(a.detach(), boost), k)
    values = a.gather(1, indices.long())
    pre = combine_gate(y.to(compute_dtype(y.dtype)), None, bias).gather(1, indices.long())
    return (torch.where(positive_or_nan(values), values, 0) if relu else values), indices, pre


def kwinners2d(
    y, gate=None, context_index=None, k=0, local=False, combine="mul", boost=None, relu=False, ties="lowest"
) -> tuple[Tensor, Tensor]:
    """z and what was kept [B, C, H, W]: channels combined with gates [G, C], then kWTA over C * H * W or, local, C."""
    a = combine_gate(y, channel_gate(gate, context_index), combine=combine)
    key = rank(a.detach(), None if boost is None else boost[:, None, None])
    if local:
        key = key.movedim(1, 3)
    rows = key.flatten(0, 2) if local else key.flatten(1)
    kept = winner_mask(rows, k, ties).view(key.shape)
    if local:
        kept = kept.movedim(3, 1)
    if relu:
        kept = kept & positive_or_nan(a.detach())
    return torch.where(kept, a, 0), kept


def channel_gate(gate: Tensor | None, context_index: Tensor | None) -> Tensor | None:
    """A gate [G, C] as it multiplies images [B, C, H, W]."""
    if gate is None:
        return None
    return (gate if context_index is None else gate[context_index.long()])[:, :, None, None]


def sum_by_context(grad_rows: Tensor, gate: Tensor, context_index: Tensor | None) -> Tensor:
    """Adds the rows [B, O] that share a context; [G, O]."""
    if context_index is not None and gate.is_cuda:  # where index_add_ would add in any order
        return torch.zeros_like(gate).index_put_((context_index.long(),), grad_rows.to(gate.dtype), accumulate=True)
    if context_index is not None:
        return torch.zeros_like(gate).index_add_(0, context_index.long(), grad_rows.to(gate.dtype))
    return grad_rows.sum_to_size(gate.shape).to(gate.dtype)


def gated_kwinners_backward(grad_z, kept, y, gate, bias, context_index, combine, needs):
    """Gradients of y, gate and bias from that of the dense z [B, O]."""
    wide = compute_dtype(y.dtype)
    grad_a = torch.where(kept, grad_z.to(wide), 0)
    grad_y, grad_gate, grad_bias = grad_a, None, None
    if gate is not None:
        row_gate = gate if context_index is None else gate[context_index.long()]
        grad_rows = grad_a
        if combine == "mul":
            grad_y = torch.where(kept, grad_a * row_gate, 0)
            grad_rows = torch.where(kept, grad_a * combine_gate(y.to(wide), None, bias), 0)
        if needs[1]:
            grad_gate = sum_by_context(grad_rows, gate, context_index)
    if needs[2]:
        grad_bias = grad_y.sum(0).to(y.dtype)
    return (grad_y.to(y.dtype) if needs[0] else None), grad_gate, grad_bias


def kwinners2d_backward(grad_z, kept, y, gate, context_index, combine, needs):
    """Gradients of images y [B, C, H, W] and of their gate [G, C] from that of the dense z."""
    wide = compute_dtype(y.dtype)
    grad_a = torch.where(kept, grad_z.to(wide), 0)
    grad_y, grad_gate, multiplies = grad_a, None, gate is not None and combine == "mul"
    if multiplies:
        grad_y = torch.where(kept, grad_a * channel_gate(gate, context_index), 0)
    if needs[1]:
        grad_images = torch.where(kept, grad_a * y.to(wide), 0) if multiplies else grad_a
        grad_gate = sum_by_context(grad_images.sum((2, 3)), gate, context_index)
    return (grad_y.to(y.dtype) if needs[0] else None), grad_gate


def winners_backward(grad_values, values, indices, pre, gate, context_index, units, combine, relu, needs):
    """Gradients of y at the winners [B, k], gate [G, O] and bias [O], from that of the k-sparse values."""
    wide = pre.dtype
    grad_a = grad_values.to(wide)
    if relu:
        grad_a = torch.where(positive_or_nan(values), grad_a, 0)
    grad_y, grad_gate, grad_bias, index = grad_a, None, None, indices.long()
    if gate is not None:
        row_gate = gate if context_index is None else gate[context_index.long()]
        grad_rows = grad_a
        if combine == "mul":
            grad_y = grad_a * row_gate.expand(len(indices), -1).gather(1, index)
            grad_rows = grad_a * pre
        if needs[1]:
            grad_gate = sum_by_context(ksparse_to_dense(grad_rows, indices, units), gate, context_index)
    if needs[2]:
        grad_bias = ksparse_to_dense(grad_y, indices, units).sum(0).to(values.dtype)
    return grad_y.to(values.dtype), grad_gate, grad_bias


# ---- k-sparse linear algebra ----------------------------------------------------------------------------------------


def update_duty_cycle_(duty_cycle, seen, values, indices, longest) -> None:
    """The share of samples in which a unit was above 0, averaged over the last `longest`; in place, as is `seen`.

    duty_cycle [O], seen: a count of samples. values: [B, O], or [B, k] at indices.

    Source: Ahmad & Scheinkman 2019, equation of d(t).
    """
    if indices is None:
        active = (values > 0).sum(0)
    else:
        positive = (values > 0).to(duty_cycle.dtype)
        active = torch.zeros_like(duty_cycle).index_add_(0, indices.reshape(-1), positive.reshape(-1))
    count_active_(duty_cycle, seen, active, values.shape[0], longest)


def count_active_(duty_cycle: Tensor, seen: Tensor, active: Tensor, batch: int, longest: int) -> None:
    """Takes `batch` samples, in which unit o was above 0 active[o] times, into the average; in place, as is `seen`."""
    seen += batch
    period = seen.clamp(max=longest).clamp(min=batch)
    duty_cycle.mul_(period - batch).add_(active).div_(period)


def ksparse_to_dense(values: Tensor, indices: Tensor, size: int) -> Tensor:
    """z [B, size] with values at indices and zeros elsewhere; a repeated index adds."""
    dense = torch.zeros(len(values), size, dtype=values.dtype, device=values.device)
    return dense.scatter_add(1, indices.long(), values)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x W^T + bias."""
    return torch.nn.functional.linear(x, weight, bias)


def sparse_linear(values, indices, weight, bias=None) -> Tensor:
    """y[b] = sum_j values[b, j] * W[:, indices[b, j]] + bias: x W^T for a k-sparse x; [B, O]."""
    wide = compute_dtype(values.dtype)
    columns, scale = weight.T.to(wide), values.to(wide)
    if values.shape[1] == 0:  # embedding_bag refuses empty bags
        y = columns.new_zeros(len(values), weight.shape[0])
    else:
        y = torch.nn.functional.embedding_bag(indices.long(), columns, mode="sum", per_sample_weights=scale)
    return (y if bias is None else y + bias).to(values.dtype)


def sparse_linear_backward(grad_y, values, indices, weight, needs):
    """Gradients of values [B, k], weight [O, I] and bias [O]."""
    grad_values = grad_weight = grad_bias = None
    dtype, wide = values.dtype, compute_dtype(values.dtype)
    grad_y = grad_y.to(wide)
    if needs[0]:
        grad_values = (grad_y @ weight.to(wide)).gather(1, indices.long()).to(dtype)
    if needs[1]:
        grad_weight = (grad_y.T @ ksparse_to_dense(values.to(wide), indices, weight.shape[1])).to(dtype)
    if needs[2]:
        grad_bias = grad_y.sum(0).to(dtype)
    return grad_values, grad_weight, grad_bias


def linear_kwinners(
    x, x_indices, weight, bias=None, gate=None, context_index=None, k=0, combine="mul", boost=None, relu=False
) -> tuple[Tensor, Tensor, Tensor]:
    """kWTA((x W^T + bias) combined with the gate): the layer after its gate; x is dense, or values at x_indices."""
    y = linear(x, weight) if x_indices is None else sparse_linear(x, x_indices, weight)
    return gated_kwinners_sparse(y, gate, bias, context_index, k, combine, boost, relu)


def linear_kwinners_backward(
    grad_values, values, indices, pre, x, x_indices, weight, gate, context_index, combine, relu, needs
):
    """Gradients of x (or its values), weight, bias, gate, and of y at the winners [B, k]."""
    grad_y, grad_gate, grad_bias = winners_backward(
        grad_values,
        values,
        indices,
        pre,
        gate,
        context_index,
        weight.shape[0],
        combine,
        relu,
        (True, needs[3], needs[2]),
    )
    dense = ksparse_to_dense(grad_y, indices, weight.shape[0])
    if x_indices is not None:
        grad_x, grad_weight, _ = sparse_linear_backward(dense, x, x_indices, weight, (needs[0], needs[1], False))
    else:
        grad_x = dense @ weight if needs[0] else None
        grad_weight = dense.T @ x if needs[1] else None
    return grad_x, grad_weight, grad_bias, grad_gate, grad_y
