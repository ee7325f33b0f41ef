"""Figures 2, 6 and 7 of Bain 2022: examples of noise, and from result rows tickets by density and under noise."""

from __future__ import annotations

import textwrap
from pathlib import Path

import matplotlib.pyplot as plt

from . import datasets
from .config import EXPERIMENTS
from .figures import band, saved
from .images import MEAN, STD
from .judged import grouped
from .noise import bright_pixels, pixel_order, pixels_of
from .results import as_configured
from .tickets import flat_images
from .tickets_experiment import Tickets

EXAMPLES = 3


def draw_all(rows: list[dict], folder: Path) -> list[Path]:
    """Draws the figures of each experiment that has rows, as PNG files in the folder; examples of data that is here."""
    ours = [r for r in rows if as_configured(r) and isinstance(EXPERIMENTS[r["experiment"]], Tickets)]
    paths = []
    for name, group in grouped(ours, lambda row: row["experiment"]).items():
        paths.append(saved(by_density(group, titled(name)), folder / f"{name}.png"))
        paths.append(saved(under_noise(group, titled(name)), folder / f"{name}_noise.png"))
    for dataset, group in grouped(ours, lambda row: row["config"]["dataset"]).items():
        if datasets.is_here(dataset):
            images = datasets.load(dataset).test_images
            shares = max((row["config"]["noise"] for row in group), key=len)
            paths.append(saved(examples(images, shares, dataset), folder / f"noise_{dataset}.png"))
    return paths


def titled(name: str) -> str:
    """An experiment's name and, below, what a reader must know of it."""
    return "\n".join((name, *textwrap.wrap(EXPERIMENTS[name].note or "", 80)))


def examples(images, shares: list[float], title: str):
    """The first images, uint8, under each share of bright pixels, as networks get them (figure 2)."""
    x = flat_images(images[:EXAMPLES])
    order = pixel_order(len(x), pixels_of(images), seed=0)
    size = (1.1 * len(shares), 1.3 * EXAMPLES)
    figure, panels = plt.subplots(EXAMPLES, len(shares), figsize=size, squeeze=False, constrained_layout=True)
    for column, share in zip(panels.T, shares, strict=True):
        for axes, pixels in zip(column, bright_pixels(x, share, order), strict=True):
            axes.imshow(_shown(pixels), cmap="gray", vmin=float(x.min()), vmax=float(x.max()))
            axes.axis("off")
        column[0].set_title(f"{100 * share:.0f} %", fontsize="small")
    figure.suptitle(f"{title}: share of pixels set to two deviations above the mean", fontsize="small")
    return figure


def _shown(pixels):
    """A normalised image for imshow: [28, 28] of MNIST, or RGB [32, 32, 3] within 0 and 1."""
    if pixels.numel() == 784:
        return pixels.view(28, 28).numpy()
    colours = pixels.view(3, 32, 32).permute(1, 2, 0).numpy() * STD + MEAN
    return colours.clip(0, 1)


def by_density(rows: list[dict], title: str):
    """Test accuracy of winning and of random tickets against the weights left, with its interval (figure 6)."""
    figure, axes = plt.subplots(figsize=(7, 4.5), constrained_layout=True)
    for kind in ("winning", "random"):
        levels = [found for found in zip(*(row[kind] for row in rows), strict=True) if None not in found]
        at_left = {100 * found[0]["density"]: [one["accuracy"] for one in found] for found in levels}
        band(axes, at_left, f"{kind} ({len(rows)})")
    axes.set(xscale="log", xlabel="weights left, %", ylabel="test accuracy")
    axes.set_title(title, fontsize="small")
    axes.invert_xaxis()
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def under_noise(rows: list[dict], title: str):
    """Test accuracy against the share of bright pixels, a line a network (figure 7)."""
    figure, axes = plt.subplots(figsize=(7, 4.5), constrained_layout=True)
    shares = rows[0]["config"]["noise"]
    for kind in ("winning", "random"):
        for found in zip(*(row[kind] for row in rows), strict=True):
            if found[0] is None or "noise_accuracy" not in found[0]:
                continue
            name = "dense" if found[0]["density"] == 1 else f"{kind}, {100 * found[0]['density']:.0f} %"
            accuracies = zip(*(one["noise_accuracy"] for one in found), strict=True)
            band(axes, dict(zip(shares, map(list, accuracies), strict=True)), name)
    axes.set(xlabel="share of pixels set to two deviations above the mean", ylabel="test accuracy")
    axes.set_title(title, fontsize="small")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
