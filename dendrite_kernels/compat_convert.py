"""convert: our layers in the places of a live model's public ones, on the same parameters.

Classes are known by their names and attributes, so that copies of the public code are known too. Whatever is not
exactly as the public class has it is left as it is, and the report says why.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.utils.prune import BasePruningMethod

from .compat_layers import MAKERS, STAY, Left, from_plain, has_stray, is_pruned
from .nn import DendriticLinear, KWinners, SparseLinear
from .nn.kwinners import _Boosted
from .sparsity import MaskedParameter

_PLAIN = (nn.Linear, nn.Conv2d)
_OURS = (MaskedParameter, _Boosted)
# abstract base classes by which public training loops find what to rezero and to boost, and ours that answer to them
_BASES = {"HasRezeroWeights": MaskedParameter, "KWinnersBase": _Boosted}


@dataclass
class Conversion:
    """What convert did: the model (the same object, unless it was itself a public layer), {path: what happened} of the
    modules that were swapped, {path: why not} of those that were left, and the paths of swapped ones with weights that
    were not zero under a mask (they are now, as after the public rezero_weights)."""

    model: nn.Module
    swapped: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    rezeroed: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"swapped {len(self.swapped)}, left {len(self.left)}"]
        for title, found in (("swapped", self.swapped), ("left", self.left)):
            lines += [f"  {title} {path or '(the model)'}: {text}" for path, text in found.items()]
        lines += [f"  rezeroed {path or '(the model)'}: weights under its mask were not zero" for path in self.rezeroed]
        return "\n".join(lines)


def convert(model: nn.Module, layers: Iterable[str] = (), *, ties: str | None = None) -> Conversion:
    """Swaps the layers of a live model for ours, in place; the model gives the same values.

    Weights under a mask are set to zero, as the public rezero_weights does after each step; where one was not, the
    public layer's values were others until then, and Conversion.rezeroed has its path.

    Args:
        model: any model. Swapped are the public SparseWeights, SparseWeights2d, KWinners, KWinners2d and dendritic
            layers, each where its class has that very name and the public attributes, and torch.nn.Linear and Conv2d
            that torch.nn.utils.prune has masked.
        layers: paths, or fnmatch patterns of them ("encoder.*"), of torch.nn.Linear and Conv2d to swap as well, without
            a mask. Our SparseLinear takes x [B, I] only.
        ties: the rule of k winners, "keep" or "lowest"; None: each module's own (break_ties). With "lowest" the
            activations of a public DendriticMLP stay k-sparse between its layers.

    Kept: parameters (the very objects, so an optimizer goes on), buffers, requires_grad, training mode, device and
    dtype. A layer of one segment gets a new Parameter [O, 1, C] on the same memory: make its optimizer anew. Modules
    with hooks are left: remove the hooks, convert, and register them again. A public training loop's rezero_weights
    and update_boost_strength, called by model.apply, find our modules too.

    Returns:
        Conversion. Print it.

    Raises:
        TypeError: model is not a module. ValueError: a pattern that matches no module, or ties that are no such rule.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if ties not in (None, "keep", "lowest"):
        raise ValueError(f"ties: expected 'keep', 'lowest' or None, got {ties!r}")
    named = _named(model, layers)
    report = Conversion(model)
    new: dict[nn.Module, nn.Module] = {}  # a module that is used twice is swapped once
    inside: set[nn.Module] = set()  # of swapped modules
    for path, module in model.named_modules():
        if module in inside or isinstance(module, _OURS):
            inside.update(module.modules())
            continue
        try:
            stray = has_stray(module) if _public(module) or is_pruned(module) else False
            made = _counterpart(module, path in named, ties)
        except Left as reason:
            report.left[path] = f"{type(module).__name__}: {reason}"
            inside.update(module.modules() if _public(module) else ())
            continue
        if made is not None:
            made.train(module.training)
            _answer_to_bases(module)
            new[module] = made
            report.rezeroed += [path] * stray
            inside.update(module.modules())
            report.swapped[path] = f"{type(module).__name__} -> {type(made).__name__}({made.extra_repr()})"
    report.model = new.get(model, model)
    for parent in list(report.model.modules()):
        for name, child in parent._modules.items():
            if child in new:
                parent._modules[name] = new[child]
    for path, module in report.model.named_modules():
        if type(module).__name__ == "DendriticMLP" and isinstance(getattr(module, "_layers", None), nn.ModuleList):
            _fuse_winners(path, module, report)
    return report


