"""Adam that consumes factored gradients: the numbers of torch.optim.Adam, for the work that the winners need."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam as torch_adam

from .. import backend, distributed, factored, known
from ..backends import cpu
from ..factored import FactoredGrad, OuterFactor, SegmentFactor
from ..formats import FORMAT, check_format
from ..nn import DendriteSegments, KWinners, KWinners2d, SparseLinear
from ..ops import rezero_
from ..sparsity import MaskedParameter
from .device_clock import DeviceClock
from .device_moments import DeviceSegmentMoments
from .moments import Synapses
from .segment_moments import SegmentMoments
from .weight_moments import WeightMoments

# What keeps the moments of a weight with this kind of factor; on a device that counts the steps itself, the last, and
# a weight's are dense.
_KINDS: dict[type, Any] = {OuterFactor: WeightMoments, SegmentFactor: SegmentMoments}
_DEVICE_KINDS: dict[type, Any] = {SegmentFactor: DeviceSegmentMoments}


class Adam(torch.optim.Optimizer):
    """torch.optim.Adam for models with dendritic layers; give it modules, not parameters.

    Args:
        modules: a module, or several. All their parameters are stepped.
        lr, betas, eps: as torch.optim.Adam. weight_decay and amsgrad are not offered (both move every weight at every
            step): use torch.optim.Adam, which takes dense gradients.
        process_group: train in several processes, each with its share of every batch: True for all processes, or a
            torch.distributed.ProcessGroup. Instead of DistributedDataParallel, which needs dense gradients: give this
            optimizer the bare model.

    While this optimizer lives, backward leaves the weights and segments of the modules a FactoredGrad, which `step`
    consumes: rows that have never had gradient are skipped (Adam would not change a bit of them), masked weights stay
    zero without `rezero_weights`, and no gradient is ever written out. Other parameters have dense gradients. On a GPU
    a pass over a weight costs less than finding out what moved, so that all of it is stepped: by its factors with the
    CUDA backend, by a dense gradient with Triton's. Step counts lie on the device: a step never waits for it, and a
    CUDA graph may hold it. The newest optimizer of a module owns it: an older one raises at its next step.

    In a process group all models begin as the first process has it, and each step averages gradients and the duty
    cycles of k winners over the processes (`distributed.average_gradients`), so that parameters and duty cycles stay
    equal bit for bit (on processors of one kind); learning_iterations counts a process' own samples. Factors are sent
    as they are; a context that all processes share stays one. Accumulated backward passes are sent once, with the step.

    Equivalent to: torch.optim.Adam(model.parameters(), lr, betas, eps), with rezero_weights(model) after each step

    Source: Kingma & Ba 2015, algorithm 1.
    """

    says_what_it_writes = True  # to dendrite_kernels.known, by the version counters

    def __init__(
        self,
        modules: nn.Module | Iterable[nn.Module],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        process_group: torch.distributed.ProcessGroup | bool = False,
    ):
        modules = [modules] if isinstance(modules, nn.Module) else list(modules)
        if not modules or not all(isinstance(m, nn.Module) for m in modules):
            raise TypeError("modules: expected a module or several, e.g. Adam(model), not parameters")
        distributed.refuse_wrapped(modules)
        if weight_decay or amsgrad:
            raise ValueError(
                "weight_decay, amsgrad: expected 0 and False: both move weights that have no gradient; "
                "use torch.optim.Adam, which gets dense gradients"
            )
        if lr < 0 or eps < 0 or not all(0 <= b < 1 for b in betas):
            raise ValueError(
                f"lr, eps, betas: expected lr >= 0, eps >= 0 and betas in [0, 1), got {lr}, {eps}, {betas}"
            )
        parameters = list(dict.fromkeys(p for m in modules for p in m.parameters()))
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps})
        self._masks: dict[Tensor, MaskedParameter] = {}
        self._clocks: dict[tuple, DeviceClock] = {}
        self.synapses: dict[Tensor, Synapses] = {}  # what the next step carries for SynapticIntelligence
        self._group = distributed.checked_group(process_group)
        self.averaged = False  # SynapticIntelligence has averaged the gradients of the next step already
        self._winners = [m for top in modules for m in top.modules() if isinstance(m, (KWinners, KWinners2d))]
        if self._group is not None:
            distributed.broadcast_module(modules, self._group)
        self._owned = self._find_owned(modules)
        factored.claim(self._owned, self)
        for p in self._owned:
            if p.dim() == 3 and not self._counts_on_device(p):
                known.follow(p)

    def _find_owned(self, modules: list[nn.Module]) -> list[nn.Parameter]:
        """The parameters whose gradients come as factors: weights and segments that our kernels can step."""
        owned = []
        for module in (m for top in modules for m in top.modules()):
            if isinstance(module, MaskedParameter):
                self._masks[module.masked_weight] = module
            if isinstance(module, (SparseLinear, DendriteSegments)):
                weight = module.masked_weight
                factored_pass = "adam_outer" if isinstance(module, SparseLinear) else "adam_segments"
                ours = hasattr(backend.choose(weight.device), factored_pass)
                if ours and weight.requires_grad and weight.dtype in (torch.float32, torch.float64):
                    owned.append(weight)
        return owned

    @staticmethod
    def _counts_on_device(p: Tensor) -> bool:
        return backend.choose(p.device).counts_on_device

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "Adam: can't be copied or pickled, as it owns the gradients of its modules: make a new one for the copied "
            "model, and give it this one's state_dict()"
        )

    def __repr__(self) -> str:
        total = sum(len(group["params"]) for group in self.param_groups)
        lost = sum(factored.owner(p) is not self for p in self._owned)
        newer = f" ({lost} of them belong to a newer Adam)" if lost else ""
        return f"{super().__repr__()}\ngradients as factors: {len(self._owned)} of {total} parameters{newer}"

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch's, without its bookkeeping where gradients are dropped."""
        if not set_to_none:
            super().zero_grad(set_to_none=False)
        for group in self.param_groups:
            for p in group["params"] if set_to_none else ():
                p.grad = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step on every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._check_ownership()
        if not self.averaged:
            self.average_gradients()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._check_unmoved(p)
        for group in self.param_groups:
            moving = [p for p in group["params"] if p.grad is not None]
            # asked once a device, not a parameter: a choice costs as much as a small kernel
            modules = {device: backend.choose(device) for device in {p.device for p in moving}}
            self._count_step(moving, group, modules)
            factors = (p for p in moving if isinstance(p.grad, FactoredGrad))
            stepped = {p for p in factors if self._step_factored(p, group, modules[p.device])}
            self._step_dense([p for p in moving if p not in stepped], group, modules)
        return loss

    def average_gradients(self) -> None:
        """Averages gradients and duty cycles over the process group now, for whoever reads them before `step`.

        `step` does it again, which takes its time and changes nothing but rounding. Without a group, nothing happens.
        """
        if self._group is not None:
            parameters = [p for group in self.param_groups for p in group["params"]]
            distributed.average_gradients(parameters, self._group, [m.duty_cycle for m in self._winners])

    def _count_step(self, parameters: list[Tensor], group: dict, modules: dict[torch.device, Any]) -> None:
        for p in parameters:
            if not modules[p.device].counts_on_device:
                self.state[p]["step"] = self.state[p].get("step", 0) + 1
        for device, module in modules.items():
            if module.counts_on_device:
                self._clock(device, group).tick([p for p in parameters if p.device == device], group)

    def _clock(self, device: torch.device, group: dict) -> DeviceClock:
        key = (id(group), device)
        if key not in self._clocks:
            here = [p for p in group["params"] if p.device == device]
            self._clocks[key] = DeviceClock(here, [self.state[p] for p in here])
        return self._clocks[key]

    def _check_ownership(self) -> None:
        for p in self._owned:
            if factored.owner(p) is not self:
                raise RuntimeError(
                    "a newer dendrite_kernels.optim.Adam owns these modules: step that one, or make a new one"
                )

    def _check_unmoved(self, p: Tensor) -> None:
        """A model may change its dtype or device, but gradient and moments stay as they were made."""
        state = self.state.get(p, {})
        moments = state["moments"].m if "moments" in state else state.get("exp_avg")
        for kept in (p.grad, moments):
            if kept is not None and (kept.dtype != p.dtype or kept.device != p.device):
                raise RuntimeError(
                    f"this weight has become {p.dtype} on {p.device} since its gradient or moments were made: call "
                    "zero_grad() and make a new Adam after changing a model's dtype or device"
                )

    # ---- one parameter ----------------------------------------------------------------------------------------------

    def _step_factored(self, p: Tensor, group: dict, module: Any) -> bool:
        """Steps from factors; False where only a dense step is right."""
        grad: Any = p.grad  # a FactoredGrad
        factor, on_device = grad.one_factor(), module.counts_on_device
        if on_device and isinstance(factor, OuterFactor):
            return self._step_outer(p, factor, group, module)
        kind = (_DEVICE_KINDS if on_device else _KINDS).get(type(factor))
        if kind is None or not kind.steppable(p, factor):
            return False
        state, mask = self.state[p], self._mask(p)
        synapses = self.synapses.get(p)
        if "moments" not in state or not state["moments"].fits(mask, factor):
            state["moments"] = kind.for_factor(p, mask, factor, self._take_dense(p, group))
            if synapses is not None:
                state["moments"].wake_pulled(p, synapses)
        rule = (self._clock(p.device, group).rule(p),) if on_device else (group, state["step"])
        state["moments"].step(p, factor, *rule, *([] if synapses is None else [synapses]))
        return True

    def carries_synapses(self, p: Tensor) -> bool:
        """Whether the step from p's present gradient can carry what SynapticIntelligence keeps of p."""
        module = backend.choose(p.device)
        if module.counts_on_device:
            if p.grad is None or (isinstance(p.grad, FactoredGrad) and p.dim() == 3):
                return False
            grad, mask = p if isinstance(p.grad, FactoredGrad) else p.grad, self._mask(p)  # a factored one lies as p
            return module.steppable(p, grad, *([] if mask is None else [mask]))
        factor = p.grad.one_factor() if isinstance(p.grad, FactoredGrad) else None
        return isinstance(factor, OuterFactor) and WeightMoments.steppable(p, factor)

    def _take_dense(self, p: Tensor, group: dict) -> tuple[Tensor, Tensor] | None:
        """exp_avg and exp_avg_sq, taken out of the state in whatever form it has them; None at the first step."""
        state = self.state[p]
        if "moments" in state:
            return state.pop("moments").to_dense(p, state["step"] - 1, group["betas"])  # this step is counted already
        if "exp_avg" in state:
            return state.pop("exp_avg"), state.pop("exp_avg_sq")
        return None

    def _dense_moments(self, p: Tensor, group: dict) -> tuple[Tensor, Tensor]:
        state = self.state[p]
        if "exp_avg" not in state:
            dense = self._take_dense(p, group) or (torch.zeros_like(p), torch.zeros_like(p))
            state["exp_avg"], state["exp_avg_sq"] = dense
        return state["exp_avg"], state["exp_avg_sq"]

    def _step_dense(self, parameters: list[Tensor], group: dict, modules: dict[torch.device, Any]) -> None:
        """Adam on whatever has a dense gradient or must have one: in one native pass, or torch's own."""
        others, masked = [], []
        for p in parameters:
            keep, moments = self._mask(p), self._dense_moments(p, group)
            grad: Any = p.grad.to_dense() if isinstance(p.grad, FactoredGrad) else p.grad
            done, also_masked = self._step_natively(p, grad, moments, keep, group, modules[p.device])
            if not done:
                if p in self.synapses:
                    raise RuntimeError("Adam: no pass here carries what SynapticIntelligence keeps of this weight")
                others.append((p, grad))
            if keep is not None and not also_masked:
                masked.append((p, keep))
        if others:
            moving, gradients = zip(*others, strict=True)
            self._step_by_torch(moving, gradients, group)
        for p in parameters:
            torch.autograd.graph.increment_version(p)  # no kernel does
        for p, keep in masked:
            # moments too: a masked weight has none, however dense its gradient was
            for t in (p, self.state[p]["exp_avg"], self.state[p]["exp_avg_sq"]):
                rezero_(t, keep)

    def _step_outer(self, p: Tensor, factor: OuterFactor, group: dict, module: Any) -> bool:
        """Steps a weight that counts on its device by its gradient's factor; False where no kernel there takes it."""
        take = getattr(module, "adam_outer", None)
        if take is None:
            return False
        synapses: Any = self.synapses.get(p)
        if synapses is not None:
            synapses = (*map(factor.by_row, synapses[:3]), *synapses[3:])
        kept = map(factor.by_row, (*self._dense_moments(p, group), self._mask(p)))
        rule = self._clock(p.device, group).rule(p)
        done = take(factor.by_row(p.detach()), factor.sparse, factor.other, *kept, *rule, synapses)
        if done:
            torch.autograd.graph.increment_version(p)
        return done

    def _step_natively(
        self, p: Tensor, grad: Tensor, moments: tuple[Tensor, Tensor], keep: Tensor | None, group: dict, module: Any
    ) -> tuple[bool, bool]:
        """Whether a kernel of ours took the step, and whether it has applied the mask as well."""
        if module.counts_on_device:
            rule = self._clock(p.device, group).rule(p)
            done = module.adam_dense(p.detach(), *moments, grad, keep, *rule, self.synapses.get(p))
            return done, done
        rule = (*group["betas"], float(group["lr"]), group["eps"], self.state[p]["step"])
        return module is cpu and cpu.adam_dense(p.detach(), *moments, grad, rule), False

    def _step_by_torch(self, parameters: tuple[Tensor, ...], gradients: tuple[Tensor, ...], group: dict) -> None:
        states = [self.state[p] for p in parameters]
        beta1, beta2 = group["betas"]
        torch_adam(
            list(parameters),
            list(gradients),
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            [],
            # on the parameter's device, as the fused kernel wants it, and made there without waiting
            [torch.full((), 0.0, device=p.device).add_(s["step"] - 1) for p, s in zip(parameters, states, strict=True)],
            fused=all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters),
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=0.0,
            eps=group["eps"],
            maximize=False,
        )

    def _mask(self, p: Tensor) -> Tensor | None:
        module = self._masks.get(p)
        return None if module is None else module.weight_mask

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def torch_state_dict(self) -> dict:
        """The state as torch.optim.Adam's state_dict, moments written out: load it there, or here."""
        out = super().state_dict()
        defaults = torch.optim.Adam([torch.zeros(0)]).defaults
        out["param_groups"] = [{**defaults, **group} for group in out["param_groups"]]
        number = 0
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state.get(p)
                if state and "moments" in state:
                    moments = state["moments"].to_dense(p, state["step"], group["betas"])
                    state = {"step": state["step"], "exp_avg": moments[0], "exp_avg_sq": moments[1]}
                if state:
                    step = torch.tensor(float(state["step"]))
                    out["state"][number] = {
                        key: step if key == "step" else value.clone() for key, value in state.items()
                    }
                number += 1
        return out

    def state_dict(self) -> dict:
        """The state in the form of torch.optim.Adam's, but for moments that are kept only where they can be nonzero.

        load_state_dict takes it back and goes on to the same bits where the weights are loaded before it (rows that
        rest wake otherwise, which rounds their moments). torch_state_dict() writes it out for torch.optim.Adam.
        """
        out = super().state_dict()
        parameters = [p for group in self.param_groups for p in group["params"]]
        for number, state in out["state"].items():
            if "moments" in state:
                out["state"][number] = {**state, "moments": state["moments"].state_dict(parameters[number])}
        return {"format": FORMAT, **out}

    def load_state_dict(self, state_dict: dict) -> None:
        """Takes this class's state_dict or torch.optim.Adam's (without amsgrad)."""
        check_format("Adam", state_dict.get("format", 1))
        parameters = [p for g in self.param_groups for p in g["params"]]
        saved_groups = state_dict["param_groups"]
        if [len(g["params"]) for g in saved_groups] != [len(g["params"]) for g in self.param_groups]:
            raise ValueError("state_dict: expected as many parameters in each group as this optimizer has")
        if any(saved.get("weight_decay") or saved.get("amsgrad") for saved in saved_groups):
            raise ValueError("state_dict: expected one without weight_decay and amsgrad")
        if missing := [key for key in ("lr", "betas", "eps") if any(key not in saved for saved in saved_groups)]:
            raise ValueError(f"state_dict: expected an Adam's, with lr, betas and eps in each group, got no {missing}")
        numbers = [number for g in saved_groups for number in g["params"]]
        states = [state_dict["state"].get(number) for number in numbers]
        loaded = {p: self._loaded(p, saved) for p, saved in zip(parameters, states, strict=True) if saved}
        for group, saved in zip(self.param_groups, saved_groups, strict=True):
            group.update({key: value for key, value in saved.items() if key != "params"})
        self.state.clear()
        self.state.update(loaded)
        self._clocks.clear()

    def _loaded(self, p: Tensor, saved: dict) -> dict:
        on_device, step = self._counts_on_device(p), int(saved["step"])
        state = {"step": torch.full((), step, dtype=torch.float64, device=p.device) if on_device else step}
        if "moments" in saved:
            kinds = _DEVICE_KINDS if on_device else _KINDS
            kind = kinds.get(SegmentFactor if p.dim() == 3 else OuterFactor)
            if kind is None or ("touched" in saved["moments"]) != on_device:
                raise ValueError(
                    "state_dict: its moments have the form of another device; save torch_state_dict() to change devices"
                )
            state["moments"] = kind.from_state_dict(p, self._mask(p), saved["moments"])
            return state
        if saved["exp_avg"].shape != p.shape:
            raise ValueError(f"state_dict: expected moments {tuple(p.shape)}, got {tuple(saved['exp_avg'].shape)}")
        for key in ("exp_avg", "exp_avg_sq"):
            state[key] = torch.empty_like(p).copy_(saved[key])
        return state
