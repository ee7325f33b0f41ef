"""Step counts and what follows from them, on a device that the host does not wait for."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import backend


class DeviceClock:
    """Counts the steps of a group's parameters on their device, in one launch, which a CUDA graph may hold.

    The state["step"] of a parameter that has moved is a view of `steps`; one that was put there from elsewhere is taken
    over. A captured graph goes on with the lr, betas and eps of its capture.
    """

    def __init__(self, parameters: list[Tensor], states: list[dict]):
        device = parameters[0].device
        self.place = {id(p): number for number, p in enumerate(parameters)}
        self.states = {id(p): state for p, state in zip(parameters, states, strict=True)}
        self.steps = torch.zeros(len(parameters), dtype=torch.float64, device=device)
        self.rules = torch.zeros(len(parameters), 2, dtype=torch.float64, device=device)
        self.hyper = torch.zeros(4, dtype=torch.float64, device=device)
        self.values, self.moving = None, {}

    def tick(self, parameters: list[Tensor], group: dict) -> None:
        """Counts a step of these parameters."""
        for p in parameters:
            state, step = self.states[id(p)], self.steps[self.place[id(p)]]
            count = state.get("step")
            if count is None or count.data_ptr() != step.data_ptr():
                state["step"] = step.copy_(count) if count is not None else step
        values, device = (float(group["lr"]), *group["betas"], group["eps"]), self.steps.device
        if values != self.values:  # written to the device only when one has changed
            self.hyper.copy_(torch.tensor(values, dtype=torch.float64))
            self.values = values
        places = tuple(self.place[id(p)] for p in parameters)
        if places not in self.moving:
            moving = torch.zeros(len(self.place), dtype=torch.int8)
            moving[list(places)] = 1
            self.moving[places] = moving.to(device)
        backend.choose(device).advance(self.steps, self.moving[places], self.hyper, self.rules)

    def rule(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """What the kernels need to know of this step: p's row of rules, and hyper."""
        return self.rules[self.place[id(p)]], self.hyper
