"""Networks written with the public packages (nupic.torch, nupic.research): their checkpoints and their live modules.

`load_public` reads a state dict with the public names into our modules, `public_state_dict` writes one, and
`mlp_from_public` builds the network that a state dict describes. `convert` swaps the layers of a live model in place.
docs/migration.md has each public class, its counterpart, and what differs. The public packages are neither imported
nor needed.

State dicts hold tensors alone, so that torch.load(path, weights_only=True) reads them. The optimizer's state is not
in them: optim.Adam.load_state_dict takes that of torch.optim.Adam, whose parameters come in the same order.

Names as in the public DendriticMLP: `_layers.i.module.{weight,bias}`, `_layers.i.zero_mask` (1 where a weight is off),
`_layers.i.segments.{weights,zero_mask,biases}` (one segment: `segments.module.{weight,bias}`),
`_activations.i.{boost_strength,duty_cycle}`, `_output_layers.0.output_linear.{module.weight,module.bias,zero_mask}`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .compat_convert import Conversion, convert
from .compat_names import OLD_OUTPUT, entries, without_wrapper
from .nn import DendriticMLP
from .sparsity import rezero_weights

__all__ = ["Conversion", "Loaded", "convert", "load_public", "mlp_from_public", "public_state_dict"]

_MOST_PROBLEMS = 20  # in one message


class Loaded(NamedTuple):
    """What load_public found: keys that were missing or unexpected (strict=False), of another dtype than the model's,
    and masks over weights that were not zero in the checkpoint (they are now, as after the public rezero_weights)."""

    missing: list[str]
    unexpected: list[str]
    cast: list[str]
    rezeroed: list[str]


def load_public(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    *,
    names: Mapping[str, str] | None = None,
    strict: bool = True,
    learning_iterations: int | None = None,
) -> Loaded:
    """Loads a state dict with the public networks' names into a model of ours; nothing of it unless all fits.

    Args:
        model: a DendriticMLP, one of our layers, or any model with our layers in it. Modules that are not ours keep
            their names.
        state_dict: as the public network's state_dict() gives it. Keys that all begin with `module.`, `_module.` or
            `_orig_mod.` (a wrapper's) lose that.
        names: paths of our modules and of their public counterparts, where they differ, e.g.
            {"conv1.kwinners": "cnn1_kwinner"}. Those of a DendriticMLP are known.
        strict: whether a missing or an unexpected key is an error.
        learning_iterations: the samples that the duty cycles have seen. The public checkpoints don't say. None: as the
            model's own key where there is one, else the duty cycle's period where the duty cycle has counted anything.
            0: as the public code resumes, whose first batch replaces the duty cycle.

    Returns:
        Loaded. Values are cast to the model's dtype and device, as load_state_dict does.

    Raises:
        TypeError: state_dict is not a mapping. ValueError: keys that are missing, unexpected or not of the expected
        shape or kind, each named with what was found and what was expected.

    Equivalent to: model.load_state_dict(state_dict), with every name, mask and shape put into ours

    Source: shared names of Grewal et al. 2021's public networks.
    """
    state = _checked_mapping(state_dict)
    if learning_iterations is not None and learning_iterations < 0:
        raise ValueError(f"learning_iterations: expected 0 or more, or None, got {learning_iterations}")
    found = entries(model, names, state)
    state = without_wrapper(state, {e.key for e in found})
    found = entries(model, names, state)  # what the checkpoint's own form is shows without the wrapper
    expected = {e.key: e for e in found}
    missing = [e.key for e in found if e.key not in state and not e.optional]
    unexpected = [key for key in state if key not in expected]
    problems = [problem for key, e in expected.items() if key in state and (problem := e.problem(state[key]))]
    if strict:
        problems += [f"missing {key!r}: expected a tensor {expected[key].shape}" for key in missing]
        problems += [f"unexpected {key!r}: got {_describe(state[key])}" for key in unexpected]
    if problems:
        raise ValueError(_message(model, problems))
    present = [e for e in found if e.key in state]
    cast = [e.key for e in present if e.casts and state[e.key].dtype != e.dtype]
    with torch.no_grad():
        rezeroed = [e.key for e in present if e.write(state[e.key])]
        for e in found:
            if e.optional and e.key not in state:
                e.absent(learning_iterations)
        rezero_weights(model)  # a mask that the checkpoint doesn't have stays
    return Loaded(missing, unexpected, cast, rezeroed)


def public_state_dict(
    model: nn.Module,
    *,
    names: Mapping[str, str] | None = None,
    prefix: str = "",
    one_segment: bool = True,
    plain: Iterable[str] = (),
    mask_dtype: torch.dtype = torch.float16,
) -> dict[str, Tensor]:
    """The model's state with the public networks' names, masks and shapes: what their load_state_dict takes.

    Args:
        model, names: as load_public.
        prefix: put before every key, e.g. "module.".
        one_segment: write a layer of one segment as the public OneSegmentDendriticLayer has it ([O, C] under
            `segments.module.weight`), which the public DendriticMLP switches to; False: [O, 1, C].
        plain: paths of our SparseLinear and SparseConv2d whose counterparts are plain torch layers (`weight` for
            `module.weight`, no mask).
        mask_dtype: of the zero masks; float16 is the public one. A layer without a mask writes zeros.

    Returns:
        Detached tensors, which share the model's memory where layouts agree, as in state_dict(). The number of samples
        that the duty cycles have seen is left out: the public modules keep none.

    Raises:
        ValueError: a path in names or plain that the model does not have.

    Equivalent to: model.state_dict(), renamed
    """
    found = entries(model, names, None, one_segment=one_segment, plain=tuple(plain), mask_dtype=mask_dtype)
    return {prefix + e.key: e.read() for e in found if not e.optional}


def mlp_from_public(state_dict: Mapping[str, Tensor], percent_on: float | None = 0.05, **options: Any) -> DendriticMLP:
    """The DendriticMLP that a public DendriticMLP's state dict describes, with its values.

    Args:
        state_dict: as in load_public. Widths, segments, context length, masks and boost strength come from it.
        percent_on: share of winners, which is not in it. A network without duty cycles has ReLU, whatever is given.
        options: of DendriticMLP that are not in it: dendrite, k_inference_factor, duty_cycle_period, and ties ("keep"
            is the public rule, "lowest" keeps activations k-sparse). learning_iterations: as in load_public.

    Returns:
        The network, in training mode, in the dtype of the checkpoint's first weight, on the CPU.

    Raises: as load_public; ValueError where the state dict does not hold a DendriticMLP.
    """
    state = without_wrapper(_checked_mapping(state_dict), {"_layers.0.module.weight"})
    learning_iterations = options.pop("learning_iterations", None)
    weights: list[Tensor] = []
    while isinstance(w := state.get(f"_layers.{len(weights)}.module.weight"), Tensor) and w.dim() == 2:
        weights.append(w)
    heads = (f"{name}.output_linear.module.weight" for name in ("_output_layers.0", OLD_OUTPUT))
    head = next((state[key] for key in heads if key in state), None)
    if not weights or not isinstance(head, Tensor) or head.dim() != 2:
        raise ValueError(
            "state_dict: expected '_layers.0.module.weight' [O, I] and '_output_layers.0.output_linear.module.weight' "
            f"of a DendriticMLP, got {_few(state)}"
        )
    segments, dim_context = _segments(state)
    if not any(key.startswith("_activations.") for key in state):
        percent_on = None
    widths = (weights[0].shape[1], [len(w) for w in weights], len(head))
    if not segments:
        options["dendrite"] = "none"
    model = DendriticMLP(*widths, segments, dim_context, weight_sparsity=0.0, percent_on=percent_on, **options)
    load_public(model.to(weights[0].dtype), state, learning_iterations=learning_iterations)
    return model


def _segments(state: Mapping[str, Tensor]) -> tuple[int, int]:
    """Segments a unit and context length of a public DendriticMLP's first layer; 0, 0 for none."""
    for name, dims in (("weights", 3), ("module.weight", 2)):
        t = state.get(f"_layers.0.segments.{name}")
        if isinstance(t, Tensor) and t.dim() == dims:
            return (t.shape[1] if dims == 3 else 1), t.shape[-1]
    return 0, 0


def _checked_mapping(state_dict) -> Mapping[str, Tensor]:
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"state_dict: expected a mapping of names to tensors, got {type(state_dict).__name__}")
    return state_dict


def _message(model: nn.Module, problems: list[str]) -> str:
    shown = "\n  ".join(problems[:_MOST_PROBLEMS])
    more = f"\n  and {len(problems) - _MOST_PROBLEMS} more" if len(problems) > _MOST_PROBLEMS else ""
    return f"state_dict: does not fit this {type(model).__name__}, which is as it was\n  {shown}{more}"


def _few(state: Mapping) -> str:
    keys = list(state)
    return ", ".join(map(repr, keys[:4])) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "") or "no keys"


def _describe(value) -> str:
    return f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
