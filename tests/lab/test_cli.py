"""The command line: runs, results, resuming."""

import dataclasses
import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from dendrite_lab import claims, cli, contexts, published, results, state, train
from dendrite_lab.config import EXPERIMENTS, experiment, run_name
from dendrite_lab.errors import Busy, LabError
from resuming import resumes_to_the_same
from typer.testing import CliRunner


@pytest.fixture
def config(small):
    return experiment("prototype_10", small)


def test_list_names_every_experiment():
    out = CliRunner().invoke(cli.app, ["list"])
    assert out.exit_code == 0
    lines = {line.split()[0]: line for line in out.output.splitlines() if line.strip()}
    for name in (*EXPERIMENTS, *published.not_runnable()):
        value = published.ACCURACY.get(name)
        assert value is None or f"{100 * value:.2f} %" in lines[name]
    assert "can't be run" in lines["xdg_10"] and "xdg_N can't be run: a number from" in out.output


@pytest.mark.parametrize("words", [[], ["run"], ["grid"], ["sweep"], ["report"], ["list"]])
def test_help(words):
    out = CliRunner().invoke(cli.app, [*words, "--help"])
    assert out.exit_code == 0 and "Usage" in out.output


def test_a_run_learns_and_leaves_a_row(config, mnist, tmp_path):
    seen = []
    row = train.run(config, 0, mnist, tmp_path, progress=lambda done, total, what: seen.append((done, total)))
    assert row["accuracy"] > 0.95 and set(row["accuracy_by_task"]) == {"1", "2", "3"}
    assert row["accuracy"] == sum(row["accuracy_by_task"]["3"]) / 3
    assert max(seen)[0] == 3 * 2 * 12 and {total for _, total in seen} == {72}
    for key in ("commit", "versions", "threads", "finished", "step_ms", "train_seconds", "config"):
        assert key in row
    results.append_row(tmp_path, row)
    assert results.read_rows(tmp_path) == [json.loads(json.dumps(row))]


def test_the_same_seed_gives_the_same_numbers(config, mnist, tmp_path):
    rows = [train.run(config, seed, mnist, tmp_path / str(i)) for i, seed in enumerate((1, 1, 2))]
    assert rows[0]["loss_by_task"] == rows[1]["loss_by_task"] != rows[2]["loss_by_task"]


def test_only_rows_of_the_same_configuration_are_finished(config, tmp_path):
    assert results.finished(tmp_path, config) == {}
    row = {"experiment": "prototype_10", "family": "prototype", "config": config.to_dict(), "accuracy": 0.9}
    row |= {"train_seconds": 1, "eval_seconds": 1}
    for seed in (0, 4):
        results.append_row(tmp_path, {**row, "seed": seed})
    results.append_row(tmp_path, {**row, "seed": 5, "config": EXPERIMENTS["prototype_10"].to_dict()})
    assert results.finished(tmp_path, config).keys() == {0, 4}


@pytest.mark.parametrize("at", [20, 30, 47])
def test_a_stopped_run_resumes_to_the_same_numbers(config, mnist, tmp_path, at, threads):
    threads(2)
    keys = ("accuracy_by_task", "loss_by_task", "threads")  # the resumed run takes the first one's thread count
    _, steps = resumes_to_the_same(
        train.run, config, mnist, tmp_path, lambda done, what: done == at, keys, between=lambda: threads(1)
    )
    assert steps[0][0] == at // 24 * 24 + 1  # after the tasks that were finished
    assert torch.get_num_threads() == 1  # and what runs next has its own again


