"""The pictures of how_it_works.md, drawn at each build: the layer, and the five facts as a small layer shows them.

python docs/pictures.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from dendrite_kernels import reference

UNITS, SEGMENTS, CONTEXT, INPUTS, BATCH, WINNERS = 12, 4, 16, 20, 16, 3
INK, COLD, WARM = "0.25", "0.93", "C1"


class SmallLayer:
    """A layer of the papers' kind, small enough to draw, written plainly and stepped by torch's Adam."""

    def __init__(self):
        torch.manual_seed(4)
        self.x = torch.randn(BATCH, INPUTS)
        self.contexts = torch.randn(2, CONTEXT)
        self.weight = torch.randn(UNITS, INPUTS, requires_grad=True)
        self.segments = torch.randn(UNITS, SEGMENTS, CONTEXT, requires_grad=True)
        self.target = torch.randn(BATCH, UNITS)
        self.optimizer = torch.optim.Adam([self.weight, self.segments], lr=0.01)

    def step(self, context: int = 0) -> torch.Tensor:
        """One training step; returns z. The gradients stay."""
        self.optimizer.zero_grad()
        gate, _ = reference.segment_gate(self.contexts[context : context + 1], self.segments)
        z, _ = reference.gated_kwinners(self.x @ self.weight.T, gate, k=WINNERS)
        (z - self.target).square().sum().backward()
        self.optimizer.step()
        return z.detach()

    def activations(self) -> torch.Tensor:
        """Of the first context, [O, S]."""
        return reference.segment_activations(self.contexts[:1], self.segments.detach())[0]


def show(axes, picture: torch.Tensor, title: str, across: str, down: str) -> None:
    """A matrix of cells: pale where False, warm where True."""
    axes.pcolormesh(picture.float().numpy(), cmap=two_colours(), vmin=0, vmax=1, edgecolors="white", linewidth=0.6)
    axes.set_aspect("equal")
    axes.invert_yaxis()
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(across, fontsize=8)
    axes.set_ylabel(down, fontsize=8)


def two_colours():
    return matplotlib.colors.ListedColormap([COLD, WARM])


def canvas(columns: int, width: float = 8.0, height: float = 2.6):
    return plt.subplots(1, columns, figsize=(width, height), constrained_layout=True)


# ---- the layer ------------------------------------------------------------------------------------------------------


def layer():
    """The four stages, from input and context to winners."""
    figure, axes = plt.subplots(figsize=(8, 3.1), constrained_layout=True)
    axes.set(xlim=(0, 16.2), ylim=(0, 6.2))
    axes.axis("off")
    box(axes, 0.2, 3.9, 1.6, "x", "[B, I]")
    box(axes, 3.0, 3.9, 3.0, "W x + b", "sparse weights [O, I]")
    box(axes, 0.2, 0.7, 1.6, "c", "[G, C]")
    box(axes, 3.0, 0.7, 3.0, "u · c", "segments [O, S, C]")
    box(axes, 7.0, 0.7, 3.2, "strongest", "one of S a unit, by |u · c|")
    box(axes, 8.0, 3.9, 2.2, "times", "the gate [G, O]")
    box(axes, 11.4, 3.9, 2.4, "k winners", "the rest become 0")
    box(axes, 14.5, 3.9, 1.5, "z", "[B, O]")
    for start, end in (
        ((1.8, 4.7), (3.0, 4.7)),
        ((6.0, 4.7), (8.0, 4.7)),
        ((10.2, 4.7), (11.4, 4.7)),
        ((13.8, 4.7), (14.5, 4.7)),
        ((1.8, 1.5), (3.0, 1.5)),
        ((6.0, 1.5), (7.0, 1.5)),
        ((9.1, 2.3), (9.1, 3.9)),
    ):
        axes.add_patch(
            FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color=INK, shrinkA=0, shrinkB=0)
        )
    axes.text(9.25, 3.05, "sigmoid", fontsize=8, color=INK, va="center")
    return figure


def box(axes, x: float, y: float, width: float, title: str, shape: str) -> None:
    edge = {"boxstyle": "round,pad=0,rounding_size=0.15", "facecolor": COLD, "edgecolor": INK, "linewidth": 0.8}
    axes.add_patch(FancyBboxPatch((x, y), width, 1.6, **edge))
    axes.text(x + width / 2, y + 1.02, title, ha="center", va="center", fontsize=11)
    axes.text(x + width / 2, y + 0.42, shape, ha="center", va="center", fontsize=7.5, color=INK)


# ---- the five facts -------------------------------------------------------------------------------------------------


def shared_contexts():
    """Fact 1: rows of contexts as the batch has them, and the distinct ones with an index."""
    index = torch.tensor([0] * 9 + [1] * 7)
    rows = SmallLayer().contexts
    figure, panels = canvas(2)
    for axes, some, title in (
        (panels[0], rows[index], f"one context a sample: {BATCH} rows of activations"),
        (panels[1], rows, f"distinct contexts, and an index: {len(rows)} rows"),
    ):
        axes.pcolormesh(some.numpy(), cmap="PuOr", vmin=-2.5, vmax=2.5, edgecolors="white", linewidth=0.4)
        axes.set(xticks=[], yticks=[], ylim=(BATCH, 0))
        axes.spines[:].set_visible(False)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("C", fontsize=8)
    panels[0].set_ylabel("B", fontsize=8)
    panels[1].set_ylabel("G", fontsize=8, loc="top")
    return figure


def one_winner_a_unit():
    """Fact 2: which entries of the segments' gradient are not zero, and what it is made of."""
    small = SmallLayer()
    small.step()
    grad = small.segments.grad.view(UNITS * SEGMENTS, CONTEXT)
    lengths = grad.norm(dim=1, keepdim=True)
    figure, panels = canvas(2, height=1.9)
    show(panels[0], grad.T.ne(0), f"{int(lengths.ne(0).sum())} of {len(grad)} rows have gradient", "O x S", "C")
    rank = int(torch.linalg.matrix_rank(grad))
    panels[1].pcolormesh(
        (grad / lengths).T.numpy(), cmap="PuOr", vmin=-0.6, vmax=0.6, edgecolors="white", linewidth=0.3
    )
    panels[1].set(xticks=[], yticks=[], aspect="equal")
    panels[1].invert_yaxis()
    panels[1].spines[:].set_visible(False)
    panels[1].set_title(f"each divided by its length: all are multiples of c (rank {rank})", fontsize=9)
    panels[1].set_xlabel("O x S", fontsize=8)
    return figure


