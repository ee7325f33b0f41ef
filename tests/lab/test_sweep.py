"""The sweep: its plan's order, what it starts and what it leaves, with a clock and runs that are made up."""

import contextlib

import pytest
from dendrite_lab import claims, jobs, published, results, sweep
from dendrite_lab.config import EXPERIMENTS, experiment
from dendrite_lab.errors import LabError


def row(name, seed=0, cost=100.0, **changes):
    config = experiment(name, {key: str(value) for key, value in changes.items()})
    base = {"experiment": name, "family": config.family, "seed": seed, "config": config.to_dict(), "accuracy": 0.9}
    return {**base, "train_seconds": 0.9 * cost, "eval_seconds": 0.1 * cost}


@pytest.mark.parametrize(
    "text, want", [("90s", 90), ("150m", 9000), ("2h", 7200), ("1h30m", 5400), ("1h0m5s", 3605), ("0m", 0)]
)
def test_budgets(text, want):
    assert sweep.seconds(text) == want


@pytest.mark.parametrize("text", ["", "150", "m", "1.5h", "30m1h", "-5m", "2h "])
def test_budgets_that_are_none(text):
    with pytest.raises(LabError, match="--budget: expected a time like 90s, 150m or 1h30m, got"):
        sweep.seconds(text)


def test_a_plan_is_read_in_order(tmp_path):
    path = tmp_path / "plan.txt"
    path.write_text("# what first\nprototype_5 2  # two\n\nprototype_2 1\n")
    assert sweep.read_plan(path) == [("prototype_5", 0), ("prototype_5", 1), ("prototype_2", 0)]


@pytest.mark.parametrize("line", ["prototype_3 2", "prototype_2", "prototype_2 two", "prototype_2 1 1"])
def test_a_line_that_is_none_is_named(tmp_path, line):
    path = tmp_path / "plan.txt"
    path.write_text(f"prototype_2 1\n{line}\n")
    with pytest.raises(LabError, match=f"line 2: expected an experiment and a number of seeds, got '{line}'"):
        sweep.read_plan(path)


def test_the_committed_plan():
    """It has at least what was asked for."""
    seeds = {}
    for name, _ in sweep.read_plan(sweep.PLAN):
        seeds[name] = seeds.get(name, 0) + 1
    want = {f"prototype_{n}": count for n, count in ((2, 8), (5, 8), (10, 8), (25, 3), (50, 2), (100, 2))}
    want |= {f"prototype_{n}_segments_10": count for n, count in ((2, 3), (5, 3), (10, 8), (100, 2))}
    want |= {"construct_prototype_10": 3}
    for family in ("active_dendrites_only", "sparse_representations_only"):
        want |= {f"{family}_{n}": count for n, count in ((2, 3), (5, 3), (10, 3), (100, 1))}
    want |= {"three_layer_mlp_10": 1, "ten_layer_mlp_10": 1, "hidden_activations_per_task": 1}
    want |= {f"context_{kind}_10": 5 for kind in ("mean", "onehot", "zeros")}
    want |= {published.sweep_name(f, v, 10): 1 for f, values in published.SWEPT.items() for v in values}
    want |= {f"si_prototype_{n}": 3 for n in (2, 5, 10)}
    want |= {"si_split_mnist": 10, "si_split_mnist_c0": 10, "si_permuted_mnist_10": 3}
    want |= {f"split_cifar10_{network}": 1 for network in ("cnn", "sparse", "adn")}
    want |= {
        f"tickets_{name}": seeds for name, seeds in (("fc", 3), ("fc_short", 3), ("lenet5", 1), ("lenet5_short", 1))
    }
    assert {name: seeds.get(name) for name in want} == want


