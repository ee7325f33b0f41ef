"""Which tensor of ours each key of a public checkpoint stands for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .nn import DendriteSegments, DendriticMLP, KWinners, KWinners2d, SparseConv2d, SparseLinear
from .sparsity import MaskedParameter

WRAPPERS = ("module.", "_module.", "_orig_mod.")  # DistributedDataParallel's, other wrappers', torch.compile's
OLD_OUTPUT = "_output_layer"  # for _output_layers.0, before the public network had several heads


class Entry:
    """A key, and the tensor of ours that it stands for, seen in the public shape."""

    optional, casts = False, True

    def __init__(self, key: str, tensor: Tensor):
        self.key, self.tensor = key, tensor.detach()

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value for this key, or None."""
        if not isinstance(value, Tensor):
            return f"{self.key!r}: expected a tensor {self.shape}, got {type(value).__name__}"
        if value.is_meta or value.layout != torch.strided:
            form = "on meta" if value.is_meta else f"with layout {value.layout}"
            return f"{self.key!r}: expected a dense tensor with values, got one {form}"
        if tuple(value.shape) != self.shape:
            return f"{self.key!r}: expected shape {self.shape}, got {tuple(value.shape)}"
        if value.is_floating_point() != self.dtype.is_floating_point and self.casts:
            return f"{self.key!r}: expected {self.dtype}, got {value.dtype}"
        return None

    def write(self, value: Tensor) -> bool:
        """Takes the value; returns whether weights under a mask had to be set to zero."""
        self.tensor.copy_(value)
        return False

    def read(self) -> Tensor:
        return self.tensor.contiguous()

    def absent(self, learning_iterations: int | None) -> None:
        """Called for an optional key that the checkpoint does not have."""


class _Mask(Entry):
    """A zero mask (1 where a weight is off) for our mask of what stays."""

    casts = False

    def __init__(self, key: str, module: MaskedParameter, view: Callable[[Any], Tensor], dtype: torch.dtype):
        super().__init__(key, view(module.masked_weight))
        self.module, self.mask_dtype = module, dtype

    def problem(self, value: Any) -> str | None:
        wrong = super().problem(value)
        if wrong is None and not ((value == 0) | (value == 1)).all():
            wrong = f"{self.key!r}: expected zeros and ones (1 where a weight is off), got other values"
        return wrong

    def write(self, value: Tensor) -> bool:
        weight = self.module.masked_weight.detach()
        off = value.to(weight.device).bool().view(weight.shape)
        stray = bool((weight[off] != 0).any())
        self.module.set_mask(torch.empty_like(weight, dtype=torch.bool).copy_(~off) if off.any() else None)
        self.module.sparsity = self.module.masked_share
        return stray

    def read(self) -> Tensor:
        mask = self.module.weight_mask
        if mask is None:
            return torch.zeros(self.shape, dtype=self.mask_dtype, device=self.tensor.device)
        return (~mask).to(self.mask_dtype).reshape(self.shape).contiguous()


class _Boost(Entry):
    """A boost strength, which the module reads at once."""

    def __init__(self, key: str, module: Any):
        super().__init__(key, module.boost_strength)
        self.module = module

    def write(self, value: Tensor) -> bool:
        super().write(value)
        self.module.boosts()  # a program may be compiled next
        return False


class _Count(Entry):
    """The samples that a duty cycle has seen, which only our modules save."""

    optional = True

    def __init__(self, key: str, module: Any):
        super().__init__(key, module.learning_iterations)
        self.module = module

    def absent(self, learning_iterations: int | None) -> None:
        if learning_iterations is None:
            learning_iterations = self.module.duty_cycle_period if self.module.duty_cycle.any() else 0
        self.tensor.fill_(learning_iterations)


def without_wrapper(state: Mapping[str, Tensor], expected: set[str]) -> Mapping[str, Tensor]:
    """The state without the prefix of a wrapper, where no key is expected as it stands."""
    while state and not expected.intersection(state):
        wrapper = next((w for w in WRAPPERS if all(str(key).startswith(w) for key in state)), None)
        if wrapper is None:
            break
        state = {key[len(wrapper) :]: value for key, value in state.items()}
    return state


