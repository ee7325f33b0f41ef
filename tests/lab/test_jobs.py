"""Seeds side by side: who runs when, what is told of it, and what is left when something dies."""

import copy
import os
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest
from dendrite_lab import claims, engines, jobs, results, train
from dendrite_lab.board import Board
from dendrite_lab.config import experiment
from dendrite_lab.errors import LabError
from dendrite_lab.jobs import Failed, Job, Landed, Seldom, Step
from dendrite_lab.processes import Processes

NUMBERS = ("accuracy_by_task", "loss_by_task", "threads")


@pytest.fixture
def config(small):
    return experiment("prototype_10", small)


def some(config, out, count, **more):
    return [Job(config, seed, out, **more) for seed in range(count)]


# ---- the order of things, with an engine that is made up ------------------------------------------------------------


class Paper:
    """An engine whose runs take the steps that they are given, one a turn, oldest first."""

    def __init__(self, slots, steps):
        self.slots, self.steps, self.going, self.most, self.stopped = slots, steps, {}, 0, 0

    def start(self, job):
        self.going[job.seed] = 0
        self.most = max(self.most, len(self.going))

    def events(self):
        for seed in list(self.going):
            self.going[seed] += 1
            if self.going[seed] > self.steps[seed]:
                del self.going[seed]
                yield Failed(seed, "why") if seed == 1 else Landed(seed, {})
            else:
                yield Step(seed, self.going[seed], self.steps[seed], "")

    def stop(self):
        self.stopped += 1


def test_as_many_run_as_there_are_slots_and_each_ends_once(config, tmp_path):
    engine, told = Paper(2, [3, 1, 1, 2]), []
    jobs.side_by_side(some(config, tmp_path, 4), engine, told.append)
    assert engine.most == 2 and engine.stopped == 1
    # 0 and 1 begin; 1 makes room for 2, 0 for 3
    assert [event.seed for event in told] == [0, 1, 0, 1, 0, 2, 0, 2, 3, 3, 3]
    ends = [event for event in told if not isinstance(event, Step)]
    assert ends == [Failed(1, "why"), Landed(0, {}), Landed(2, {}), Landed(3, {})]


def test_whatever_the_listener_raises_stops_all(config, tmp_path):
    def tell(event):
        if isinstance(event, Landed):
            raise KeyboardInterrupt

    engine = Paper(3, [2, 2, 1])
    with pytest.raises(KeyboardInterrupt):
        jobs.side_by_side(some(config, tmp_path, 3), engine, tell)
    assert engine.stopped == 1 and engine.going


def test_an_error_is_told_and_the_next_seed_runs(config, tmp_path, monkeypatch):
    errors = LabError("no luck"), OSError(28, "No space left on device", "x"), ZeroDivisionError("none")

    def run(job, data, progress):
        if job.seed < 3:
            raise errors[job.seed]
        progress(1, 2, "now")
        return {"data": data}

    monkeypatch.setattr(jobs, "run_job", run)
    told = []
    jobs.one_by_one(some(config, tmp_path, 4), "images", told.append)
    assert told[:2] == [Failed(0, "no luck"), Failed(1, "x: No space left on device")]
    assert told[2].why.startswith("Traceback") and told[2].why.endswith("ZeroDivisionError: none\n")
    assert told[3:] == [Step(3, 1, 2, "now"), Landed(3, {"data": "images"})]


def test_steps_are_told_seldom_but_for_what_is_new(monkeypatch):
    clock, told = [0.0], []
    monkeypatch.setattr(jobs.time, "monotonic", lambda: clock[0])
    seldom = Seldom(told.append)
    for number in range(100):
        clock[0] = 1 + number / 64  # exact
        seldom(Step(0, number, 100, "task 1" if number < 50 else "task 2"))
    assert [step.done for step in told] == [0, 13, 26, 39, 50, 63, 76, 89]


