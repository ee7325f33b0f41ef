"""Our layer for each public class, on the parameters and buffers of the module that it stands for."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .nn import DendriteSegments, DendriticConv2d, DendriticLinear, KWinners, KWinners2d, SparseConv2d, SparseLinear
from .sparsity import MaskedParameter

# public classes that have no counterpart of the same signature
STAY = {
    "DendriteSegments": "gives the activations of all segments, ours the gate: swap the dendritic layer around it",
    "BoostedDendritesAbsMaxGate1d": "boosted segments have no counterpart",
    "ZeroSegmentDendriticLayerCatContext": "a context joined to the input has no counterpart",
}


class Left(Exception):
    """Why a module stays as it is."""


def _attribute(module: Any, name: str, kinds: type | tuple[type, ...]) -> Any:
    value = getattr(module, name, None)
    if not isinstance(value, kinds):
        wanted = kinds.__name__ if isinstance(kinds, type) else " or ".join(k.__name__ for k in kinds)
        raise Left(f"expected the public class's {name} ({wanted}), got {type(value).__name__}")
    return value


def _mask(module: Any, weight: Tensor) -> Tensor | None:
    """What stays of the weight, from the public zero_mask; None where nothing is off."""
    zero = _attribute(module, "zero_mask", Tensor)
    if zero.shape != weight.shape or not ((zero == 0) | (zero == 1)).all():
        raise Left(f"expected a zero_mask {tuple(weight.shape)} of zeros and ones, got one {tuple(zero.shape)}")
    return torch.empty_like(weight, dtype=torch.bool).copy_(zero == 0) if zero.any() else None


def has_stray(module: nn.Module) -> bool:
    """Whether weights are not zero under a mask, which our layers set to zero at once."""
    for part in module.modules():
        inner, zero, kept = (getattr(part, name, None) for name in ("module", "zero_mask", "weight_mask"))
        weight = getattr(part, "weight_orig", getattr(part, "weights", getattr(inner, "weight", None)))
        off = zero if isinstance(zero, Tensor) else kept == 0 if isinstance(kept, Tensor) else None
        if not isinstance(weight, Tensor) or off is None or off.shape != weight.shape or weight.is_meta:
            continue
        if (weight.detach()[off.to(weight.device).bool()] != 0).any():
            return True
    return False


def _take(ours: MaskedParameter, weight: Any, bias: Any, mask: Tensor | None) -> None:
    """Puts parameters and mask into a layer that was made without memory (on the meta device)."""
    setattr(ours, ours.masked_name, weight)
    setattr(ours, "biases" if isinstance(ours, DendriteSegments) else "bias", bias)
    ours.set_mask(mask)
    ours.sparsity = ours.masked_share


def _inner(module: Any, kind: type) -> Any:
    """The torch layer that a public SparseWeights wraps."""
    inner: Any = _attribute(module, "module", nn.Module)
    if type(inner) is not kind:
        raise Left(f"expected a wrapped torch.nn.{kind.__name__} exactly, got {type(inner).__qualname__}")
    _check_padding(inner)
    return inner


def _check_padding(layer: Any) -> None:
    if getattr(layer, "padding_mode", "zeros") != "zeros":
        raise Left(f"expected padding_mode 'zeros', got {layer.padding_mode!r}")


def _conv_shape(conv: nn.Conv2d, *dendrites: int) -> tuple:
    """The positional arguments of SparseConv2d, or with S and C of DendriticConv2d."""
    first, then = (conv.in_channels, conv.out_channels, conv.kernel_size), (conv.stride, conv.padding, conv.dilation)
    return (*first, *dendrites, *then, conv.groups, conv.bias is not None)


def _empty(layer: nn.Linear | nn.Conv2d) -> SparseLinear | SparseConv2d:
    with torch.device("meta"):
        if isinstance(layer, nn.Conv2d):
            return SparseConv2d(*_conv_shape(layer))
        return SparseLinear(layer.in_features, layer.out_features, layer.bias is not None)


def _sparse(kind: type, module: Any, ties: str | None) -> Any:
    _check_children(module, {"module"})
    layer = _inner(module, kind)
    ours = _empty(layer)
    _take(ours, layer.weight, layer.bias, _mask(module, layer.weight))
    return ours


def is_pruned(module: Any) -> bool:
    """Whether torch.nn.utils.prune has masked the weight of a torch layer."""
    has = isinstance(getattr(module, "weight_orig", None), nn.Parameter)
    return type(module) in (nn.Linear, nn.Conv2d) and has and "weight_mask" in module._buffers


def from_plain(layer: Any) -> SparseLinear | SparseConv2d:
    """Ours for a torch layer, with the mask that torch.nn.utils.prune gave it, if it did."""
    weight: Any = layer.weight
    mask = None
    if is_pruned(layer):
        weight, kept = _attribute(layer, "weight_orig", nn.Parameter), _attribute(layer, "weight_mask", Tensor)
        mask = torch.empty_like(weight, dtype=torch.bool).copy_(kept)
    if not isinstance(weight, nn.Parameter) or not (layer.bias is None or isinstance(layer.bias, nn.Parameter)):
        raise Left("its weight or bias is not a plain parameter (a parametrization, or a pruned bias)")
    _check_padding(layer)
    ours = _empty(layer)
    _take(ours, weight, layer.bias, mask)
    return ours


def _check_children(module: Any, known: set[str]) -> None:
    """A child that the public class does not have may change what forward computes."""
    if strange := [name for name, _ in module.named_children() if name not in known]:
        raise Left(f"has a part {strange[0]!r} that the public class does not have")


def _dendritic(kind: type, dendrite: str, apply_name: str, apply_class: str, module: Any, ties: str | None) -> Any:
    """Ours for a public layer with DendriteSegments; apply_*: its child that applies their activations."""
    layer = _inner(module, kind)
    _check_children(module, {"module", "segments", apply_name})
    apply_class += "2d" if kind is nn.Conv2d else "1d"
    for name, wanted in ((apply_name, apply_class), ("segments", "DendriteSegments")):
        found = type(_attribute(module, name, nn.Module)).__name__
        if found != wanted:
            raise Left(f"expected its {name} to be a {wanted}, got {found}")
    segments = module.segments
    weights = _attribute(segments, "weights", nn.Parameter)
    parameters = (weights, getattr(segments, "biases", None), _mask(segments, weights))
    return _with_segments(module, layer, dendrite, *parameters)


def _one_segment(module: Any, ties: str | None) -> Any:
    """Ours for the public layer whose one segment a unit is a masked linear layer of the context."""
    _check_children(module, {"module", "segments"})
    layer, segments = _inner(module, nn.Linear), _attribute(module, "segments", nn.Module)
    if type(segments).__name__ != "SparseWeights":
        raise Left(f"expected its segments to be a SparseWeights, got {type(segments).__name__}")
    inner = _inner(segments, nn.Linear)
    keep = _mask(segments, inner.weight)
    parameters = (_unsqueezed(inner.weight), _unsqueezed(inner.bias), None if keep is None else keep.unsqueeze(1))
    return _with_segments(module, layer, "abs_max_gate", *parameters)


def _unsqueezed(p: nn.Parameter | None) -> nn.Parameter | None:
    return None if p is None else nn.Parameter(p.detach().unsqueeze(1), requires_grad=p.requires_grad)


def _with_segments(module: Any, layer: Any, dendrite: str, weights: Any, biases: Any, keep: Tensor | None) -> Any:
    options: dict[str, Any] = {"dendrite": dendrite, "segment_bias": biases is not None}
    ours: Any
    with torch.device("meta"):
        if isinstance(layer, nn.Conv2d):
            ours = DendriticConv2d(*_conv_shape(layer, *weights.shape[1:]), **options)
        else:
            shape = (layer.in_features, layer.out_features, *weights.shape[1:], layer.bias is not None)
            ours = DendriticLinear(*shape, **options)
    _take(ours, layer.weight, layer.bias, _mask(module, layer.weight))
    _take(ours.segments, weights, biases, keep)
    return ours


def _no_segment(module: Any, ties: str | None) -> DendriticLinear:
    """Ours for the public layer that takes a context and does not read it."""
    _check_children(module, {"module"})
    layer = _inner(module, nn.Linear)
    with torch.device("meta"):
        ours = DendriticLinear(layer.in_features, layer.out_features, 0, 0, layer.bias is not None, dendrite="none")
    _take(ours, layer.weight, layer.bias, _mask(module, layer.weight))
    return ours


# ---- k winners ------------------------------------------------------------------------------------------------------


def _winners(module: Any, ties: str | None) -> Any:
    return _boosted(KWinners(_attribute(module, "n", int), **_winner_options(module, module.n, ties)), module)


def _winners2d(module: Any, ties: str | None) -> Any:
    channels, local = _attribute(module, "channels", int), _attribute(module, "local", bool)
    # the public class counts a sample's values at its first batch: 0 before
    units = channels if local else int(_attribute(module, "n", numbers.Integral))
    return _boosted(KWinners2d(channels, local=local, **_winner_options(module, units, ties)), module)


def _winner_options(module: Any, units: int, ties: str | None) -> dict[str, Any]:
    """Ours for the public options; k at inference, which the public class rounds in its own way, by its factor."""
    _check_children(module, set())
    percent_on, factor = _attribute(module, "percent_on", float), _attribute(module, "k_inference_factor", (float, int))
    k, k_inference = (_attribute(module, name, numbers.Integral) for name in ("k", "k_inference"))
    if units and (k != round(units * percent_on) or k_inference > units):
        wanted = f"k = {round(units * percent_on)} and k_inference up to {units}"
        raise Left(f"expected {wanted} for {units} units, got {k} and {k_inference}")
    if units and round(units * percent_on * factor) != k_inference:
        factor = k_inference / (units * percent_on)
    return {
        "percent_on": percent_on,
        "k_inference_factor": factor,
        "boost_strength": float(_attribute(module, "boost_strength", Tensor)),
        "boost_strength_factor": _attribute(module, "boost_strength_factor", (float, int)),
        "duty_cycle_period": _attribute(module, "duty_cycle_period", int),
        "relu": bool(getattr(module, "relu", False)),
        # without the option it is an older class, which has exactly k winners
        "ties": ties or ("lowest" if getattr(module, "break_ties", True) else "keep"),
    }


def _boosted(ours: KWinners | KWinners2d, module: Any) -> Any:
    """Takes the public module's buffers, and the samples it has seen."""
    duty_cycle = _attribute(module, "duty_cycle", Tensor)
    if duty_cycle.numel() != ours.n:
        raise Left(f"expected a duty_cycle of {ours.n} units or channels, got {tuple(duty_cycle.shape)}")
    ours.boost_strength, ours.duty_cycle = module.boost_strength, duty_cycle.view(-1)
    seen = int(_attribute(module, "learning_iterations", (numbers.Integral, Tensor)))
    ours.learning_iterations = torch.tensor(seen, device=duty_cycle.device)
    return ours


