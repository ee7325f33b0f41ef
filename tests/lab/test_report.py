"""What the report says and draws: intervals, tables, figures, what was not run."""

import itertools

import numpy as np
import pytest
from dendrite_lab import activations, figures, judged, published, report, results
from dendrite_lab.config import EXPERIMENTS, experiment


def row(name, seed=0, accuracy=0.9, **more):
    config = experiment(name)
    base = {"experiment": name, "family": config.family, "seed": seed, "config": config.to_dict()}
    return {**base, "accuracy": accuracy, "train_seconds": 1, "eval_seconds": 1, **more}


def test_the_interval_is_the_percentiles_of_resampled_means():
    """Against every resample that there is of five values."""
    values = [0.90, 0.92, 0.97, 0.93, 0.91]
    means = [np.mean(some) for some in itertools.product(values, repeat=5)]
    assert judged.interval(values) == pytest.approx(np.percentile(means, (2.5, 97.5)), abs=1e-3)


def test_the_interval_of_a_few_runs_is_students():
    """Three of mean 93 and deviation 3.6056; the t of two degrees of freedom that 2.5 % exceed is 4.3027."""
    half = 4.30265 * 3.60555 / 3**0.5
    assert judged.interval([97, 90, 92]) == pytest.approx((93 - half, 93 + half), rel=1e-5)
    assert judged.interval([0.9, 0.9]) == (0.9, 0.9) and judged.interval([0.9]) is None
    assert judged.in_words([10, 12], scale=1) == "(-1.71-23.71)" and judged.in_words([0.9]) == "-"
    assert judged.in_words([0.9] * 5) == "90.00-90.00"


def test_the_interval_of_many_is_the_normal_one():
    values = np.random.default_rng(0).normal(0.9, 0.01, 400)
    half = 1.96 * values.std() / np.sqrt(400)
    low, high = judged.interval(list(values))
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)
    assert judged.interval(list(values)) == (low, high)


def test_rows_of_an_older_version_are_as_configured():
    """The committed ones, whose configurations lack what came later; but for what was tried and what was put right."""
    rows = results.rows_of(results.COMMITTED)
    changed = [row for row in rows if not results.as_configured(row)]
    assert len(rows) - len(changed) >= 46
    tried = {(row["experiment"].split("_")[0], key) for row in changed for key in results.changes_in(row)}
    assert tried <= {("prototype", "epochs"), ("prototype", "lr"), ("context", "permutations"), ("si", "init")}


def test_a_curve_stands_beside_the_published_and_a_changed_rate_does_not():
    curve = row("prototype_10")
    curve["config"]["evaluate_after"] = list(range(1, 11))
    other = row("prototype_10")
    other["config"]["lr"] = 1.0
    assert results.as_configured(curve) and not results.as_configured(other)


def column(table, number):
    return list(table.columns[number].cells)


@pytest.mark.parametrize("curve_first", [True, False])
def test_a_seed_that_ran_with_and_without_a_curve_counts_once(curve_first):
    few = row("prototype_10", 0, 0.9, accuracy_by_task={"10": [0.9]})
    curve = row("prototype_10", 0, 0.9, accuracy_by_task={"1": [0.9], "10": [0.9]})
    curve["config"]["evaluate_after"] = list(range(1, 11))
    other, changed = row("prototype_10", 1, 0.8), row("prototype_10", 0, 0.1)
    changed["config"]["lr"] = 1.0
    rows = [curve, few] if curve_first else [few, curve]
    assert results.one_a_run([*rows, other, changed]) == [curve, other, changed]


