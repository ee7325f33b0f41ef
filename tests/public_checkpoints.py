"""State dicts as the public networks would save them, and what those networks compute, in plain torch.

Written from the facts alone (names, shapes, semantics): it knows nothing of dendrite_kernels, so that the tests of
compat have something to disagree with.
"""

from __future__ import annotations

import torch
from torch import Tensor


def zero_mask(shape: tuple[int, ...], sparsity: float) -> Tensor:
    """1 where a weight is off; exactly round((1 - sparsity) * I) are on in each row of I. Half, as the public one."""
    fan_in = torch.Size(shape[1:]).numel() if len(shape) == 4 else shape[-1]
    off = torch.ones(torch.Size(shape).numel() // max(1, fan_in), fan_in)
    for row in off:
        row[torch.randperm(fan_in)[: round((1 - sparsity) * fan_in)]] = 0
    return off.view(shape).half()


def masked_layer(shape: tuple[int, ...], sparsity: float, dtype=torch.float32) -> dict[str, Tensor]:
    """The entries of a wrapped linear layer or convolution."""
    mask = zero_mask(shape, sparsity)
    weight = torch.randn(shape, dtype=dtype).masked_fill(mask.bool(), 0)
    return {"zero_mask": mask, "module.weight": weight, "module.bias": torch.randn(shape[0], dtype=dtype)}


def segments(units: int, count: int, dim_context: int, sparsity: float, dtype=torch.float32) -> dict[str, Tensor]:
    """The entries of a layer's dendrites; one segment is a masked linear layer of the context."""
    if count == 1:
        entries = masked_layer((units, dim_context), sparsity, dtype)
        return {key: value for key, value in entries.items() if key != "module.bias"}
    mask = zero_mask((units, count, dim_context), sparsity)
    weights = torch.randn(mask.shape, dtype=dtype).masked_fill(mask.bool(), 0)
    return {"weights": weights, "zero_mask": mask}


def winners(units: int, boost_strength: float = 0.0, seen: bool = False, dtype=torch.float32) -> dict[str, Tensor]:
    """The entries of k winners; seen: with a duty cycle that has counted something."""
    duty_cycle = torch.rand(units, dtype=dtype) if seen else torch.zeros(units, dtype=dtype)
    return {"boost_strength": torch.tensor(boost_strength, dtype=dtype), "duty_cycle": duty_cycle}


def mlp(
    inputs: int,
    hidden: tuple[int, ...],
    outputs: int,
    count: int,
    dim_context: int,
    *,
    sparsity: float = 0.5,
    segment_sparsity: float = 0.0,
    kwinners: bool = True,
    boost_strength: float = 0.0,
    seen: bool = False,
    dtype=torch.float32,
) -> dict[str, Tensor]:
    """The state dict of a public DendriticMLP; count: segments a unit, 0 for none."""
    state = {}
    for i, units in enumerate(hidden):
        state |= named(f"_layers.{i}.", masked_layer((units, inputs), sparsity, dtype))
        if count:
            state |= named(f"_layers.{i}.segments.", segments(units, count, dim_context, segment_sparsity, dtype))
        if kwinners:
            state |= named(f"_activations.{i}.", winners(units, boost_strength, seen, dtype))
        inputs = units
    return state | named("_output_layers.0.output_linear.", masked_layer((outputs, inputs), sparsity, dtype))


def named(prefix: str, entries: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in entries.items()}


def gate(state: dict[str, Tensor], layer: str, context: Tensor) -> Tensor:
    """The gate [B, O] of contexts [B, C]: sigmoid of the activation that is largest by absolute value."""
    weights = state.get(f"{layer}.segments.module.weight")
    weights = state[f"{layer}.segments.weights"] if weights is None else weights.unsqueeze(1)
    activations = torch.einsum("bc,osc->bos", context, weights)
    winner = activations.abs().max(dim=2, keepdim=True).indices
    return activations.gather(2, winner).squeeze(2).sigmoid()


def kwinners(y: Tensor, k: int, boost_strength: Tensor | float = 0.0, duty_cycle: Tensor | float = 0.0) -> Tensor:
    """All that rank with the k-th largest of their row, or above; the rest become 0."""
    rank = y.detach() * torch.exp(-torch.as_tensor(boost_strength) * torch.as_tensor(duty_cycle))
    threshold = rank.kthvalue(y.shape[1] - k + 1, dim=1, keepdim=True).values
    return y.masked_fill(rank < threshold, 0)


def forward(state: dict[str, Tensor], x: Tensor, context: Tensor | None, percent_on: float, count: bool = False):
    """Logits [B, outputs] of a public DendriticMLP; count: take the batch into the duty cycles, as a first batch is."""
    layers = len({key.split(".")[1] for key in state if key.startswith("_layers.")})
    for i in range(layers):
        y = torch.nn.functional.linear(x, state[f"_layers.{i}.module.weight"], state[f"_layers.{i}.module.bias"])
        if any(key.startswith(f"_layers.{i}.segments.") for key in state):
            y = y * gate(state, f"_layers.{i}", context)
        if f"_activations.{i}.duty_cycle" not in state:
            x = y.relu()
            continue
        strength, duty_cycle = (state[f"_activations.{i}.{name}"] for name in ("boost_strength", "duty_cycle"))
        x = kwinners(y, round(y.shape[1] * percent_on), strength, duty_cycle)
        if count:
            state[f"_activations.{i}.duty_cycle"] = (x.detach() > 0).to(x.dtype).mean(0)
    head = "_output_layers.0.output_linear.module"
    return torch.nn.functional.linear(x, state[f"{head}.weight"], state[f"{head}.bias"])


def parameters(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The entries that train, in the order in which the public network has them."""
    return {key: t for key, t in state.items() if key.endswith(("weight", "bias", "weights", "biases"))}


def rezero(state: dict[str, Tensor]) -> None:
    """Masked weights become zero, as after each step."""
    for key, mask in state.items():
        if key.endswith("zero_mask"):
            at = key.removesuffix("zero_mask")
            weight = state[f"{at}module.weight"] if f"{at}module.weight" in state else state[f"{at}weights"]
            with torch.no_grad():
                weight.masked_fill_(mask.bool(), 0)