def test_a_board_saves_rows_forgets_states_and_counts(config, tmp_path, capsys):
    row = {"experiment": "prototype_10", "family": "prototype", "seed": 1, "config": config.to_dict(), "accuracy": 0.5}
    row |= {"train_seconds": 1, "eval_seconds": 1, "step_ms": 1}
    todo = some(config, tmp_path, 3)
    for job in todo:
        claims.state_path(tmp_path, config, job.seed).write_bytes(b"a state")
    with Board(todo) as board:
        for event in (Step(0, 10, 72, "task 1"), Step(1, 70, 72, "task 3"), Landed(1, row), Failed(2, "no luck")):
            board.tell(event)
        (everything, first) = board._bar.tasks
        assert (everything.completed, everything.total) == (10 + 72 + 72, 3 * 72)
        assert everything.fields["what"] == "2 ended"
        assert (first.description, first.completed) == ("prototype_10, seed 0", 10)
    assert results.read_rows(tmp_path) == [row] and board.failed == [2]
    assert sorted(path.name[13:18] for path in tmp_path.glob("*.pt")) == ["seed0", "seed2"]
    out, err = capsys.readouterr()
    assert "prototype_10, seed 1: mean accuracy" in out and err == "error: prototype_10, seed 2: no luck\n"


# ---- the command's words --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, says",
    [
        (["--engine", "spark"], "--engine: expected local or ray, got spark"),
        (["--address", "1.2.3.4:1"], "--address 1.2.3.4:1: expected with --engine ray only"),
        (["--threads", "4097"], "--threads: expected at most 4096, got 4097"),
        (["--engine", "ray"], "--engine ray: Ray is not installed: pip install 'dendrite_kernels[ray]'"),
    ],
)
def test_engines_that_can_not_be_had(main, monkeypatch, words, says):
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    assert main("run", "prototype_10", *words) == (1, "", f"error: {says}\n")


@pytest.mark.parametrize("engine", engines.ENGINES)
def test_a_device_that_there_is_not(main, monkeypatch, tmp_path, engine):
    monkeypatch.setattr(engines, "find_spec", lambda name: True)
    answer = main("run", "prototype_10", "--engine", engine, "--device", "tpu", "--out", tmp_path)
    assert (answer[0], answer[2]) == (1, "error: --device: expected cpu or cuda, got tpu\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--jobs", "--threads", "--seeds"])
def test_counts_begin_at_one(main, option):
    status, out, err = main("run", "prototype_10", option, "0")
    words = " ".join((out + err).replace("│", " ").split())
    assert status == 2 and f"Invalid value for '{option}'" in words


def test_the_threads_of_a_run_are_in_its_row(main_run, tmp_path, threads):
    threads(1)
    status, _, _ = main_run("--out", tmp_path / "out", "--threads", "2")
    assert status == 0 and results.read_rows(tmp_path / "out")[0]["threads"] == 2


def test_a_resumed_command_shares_the_threads_by_all_its_seeds(main_run, tmp_path, threads):
    """Also where one seed is left: its numbers depend on its thread count."""
    out = tmp_path / "out"
    assert main_run("--out", out, "--threads", "1")[0] == 0
    threads(2)
    assert main_run("--out", out, "--seeds", "2", "--jobs", "2", "--resume")[0] == 0
    assert [(row["seed"], row["threads"]) for row in results.read_rows(out)] == [(0, 1), (1, 1)]


def test_a_seed_that_fails_is_named_and_the_others_land(main_run, config, tmp_path, threads):
    threads(1)
    out = tmp_path / "out"
    out.mkdir()
    bad = claims.state_path(out, config, 1)
    bad.write_bytes(b"junk")
    status, _, err = main_run("--out", out, "--seeds", "3", "--resume")
    assert status == 1 and err.startswith(f"error: prototype_10, seed 1: {bad} can't be read (")
    assert [row["seed"] for row in results.read_rows(out)] == [0, 2] and [*out.glob("*.pt")] == [bad]


def test_the_version_and_the_module(main):
    import sys

    from dendrite_kernels import __version__

    assert main("--version") == (0, f"dendrite-lab {__version__}\n", "")
    got = subprocess.run([sys.executable, "-m", "dendrite_lab", "run", "x"], capture_output=True, text=True)
    assert got.returncode == 1 and got.stderr.startswith("error: unknown experiment 'x'")


# ---- real processes -------------------------------------------------------------------------------------------------


