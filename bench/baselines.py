"""What we compare with: the network as the sources' code runs it, and as one would rewrite it in plain PyTorch.

The sources' way: contexts are given for every row and go through one einsum; winners are found by kthvalue. Rewritten:
a batch has one context, whose winning segments a product outside the graph finds, and topk. In both every gradient and
Adam moment is dense, duty cycles are kept, and masked weights are set to zero after the step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def plain_gate(context: Tensor, segments: Tensor) -> Tensor:
    """sigmoid of the activation that is largest by absolute value; context [B, C], segments [O, S, C] -> [B, O]."""
    activations = torch.einsum("osc,bc->bos", segments, context)
    winner = activations.abs().max(dim=2).indices
    return activations.gather(2, winner.unsqueeze(2)).squeeze(2).sigmoid()


def gate_by_product(context: Tensor, segments: Tensor) -> Tensor:
    """The same with segments as the rows of one matrix: contexts [G, C] -> [G, O]."""
    activations = (segments.flatten(0, 1) @ context.T).view(*segments.shape[:2], -1)
    winner = activations.abs().argmax(1, keepdim=True)
    return activations.gather(1, winner).squeeze(1).T.sigmoid()


def winning_gate(context: Tensor, segments: Tensor) -> Tensor:
    """The same of one context [1, C] -> [1, O]: gradients read and write the winners' rows alone."""
    units, count, _ = segments.shape
    rows = segments.flatten(0, 1)
    with torch.no_grad():
        winner = (rows @ context[0]).view(units, count).abs().argmax(1)
    places = torch.arange(units, device=winner.device) * count + winner
    return (rows.index_select(0, places) @ context[0]).sigmoid()[None]


def plain_kwinners(y: Tensor, k: int) -> Tensor:
    """Everything below the k-th largest of its row becomes 0."""
    threshold = y.kthvalue(y.shape[1] - k + 1, dim=1, keepdim=True).values
    return y.masked_fill(y < threshold, 0)


def topk_kwinners(y: Tensor, k: int) -> Tensor:
    """The same by topk and scatter: what most would write today."""
    values, indices = y.topk(k, dim=1)
    return torch.zeros_like(y).scatter(1, indices, values)


def gather_product(values: Tensor, indices: Tensor, weight: Tensor) -> Tensor:
    """x W^T of k-sparse rows x by torch's op that gathers: quick where an input's column of weight lies together."""
    return nn.functional.embedding_bag(indices, weight.T, per_sample_weights=values, mode="sum")


class PlainLayer(nn.Module):
    """A masked linear layer, gated by its segments, with k winners and their duty cycles."""

    def __init__(self, weight: Tensor, bias: Tensor, segments: Tensor, mask: Tensor | None, k: int, rewritten: bool):
        super().__init__()
        self.gate, self.kwinners = (winning_gate, topk_kwinners) if rewritten else (plain_gate, plain_kwinners)
        self.weight, self.bias, self.segments = (nn.Parameter(p.detach().clone()) for p in (weight, bias, segments))
        self.zero_mask = None if mask is None else ~mask.contiguous()
        self.k = k
        self.register_buffer("duty_cycle", torch.zeros(len(weight), device=weight.device))
        self.register_buffer("samples", torch.zeros((), dtype=torch.int64, device=weight.device))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        y = nn.functional.linear(x, self.weight, self.bias) * self.gate(context, self.segments)
        z = self.kwinners(y, self.k)
        if self.training:
            self._count(z.detach())
        return z

    def _count(self, z: Tensor) -> None:
        self.samples += len(z)
        period = self.samples.clamp(max=1000)
        self.duty_cycle.mul_(period - len(z)).add_((z > 0).sum(0)).div_(period)


class PlainNetwork(nn.Module):
    """The permutedMNIST network, with the parameters of one of ours, the sources' way or rewritten."""

    def __init__(self, ours: nn.Module, rewritten: bool = False):
        super().__init__()
        self.rewritten = rewritten
        self.layers = nn.ModuleList(
            PlainLayer(_by_unit(m.weight), m.bias, m.segments.weights, m.weight_mask, m.kwinners.k, rewritten)
            for m in ours.layers
        )
        self.weight, self.bias = (nn.Parameter(_by_unit(p.detach())) for p in (ours.output.weight, ours.output.bias))
        mask = ours.output.weight_mask
        self.zero_mask = None if mask is None else ~mask.contiguous()

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, context)
        return nn.functional.linear(x, self.weight, self.bias)

    @torch.no_grad()
    def rezero_weights(self) -> None:
        for module in (*self.layers, self):
            if module.zero_mask is not None:
                module.weight.masked_fill_(module.zero_mask, 0)

    def rows_of(self, context: Tensor, batch: int) -> Tensor:
        """The context [1, C] as forward takes it: the sources' way spells it out for every row, as a data loader."""
        return context if self.rewritten else context.expand(batch, -1).contiguous()

    def train_step(self, optimizer, x: Tensor, labels: Tensor, context: Tensor, forward=None) -> Tensor:
        """One step on the context [1, C]. forward: this network compiled; None: as it is."""
        rows = self.rows_of(context, len(x))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy((self if forward is None else forward)(x, rows), labels)
        loss.backward()
        optimizer.step()
        self.rezero_weights()
        return loss.detach()


def _by_unit(weight: Tensor) -> Tensor:
    return weight.detach().contiguous().clone()


def matching_parameters(ours: nn.Module, plain: PlainNetwork) -> list[tuple[str, Tensor, Tensor]]:
    """(name, our parameter, the baseline's) for every parameter."""
    pairs = []
    for i, (mine, theirs) in enumerate(zip(ours.layers, plain.layers, strict=True)):
        pairs += [(f"weight {i}", mine.weight, theirs.weight), (f"bias {i}", mine.bias, theirs.bias)]
        pairs += [(f"segments {i}", mine.segments.weights, theirs.segments)]
    return [*pairs, ("output weight", ours.output.weight, plain.weight), ("output bias", ours.output.bias, plain.bias)]