def test_a_run_that_has_just_been_made_under_another_name_is_not_made_again():
    """Three sweeps meet in one configuration; its row is known as theirs."""
    plan = [(f"sweep_{what}_tasks_10", 0) for what in ("segments_10", "percent_on_0.1", "weight_sparsity_0.5")]
    done = []

    def run_one(run, deadline):
        done.append(run)
        config = EXPERIMENTS[run[0]]
        names = {"experiment": config.name, "family": config.family, "seed": 0, "config": config.to_dict()}
        return {**names, "train_seconds": 1, "eval_seconds": 1}

    assert sweep.work_through(plan, [], 10_000, run_one, lambda text: None) == []
    assert done == plan[:1] and sweep.missing(plan[1:], [run_one(plan[0], 0)]) == []


def test_only_rows_of_the_experiment_as_named_are_done():
    plan = [("prototype_2", 0), ("prototype_2", 1), ("prototype_5", 0), ("prototype_2", 0)]
    rows = [row("prototype_2", 1), row("prototype_5", 0, lr=0.1), row("prototype_2", 0, train_samples=512)]
    assert sweep.missing(plan, rows) == [("prototype_2", 0), ("prototype_5", 0)]
    curve = row("prototype_5", 0, evaluate_after="1,2,3")  # evaluated more often: the same run
    assert sweep.missing(plan, [*rows, curve]) == [("prototype_2", 0)]


def test_costs_are_those_measured_then_the_familys_then_guessed():
    two, five = EXPERIMENTS["prototype_2"], EXPERIMENTS["prototype_5"]
    rows = [row("prototype_2", 0, 100), row("prototype_2", 1, 140)]
    assert sweep.estimate(two, rows) == pytest.approx(120)
    # prototype_5: 1,170 steps at the 108 s for 468 steps of the rows, and 7 passes over a task's test images
    assert sweep.estimate(five, rows) == pytest.approx(1170 * 108 / 468 + 7 * sweep.EVALUATION)
    assert sweep.estimate(five, []) == pytest.approx(1170 * sweep.STEP + 7 * sweep.EVALUATION)
    dense, thin = (sweep.estimate(EXPERIMENTS[name], []) for name in ("ten_layer_mlp_10", "prototype_10"))
    assert dense > 5 * thin


class World:
    """Time that only runs take, and runs that take as long as they are said to."""

    def __init__(self, costs):
        self.costs, self.now, self.log = costs, 1000.0, []

    def run_one(self, run, deadline):
        self.now += self.costs[run[0]]
        if self.now > deadline:
            self.now = deadline
            raise sweep.OutOfTime
        self.log.append(run)
        return row(*run, self.costs[run[0]])

    def work(self, runs, rows, budget):
        return sweep.work_through(runs, rows, budget, self.run_one, lambda line: None, lambda: self.now)


def test_what_does_not_fit_is_passed_over_for_what_does():
    rows = [row("prototype_100", 9, 1000), row("prototype_2", 9, 10), row("prototype_10", 9, 80)]
    world = World({"prototype_100": 1000, "prototype_2": 10, "prototype_10": 80})
    plan = [("prototype_2", 0), ("prototype_100", 0), ("prototype_10", 0), ("prototype_10", 1), ("prototype_2", 1)]
    left = world.work(plan, rows, 105)
    assert world.log == [("prototype_2", 0), ("prototype_10", 0), ("prototype_2", 1)] and world.now == 1100
    assert left == [("prototype_100", 0), ("prototype_10", 1)]


def test_a_run_that_takes_longer_than_thought_stops_at_the_deadline_and_is_left():
    world = World({"prototype_10": 500, "prototype_2": 1})
    plan = [("prototype_10", 0), ("prototype_2", 0)]
    left = world.work(plan, [row("prototype_10", 9, 80), row("prototype_2", 9, 1)], 100)
    assert world.log == [] and world.now == 1100 and left == plan  # and nothing starts after it


def test_the_next_runs_are_judged_by_what_was_measured():
    world = World({"prototype_2": 60})
    left = world.work([("prototype_2", seed) for seed in range(3)], [], 100)  # guessed: about ten seconds
    assert world.log == [("prototype_2", 0)] and left == [("prototype_2", 1), ("prototype_2", 2)]


