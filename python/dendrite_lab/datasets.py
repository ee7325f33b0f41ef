"""The data set that an experiment names."""

from __future__ import annotations

from pathlib import Path

from .cifar import CIFAR, FOLDERS, cifar_is_in, load_cifar
from .data import MNIST, Say, default_folder, load_mnist, mnist_is_in


def load(name: str, folder: Path | None = None, say: Say = print) -> MNIST | CIFAR | tuple[CIFAR, CIFAR]:
    """name: "mnist", "cifar10", "cifar100", or "cifar10_100" for both; folder: where its files are, by default its own
    in $DENDRITE_DATA. A given folder of both has cifar-10 and cifar-100 in it.

    Raises LabError: a file is missing or corrupt, or no source is in reach.
    """
    if name == "mnist":
        return load_mnist(folder, say)
    if name == "cifar10_100":
        both = ("cifar100", "cifar10")  # what is harder to come by first
        loaded = {one: load_cifar(one, folder and folder / FOLDERS[one][0], say) for one in both}
        return loaded["cifar10"], loaded["cifar100"]
    return load_cifar(name, folder, say)


def is_here(name: str) -> bool:
    """Whether the default folder of "mnist", "cifar10" or "cifar100" has all of its files, so that none is fetched."""
    if name == "mnist":
        return mnist_is_in(default_folder())
    return cifar_is_in(name, default_folder(FOLDERS[name][0]))
