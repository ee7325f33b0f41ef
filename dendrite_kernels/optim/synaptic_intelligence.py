"""Synaptic Intelligence: a penalty on moving weights that mattered to earlier tasks, around any optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..factored import FactoredGrad
from ..formats import FORMAT, check_format
from ..nn import DendriteSegments
from ..sparsity import as_one, rezero_weights
from .adam import Adam
from .moments import Synapses


class _Variant(NamedTuple):
    omega_takes_penalty: bool  # whether omega's gradient has the penalty's in it
    protects_segments: bool
    free_tasks: int  # how many tasks, from the first, train without the penalty


VARIANTS = {"zenke": _Variant(False, True, 1), "adn": _Variant(True, False, 2)}

_SAVED = ("omega", "importance", "reference")


class SynapticIntelligence:
    """Steps an optimizer on loss + c * sum_k Omega_k (theta_k - theta*_k)^2, and keeps Omega of the tasks so far.

    Args:
        modules: a module, or several: their parameters are protected, by names as in named_parameters() (of several,
            with the module's number before).
        optimizer: any torch optimizer, or dendrite_kernels.optim.Adam, that has all these parameters. To begin a task
            with a fresh one, assign it: `si.optimizer = torch.optim.Adam(model.parameters())`.
        c: strength of the penalty, 0 or more. xi: damping, 0 or more; with 0, a weight that mattered and then came
            back to where it began gets an infinite Omega.
        variant: "zenke", the paper: omega from the gradient of the task's loss alone. "adn", as the active dendrites
            paper ran it: omega's gradient has the penalty's in it, dendritic segments are not protected, and the
            penalty begins with the third task.

    Each `step`: omega_k -= g_k * (theta_k after - theta_k before). `end_task`: Omega_k += relu(omega_k) /
    (Delta_k^2 + xi), theta*_k = theta_k, omega_k = 0; Delta_k is what theta_k moved since the task before (the first
    step, for the first task).

    The loop is an ordinary one, of the task's loss alone::

        optimizer.zero_grad()
        loss.backward()
        si.step()  # instead of optimizer.step()

    `step` adds the penalty's gradient itself and leaves `.grad` as it found it: the penalty never goes through
    autograd, so it can be neither forgotten nor counted twice nor find its way into the paper's omega. It also puts
    masked weights back to zero. A parameter without a gradient is stepped on the penalty's alone, as autograd would
    have it (a head of another task stays where it is, but for an optimizer's momentum). dendrite_kernels.optim.Adam
    carries all of it for weights whose gradient it takes as factors, in the pass that steps them; gradients in factors
    of protected segments are written out. Whoever rewrites weights within a task while such an optimizer lives gives it
    a fresh one: rows that it has seen no gradient of are otherwise not pulled back.

    Attributes: parameters, what is protected by name; omega, importance (Omega) and reference (theta*), dicts from such
    a name to a tensor of the parameter's shape and dtype, empty before the first step; tasks, the number that ended.

    Raises:
        TypeError: modules or optimizer are not such; a parameter is not float32 or float64; a closure is given to step.
        ValueError: c or xi negative, an unknown variant, nothing to protect, a parameter that the optimizer lacks.

    Equivalent to (with torch.optim.Adam's ordinary gradients)::

        (loss + c * sum((Omega[n] * (p - p_star[n]) ** 2).sum() for n, p in model.named_parameters())).backward()
        optimizer.step()
        rezero_weights(model)

    Source: Zenke, Poole & Ganguli 2017, eq. 3 to 5; "adn": as in Grewal et al. 2021.
    """

    omega: dict[str, Tensor]
    importance: dict[str, Tensor]
    reference: dict[str, Tensor]
    _before: dict[str, Tensor]
    _total: dict[str, Tensor]

    def __init__(
        self,
        modules: nn.Module | Iterable[nn.Module],
        optimizer: torch.optim.Optimizer,
        c: float = 0.1,
        xi: float = 0.1,
        variant: str = "zenke",
    ):
        for name, value in (("c", c), ("xi", xi)):
            if not value >= 0:
                raise ValueError(f"{name}: expected 0 or more, got {value}")
        if variant not in VARIANTS:
            raise ValueError(f"variant: expected one of {', '.join(map(repr, VARIANTS))}, got {variant!r}")
        self.c, self.xi, self.variant = c, xi, variant
        self._model = as_one(modules)
        self.parameters = _protected(self._model, VARIANTS[variant].protects_segments)
        self.optimizer = optimizer
        self.tasks = self._steps = 0
        self.omega, self.importance, self.reference = {}, {}, {}
        self._before, self._total = {}, {}  # kept: fresh pages cost more than the sums

    def __repr__(self) -> str:
        options = f"variant={self.variant!r}, c={self.c}, xi={self.xi}, tasks={self.tasks}"
        kind = type(self.optimizer).__name__
        return f"SynapticIntelligence({options}, optimizer={kind}, {len(self.parameters)} parameters)"

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """What steps the parameters."""
        return self._optimizer

    @optimizer.setter
    def optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"optimizer: expected a torch optimizer, got {type(optimizer).__name__}")
        stepped = {p for group in optimizer.param_groups for p in group["params"]}
        for name, p in self.parameters.items():
            if p not in stepped:
                raise ValueError(f"optimizer: expected one that steps every protected parameter, but it lacks {name!r}")
        self._optimizer = optimizer

    @property
    def penalised(self) -> bool:
        """Whether the present task trains with the penalty."""
        return self.c > 0 and self.tasks >= VARIANTS[self.variant].free_tasks

    @torch.no_grad()
    def penalty(self) -> Tensor:
        """c * sum_k Omega_k (theta_k - theta*_k)^2 of the present task, without a gradient: for the record.

        Adding it to a loss changes the number and nothing else; `step` sees to its gradient.
        """
        some = next(iter(self.parameters.values()))
        if not self.penalised:
            return some.new_zeros(())
        terms = [
            (self.importance[n] * (p - self.reference[n]).square()).sum().to(some.device)
            for n, p in self.parameters.items()
        ]
        return self.c * torch.stack(terms).sum()

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One step of the optimizer with the penalty, from the gradients of the task's loss."""
        if closure is not None:
            raise TypeError("closure: expected none, as the gradient before each update is needed; call backward first")
        self._allocate()
        ours = self.optimizer if isinstance(self.optimizer, Adam) else None
        if ours is not None:
            ours.average_gradients()  # omega is of the gradient that the step takes
        names = [n for n, p in self.parameters.items() if p.grad is not None or (self.penalised and p.requires_grad)]
        carried = self._carried(names)
        if ours is not None:
            ours.synapses, ours.averaged = carried, True
        try:
            self._step_beside([n for n in names if self.parameters[n] not in carried])
        finally:
            if ours is not None:
                ours.synapses, ours.averaged = {}, False
        self._steps += bool(names)

    def _carried(self, names: list[str]) -> dict[Tensor, Synapses]:
        """What our Adam is to carry in the pass that steps a parameter, for those where it can."""
        if not isinstance(self.optimizer, Adam):
            return {}
        rule = 2 * self.c if self.penalised else 0.0, VARIANTS[self.variant].omega_takes_penalty
        kept = ((n, self.parameters[n]) for n in names)
        return {
            p: Synapses(self.omega[n], self.importance[n], self.reference[n], *rule)
            for n, p in kept
            if self.optimizer.carries_synapses(p)
        }

    def _step_beside(self, names: list[str]) -> None:
        """The optimizer's step, and all that is to be done for these parameters around it."""
        if not names:
            self._step_optimizer()
            return
        parameters: list[Tensor] = [self.parameters[n] for n in names]
        found = [p.grad for p in parameters]
        gradients = [_dense(p) for p in parameters]
        before, total = ([kept[n] for n in names] for kept in (self._before, self._total))
        if self.penalised:
            self._add_penalty(names, parameters, gradients, before, total)
        torch._foreach_copy_(before, parameters)
        try:
            if self.penalised:
                _give(parameters, total)
            self._step_optimizer()
        finally:
            _give(parameters, found)
        seen = total if self.penalised and VARIANTS[self.variant].omega_takes_penalty else gradients
        torch._foreach_sub_(before, parameters)
        torch._foreach_addcmul_([self.omega[n] for n in names], seen, before)

    def _step_optimizer(self) -> None:
        self.optimizer.step()
        if not isinstance(self.optimizer, Adam):  # ours leaves masked weights at zero
            rezero_weights(self._model)

    def _add_penalty(self, names, parameters, gradients, scratch, total) -> None:
        """total = gradients + 2 c Omega (theta - theta*)."""
        torch._foreach_copy_(scratch, parameters)
        torch._foreach_sub_(scratch, [self.reference[n] for n in names])
        torch._foreach_copy_(total, gradients)
        torch._foreach_addcmul_(total, scratch, [self.importance[n] for n in names], value=2 * self.c)

    @torch.no_grad()
    def end_task(self) -> None:
        """Consolidates: the weights that mattered to this task are held to what they are now.

        Raises RuntimeError where no step was taken in this task.
        """
        if self._steps == 0:
            raise RuntimeError("end_task: expected at least one si.step() since the last task (not optimizer.step())")
        for name, p in self.parameters.items():
            omega, moved = self.omega[name], p - self.reference[name]
            # 0 / 0, of a weight that stayed where it was with xi = 0, counts as 0
            self.importance[name] += torch.where(omega > 0, omega / (moved.square() + self.xi), 0)
            self.reference[name].copy_(p)
            omega.zero_()
        self.tasks, self._steps = self.tasks + 1, 0

    def _allocate(self) -> None:
        """What is kept of each parameter, at the first step: the model may have been loaded or moved before it."""
        if self._before:
            return
        for name, p in self.parameters.items():
            self._before[name], self._total[name] = torch.empty_like(p), torch.empty_like(p)
            if name not in self.reference:
                self.omega[name], self.importance[name] = torch.zeros_like(p), torch.zeros_like(p)
                self.reference[name] = p.detach().clone()

    def state_dict(self) -> dict:
        """All that is needed to go on, in the middle of a task too; the optimizer's and the model's are their own."""
        kept = {key: {name: t.clone() for name, t in getattr(self, key).items()} for key in _SAVED}
        options = {key: getattr(self, key) for key in ("c", "xi", "variant", "tasks")}
        return {"format": FORMAT, **options, "steps": self._steps, **kept}

    def load_state_dict(self, state_dict: dict) -> None:
        """Takes what state_dict gave, c and xi too; ValueError where variant, names or shapes differ."""
        check_format("SynapticIntelligence", state_dict.get("format", 1))
        if state_dict["variant"] != self.variant:
            raise ValueError(f"state_dict: expected variant {self.variant!r}, got {state_dict['variant']!r}")
        loaded = {key: self._fitted(key, state_dict[key]) for key in _SAVED}
        for key, kept in loaded.items():
            setattr(self, key, kept)
        self.c, self.xi, self.tasks = (state_dict[key] for key in ("c", "xi", "tasks"))
        self._steps = state_dict["steps"]
        self._before, self._total = {}, {}

    def _fitted(self, key: str, saved: dict[str, Tensor]) -> dict[str, Tensor]:
        """Copies laid out as the parameters; an empty dict is that of no step yet."""
        shapes = {name: tuple(p.shape) for name, p in self.parameters.items()}
        given = {name: tuple(t.shape) for name, t in saved.items()}
        if given and given != shapes:
            name = next(n for n in {**shapes, **given} if shapes.get(n) != given.get(n))
            raise ValueError(
                f"state_dict: expected {key} of {name!r} to be {shapes.get(name)}, got {given.get(name)} (None: absent)"
            )
        return {name: torch.empty_like(self.parameters[name]).copy_(t) for name, t in saved.items()}


def _protected(model: nn.Module, segments: bool) -> dict[str, nn.Parameter]:
    left_out = set()
    if not segments:
        left_out = {p for m in model.modules() if isinstance(m, DendriteSegments) for p in m.parameters()}
    out = {name: p for name, p in model.named_parameters() if p.requires_grad and p not in left_out}
    if not out:
        raise ValueError("modules: expected at least one parameter to protect, got none that requires grad")
    for name, p in out.items():
        if p.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"modules: expected float32 or float64 parameters, got {p.dtype} for {name!r}")
    return out


def _dense(p: Tensor) -> Tensor:
    if p.grad is None:
        return torch.zeros_like(p)
    return p.grad.to_dense() if isinstance(p.grad, FactoredGrad) else p.grad


def _give(parameters: list[Tensor], gradients: Sequence[Tensor | None]) -> None:
    for p, grad in zip(parameters, gradients, strict=True):
        p.grad = grad
