"""Made-up CIFAR in the standard formats, that a small network can learn."""

import hashlib
import pickle

import numpy as np
from dendrite_lab import cifar


def pictures(count, classes, seed=0):
    """Images uint8 [count, 3072], as many of each class, and their labels: a noisy pattern a class."""
    rng = np.random.default_rng(seed)
    coarse = np.random.default_rng(99).integers(0, 200, (classes, 3, 4, 4))
    patterns = coarse.repeat(8, axis=2).repeat(8, axis=3).reshape(classes, -1)
    labels = rng.permutation(np.arange(count) % classes)
    return (patterns[labels] + rng.integers(0, 56, (count, 3072))).astype(np.uint8), labels


def as_pickle(images, labels, key):
    """The Python version's form, as Python 2's numpy named its parts."""
    content = {"data": images, key: [int(label) for label in labels]}
    return pickle.dumps(content, protocol=3).replace(b"numpy._core", b"numpy.core")


def write_cifar10(folder, monkeypatch, count=60, test=20):
    """cifar-10-batches-py in the folder, with its checksum. Returns (images, labels) by file, and the records."""
    at = folder / "cifar-10-batches-py"
    at.mkdir(parents=True)
    parts = [pictures(size, 10, seed) for seed, size in enumerate([count // 5] * 5 + [test])]
    records = b""
    for name, (images, labels) in zip(cifar.BATCHES, parts, strict=True):
        (at / name).write_bytes(as_pickle(images, labels, "labels"))
        records += b"".join(bytes([label]) + image.tobytes() for image, label in zip(images, labels, strict=True))
    monkeypatch.setattr(cifar, "CIFAR10_SUM", hashlib.sha256(records).hexdigest())
    monkeypatch.setattr(cifar, "CIFAR10_TEST", test)
    return parts, records


def write_cifar100(folder, monkeypatch, count=1000, test=300):
    """cifar-100-python in the folder, likewise."""
    at = folder / "cifar-100-python"
    at.mkdir(parents=True)
    parts = [pictures(count, 100), pictures(test, 100, seed=1)]
    sums = {}
    for name, part in zip(("train", "test"), parts, strict=True):
        raw = as_pickle(*part, "fine_labels")
        (at / name).write_bytes(raw)
        sums[name] = hashlib.md5(raw).hexdigest()
    monkeypatch.setattr(cifar, "CIFAR100_FILES", sums)
    return parts
