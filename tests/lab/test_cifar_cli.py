"""The experiments on CIFAR from the command line, on generated files of the standard formats."""

import json

import pytest
from cifar_files import write_cifar10, write_cifar100
from dendrite_lab import split_cifar

SMALL = {"tasks": "2", "epochs": "1", "batch_size": "16"}


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """DENDRITE_DATA with both data sets."""
    write_cifar10(tmp_path / "data/cifar-10", monkeypatch, count=400, test=100)
    write_cifar100(tmp_path / "data/cifar-100", monkeypatch)
    monkeypatch.setenv("DENDRITE_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def words(name, out, **changes):
    sets = [word for change in {**SMALL, **changes}.items() for word in ("--set", "=".join(change))]
    return ["run", name, "--out", out, *sets]


@pytest.mark.parametrize("name", ["split_cifar100_adn", "split_cifar10_cnn", "si_split_cifar", "si_split_cifar10"])
def test_a_run_leaves_a_row_and_says_what_stands_in(name, folder, main, tmp_path):
    status, out, _ = main(*words(name, tmp_path / "out"))
    assert status == 0 and f"{name}, seed 0: mean accuracy over 2 tasks" in " ".join(out.split())
    (row,) = [json.loads(line) for line in (tmp_path / "out/results.jsonl").read_text().splitlines()]
    assert row["experiment"] == name and [len(v) for v in row["accuracy_by_task"].values()] == [1, 2]
    stands_in = "not the paper's experiment"
    assert (stands_in in out) == ("cifar10" in name and "cifar100" not in name) == (stands_in in row.get("note", ""))
    assert ("ours, where the source is silent" in row.get("note", "")) == name.startswith("split_cifar100")
    assert not list((tmp_path / "out").glob("*.pt"))
    status, out, _ = main("report", "--out", tmp_path / "out")
    assert status == 0 and f"{name} (--set)" in out and row.get("note", "") in out
    status, out, _ = main(*words(name, tmp_path / "out"), "--resume")
    assert "finished already" in out


def test_a_grid_runs_each_point_once_and_shows_the_best_first(folder, main, tmp_path, monkeypatch):
    monkeypatch.setattr(split_cifar, "CNN_GRID", {"lr": (1e-5, 1e-3), "batch_size": (16,)})
    asked = ["grid", *words("split_cifar10_cnn", tmp_path / "out")[1:]]
    status, out, _ = main(*asked)
    assert status == 0 and "split_cifar10_cnn: 2 points, 2 to run" in out
    rows = [json.loads(line) for line in (tmp_path / "out/results.jsonl").read_text().splitlines()]
    assert [row["config"]["lr"] for row in rows] == [1e-5, 1e-3]
    best = max(rows, key=lambda row: row["accuracy"])
    shown = [line for line in out.splitlines() if line.startswith("│")]
    assert f"{best['config']['lr']:g}" in shown[0] and f"{100 * best['accuracy']:.2f}" in shown[0]
    assert "2 points, 0 to run" in main(*asked)[1]


def test_a_given_folder_of_both_data_sets(folder, main, tmp_path, monkeypatch):
    monkeypatch.setenv("DENDRITE_DATA", str(tmp_path / "nowhere"))
    status, _, _ = main(*words("si_split_cifar", tmp_path / "out"), "--data", folder)
    assert status == 0


def test_what_has_no_curve_says_so(main):
    status, _, said = main("run", "split_cifar10_cnn", "--curve")
    assert status == 1 and "--curve: expected an experiment that evaluates after some tasks only" in said


def test_the_list_says_what_stands_in(main):
    _, out, _ = main("list")
    (line,) = [line for line in out.splitlines() if line.startswith("split_cifar10_cnn, split_cifar10_sparse, ")]
    assert "CIFAR-10 in CIFAR-100's place" in line and "split_cifar100" not in line


@pytest.mark.parametrize("name", ["split_cifar10_cnn", "si_split_cifar10"])
def test_a_batch_of_more_than_a_task_has_leaves_no_row(name, folder, main, tmp_path):
    status, _, said = main(*words(name, tmp_path / "out", batch_size="4096"))
    assert status == 1 and f"error: {name}, seed 0: batch_size: expected at most the " in said
    assert not (tmp_path / "out/results.jsonl").exists()


def test_what_the_grid_itself_varies_is_not_set(main, tmp_path):
    status, _, said = main("grid", "split_cifar10_cnn", "--out", tmp_path, "--set", "lr=0.5")
    assert (status, said) == (1, "error: --set lr: expected a field that the grid does not vary (1e-05,0.0001,0.001)\n")
