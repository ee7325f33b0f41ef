"""What the figures and tables of Synaptic Intelligence and of lottery tickets show, from rows made up."""

import io
import math

import numpy as np
import pytest
import torch
from dendrite_lab import data, report, si_figures, tickets_figures
from dendrite_lab.config import experiment
from rich.console import Console

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


@pytest.mark.parametrize("shape", [(5, 784), (5, 3, 32, 32)])
def test_examples_of_noise_have_as_many_bright_pixels(shape):
    images = torch.randint(0, 60, shape, dtype=torch.uint8)  # dark
    panels = tickets_figures.examples(images, [0.0, 0.1, 0.5], "").axes
    shown = [np.asarray(axes.images[0].get_array()) for axes in panels]
    assert len(shown) == 3 * 3
    height, width, *channels = shown[0].shape
    for axes, clean, noisy in zip(panels[1:3], (shown[0],) * 2, shown[1:3], strict=True):
        share = float(axes.get_title().rstrip(" %")) / 100
        assert int((noisy != clean).sum()) == round(share * height * width) * math.prod(channels)
    if shown[0].ndim == 3:  # colours as they were
        np.testing.assert_allclose(shown[3], images[1].permute(1, 2, 0).numpy() / 255, atol=1e-6)


def test_figures_that_lack_what_they_show_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("DENDRITE_DATA", str(tmp_path))
    rows = [tickets_row(0, 0.0), row("hidden_activations_per_task", activations="x.npz")]
    assert report.not_drawn(rows, tmp_path) == [
        f"hidden_activations_per_task, seed 0: no heat map: x.npz is not in {tmp_path}",
        "no examples of noise: mnist is not in $DENDRITE_DATA",
    ]
    (tmp_path / "mnist").mkdir()
    for path in ("mnist/a", *(f"mnist/{name}" for name in list(data.FILES)[:3]), "x.npz"):
        (tmp_path / path).touch()
    no_examples = ["no examples of noise: mnist is not in $DENDRITE_DATA"]
    assert report.not_drawn(rows, tmp_path) == no_examples  # a file is missing, and would be fetched
    (tmp_path / "mnist" / list(data.FILES)[3]).touch()
    assert report.not_drawn(rows, tmp_path) == []


def test_a_narrow_table_folds_names_and_cuts_no_number():
    console = Console(width=70, file=io.StringIO())
    rows = [row("sweep_weight_sparsity_0.95_tasks_10", seed) for seed in range(2)]
    console.print(report.table(rows))
    said = console.file.getvalue()
    assert "…" not in said and "90.00 %" in said and "90.00-90.00" in said and "seconds" in said and "1 + 1" in said


def test_the_table_of_tickets():
    table = report.tickets_table([tickets_row(0, 0.0), tickets_row(1, 0.002)])
    cells = [list(column.cells) for column in table.columns]
    assert cells[2] == ["100.0 %", "30.1 %", "3.1 %", "1.1 %"]
    assert (
        cells[3][0] == "98.10 (96.83-99.37)" and cells[4][1] == "88.10 (86.83-89.37)"
    )  # t 12.71, deviation 0.1 * 2**0.5
    assert [cell.split()[0] for cell in cells[3]] == ["98.10", "97.20", "95.50", "94.70"]
    assert [cell.partition(" ")[0] for cell in cells[4]] == ["", "88.10", "71.10", "63.10"]
    assert report.tickets_table([row("prototype_10")]) is None


def test_only_rows_as_named_are_drawn(tmp_path, monkeypatch):
    monkeypatch.setenv("DENDRITE_DATA", str(tmp_path))  # without examples of noise
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