def untouched_rows_rest():
    """Fact 3: what 30 steps of torch's Adam changed."""
    small = SmallLayer()
    before = small.segments.detach().clone()
    for _ in range(30):
        small.step()
    moved = (small.segments.detach() - before).abs().amax(2)
    figure, (axes, grid) = canvas(2)
    show(grid, moved.T.ne(0), "rows whose bits changed", "O", "S")
    axes.bar(range(moved.numel()), moved.reshape(-1).numpy(), color=WARM)
    axes.set_xlabel("row of the segments, O x S", fontsize=8)
    axes.set_title("largest change of a row in 30 steps of Adam", fontsize=9)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def sparse_both_ways():
    """Fact 4: the winners of a batch, and where they leave the next layer's gradient nonzero."""
    small = SmallLayer()
    z = small.step()
    x = torch.zeros(BATCH, INPUTS).scatter(1, torch.randn(BATCH, INPUTS).topk(WINNERS).indices, 1.0)
    figure, panels = canvas(3)
    show(panels[0], x.ne(0), f"x: {WINNERS} of {INPUTS} a sample", "I", "B")
    show(panels[1], z.ne(0), f"z: {WINNERS} of {UNITS} a sample", "O", "B")
    sample = torch.outer(z[0], x[0]).ne(0)
    show(panels[2], sample, f"dW of the first sample: {int(sample.sum())} of {sample.numel()}", "I", "O")
    return figure


def only_touched_rows_change():
    """Fact 5: activations that a second step with the same context changes."""
    small = SmallLayer()
    small.step()
    before = small.activations()
    small.step()
    changed = small.activations().ne(before)
    figure, panels = canvas(2, height=2.0)
    grad = small.segments.grad.ne(0).any(2)
    show(panels[0], changed.T, f"activations that changed: {int(changed.sum())} of {changed.numel()}", "O", "S")
    show(panels[1], grad.T, f"rows with gradient in that step: {int(grad.sum())}", "O", "S")
    return figure


PICTURES = (
    layer,
    shared_contexts,
    one_winner_a_unit,
    untouched_rows_rest,
    sparse_both_ways,
    only_touched_rows_change,
)


def draw_all(folder: Path) -> None:
    plt.rcParams["svg.hashsalt"] = "dendrite"  # the same picture, the same file
    for picture in PICTURES:
        figure = picture()
        figure.savefig(folder / f"{picture.__name__}.svg", metadata={"Date": None})
        plt.close(figure)


if __name__ == "__main__":
    draw_all(Path(sys.argv[1]))