def test_each_changed_configuration_has_a_line_that_says_what_was_changed():
    rows = [row("prototype_10", 0, 0.9), *(row("prototype_10", seed, 0.5) for seed in range(2))]
    for changed, lr in zip(rows[1:], (1.0, 0.1), strict=True):
        changed["config"] |= {"lr": lr, "hidden": [64, 32]}
    rows.append({**rows[1], "seed": 2, "accuracy": 0.7})
    table = report.table(rows)
    assert [str(cell) for cell in column(table, 0)] == [
        "prototype_10",
        "prototype_10 (--set) hidden=64,32 lr=0.1",
        "prototype_10 (--set) hidden=64,32 lr=1.0",
    ]
    assert column(table, 1) == ["1 of 8", "1", "2"] and column(table, 2) == ["90.00 %", "50.00 %", "60.00 %"]
    assert column(table, 4) == ["94.55 %", "-", "-"]


def with_set(name, accuracy, seed=0, **changes):
    made = row(name, seed, accuracy)
    made["config"] |= changes
    return made


def test_what_lies_beyond_its_interval_and_why(monkeypatch):
    """prototype_2, published as 97.47: of three runs by t, of one by a point; the explanation's own test beside."""
    tested = judged.Explanation("Because.", "prototype_2", (("epochs", 5), ("lr", 0.001)))
    monkeypatch.setattr(judged, "EXPLAINED", {"prototype_2": tested})
    few = [row("prototype_2", seed, accuracy) for seed, accuracy in enumerate((0.949, 0.95, 0.951))]
    assert judged.beyond(few) == [("prototype_2", "95.00", "(94.75-95.25)", "97.47", "Because.")]
    some = [with_set("prototype_2", accuracy, seed, epochs=5, lr=0.001) for seed, accuracy in ((0, 0.97), (1, 0.98))]
    others = [with_set("prototype_2", 0.1, epochs=5), with_set("prototype_5", 0.1, epochs=5, lr=0.001)]
    why = judged.beyond([*few, *some, *others])[0][4]
    assert why == "Because. prototype_2 --set epochs=5 --set lr=0.001: 97.50 % (2 runs)."
    assert judged.beyond([*few, row("prototype_2", 3, 0.98)]) == []  # within
    monkeypatch.setattr(judged, "EXPLAINED", {"prototype_2": judged.Explanation("So.", "prototype_10", after=2)})
    longer = row("prototype_10", 0, 0.945, accuracy_by_task={"2": [0.95, 0.97], "10": [0.9] * 10})
    assert judged.beyond([*few, longer])[0][4] == "So. prototype_10 after 2 tasks: 96.00 % (1 run)."
    assert judged.beyond([row("prototype_5", 0, 0.9636 - 0.0099)]) == []
    assert judged.beyond([row("prototype_5", 0, 0.9636 + 0.0101)])[0][4] == "unexplained"
    assert report.beyond_table([]) is None and report.beyond_table(few).row_count == 1


def test_every_explanation_is_of_a_published_number_and_tested_by_an_experiment():
    for name, why in judged.EXPLAINED.items():
        assert name in published.ACCURACY
        if why.experiment:
            tests = experiment(why.experiment, {key: str(value) for key, value in why.changes})
            assert not why.after or why.after in tests.evaluate_after


def test_the_runs_of_the_source():
    counts = {"prototype_10": 8, "context_mean_10": 5, "tickets_fc": 8, "split_cifar100_cnn": 5, "si_split_cifar": 5}
    counts |= dict.fromkeys(("tickets_fc_short", "split_cifar10_cnn", "si_split_cifar10_c0", "si_permuted_mnist_10"))
    counts |= {"prototype_3": None}  # one's own
    assert {name: published.trials(name) for name in counts} == counts
    assert published.runs_in_words("prototype_10", 3) == "3 of 8"
    assert published.runs_in_words("tickets_fc_short", 3) == "3"


@pytest.mark.parametrize(
    "name, changes, words",
    [
        ("si_permuted_mnist_10_sgd", {"lr": "0.01"}, "SGD's rate of 0.01"),
        ("split_cifar100_cnn", {"epochs": "5", "validation": "0.2"}, "at most 5 epochs a task, 20 % of its images"),
        ("tickets_fc", {"patience": "2", "validation": "1500"}, "patience of 2 epochs, 1,500 images"),
    ],
)
def test_notes_are_of_what_is_set(name, changes, words):
    assert words in experiment(name, changes).note