def entries(
    model: nn.Module,
    names: Mapping[str, str] | None,
    state: Mapping[str, Tensor] | None,
    *,
    one_segment: bool = True,
    plain: tuple[str, ...] = (),
    mask_dtype: torch.dtype = torch.float16,
) -> list[Entry]:
    """An entry for each public key of the model; state: what is to be read (its form is followed), None: to write."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for what, paths in (("names", names or ()), ("plain", plain)):
        for path in paths:
            if path not in modules:
                raise ValueError(f"{what}: expected paths of the model's modules, got {path!r}")
    rules = {**_network_names(modules, state), **(names or {})}
    found: list[Entry] = []
    for path, module in modules.items():
        p = _public_path(path, rules)
        dot = f"{p}." if p else ""
        if isinstance(module, (SparseLinear, SparseConv2d)):
            alone = path in plain or (state is not None and f"{dot}weight" in state)
            found += _weight_entries(dot, module, alone and f"{dot}module.weight" not in (state or ()), mask_dtype)
        elif isinstance(module, DendriteSegments):
            squeezed = module.weights.shape[1] == 1
            squeezed = squeezed and (one_segment if state is None else f"{dot}weights" not in state)
            found += _segment_entries(dot, module, squeezed, mask_dtype)
        elif isinstance(module, (KWinners, KWinners2d)):
            found += _winner_entries(dot, module)
        else:
            found += _own_entries(dot, module)
    return found


def _network_names(modules: Mapping[str, nn.Module], state: Mapping | None) -> dict[str, str]:
    """Public paths of the parts of each DendriticMLP, ours or a public one whose layers were converted."""
    rules = {}
    for path, module in modules.items():
        dot = f"{path}." if path else ""
        if isinstance(module, DendriticMLP):
            layers, heads = "layers", "_output_layers.0"
            old = state is not None and any(str(key).startswith(f"{dot}{OLD_OUTPUT}.") for key in state)
            rules[f"{dot}output"] = f"{dot}{OLD_OUTPUT if old else heads}.output_linear"
        elif isinstance(getattr(module, "_activations", None), nn.ModuleList):
            layers = "_layers"
        else:
            continue
        for number in range(len(getattr(module, layers, ()))):
            rules[f"{dot}{layers}.{number}"] = f"{dot}_layers.{number}"
            rules[f"{dot}{layers}.{number}.kwinners"] = f"{dot}_activations.{number}"
    return {path: rules[path] for path in rules if path in modules}


def _public_path(path: str, rules: Mapping[str, str]) -> str:
    if path in rules or not path:
        return rules.get(path, path)
    parent, _, name = path.rpartition(".")
    above = _public_path(parent, rules)
    return f"{above}.{name}" if above else name


def _same(t: Tensor) -> Tensor:
    return t


def _weight_entries(dot: str, module, plain: bool, mask_dtype) -> Iterator[Entry]:
    inner = dot if plain else f"{dot}module."
    yield Entry(f"{inner}weight", module.weight)
    if module.bias is not None:
        yield Entry(f"{inner}bias", module.bias)
    if not plain:
        yield _Mask(f"{dot}zero_mask", module, _same, mask_dtype)


def _segment_entries(dot: str, module: DendriteSegments, squeezed: bool, mask_dtype) -> Iterator[Entry]:
    def view(t: Tensor) -> Tensor:
        return t.squeeze(1) if squeezed else t

    weight, bias = ("module.weight", "module.bias") if squeezed else ("weights", "biases")
    yield Entry(f"{dot}{weight}", view(module.weights))
    if module.biases is not None:
        yield Entry(f"{dot}{bias}", view(module.biases))
    yield _Mask(f"{dot}zero_mask", module, view, mask_dtype)


def _winner_entries(dot: str, module: Any) -> Iterator[Entry]:
    flat = isinstance(module, KWinners)
    yield _Boost(f"{dot}boost_strength", module)
    yield Entry(f"{dot}duty_cycle", module.duty_cycle if flat else module.duty_cycle.view(1, -1, 1, 1))
    yield _Count(f"{dot}learning_iterations", module)


def _own_entries(dot: str, module: nn.Module) -> Iterator[Entry]:
    """Parameters and buffers of a module that is not ours, by their own names."""
    kept = {n: t for n, t in module._buffers.items() if n not in module._non_persistent_buffers_set}
    for name, t in {**module._parameters, **kept}.items():
        if t is not None:
            yield Entry(f"{dot}{name}", t)
