"""Mistakes in words, files and surroundings: one sentence, exit status 1, no traceback, nothing lost."""

import json

import pytest
import torch
from dendrite_lab import results
from dendrite_lab.errors import LabError

ROW = {"experiment": "prototype_2", "family": "prototype", "seed": 0, "config": {"tasks": 2}, "accuracy": 0.5}
ROW |= {"train_seconds": 1, "eval_seconds": 1.5}


def sentence(answer):
    """The one line of an error, after "error: "."""
    status, _, err = answer
    assert status == 1 and err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1
    return err.removeprefix("error: ").removesuffix("\n")


# ---- files ----------------------------------------------------------------------------------------------------------


def test_an_unfinished_run_is_refused_before_the_first_seed_is_run(main_run, tmp_path):
    later = tmp_path / "prototype_10-seed2.state.pt"
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
    (state,) = (tmp_path / "out").iterdir()
    assert sentence(answer) == f"{state}: File too large"
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
