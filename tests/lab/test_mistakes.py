"""Mistakes in words, files and surroundings: one sentence, exit status 1, no traceback, nothing lost."""

import json

import pytest
import torch
from dendrite_lab import cli, results, train
from dendrite_lab.claims import state_path
from dendrite_lab.config import experiment
from dendrite_lab.errors import LabError

from dendrite_kernels.backends import cpu

RUN = ["run", "prototype_10"]
ROW = {"experiment": "prototype_2", "family": "prototype", "seed": 0, "config": {"tasks": 2}, "accuracy": 0.5}
ROW |= {"train_seconds": 1, "eval_seconds": 1.5}


def sentence(answer):
    """The one line of an error, after "error: "."""
    status, _, err = answer
    assert status == 1 and err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1
    return err.removeprefix("error: ").removesuffix("\n")


@pytest.mark.parametrize(
    "words, start",
    [
        (["run", "prototype_11"], "unknown experiment 'prototype_11'; did you mean prototype_10"),
        (["run", "[bold]x"], "unknown experiment '[bold]x': `dendrite-lab list`"),
        (["run", "[/x]"], "unknown experiment '[/x]': `dendrite-lab list`"),
        (["run", ":smile:"], "unknown experiment ':smile:': `dendrite-lab list`"),
        (["report", "--out", "[/x]"], "no results in [/x]: run an experiment first"),
        (["report", "--out", "nowhere"], "no results in nowhere: run an experiment first"),
        ([*RUN, "--seed", str(2**32)], "--seed: expected seeds up to 4294967295, got 4294967296"),
        ([*RUN, "--seed", str(2**32 - 1), "--seeds", "2"], "--seed: expected seeds up to 4294967295, got 4294967296"),
        ([*RUN, "--seed", "9" * 30], "--seed: expected seeds up to 4294967295, got 999999999999999999999999999999"),
    ],
)
def test_words(main, words, start):
    assert sentence(main(*words)).startswith(start)


@pytest.mark.parametrize(
    "change, start",
    [
        ("speed=9", "--set speed: expected one of tasks, epochs"),
        ("[/x]=9", "--set [/x]: expected one of tasks, epochs"),
        ("name=x", "--set name: expected one of tasks, epochs"),
        ("lr", "--set lr: expected key=value"),
        ("lr=fast", "--set lr: expected a value like 0.0005, got 'fast'"),
        ("lr=[/x]", "--set lr: expected a value like 0.0005, got '[/x]'"),
        ("lr=nan", "lr: expected a finite number above 0, got nan"),
        ("lr=inf", "lr: expected a finite number above 0, got inf"),
        ("lr=0", "lr: expected a finite number above 0, got 0.0"),
        ("hidden=", "--set hidden: expected a value like 2048,2048, got ''"),
        ("hidden=-5", "hidden: expected numbers of 1 or more, got -5"),
        ("hidden=2048,0", "hidden: expected numbers of 1 or more, got 2048,0"),
        ("hidden=2048,9", "percent_on: 0.05 of 9 units leaves no winner in a layer"),
        ("evaluate_after=0", "evaluate_after: expected numbers of 1 or more, got 0"),
        ("evaluate_after=", "--set evaluate_after: expected a value like 2,5,10,25,50,100, got ''"),
        ("weight_sparsity=-0.5", "weight_sparsity: expected a fraction in [0, 1), got -0.5"),
        ("weight_sparsity=nan", "weight_sparsity: expected a fraction in [0, 1), got nan"),
        ("percent_on=nan", "percent_on: expected a fraction in (0, 1], got nan"),
        ("tasks=0", "tasks: expected 1 or more, got 0"),
        ("train_samples=10", "train_samples: expected 256 or more, at most 60000, got 10"),
        ("data_seed=-1", "data_seed: expected 0 to 4294967295, got -1"),
    ],
)
def test_changes(main, change, start):
    assert sentence(main(*RUN, "--set", change)).startswith(start)


def test_the_largest_seed_is_within_what_torch_takes(mnist, tmp_path, small):
    config = experiment("prototype_10", {**small, "data_seed": str(cli.LARGEST_SEED), "tasks": "2"})
    assert train.run(config, cli.LARGEST_SEED, mnist, tmp_path)["seed"] == 2**32 - 1