def test_a_process_gives_the_row_of_this_one_and_the_death_of_another_is_told(config, small, mnist, tmp_path, threads):
    threads(1)
    alone = train.run(config, 0, mnist, tmp_path / "alone")
    endless = experiment("prototype_10", {**small, "epochs": "100000"})
    engine, told = Processes(2, 1, partial(copy.copy, mnist)), []

    def tell(event):
        told.append(event)
        if event.seed == 1 and isinstance(event, Step):
            (process,) = [process for job, process in engine._going.values() if job.seed == 1]
            os.kill(process.pid, signal.SIGKILL)

    jobs.side_by_side([Job(config, 0, tmp_path), Job(endless, 1, tmp_path)], engine, tell)
    ends = {event.seed: event for event in told if not isinstance(event, Step)}
    assert ends[1] == Failed(1, "its process was ended by SIGKILL (out of memory?)")
    assert {key: ends[0].row[key] for key in NUMBERS} == {key: alone[key] for key in NUMBERS}
    assert Step(0, 1, 72, "task 1 of 3") in told


def children(pid):
    """Processes that this one has started (Linux)."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gone(pid):
    """Whether a process has ended, whoever has yet to take note of it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def wait_until(done, seconds=120):
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def start(words):
    """A command in a session of its own, as a terminal has one."""
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True)


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads Linux's list of processes")


@needs_proc
@pytest.mark.parametrize("sent", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGKILL])
def test_a_command_that_is_ended_leaves_states_and_no_process(command, small, tmp_path, sent):
    words = command(800, **{**small, "epochs": "100000"})
    out = tmp_path / "out"
    process = start([*words, "--out", out, "--seeds", "3", "--jobs", "2", "--threads", "1"])
    wait_until(lambda: len([*out.glob("*.state.pt")]) == 2 or process.poll() is not None)
    workers = children(process.pid)
    assert len(workers) >= 2
    if sent == signal.SIGINT:
        os.killpg(process.pid, sent)  # as a terminal does: to all of them
    else:
        process.kill()
    said = process.communicate(timeout=60)[1]
    wait_until(lambda: all(map(gone, workers)))
    if sent == signal.SIGINT:
        assert said == "stopped; the same command with --resume goes on after the last finished task\n"
        assert process.returncode == 130
    config = experiment("prototype_10", {**small, "epochs": "100000"})
    assert sorted(out.glob("[!.]*")) == [claims.state_path(out, config, seed) for seed in (0, 1)]


@needs_proc
@pytest.mark.slow
def test_kill_dash_nine_of_eight_seeds_and_resume(command, tmp_path):
    """Killed in the middle of an 8-seed run, two at once; resumed, its rows are an uninterrupted run's."""
    words = [*command(20000, hidden="200,200", segments="3", tasks="3", epochs="2", train_samples="20000")]
    words += ["--seeds", "8", "--jobs", "2", "--threads", "1"]
    subprocess.run([*words, "--out", tmp_path / "whole"], check=True, capture_output=True)
    out = tmp_path / "killed"
    process = start([*words, "--out", out])

    def in_the_middle():
        assert process.poll() is None, process.stderr.read()
        rows = len((out / results.ROWS).read_bytes().splitlines()) if (out / results.ROWS).exists() else 0
        return rows >= 3 and len([*out.glob("*.state.pt")]) == 2

    wait_until(in_the_middle, 500)
    workers = children(process.pid)
    process.kill()
    process.communicate()
    wait_until(lambda: all(map(gone, workers)))
    assert 3 <= len(results.read_rows(out)) < 8 and [*out.glob("*.state.pt")]
    subprocess.run([*words, "--out", out, "--resume"], check=True, capture_output=True)
    whole, resumed = ({row["seed"]: row for row in results.read_rows(tmp_path / name)} for name in ("whole", "killed"))
    assert set(whole) == set(resumed) == set(range(8))
    for seed, row in whole.items():
        assert {key: resumed[seed][key] for key in NUMBERS} == {key: row[key] for key in NUMBERS}
    assert [path.name for path in out.iterdir()] == [results.ROWS]
