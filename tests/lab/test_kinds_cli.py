"""Every kind of experiment on MNIST from the command line: run, resume, report, the sweep's estimates."""

import hashlib

import pytest
from dendrite_lab import data, results, sweep
from dendrite_lab.config import EXPERIMENTS, experiment
from dendrite_lab.errors import LabError
from dendrite_lab.state import TaskState
from dendrite_lab.tickets import TicketState

SI = {"hidden": "20,20", "epochs": "1", "train_samples": "400", "batch_size": "20", "tasks": "3"}
TICKETS = {"levels": "2", "epochs": "1", "train_samples": "180", "validation": "100", "noise": "0,0.5"}
SMALL = {"si_split_mnist": SI, "si_permuted_mnist_10": SI, "tickets_fc": TICKETS, "tickets_fc_short": TICKETS}


@pytest.fixture
def run(main, mnist_folder, monkeypatch, tmp_path, threads):
    """`dendrite-lab run` of one of these, small, on made-up data; its exit status and what it printed."""
    threads(1)
    folder = mnist_folder()
    sums = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in data.FILES}
    monkeypatch.setattr(data, "FILES", sums)

    def words(name, *more):
        sets = [word for change in SMALL[name].items() for word in ("--set", "=".join(change))]
        return main("run", name, "--data", folder, "--out", tmp_path / "out", *sets, *more)

    return words


@pytest.mark.parametrize("name", SMALL)
def test_a_run_leaves_a_row_and_no_state_and_is_not_run_twice(name, run, main, tmp_path):
    status, out, _ = run(name, "--seeds", "2")
    assert status == 0 and f"{name}, seed 1: {EXPERIMENTS[name].describe()[:7]}" in out
    rows = results.read_rows(tmp_path / "out")
    assert [(row["experiment"], row["seed"]) for row in rows] == [(name, 0), (name, 1)]
    assert rows[0].get("note") == experiment(name, SMALL[name]).note
    assert rows[0]["train_seconds"] > 0 and [p.name for p in (tmp_path / "out").iterdir()] == [results.ROWS]
    assert f"{name}, seed 0: finished already" in run(name, "--resume")[1]
    status, out, _ = main("report", "--out", tmp_path / "out")
    assert status == 0 and name in out and "(--set)" in out


def test_a_curve_is_for_experiments_that_evaluate_now_and_then(run):
    status, _, err = run("tickets_fc", "--curve")
    assert status == 1 and err.startswith("error: --curve: expected an experiment that evaluates after some tasks only")


def test_costs_of_what_was_never_measured():
    config = EXPERIMENTS["tickets_fc"]
    assert config.steps == 69 * 100 * 916  # 35 winning tickets and 34 random ones
    tests = config.evaluations * sweep.EVALUATION
    assert sweep.estimate(config, []) == pytest.approx(config.steps * config.step_guess + tests)
    assert sweep.estimate(EXPERIMENTS["si_permuted_mnist_10"], []) > sweep.estimate(EXPERIMENTS["si_split_mnist"], [])


def test_a_state_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "x.state.pt"
    TaskState(EXPERIMENTS["si_split_mnist"].to_dict(), 0, 1).save(path)
    with pytest.raises(LabError, match=r"x\.state\.pt can't be read .*delete it to start anew"):
        TicketState.load(path, EXPERIMENTS["tickets_fc"])
