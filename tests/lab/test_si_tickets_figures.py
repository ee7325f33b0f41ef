"""What the figures and tables of Synaptic Intelligence and of lottery tickets show, from rows made up."""

import numpy as np
import pytest
from dendrite_lab import report, si_figures, tickets_figures
from dendrite_lab.config import experiment

CURVE = {"1": [0.9], "2": [0.8, 1.0], "3": [0.6, 0.8, 1.0]}


def row(name, seed=0, **more):
    config = experiment(name)
    base = {"experiment": name, "family": config.family, "seed": seed, "config": config.to_dict()}
    return {**base, "accuracy": 0.9, "train_seconds": 1, "eval_seconds": 1, **more}


def ticket(level, accuracy, noise=None):
    return {"density": 0.875**level, "accuracy": accuracy} | ({"noise_accuracy": noise} if noise else {})


def tickets_row(seed, shift):
    noise = [0.9 - 0.05 * i + shift for i in range(11)]
    winning = [ticket(n, 0.98 - 0.001 * n + shift, noise if n in (0, 9, 26) else None) for n in range(35)]
    random = [None, *(ticket(n, 0.97 - 0.01 * n + shift, noise if n == 9 else None) for n in range(1, 35))]
    return row("tickets_fc", seed, winning=winning, random=random)


def lines(axes):
    return [line.get_xydata() for line in axes.lines if len(line.get_xydata())]


def test_accuracy_by_task_begins_with_the_task():
    panels = si_figures.by_task([row("si_split_mnist", accuracy_by_task=CURVE)]).axes
    np.testing.assert_allclose(lines(panels[0])[0], [[1, 0.9], [2, 0.8], [3, 0.6]])
    np.testing.assert_allclose(lines(panels[1])[0], [[2, 1.0], [3, 0.8]])
    np.testing.assert_allclose(lines(panels[-1])[0], [[1, 0.9], [2, 0.9], [3, 0.8]])


def test_the_error_of_the_mean():
    rows = [row("si_split_mnist", s, accuracy_by_task={"1": [a]}) for s, a in enumerate((0.9, 0.94))]
    (container,) = si_figures.by_task(rows).axes[0].containers
    low, high = container[2][0].get_segments()[0][:, 1]
    assert (low, high) == pytest.approx((0.90, 0.94))  # 0.92, and the deviation 0.0283 over the root of two


def test_running_means_beside_the_published():
    zoomed, whole = si_figures.running_mean([row("si_permuted_mnist_10", accuracy_by_task=CURVE)]).axes
    for axes in (zoomed, whole):
        published, ours = lines(axes)[:2]
        assert published[9].tolist() == [10, 0.96943]
        np.testing.assert_allclose(ours, [[1, 0.9], [2, 0.9], [3, 0.8]])


def test_correlations_are_averaged_over_runs():
    rows = [
        row("si_permuted_mnist_10", s, accuracy_by_task=CURVE, omega_correlation={"layer_1": r, "layer_2": np.eye(2)})
        for s, r in enumerate(([[1, 0.2], [0.2, 1]], [[1, 0.4], [0.4, 1]]))
    ]
    panels = si_figures.omegas(rows).axes
    np.testing.assert_allclose(panels[0].images[0].get_array(), [[1, 0.3], [0.3, 1]])
    np.testing.assert_allclose(panels[1].images[0].get_array(), np.eye(2))


def test_tickets_by_density_and_under_noise():
    rows = [tickets_row(0, 0.0), tickets_row(1, 0.002)]
    (axes,) = tickets_figures.by_density(rows, "").axes
    winning, random = lines(axes)
    np.testing.assert_allclose(winning[9], [100 * 0.875**9, 0.98 - 0.009 + 0.001])
    assert len(winning) == 35 and len(random) == 34
    np.testing.assert_allclose(random[0], [87.5, 0.961])
    (axes,) = tickets_figures.under_noise(rows, "").axes
    assert [line.get_label() for line in axes.lines] == ["dense", "winning, 30 %", "winning, 3 %", "random, 30 %"]
    np.testing.assert_allclose(lines(axes)[0][[0, 10]], [[0, 0.901], [0.5, 0.401]])


def test_the_table_of_tickets():
    table = report.tickets_table([tickets_row(0, 0.0), tickets_row(1, 0.002)])
    cells = [list(column.cells) for column in table.columns]
    assert cells[2] == ["100.0 %", "30.1 %", "3.1 %", "1.1 %"]
    assert cells[3] == ["98.10", "97.20", "95.50", "94.70"] and cells[4] == ["", "88.10", "71.10", "63.10"]
    assert report.tickets_table([row("prototype_10")]) is None


def test_only_rows_as_named_are_drawn(tmp_path):
    omega = {"layer_1": np.eye(2).tolist(), "layer_2": np.eye(2).tolist()}
    full = {str(n): [0.9] * n for n in range(1, 6)}
    rows = [row("si_split_mnist", accuracy_by_task=full), tickets_row(0, 0.0)]
    rows.append(row("si_permuted_mnist_10", accuracy_by_task=CURVE, omega_correlation=omega))
    other = row("si_permuted_mnist_10_c0", accuracy_by_task=CURVE)
    other["config"]["epochs"] = 1
    drawn = [*si_figures.draw_all([*rows, other], tmp_path), *tickets_figures.draw_all(rows, tmp_path)]
    names = ["si_split_mnist", "si_permuted_mnist", "si_omega_correlation", "tickets_fc", "tickets_fc_noise"]
    assert [path.name for path in drawn] == [f"{name}.png" for name in names]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
    assert si_figures.draw_all([other], tmp_path) == []