def test_an_unfinished_run_is_not_written_over(config, mnist, tmp_path):
    train.run(config, 0, mnist, tmp_path)
    path = claims.state_path(tmp_path, config, 0)
    before = path.read_bytes()
    with pytest.raises(
        LabError, match=r"seed0-[0-9a-f]{8}\.state\.pt is of an unfinished run: --resume goes on with it; delete it"
    ):
        train.run(config, 0, mnist, tmp_path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("cost, saved", [(0.1, [1, 2, 3, 4, 5, 6, 7, 8]), (3.0, [1, 7, 8]), (0.7, [1, 3, 5, 7, 8])])
def test_saving_takes_its_share_of_the_time(config, monkeypatch, cost, saved):
    """Tasks of ten seconds, and states that take `cost` seconds to save."""
    clock, done = [0.0], []
    monkeypatch.setattr(state.time, "perf_counter", lambda: clock[0])

    def save(saved, path):
        clock[0] += cost
        done.append(saved.tasks_done)

    monkeypatch.setattr(state.State, "save", save)
    run = state.State(config.to_dict(), 0, 1)
    saver = state.Saver(run, None)
    for task in range(1, 9):
        clock[0] += 10
        run.tasks_done = task
        saver.save_if_worth(last=task == 8)
    assert done == saved


def test_a_state_of_another_configuration_is_refused(config, mnist, tmp_path):
    train.run(config, 0, mnist, tmp_path)
    other = dataclasses.replace(config, lr=0.1)
    claims.state_path(tmp_path, config, 0).rename(claims.state_path(tmp_path, other, 0))
    with pytest.raises(LabError, match="is of another configuration"):
        train.run(other, 0, mnist, tmp_path, resume=True)


def test_each_changed_configuration_has_files_of_its_own(config):
    named = EXPERIMENTS["prototype_10"]
    names = {run_name(one, 3) for one in (named, config, dataclasses.replace(config, lr=0.1))}
    assert len(names) == 3 and "prototype_10-seed3" in names  # as named: as older versions called it
    assert run_name(config, 3) == run_name(dataclasses.replace(config), 3) != run_name(config, 4)


@pytest.mark.parametrize("more", [[], ["--resume"]])
def test_a_state_left_beside_its_row_is_in_nobodys_way(main_run, config, tmp_path, more):
    """As a kill between the row and the removal of the state leaves it."""
    out = tmp_path / "out"
    assert main_run("--out", out)[0] == 0
    path = claims.state_path(out, config, 0)
    path.write_bytes(b"a state")
    part = out / f"{path.name}.part1234"
    part.write_bytes(b"half a st")
    assert main_run("--out", out, *more)[0] == 0 and not path.exists() and not part.exists()
    assert len((out / results.ROWS).read_text().splitlines()) == (1 if more else 2)


@pytest.mark.parametrize("more", [[], ["--resume"]])
def test_a_run_that_another_command_has_is_left_to_it(main_run, config, tmp_path, more):
    """Locks know no process: one that is held here keeps this one off too."""
    out = tmp_path / "out"
    path = claims.state_path(out, config, 0)
    with claims.held(path), state.begun(state.State, config, 0, out, False):
        status, _, err = main_run("--out", out, *more)
        assert status == 1 and "another command is running it: wait for that, or" in err and "delete" not in err
        assert path.exists() and not (out / results.ROWS).exists()
    assert main_run("--out", out, "--resume")[0] == 0
    assert [p.name for p in out.iterdir()] == [results.ROWS]  # no lock either


def test_the_state_of_a_run_that_is_made_again_stays(main_run, config, tmp_path):
    out = tmp_path / "out"
    assert main_run("--out", out)[0] == 0
    path = claims.state_path(out, config, 0)
    with claims.held(path):
        path.write_bytes(b"of the one that has it")
        assert "finished already" in main_run("--out", out, "--resume")[1] and path.exists()


def test_a_killed_process_lets_go_of_its_run(config, tmp_path):
    path = claims.state_path(tmp_path, config, 0)
    code = (
        "import sys, pathlib, time; from dendrite_lab import claims\n"
        "with claims.held(pathlib.Path(sys.argv[1])): print(flush=True), time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"\n"
    with pytest.raises(Busy), claims.held(path):
        pass
    process.kill()
    process.wait()
    with claims.held(path):
        assert path.parent.exists()


def test_finished_runs_in_a_folder_that_no_one_may_write_to(main_run, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert main_run("--out", out)[0] == 0

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(claims.FileLock, "acquire", refused)
    assert "finished already" in main_run("--out", out, "--resume")[1]


def test_a_damaged_state_is_refused(config, mnist, tmp_path):
    claims.state_path(tmp_path, config, 0).write_bytes(b"junk")
    with pytest.raises(LabError, match=r"state\.pt can't be read .* delete it to start anew"):
        train.run(config, 0, mnist, tmp_path, resume=True)


def test_evaluation_takes_the_nearest_prototype(config, mnist):
    """Against a plain loop: one sample at a time, its own context, no index."""
    model = train.build_model(config, 0)
    tasks = train.PermutedMNIST(mnist, 3)
    source = contexts.Prototypes()
    for task in range(3):
        source.begin_task(tasks.train(task)[0])
    prototypes = source.all()
    got = train.evaluate(model, tasks, 3, source, batch=64)
    want = []
    model.eval()
    for task in range(3):
        x, labels = tasks.test(task)
        nearest = torch.cdist(x.double(), prototypes.double()).argmin(1)
        with torch.no_grad():
            right = [int(model(row[None], prototypes[n][None]).argmax()) for row, n in zip(x, nearest, strict=True)]
        want.append(sum(r == t for r, t in zip(right, labels.tolist(), strict=True)) / len(x))
    assert got == pytest.approx(want, abs=1 / len(labels))  # one sample's logits may tie to rounding


# ---- report ---------------------------------------------------------------------------------------------------------


def test_report_sets_ours_beside_the_published(tmp_path):
    named = EXPERIMENTS["prototype_10"]
    base = {"experiment": "prototype_10", "family": "prototype", "train_seconds": 1, "eval_seconds": 1, "step_ms": 1}
    for seed, accuracy in ((0, 0.95), (1, 0.94)):
        results.append_row(tmp_path, {**base, "seed": seed, "config": named.to_dict(), "accuracy": accuracy})
    changed = experiment("prototype_10", {"epochs": "1"}).to_dict()
    results.append_row(tmp_path, {**base, "seed": 0, "config": changed, "accuracy": 0.5})
    out = CliRunner().invoke(cli.app, ["report", "--out", str(tmp_path)])
    assert out.exit_code == 0, out.output
    assert "94.50 %" in out.output and "-0.05" in out.output
    assert "50.00 %" in out.output and "prototype_10 (--set)" in out.output
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")


# ---- the whole command, stopped -------------------------------------------------------------------------------------


def tasks_done(folder):
    """Of the saved state; -1 before there is one."""
    return next((torch.load(path, weights_only=True)["tasks_done"] for path in folder.glob("*.state.pt")), -1)


def wait_for(process, folder, tasks):
    """Until the saved state of a process that runs on has this many tasks."""
    while tasks_done(folder) < tasks:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)


@pytest.mark.slow
def test_kill_dash_nine_and_resume(command, tmp_path):
    """The command line itself, killed in the middle of its second task, ends with an uninterrupted run's numbers."""
    words = command(60000, hidden="200,200", segments="3", tasks="3", epochs="1")
    subprocess.run([*words, "--out", tmp_path / "whole"], check=True, capture_output=True)
    out = tmp_path / "killed"
    process = subprocess.Popen([*words, "--out", out], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wait_for(process, out, 1)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stderr.close()
    assert tasks_done(out) in (1, 2) and not (out / results.ROWS).exists()  # in the middle of the run
    subprocess.run([*words, "--out", out, "--resume"], check=True, capture_output=True)
    whole, resumed = (results.read_rows(folder)[0] for folder in (tmp_path / "whole", out))
    for key in ("accuracy_by_task", "loss_by_task"):
        assert resumed[key] == whole[key]
    assert not list(out.glob("*.state.pt"))


def test_control_c_says_how_to_go_on(command, small, tmp_path):
    words = command(800, **{**small, "epochs": "100000"})
    process = subprocess.Popen(
        [*words, "--out", tmp_path], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    wait_for(process, tmp_path, 0)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert said == "stopped; the same command with --resume goes on after the last finished task\n"
    assert process.returncode == 130 and tasks_done(tmp_path) == 0
