"""The command line: runs, results, resuming, and mistakes in one sentence."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from dendrite_lab import cli, results, train
from dendrite_lab.config import EXPERIMENTS, PUBLISHED, experiment
from dendrite_lab.data import FILES, MNIST, write_idx
from dendrite_lab.errors import LabError
from typer.testing import CliRunner

SMALL = [
    "hidden=60,50",
    "segments=3",
    "tasks=3",
    "train_samples=600",
    "batch_size=50",
    "epochs=2",
    "evaluate_after=1,2",
    "percent_on=0.5",
    "lr=0.005",
]
SMALL_CONFIG = experiment("prototype_10", dict(text.split("=") for text in SMALL))


def digits(count=1000):
    """Ten noisy patterns of MNIST's form: a task that a small network learns at once."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randint(0, 200, (10, 784), generator=generator)
    labels = torch.randint(0, 10, (count,), generator=generator)
    noise = torch.randint(0, 56, (count, 784), generator=generator)
    return (patterns[labels] + noise).to(torch.uint8), labels


@pytest.fixture(scope="module")
def mnist():
    images, labels = digits()
    return MNIST(images[:800], labels[:800], images[800:], labels[800:])


def run_cli(*words):
    """Exit status and everything printed, through main() as users get it."""
    script = "import sys; from dendrite_lab.cli import main; sys.argv = ['dendrite-lab', *sys.argv[1:]]; main()"
    done = subprocess.run([sys.executable, "-c", script, *map(str, words)], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_list_names_every_experiment():
    out = CliRunner().invoke(cli.app, ["list"])
    assert out.exit_code == 0
    for name, config in EXPERIMENTS.items():
        assert name in out.output and f"{100 * PUBLISHED[config.family][config.tasks]:.2f} %" in out.output


@pytest.mark.parametrize("words", [[], ["run"], ["report"], ["list"]])
def test_help(words):
    out = CliRunner().invoke(cli.app, [*words, "--help"])
    assert out.exit_code == 0 and "Usage" in out.output


def test_a_run_learns_and_leaves_a_row(mnist, tmp_path):
    seen = []
    row = train.run(SMALL_CONFIG, 0, mnist, tmp_path, progress=lambda done, total, what: seen.append((done, total)))
    assert row["accuracy"] > 0.95 and set(row["accuracy_by_task"]) == {"1", "2", "3"}
    assert row["accuracy"] == sum(row["accuracy_by_task"]["3"]) / 3
    assert max(seen)[0] == 3 * 2 * 12 and {total for _, total in seen} == {72}
    for key in ("commit", "versions", "threads", "finished", "step_ms", "train_seconds", "config"):
        assert key in row
    results.append_row(tmp_path, row)
    assert results.read_rows(tmp_path) == [json.loads(json.dumps(row))]


def test_the_same_seed_gives_the_same_numbers(mnist, tmp_path):
    rows = [train.run(SMALL_CONFIG, seed, mnist, tmp_path / str(i)) for i, seed in enumerate((1, 1, 2))]
    assert rows[0]["loss_by_task"] == rows[1]["loss_by_task"] != rows[2]["loss_by_task"]


def test_only_rows_of_the_same_configuration_are_finished(tmp_path):
    assert results.finished_seeds(tmp_path, SMALL_CONFIG) == set()
    row = {"experiment": "prototype_10", "config": SMALL_CONFIG.to_dict()}
    for seed in (0, 4):
        results.append_row(tmp_path, {**row, "seed": seed})
    results.append_row(tmp_path, {**row, "seed": 5, "config": EXPERIMENTS["prototype_10"].to_dict()})
    assert results.finished_seeds(tmp_path, SMALL_CONFIG) == {0, 4}


class Killed(Exception):
    pass


@pytest.mark.parametrize("at", [20, 30, 47])
def test_a_stopped_run_resumes_to_the_same_numbers(mnist, tmp_path, at, threads):
    threads(2)
    whole = train.run(SMALL_CONFIG, 3, mnist, tmp_path / "whole")

    def kill(done, total, what):
        if done == at:
            raise Killed

    with pytest.raises(Killed):
        train.run(SMALL_CONFIG, 3, mnist, tmp_path, progress=kill)
    threads(1)
    steps = []
    resumed = train.run(SMALL_CONFIG, 3, mnist, tmp_path, resume=True, progress=lambda done, *_: steps.append(done))
    for key in ("accuracy_by_task", "loss_by_task", "threads"):  # the resumed run takes the first one's thread count
        assert resumed[key] == whole[key]
    assert steps[0] == at // 24 * 24 + 1  # after the tasks that were finished
    assert torch.get_num_threads() == 1  # and what runs next has its own again


def test_an_unfinished_run_is_not_written_over(mnist, tmp_path):
    train.run(SMALL_CONFIG, 0, mnist, tmp_path)
    path = train.state_path(tmp_path, SMALL_CONFIG, 0)
    before = path.read_bytes()
    with pytest.raises(
        LabError, match=r"seed0\.state\.pt is of an unfinished run: --resume goes on with it; delete it"
    ):
        train.run(SMALL_CONFIG, 0, mnist, tmp_path)
    assert path.read_bytes() == before


def test_a_state_of_another_configuration_is_refused(mnist, tmp_path):
    train.run(SMALL_CONFIG, 0, mnist, tmp_path)
    other = experiment("prototype_10", {**dict(text.split("=") for text in SMALL), "lr": "0.1"})
    with pytest.raises(LabError, match="is of another configuration"):
        train.run(other, 0, mnist, tmp_path, resume=True)


def test_a_damaged_state_is_refused(mnist, tmp_path):
    train.state_path(tmp_path, SMALL_CONFIG, 0).write_bytes(b"junk")
    with pytest.raises(LabError, match=r"state\.pt can't be read .* delete it to start anew"):
        train.run(SMALL_CONFIG, 0, mnist, tmp_path, resume=True)


def test_evaluation_takes_the_nearest_prototype(mnist):
    """Against a plain loop: one sample at a time, its own context, no index."""
    model = train.build_model(SMALL_CONFIG, 0)
    tasks = train.PermutedMNIST(mnist, 3)
    prototypes = torch.stack([tasks.train(t)[0].mean(0) for t in range(3)])
    got = train.evaluate(model, tasks, 3, prototypes, batch=64)
    want = []
    model.eval()
    for task in range(3):
        x, labels = tasks.test(task)
        nearest = torch.cdist(x.double(), prototypes.double()).argmin(1)
        with torch.no_grad():
            right = [int(model(row[None], prototypes[n][None]).argmax()) for row, n in zip(x, nearest, strict=True)]
        want.append(sum(r == t for r, t in zip(right, labels.tolist(), strict=True)) / len(x))
    assert got == pytest.approx(want, abs=1 / len(labels))  # one sample's logits may tie to rounding


# ---- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["run", "prototype_11"], "unknown experiment 'prototype_11'; did you mean prototype_10"),
        (["run", "prototype_10", "--set", "speed=9"], "--set speed: expected one of tasks, epochs"),
        (["run", "prototype_10", "--set", "lr=fast"], "--set lr: expected a value like 0.0005, got 'fast'"),
        (["run", "prototype_10", "--set", "lr"], "--set lr: expected key=value"),
        (["run", "prototype_10", "--set", "weight_sparsity=-0.5"], "weight_sparsity: expected a fraction in [0, 1)"),
        (["run", "prototype_10", "--set", "tasks=0"], "tasks: expected 1 or more, got 0"),
        (["run", "prototype_10", "--set", "train_samples=10"], "train_samples: expected batch_size (256) to 60000"),
        (["report", "--out", "nowhere"], "no results in nowhere: run an experiment first"),
    ],
)
def test_mistakes_become_one_sentence(words, sentence):
    status, text = run_cli(*words)
    assert status == 1 and text.startswith("error:") and sentence in text and "Traceback" not in text