def test_rows_stand_for_equal_configurations_of_other_names():
    rows = [row("prototype_10", 0, 0.9), row("prototype_10", 1, 0.8), row("sweep_percent_on_0.05_tasks_10", 1, 0.7)]
    twins = results.with_twins([*rows, with_set("prototype_10", 0.1, lr=1.0)])[4:]
    of = [(twin["experiment"], twin["family"], twin["seed"], twin["accuracy"]) for twin in twins]
    assert of == [("sweep_percent_on_0.05_tasks_10", "sweep_percent_on", 0, 0.9)]
    assert all(results.as_configured(twin) for twin in twins)
    names = {twin["experiment"] for twin in results.with_twins([row("sweep_segments_10_tasks_10")])}
    assert names == {f"sweep_{what}_tasks_10" for what in ("segments_10", "percent_on_0.1", "weight_sparsity_0.5")}


def test_what_was_not_run_is_listed_with_why():
    table = report.not_run([{**row("prototype_10"), "train_seconds": 300}])
    why = dict(zip(column(table, 0), column(table, 1), strict=True))
    assert set(why) == set(EXPERIMENTS) - {"prototype_10"} | {f"{f}_N" for f in published.NOT_RUNNABLE}
    assert why["xdg_N"] == "a number from the literature"
    # 5 x 234 steps as the measured ones, which took 300 s for 7,020, and seven passes of a quarter second: 51.75 s
    assert why["prototype_5"] == "planned: about 0.9 min a seed"
    assert why["prototype_100"].startswith("planned: ") and why["si_prototype_100"].startswith("not in the plan")


def test_what_needs_cifar_100_says_that_it_is_not_here(tmp_path, monkeypatch):
    monkeypatch.setenv("DENDRITE_DATA", str(tmp_path))
    table = report.not_run([])
    why = dict(zip(column(table, 0), column(table, 1), strict=True))
    missing = {name for name, words in why.items() if "CIFAR-100 is not here" in words}
    wanted = ("split_cifar100_", "si_split_cifar")  # the second of both data sets, but for CIFAR-10 alone
    assert missing == {n for n in EXPERIMENTS if n.startswith(wanted) and not n.startswith("si_split_cifar10")}
    assert why["split_cifar10_cnn"].endswith("min a seed")


def test_clusters_beside_the_published():
    table = report.clusters_table([row("construct_prototype_10", s, clusters=c) for s, c in ((0, 10), (1, 13))])
    want = ["construct_prototype_10", "2", "11.50", "(-7.56-30.56)", "11.375"]
    assert [column(table, i)[0] for i in range(5)] == want
    assert report.clusters_table([row("prototype_10")]) is None


def test_overlap_of_tasks_by_layer():
    name = "hidden_activations_per_task"
    table = report.overlap_table([row(name, s, overlap_by_layer=o) for s, o in ((0, [0.1, 0.3]), (1, [0.2, 0.5]))])
    assert [column(table, i) for i in range(4)] == [[name], ["2"], ["0.150"], ["0.400"]]
    assert report.overlap_table([row("prototype_10")]) is None