# the child that applies the dendrites, and its class but for 1d or 2d
_ABS_MAX = "abs_max_gate", "dendritic_absolute_max_gate", "DendriticAbsoluteMaxGate"
_MAX = "max_gate", "dendritic_gate", "DendriticGate"
_BIAS = "bias", "dendritic_bias", "DendriticBias"

# public class: what makes ours, called with the module and the rule for ties
MAKERS: dict[str, Callable[..., Any]] = {
    "SparseWeights": partial(_sparse, nn.Linear),
    "PrunableSparseWeights": partial(_sparse, nn.Linear),
    "SparseWeights2d": partial(_sparse, nn.Conv2d),
    "PrunableSparseWeights2d": partial(_sparse, nn.Conv2d),
    "AbsoluteMaxGatingDendriticLayer": partial(_dendritic, nn.Linear, *_ABS_MAX),
    "GatingDendriticLayer": partial(_dendritic, nn.Linear, *_MAX),
    "BiasingDendriticLayer": partial(_dendritic, nn.Linear, *_BIAS),
    "OneSegmentDendriticLayer": _one_segment,
    "ZeroSegmentDendriticLayer": _no_segment,
    "AbsoluteMaxGatingDendriticLayer2d": partial(_dendritic, nn.Conv2d, *_ABS_MAX),
    "GatingDendriticLayer2d": partial(_dendritic, nn.Conv2d, *_MAX),
    "KWinners": _winners,
    "KWinners2d": _winners2d,
}
