"""Stand-ins with the public classes' names and attributes, in plain torch: live models for compat.convert."""

from __future__ import annotations

import abc
from itertools import pairwise

import public_checkpoints as public
import torch
from torch import Tensor, nn


class HasRezeroWeights(abc.ABC):
    @abc.abstractmethod
    def rezero_weights(self): ...


def rezero_weights(module):
    """For model.apply, as public training loops call it."""
    if isinstance(module, HasRezeroWeights):
        module.rezero_weights()


class SparseWeights(nn.Module, HasRezeroWeights):
    def __init__(self, module, sparsity):
        super().__init__()
        self.module, self.sparsity = module, sparsity
        self.register_buffer("zero_mask", public.zero_mask(tuple(module.weight.shape), sparsity))
        self.rezero_weights()

    def rezero_weights(self):
        self.module.weight.data.masked_fill_(self.zero_mask.bool(), 0)

    def forward(self, x):
        return self.module(x)


class SparseWeights2d(SparseWeights):
    pass


class DendriteSegments(nn.Module, HasRezeroWeights):
    def __init__(self, num_units, num_segments, dim_context, sparsity, bias=False):
        super().__init__()
        self.sparsity = sparsity
        self.weights = nn.Parameter(torch.randn(num_units, num_segments, dim_context))
        self.biases = nn.Parameter(torch.randn(num_units, num_segments)) if bias else None
        self.register_buffer("zero_mask", public.zero_mask(tuple(self.weights.shape), sparsity))
        self.rezero_weights()

    def rezero_weights(self):
        self.weights.data.masked_fill_(self.zero_mask.bool(), 0)

    def forward(self, context):
        activations = torch.einsum("bc,osc->bos", context, self.weights)
        return activations if self.biases is None else activations + self.biases


class _Apply(nn.Module):
    """What a layer does with the activations of all its segments."""

    def forward(self, y: Tensor, activations: Tensor) -> Tensor:
        key = activations.abs() if self.absolute else activations
        strongest = activations.gather(2, key.max(dim=2, keepdim=True).indices).squeeze(2)
        if not self.gates:
            return y + strongest
        gate = strongest.sigmoid()
        return y * (gate if y.dim() == 2 else gate[:, :, None, None])

    absolute, gates = False, True


class DendriticGate1d(_Apply):
    pass


class DendriticGate2d(_Apply):
    pass


class DendriticAbsoluteMaxGate1d(_Apply):
    absolute = True


class DendriticAbsoluteMaxGate2d(_Apply):
    absolute = True


class DendriticBias1d(_Apply):
    gates = False


class DendriticLayerBase(SparseWeights):
    """A layer with segments; applied: the name of the child that applies them, and its class."""

    applied: tuple

    def __init__(self, module, num_segments, dim_context, module_sparsity, dendrite_sparsity, dendrite_bias=False):
        super().__init__(module, module_sparsity)
        self.segments = DendriteSegments(
            module.weight.shape[0], num_segments, dim_context, dendrite_sparsity, dendrite_bias
        )
        setattr(self, self.applied[0], self.applied[1]())

    def forward(self, x, context):
        return getattr(self, self.applied[0])(super().forward(x), self.segments(context))


class AbsoluteMaxGatingDendriticLayer(DendriticLayerBase):
    applied = "dendritic_absolute_max_gate", DendriticAbsoluteMaxGate1d


class GatingDendriticLayer(DendriticLayerBase):
    applied = "dendritic_gate", DendriticGate1d


class BiasingDendriticLayer(DendriticLayerBase):
    applied = "dendritic_bias", DendriticBias1d


class AbsoluteMaxGatingDendriticLayer2d(DendriticLayerBase):
    applied = "dendritic_absolute_max_gate", DendriticAbsoluteMaxGate2d


class GatingDendriticLayer2d(DendriticLayerBase):
    applied = "dendritic_gate", DendriticGate2d


class OneSegmentDendriticLayer(SparseWeights):
    def __init__(self, module, dim_context, module_sparsity, dendrite_sparsity, dendrite_bias=False):
        super().__init__(module, module_sparsity)
        linear = nn.Linear(dim_context, module.weight.shape[0], bias=dendrite_bias)
        self.segments = SparseWeights(linear, dendrite_sparsity)

    def forward(self, x, context):
        return super().forward(x) * self.segments(context).sigmoid()


class ZeroSegmentDendriticLayer(SparseWeights):
    def forward(self, x, context):
        return super().forward(x)