def _named(model: nn.Module, patterns: Iterable[str]) -> set[str]:
    """The paths that are named, and the plain layers that patterns match."""
    if isinstance(patterns, str):
        raise TypeError(f"layers: expected several patterns, got the string {patterns!r}; give [{patterns!r}]")
    modules, named = dict(model.named_modules()), set()
    for pattern in patterns:
        matched = {p for p, m in modules.items() if p == pattern or (type(m) in _PLAIN and fnmatchcase(p, pattern))}
        if not matched:
            raise ValueError(f"layers: expected paths or patterns of the model's Linear and Conv2d, got {pattern!r}")
        named |= matched
    return named


def _public(module: nn.Module) -> list[str]:
    """The public classes by whose names the module goes, its own first."""
    return [base.__name__ for base in type(module).__mro__ if base.__name__ in MAKERS or base.__name__ in STAY]


def _counterpart(module: nn.Module, named: bool, ties: str | None) -> nn.Module | None:
    """Our layer for this module, or None where it is nothing to swap; raises Left where it could have been."""
    kind = type(module)
    name = kind.__name__
    pruned = is_pruned(module)
    if name in STAY:
        raise Left(STAY[name])
    if name not in MAKERS:
        if _public(module):
            raise Left(f"a subclass of {_public(module)[0]}, whose forward may differ")
        if kind not in _PLAIN and named:
            raise Left("named, but not exactly torch.nn.Linear or Conv2d")
        if kind not in _PLAIN:
            return None
        if not named and not pruned:
            raise Left("not named in layers")
    _check_unhooked(module, pruned)
    return MAKERS[name](module, ties) if name in MAKERS else from_plain(module)


def _check_unhooked(module: nn.Module, pruned: bool) -> None:
    """A hook would see another class and other attributes, so it is for its owner to register it again."""
    for part in module.modules():
        if "forward" in vars(part):
            raise Left("its forward was replaced on the instance")
        for name, hooks in vars(part).items():
            if not name.endswith("_hooks") or not isinstance(hooks, dict):
                continue
            if hooks and not (pruned and all(isinstance(h, BasePruningMethod) for h in hooks.values())):
                raise Left(f"has hooks ({name.strip('_')}): remove them, convert, and register them again")


def _answer_to_bases(module: nn.Module) -> None:
    """Makes isinstance(ours, the public abstract base) true, for loops that find modules by it."""
    for part in module.modules():
        for base in type(part).__mro__:
            if base.__name__ in _BASES and isinstance(base, abc.ABCMeta):
                base.register(_BASES[base.__name__])


def _fuse_winners(path: str, network: Any, report: Conversion) -> None:
    """Moves the k winners of a public DendriticMLP into their layers, k-sparse where the rule for ties allows."""
    layers, winners = network._layers, getattr(network, "_activations", None)
    if not isinstance(winners, nn.ModuleList) or len(winners) != len(layers):
        return
    if len({*layers, *winners}) < 2 * len(layers):  # one that is used twice would choose twice
        return
    dot = f"{path}." if path else ""
    for i, (layer, act) in enumerate(zip(layers, winners, strict=True)):
        alone = isinstance(layer, DendriticLinear) and layer.kwinners is None and not layer.relu
        if not alone or not isinstance(act, KWinners) or act.n != layer.out_features:
            continue
        readers = [layers[i + 1]] if i + 1 < len(layers) else _output_layers(network)
        act.sparse = act.ties == "lowest" and bool(readers) and all(isinstance(r, SparseLinear) for r in readers)
        layer.kwinners, winners[i] = act, nn.Identity()
        form = "k-sparse" if act.sparse else "dense"
        for p in (f"{dot}_layers.{i}", f"{dot}_activations.{i}"):
            if p in report.swapped:
                report.swapped[p] += f" (its k winners are inside _layers.{i}, {form})"


def _output_layers(network: nn.Module) -> list[nn.Module]:
    """The layers that read the last hidden one."""
    heads = getattr(network, "_output_layers", None)
    heads = list(heads) if isinstance(heads, nn.ModuleList) else [getattr(network, "_output_layer", None)]
    return [head[0] if isinstance(head, nn.Sequential) and len(head) else head for head in heads]