def test_curves_are_of_the_runs_that_were_evaluated_there():
    rows = [{"accuracy_by_task": {"1": [0.9], "2": [0.8, 1.0]}}, {"accuracy_by_task": {"2": [0.4, 0.6], "10": [0.1]}}]
    assert figures.curve_of(rows, np.mean) == {1: [0.9], 2: [pytest.approx(0.9), 0.5], 10: [0.1]}
    assert figures.curve_of(rows, lambda accuracies: accuracies[-1]) == {1: [0.9], 2: [1.0, 0.6], 10: [0.1]}


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were drawn, kept from being closed: name -> the points and lines of its panels."""
    seen, save = {}, figures.saved

    def keep(figure, path):
        seen[path.name] = [{line.get_label(): line.get_xydata().tolist() for line in a.lines} for a in figure.axes]
        return save(figure, path)

    monkeypatch.setattr(figures, "saved", keep)
    return seen


def test_every_figure_shows_what_was_measured_beside_the_published(tmp_path, drawn):
    shares = [np.eye(10, 40), np.full((10, 40), 0.5)]
    activations.save(tmp_path / "x.activations.npz", shares)
    curve = {str(n): [0.9] * n for n in range(1, 11)}
    recorded = row("hidden_activations_per_task", activations="x.activations.npz", overlap_by_layer=[0.0, 1.0])
    rows = [
        *(row("prototype_10", seed, accuracy) for seed, accuracy in ((0, 0.95), (1, 0.93))),
        row("context_zeros_10", accuracy_by_task=curve),
        row("construct_prototype_10", clusters=12),
        row("sweep_segments_20_tasks_10", accuracy=0.77),
        recorded,
    ]
    paths = figures.draw_all(rows, tmp_path)
    names = ["accuracy", "ablations", "found_contexts", "clusters", "sweeps", "contexts", "x.activations"]
    assert [p.name for p in paths] == [f"{name}.png" for name in names]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in paths)
    (accuracy,) = drawn["accuracy.png"]
    assert accuracy["ours, segments = tasks"] == [[10, 0.94]]
    assert [2, 0.974744] in accuracy["published, segments = tasks"] and [100, 0.955] in accuracy[
        "published, SI + XdG (literature)"
    ]
    assert drawn["clusters.png"][0]["ours"] == [[10, 12]] and [50, 56.75] in drawn["clusters.png"][0]["published"]
    assert drawn["sweeps.png"][0]["ours, 10 tasks"] == [[20, 0.77]]
    assert [100, 0.8355] in drawn["sweeps.png"][0]["published, 50 tasks"]
    assert drawn["contexts.png"][1]["context_zeros_10 (1)"][9] == [10, 0.9]


def test_a_curve_has_its_interval_and_what_was_published(tmp_path, monkeypatch):
    """Of five runs at one place: a band of the bootstrapped interval, a dash at the published 94.3 %."""
    kept = []
    monkeypatch.setattr(figures, "saved", lambda figure, path: kept.append((path.name, figure.axes)))
    values = [0.90, 0.92, 0.97, 0.93, 0.91]
    rows = [row("context_mean_10", s, accuracy_by_task={"1": [v], "10": [v] * 10}) for s, v in enumerate(values)]
    curve = [row("prototype_2", 0, accuracy_by_task={"1": [0.9], "2": [0.9, 0.8]})]
    figures.draw_all([*rows, *curve], tmp_path)
    axes = dict(kept)
    running, latest = axes["contexts.png"]
    (band,) = running.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx(judged.interval(values))
    assert [10, 0.943] in [line.get_xydata().tolist()[0] for line in running.lines]
    assert len(latest.lines) == 1
    assert [text.get_text() for text in axes["curves.png"][1].get_legend().texts] == ["prototype_2 (1)"]


def test_a_curve_is_drawn_of_rows_that_were_evaluated_after_every_task():
    def evaluated(name, *after):
        return row(name, accuracy_by_task={str(n): [0.9] * n for n in after})

    assert not figures.has_curve(evaluated("si_prototype_25", 1, 2, 3, 4, 5, 10, 25))  # as configured
    assert figures.has_curve(evaluated("si_prototype_25", *range(1, 26)))
    assert figures.has_curve(evaluated("prototype_5", *range(1, 6))) and not figures.has_curve(row("prototype_5"))
    assert figures.has_curve(evaluated("context_mean_100", 1, *range(10, 101, 10)))  # as its source draws it


def test_every_family_of_a_figure_is_published_and_titled():
    for families in figures.AGAINST_TASKS.values():
        assert all(published.curve(family) and family in figures.TITLES for family in families)
