"""The data set that an experiment names."""

from __future__ import annotations

from pathlib import Path

from .cifar import CIFAR, load_cifar
from .data import MNIST, Say, load_mnist


def load(name: str, folder: Path | None = None, say: Say = print) -> MNIST | CIFAR:
    """name: "mnist", "cifar10" or "cifar100"; folder: where its files are, by default its own in $DENDRITE_DATA.

    Raises LabError: a file is missing or corrupt, or no source is in reach.
    """
    return load_mnist(folder, say) if name == "mnist" else load_cifar(name, folder, say)
