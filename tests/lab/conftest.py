"""A made-up data set in MNIST's place, and the command line in this process or in one of its own."""

import hashlib
import sys

import pytest
import torch
from dendrite_lab import cli, data

SMALL = {"hidden": "60,50", "segments": "3", "tasks": "3", "train_samples": "600", "batch_size": "50"}
SMALL |= {"epochs": "2", "evaluate_after": "1,2", "percent_on": "0.5", "lr": "0.005"}


def digits(count):
    """Ten noisy patterns of MNIST's form: a task that a small network learns at once."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randint(0, 200, (10, 784), generator=generator)
    labels = torch.randint(0, 10, (count,), generator=generator)
    noise = torch.randint(0, 56, (count, 784), generator=generator)
    return (patterns[labels] + noise).to(torch.uint8), labels


@pytest.fixture
def small():
    """The changes that make an experiment small enough to train in a second, and learn."""
    return dict(SMALL)


@pytest.fixture(scope="session")
def mnist():
    images, labels = digits(1000)
    return data.MNIST(images[:800], labels[:800], images[800:], labels[800:])


@pytest.fixture
def mnist_folder(tmp_path):
    """A function that writes the four files with this many samples to train on, and returns their folder."""

    def write(count=800):
        images, labels = digits(count)
        parts = images.view(-1, 28, 28), labels, images[:900].view(-1, 28, 28), labels[:900]
        folder = tmp_path / "mnist"
        folder.mkdir()
        for name, values in zip(data.FILES, parts, strict=True):
            (folder / name).write_bytes(data.write_idx(values.numpy()))
        return folder

    return write


@pytest.fixture
def main(monkeypatch, capsys):
    """main() with these words, as users get it: the exit status, and what it printed to stdout and stderr."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # typer sets its own

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["dendrite-lab", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def main_run(main, mnist_folder, small, monkeypatch):
    """`dendrite-lab run` of a small experiment on made-up data, with more words."""
    folder = mnist_folder()
    sums = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in data.FILES}
    monkeypatch.setattr(data, "FILES", sums)
    changes = [word for change in small.items() for word in ("--set", "=".join(change))]
    return lambda *words: main("run", "prototype_10", "--data", folder, *changes, *words)


@pytest.fixture
def command(mnist_folder, tmp_path):
    """A function: the words of `dendrite-lab run` in a process of its own, on this many samples, with changes."""

    def words(count, **changes):
        folder = mnist_folder(count)
        script = tmp_path / "run.py"
        script.write_text(
            "import hashlib, signal, sys\nfrom pathlib import Path\nfrom dendrite_lab import data\n"
            f"folder = Path({str(folder)!r})\n"
            "data.FILES = {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in data.FILES}\n"
            "from dendrite_lab.cli import main\n"
            "if __name__ == '__main__':  # not in the processes that it starts\n"
            "    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it\n"
            "    main()\n"
        )
        sets = [word for change in changes.items() for word in ("--set", "=".join(change))]
        return [sys.executable, str(script), "run", "prototype_10", "--data", str(folder), *sets]

    return words