@pytest.mark.parametrize("words", [["run"], ["fly"], [*RUN, "--seed", "-1"], [*RUN, "--seed", "x"], [*RUN, "[/x]"]])
def test_usage_is_typers_to_explain(main, words):
    status, out, err = main(*words)
    assert status == 2 and "Usage:" in out + err and "Traceback" not in out + err


def test_a_backend_that_is_none(main, monkeypatch, tmp_path):
    monkeypatch.setenv("DENDRITE_BACKEND", "fast")
    assert sentence(main(*RUN, "--out", tmp_path)).startswith(
        "DENDRITE_BACKEND: expected one of ['cpu', 'cuda', 'reference', 'triton']"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_backend_that_is_not_built(main, monkeypatch):
    monkeypatch.setenv("DENDRITE_BACKEND", "cpu")
    monkeypatch.setattr(cpu, "_cpu", None)
    monkeypatch.setattr(cpu, "import_error", "no module", raising=False)
    assert sentence(main(*RUN)).startswith("backend 'cpu' was asked for but can't run on cpu: dendrite_kernels._cpu")


# ---- files ----------------------------------------------------------------------------------------------------------


def test_an_unfinished_run_is_refused_before_the_first_seed_is_run(main_run, small, tmp_path):
    later = state_path(tmp_path, experiment("prototype_10", small), 2)
    later.write_bytes(b"a state")
    answer = sentence(main_run("--out", tmp_path, "--seeds", "3"))
    assert answer == f"{later} is of an unfinished run: --resume goes on with it; delete it to start anew"
    assert later.read_bytes() == b"a state" and not (tmp_path / results.ROWS).exists()


def test_a_full_disk_at_the_row_loses_nothing(main_run, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    rows = out / results.ROWS
    rows.symlink_to("/dev/full")
    if not rows.exists():
        pytest.skip("this system has no /dev/full")
    assert sentence(main_run("--out", out)) == f"{rows}: No space left on device"
    rows.unlink()
    (state,) = out.glob("*.state.pt")
    done = torch.load(state, weights_only=True)
    status, _, _ = main_run("--out", out, "--resume")
    assert status == 0 and list(out.iterdir()) == [rows]
    assert json.loads(rows.read_text())["loss_by_task"] == done["loss"]


def test_a_full_disk_at_the_state_names_it(main_run, tmp_path):
    """A limit on the size of files fails a write part of the way, as a full disk does."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # a state without the network is below that
    try:
        answer = main_run("--out", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    (state,) = (tmp_path / "out").glob("[!.]*")
    assert sentence(answer) == f"prototype_10, seed 0: {state}: File too large"
    assert torch.load(state, weights_only=True)["tasks_done"] == 0  # the last whole state


def test_a_row_after_half_a_row_starts_a_line(tmp_path):
    for _ in range(2):
        results.append_row(tmp_path, ROW)
    path = tmp_path / results.ROWS
    assert path.read_text() == 2 * (json.dumps(ROW) + "\n")
    path.write_text(path.read_text()[:-20])
    results.append_row(tmp_path, ROW)
    lines = path.read_text().splitlines()
    assert len(lines) == 3 and json.loads(lines[2]) == ROW
    with pytest.raises(LabError, match="line 2: not a result row"):
        results.read_rows(tmp_path)


@pytest.mark.parametrize(
    "line, reason",
    [
        *((json.dumps({k: v for k, v in ROW.items() if k != key}), f"no {key}, or") for key in ROW),
        (json.dumps({**ROW, "accuracy": "high"}), "no accuracy, or"),
        (json.dumps({**ROW, "config": {}}), "no tasks in config"),
        ("[1]", "not an object"),
        ("half a li", "Expecting value"),
        ("\udcff", "'utf-8' codec can't decode"),
    ],
)
def test_a_damaged_line_of_results_is_named(main, tmp_path, line, reason):
    path = tmp_path / results.ROWS
    path.write_bytes(json.dumps(ROW).encode() + b"\n" + line.encode(errors="surrogateescape"))
    answer = sentence(main("report", "--out", tmp_path))
    assert answer.startswith(f"{path}, line 2: not a result row ({reason}") and answer.endswith(
        "remove it and run again"
    )


def test_names_in_results_are_printed_as_they_are(main, tmp_path):
    results.append_row(tmp_path, {**ROW, "experiment": "[red]x[/y]"})
    status, out, _ = main("report", "--out", tmp_path)
    assert status == 0 and "[red]x[/y]" in out