class KWinnersBase(nn.Module, abc.ABC):
    def __init__(self, percent_on, k_inference_factor, boost_strength, break_ties, relu):
        super().__init__()
        self.percent_on, self.k_inference_factor = percent_on, k_inference_factor
        self.boost_strength_factor, self.duty_cycle_period, self.learning_iterations = 0.9, 1000, 0
        self.break_ties, self.relu = break_ties, relu
        self.register_buffer("boost_strength", torch.tensor(float(boost_strength)))

    def update_boost_strength(self):
        self.boost_strength *= self.boost_strength_factor

    @abc.abstractmethod
    def update_duty_cycle(self, x): ...

    def _choose(self, rows: Tensor, k: int, duty_cycle: Tensor) -> Tensor:
        """The winners of rows [N, units]."""
        rank = rows.detach() * torch.exp(-self.boost_strength * duty_cycle)
        if self.break_ties:
            kept = torch.zeros_like(rows, dtype=torch.bool).scatter(1, rank.topk(k, dim=1).indices, True)
        else:
            kept = rank >= rank.kthvalue(rows.shape[1] - k + 1, dim=1, keepdim=True).values
        return rows * (kept & (rank > 0) if self.relu else kept)

    def _average(self, share: Tensor, samples: int):
        self.learning_iterations += samples
        period = min(self.duty_cycle_period, self.learning_iterations)
        self.duty_cycle.mul_(period - samples).add_(samples * share.view_as(self.duty_cycle)).div_(period)


class KWinners(KWinnersBase):
    def __init__(self, n, percent_on, k_inference_factor=1.0, boost_strength=0.0, break_ties=False, relu=False):
        super().__init__(percent_on, k_inference_factor, boost_strength, break_ties, relu)
        self.n, self.k = n, round(n * percent_on)
        self.k_inference = int(self.k * k_inference_factor)
        self.register_buffer("duty_cycle", torch.zeros(n))

    def forward(self, x):
        out = self._choose(x, self.k if self.training else self.k_inference, self.duty_cycle)
        if self.training:
            self.update_duty_cycle(out)
        return out

    def update_duty_cycle(self, x):
        self._average((x > 0).float().mean(0), len(x))


class KWinners2d(KWinnersBase):
    def __init__(self, channels, percent_on, k_inference_factor=1.0, boost_strength=0.0, local=False):
        super().__init__(percent_on, k_inference_factor, boost_strength, False, False)
        self.channels, self.local, self.n = channels, local, 0
        self.k = round(channels * percent_on) if local else 0
        self.k_inference = round(channels * percent_on * k_inference_factor) if local else 0
        self.register_buffer("duty_cycle", torch.zeros(1, channels, 1, 1))

    def forward(self, x):
        if self.n == 0:
            self.n = x[0].numel()
            if not self.local:
                self.k = round(self.n * self.percent_on)
                self.k_inference = round(self.n * self.percent_on * self.k_inference_factor)
        rows = x.movedim(1, 3).flatten(0, 2) if self.local else x.flatten(1)
        duty_cycle = self.duty_cycle.flatten() if self.local else self.duty_cycle.expand(1, *x.shape[1:]).flatten()
        out = self._choose(rows, self.k if self.training else self.k_inference, duty_cycle)
        out = out.view(len(x), *x.shape[2:], -1).movedim(3, 1) if self.local else out.view(x.shape)
        if self.training:
            self.update_duty_cycle(out)
        return out

    def update_duty_cycle(self, x):
        self._average((x > 0).float().mean((0, 2, 3)), len(x))


def update_boost_strength(module):
    """For model.apply."""
    if isinstance(module, KWinnersBase):
        module.update_boost_strength()


class DendriticMLP(nn.Module):
    def __init__(self, sizes, num_segments, dim_context, percent_on, sparsity=0.5, heads=1, **winner_options):
        super().__init__()
        self._layers, self._activations = nn.ModuleList(), nn.ModuleList()
        for inputs, units in pairwise(sizes[:-1]):
            linear = nn.Linear(inputs, units)
            if num_segments == 1:
                layer = OneSegmentDendriticLayer(linear, dim_context, sparsity, 0.0)
            elif num_segments == 0:
                layer = ZeroSegmentDendriticLayer(linear, sparsity)
            else:
                layer = AbsoluteMaxGatingDendriticLayer(linear, num_segments, dim_context, sparsity, 0.0)
            self._layers.append(layer)
            self._activations.append(KWinners(units, percent_on, **winner_options) if percent_on else nn.ReLU())
        self._output_layers = nn.ModuleList()
        for _ in range(heads):
            head = nn.Sequential()
            head.add_module("output_linear", SparseWeights(nn.Linear(sizes[-2], sizes[-1]), sparsity))
            self._output_layers.append(head)

    def forward(self, x, context=None):
        for layer, activation in zip(self._layers, self._activations, strict=True):
            x = activation(layer(x, context))
        outputs = [head(x) for head in self._output_layers]
        return outputs[0] if len(outputs) == 1 else outputs