# ---- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def sweep_run(main_run, main, monkeypatch, tmp_path, small):
    """`dendrite-lab sweep` of small versions of two experiments on made-up data, no committed rows."""
    monkeypatch.setattr(results, "COMMITTED", tmp_path / "none.jsonl")
    for name, lr in (("prototype_2", "1e-3"), ("prototype_5", "2e-3")):  # else each would be the other's twin
        monkeypatch.setitem(EXPERIMENTS, name, experiment(name, {**small, "lr": lr}))
    plan = tmp_path / "plan.txt"
    plan.write_text("prototype_5 1\nprototype_2 2\n")
    words = ("--plan", plan, "--data", tmp_path / "mnist", "--out", tmp_path / "out")
    return lambda budget: main("sweep", "--budget", budget, *words)


def test_each_row_is_saved_and_a_second_sweep_has_nothing_to_do(sweep_run, tmp_path, threads):
    threads(1)
    status, out, _ = sweep_run("10m")
    assert status == 0 and "3 of 3 missing runs done, 0 left" in out
    done = [(r["experiment"], r["seed"]) for r in results.read_rows(tmp_path / "out")]
    assert done == [("prototype_5", 0), ("prototype_2", 0), ("prototype_2", 1)]
    assert not list((tmp_path / "out").glob("*.state.pt"))
    left = tmp_path / "out" / "prototype_5-seed0.state.pt"  # by a kill right after the row
    left.write_bytes(b"a state")
    assert "0 of 0 missing runs done" in sweep_run("10m")[1] and not left.exists()


def test_without_time_nothing_is_started(sweep_run, tmp_path):
    status, out, _ = sweep_run("0s")
    assert status == 0 and "0 of 3 missing runs done, 3 left" in out and not (tmp_path / "out").exists()


def test_out_of_time_leaves_a_state_to_go_on_from(sweep_run, tmp_path, monkeypatch, threads):
    threads(1)
    monkeypatch.setattr(sweep, "estimate", lambda config, rows: -1.0)  # thought to be free
    status, out, _ = sweep_run("0s")
    assert status == 0 and "out of time" in out
    assert (tmp_path / "out" / "prototype_5-seed0.state.pt").exists()
    assert "3 of 3 missing runs done" in sweep_run("10m")[1]


def test_a_run_that_fails_is_named_and_the_others_are_done(sweep_run, tmp_path, threads):
    threads(1)
    bad = tmp_path / "out" / "prototype_5-seed0.state.pt"
    bad.parent.mkdir()
    bad.write_bytes(b"junk")
    status, out, err = sweep_run("10m")
    assert status == 1 and "2 of 3 missing runs done, 1 left" in out
    assert err.startswith(f"error: prototype_5, seed 0: {bad} can't be read (")
    assert [r["experiment"] for r in results.read_rows(tmp_path / "out")] == ["prototype_2"] * 2 and bad.exists()


def test_two_sweeps_of_one_folder_share_the_runs(sweep_run, tmp_path, monkeypatch, threads):
    """While this one has its first run, the other has the second and has finished the third."""
    threads(1)
    out, two = tmp_path / "out", EXPERIMENTS["prototype_2"]
    begin, attempt = contextlib.ExitStack(), jobs.attempt

    def meanwhile(job, *rest):
        if job.config.name == "prototype_5":
            begin.enter_context(claims.held(claims.state_path(out, two, 0)))
            results.append_row(out, {**row("prototype_2", 1), "config": two.to_dict()})
        return attempt(job, *rest)

    monkeypatch.setattr(jobs, "attempt", meanwhile)
    with begin:
        status, said, _ = sweep_run("10m")
    assert status == 0 and "2 of 3 missing runs done, 1 left" in said
    assert "prototype_2, seed 0: another command is running it" in said
    assert "prototype_2, seed 1: another command has finished it" in said
    done = sorted((r["experiment"], r["seed"]) for r in results.read_rows(out))
    assert done == [("prototype_2", 1), ("prototype_5", 0)]