def test_a_full_disk_is_one_sentence(mnist, tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    (tmp_path / results.ROWS).symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        results.append_row(tmp_path, {"a": "b" * 100_000})


def test_a_damaged_results_file_names_the_line(tmp_path):
    (tmp_path / results.ROWS).write_text('{"experiment": "prototype_2", "seed": 0, "config": {}}\nhalf a li')
    with pytest.raises(LabError, match="line 2: not a result row"):
        results.read_rows(tmp_path)


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


# ---- the whole command, killed --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_kill_dash_nine_and_resume(tmp_path):
    """The command line itself, killed in the middle of its second task, ends with an uninterrupted run's numbers."""
    images, labels = digits(60000)
    files = dict(
        zip(FILES, (images.view(-1, 28, 28), labels, images[:900].view(-1, 28, 28), labels[:900]), strict=True)
    )
    script = tmp_path / "run.py"
    script.write_text(
        "import hashlib, sys\nfrom pathlib import Path\nfrom dendrite_lab import data\n"
        f"folder = Path({str(tmp_path / 'mnist')!r})\n"
        "data.FILES = {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in data.FILES}\n"
        "from dendrite_lab.cli import main\nmain()\n"
    )
    (tmp_path / "mnist").mkdir()
    for name, values in files.items():
        (tmp_path / "mnist" / name).write_bytes(write_idx(values.numpy()))
    changes = ["hidden=200,200", "segments=3", "tasks=3", "epochs=1"]
    words = [sys.executable, script, "run", "prototype_10", "--data", tmp_path / "mnist"]
    words += [w for change in changes for w in ("--set", change)]
    subprocess.run([*words, "--out", tmp_path / "whole"], check=True, capture_output=True)
    out = tmp_path / "killed"
    process = subprocess.Popen([*words, "--out", out], stdout=subprocess.DEVNULL)
    while not list(out.glob("*.state.pt")) and process.poll() is None:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    subprocess.run([*words, "--out", out, "--resume"], check=True, capture_output=True)
    whole, resumed = (results.read_rows(folder)[0] for folder in (tmp_path / "whole", out))
    for key in ("accuracy_by_task", "loss_by_task"):
        assert resumed[key] == whole[key]
    assert not list(out.glob("*.state.pt"))
