"""Weight masks: fixed random ones, masked weights kept at zero, and magnitude pruning for lottery tickets.

Iterative magnitude pruning (layer by layer, back to the start after each level)::

    initial = copy.deepcopy(model.state_dict())
    for level in range(35):
        train(model)
        prune(model, 0.125)
        rewind(model, initial)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .formats import Versioned
from .ops import rezero_
from .scripting import NotScriptable


def check_fraction(name: str, value: float, *, one: bool) -> float:
    """A fraction in [0, 1), or [0, 1] where `one` is allowed."""
    if not 0 <= value <= 1 or (value == 1 and not one):
        raise ValueError(f"{name}: expected a fraction in [0, 1{']' if one else ')'}, got {value}")
    return value


def random_mask(shape: tuple[int, ...], sparsity: float, generator: torch.Generator | None = None) -> Tensor:
    """Bool mask with exactly round((1 - sparsity) * I) True in each row of I (the last dim), at random places.

    Source: Grewal et al. 2021, section 3.2 (sparse weights by a fixed random mask).
    """
    check_fraction("sparsity", sparsity, one=False)
    keep = round((1 - sparsity) * shape[-1])
    if keep == shape[-1]:
        return torch.ones(shape, dtype=torch.bool)
    rows = torch.rand(shape, generator=generator)
    chosen = rows.topk(keep, dim=-1).indices
    return torch.zeros(shape, dtype=torch.bool).scatter_(-1, chosen, True)


class MaskedParameter(NotScriptable, Versioned):
    """A module with one weight under a mask. `weight_mask` is None where nothing is masked."""

    sparsity: float  # as asked for
    masked_name = "weight"
    prunable = True  # whether pruning a model prunes this weight
    weight_mask: Tensor | None

    @property
    def masked_weight(self) -> nn.Parameter:
        return getattr(self, self.masked_name)

    def set_mask(self, mask: Tensor | None) -> None:
        self.register_buffer("weight_mask", mask)
        self.rezero_weights()

    def rezero_weights(self) -> None:
        """Sets masked weights back to zero."""
        if self.weight_mask is not None:
            rezero_(self.masked_weight, self.weight_mask)

    @property
    def masked_share(self) -> float:
        """The share of masked weights: `sparsity` as asked for, but where pruning or a checkpoint has left another."""
        weight, mask = self.masked_weight, self.weight_mask
        if mask is None or mask.is_meta or mask.numel() == 0:
            return self.sparsity if mask is not None else 0.0
        share = 1 - float(mask.sum()) / mask.numel()
        row = weight[0].numel() if weight.dim() == 4 else weight.shape[-1]
        return self.sparsity if abs(share - self.sparsity) * row <= 0.6 else share  # up to the rounding of a row

    def _load_from_state_dict(self, state_dict, prefix, *args):
        if self.weight_mask is None and f"{prefix}weight_mask" in state_dict:  # of a layer that was pruned
            self.weight_mask = torch.empty_like(self.masked_weight, dtype=torch.bool)
        super()._load_from_state_dict(state_dict, prefix, *args)


def rezero_weights(model: nn.Module) -> nn.Module:
    """Sets every masked weight of the model back to zero: call it after each optimizer step, whatever the optimizer.

    Equivalent to: m.weight.data.masked_fill_(~m.weight_mask, 0) for each module m with a mask
    """
    for module in model.modules():
        if isinstance(module, MaskedParameter):
            module.rezero_weights()
    return model


# ---- pruning --------------------------------------------------------------------------------------------------------


def as_one(modules: nn.Module | Iterable[nn.Module]) -> nn.Module:
    """A module, or several as one whose names begin with their numbers."""
    if isinstance(modules, nn.Module):
        return modules
    modules = list(modules)
    if not modules or not all(isinstance(m, nn.Module) for m in modules):
        raise TypeError("modules: expected a module or several, e.g. a model or [model.first, model.second]")
    return nn.ModuleList(modules)


def prune(modules: nn.Module | Iterable[nn.Module], fraction: float) -> None:
    """Masks the smallest round(fraction * n) of the n weights that each layer still has; they become 0.

    Args:
        modules: a model, or the layers to prune: each SparseLinear and SparseConv2d in it, and layers made of them.
            Dendritic segments and biases are not pruned.
        fraction: in [0, 1).

    Of equal magnitudes those later in the row-major order of the weight's shape go first. A layer with few weights left
    may lose none.

    Raises:
        TypeError: modules are not modules. ValueError: a fraction outside [0, 1), or no layer with a mask.

    Equivalent to: torch.nn.utils.prune.l1_unstructured(layer, "weight", fraction) for each layer

    Source: Bain 2022 (12.5 % a level); Frankle & Carbin 2019.
    """
    check_fraction("fraction", fraction, one=False)
    for layer in _prunable(modules).values():
        weight = layer.masked_weight.detach()
        magnitude = weight.abs()
        if layer.weight_mask is not None:
            magnitude = magnitude.masked_fill(~layer.weight_mask, -1)
        left = _kept(layer)
        order = magnitude.reshape(-1).sort(descending=True, stable=True).indices
        _keep_only(layer, order[: left - round(fraction * left)])


def random_ticket(
    model: nn.Module,
    initial: Mapping[str, Tensor],
    layers: nn.Module | Iterable[nn.Module] | None = None,
    generator: torch.Generator | None = None,
) -> None:
    """Fresh masks of each layer's present density, at random places of the whole layer, and the model rewound.

    Args:
        model, initial: as rewind; the layers were dense then.
        layers: those of the model to draw for, as prune's modules (None: all).
        generator: a CPU generator, or None for torch's own.

    Raises: as prune and rewind; ValueError also where `initial` had masked weights, which have no value to start from.

    Source: Bain 2022 (random tickets).
    """
    names = {module: name for name, module in model.named_modules()}
    chosen = list(_prunable(model if layers is None else layers).values())
    for layer in chosen:
        if layer not in names:
            raise ValueError(f"layers: expected layers of the model, got another {type(layer).__name__}")
        mask = initial.get(f"{names[layer]}.weight_mask".lstrip("."))
        if mask is not None and not mask.all():
            raise ValueError(f"initial: expected dense layers, but {names[layer]!r} has masked weights in it")
    for layer in chosen:
        if layer.weight_mask is not None:
            places = torch.randperm(layer.weight_mask.numel(), generator=generator)
            _keep_only(layer, places[: _kept(layer)].to(layer.weight_mask.device))
    rewind(model, initial)


@torch.no_grad()
def rewind(model: nn.Module, initial: Mapping[str, Tensor]) -> None:
    """Sets parameters and buffers back to what they were, but for the masks; masked weights are 0.

    Args:
        initial: a copy of the model's state_dict from before pruning, copy.deepcopy(model.state_dict()).

    Raises ValueError where an entry is missing, of another shape, or the model's own tensor (which moved with it).
    """
    present = {name: t for name, t in model.state_dict().items() if name.rpartition(".")[2] != "weight_mask"}
    for name, t in present.items():
        if name not in initial or initial[name].shape != t.shape:
            given = tuple(initial[name].shape) if name in initial else "none"
            raise ValueError(f"initial: expected {name!r} of shape {tuple(t.shape)}, got {given}")
        if t.numel() and initial[name].data_ptr() == t.data_ptr():
            raise ValueError(
                f"initial: expected a copy (copy.deepcopy of the state_dict), got the model's own {name!r}"
            )
    for name, t in present.items():
        t.copy_(initial[name])
    rezero_weights(model)


class Densities(NamedTuple):
    """Shares of weights that are not masked: of each layer by name, and of all of them together."""

    layers: dict[str, float]
    total: float


def densities(modules: nn.Module | Iterable[nn.Module]) -> Densities:
    """What pruning has left of each layer and of all layers; modules and errors as in prune."""
    counts = {name: (_kept(layer), layer.masked_weight.numel()) for name, layer in _prunable(modules).items()}
    kept, weights = (sum(column) for column in zip(*counts.values(), strict=True))
    return Densities({name: k / max(1, n) for name, (k, n) in counts.items()}, kept / max(1, weights))


def _prunable(modules: nn.Module | Iterable[nn.Module]) -> dict[str, MaskedParameter]:
    named = as_one(modules).named_modules()
    layers = {name: m for name, m in named if isinstance(m, MaskedParameter) and m.prunable}
    if not layers:
        raise ValueError("modules: expected at least one SparseLinear or SparseConv2d (sparsity=0 will do), got none")
    return layers


def _kept(layer: MaskedParameter) -> int:
    return layer.masked_weight.numel() if layer.weight_mask is None else int(layer.weight_mask.sum())


def _keep_only(layer: MaskedParameter, places: Tensor) -> None:
    """Masks all but these places, numbers in the order of the weight's shape, whatever its strides."""
    weight = layer.masked_weight.detach()
    keep = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
    keep[places] = True
    layer.set_mask(torch.empty_like(weight, dtype=torch.bool).copy_(keep.view(weight.shape)))
