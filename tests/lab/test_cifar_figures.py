"""Figures and notes of the runs on CIFAR: what is drawn is the rows' numbers."""

import matplotlib.pyplot as plt
import pytest
from dendrite_lab import cifar_figures, report
from dendrite_lab.config import experiment


def row(name, seed, by_task, **more):
    config = experiment(name)
    base = {"experiment": name, "family": config.family, "seed": seed, "config": config.to_dict(), **more}
    accuracies = {str(seen): values for seen, values in enumerate(by_task, 1)}
    return {**base, "accuracy": sum(by_task[-1]) / len(by_task[-1]), "accuracy_by_task": accuracies}


def fading(tasks, start):
    """Accuracy `start` on the latest task, a hundredth less for each one since."""
    return [[start - (seen - 1 - task) / 100 for task in range(seen)] for seen in range(1, tasks + 1)]


@pytest.fixture
def rows():
    out = [row(f"split_cifar10_{network}", 0, fading(5, 0.9), note="instead") for network in ("cnn", "adn")]
    out += [row("split_cifar10_cnn", 1, fading(5, 0.7), note="instead")]
    return out + [row("si_split_cifar", seed, fading(6, start)) for seed, start in ((0, 0.8), (1, 0.6))]


def test_lines_are_the_latest_task_and_the_mean_so_far(rows):
    figure = cifar_figures.running(rows[:3], "x")
    latest, average = ({line.get_label(): line.get_ydata() for line in axes.lines} for axes in figure.axes)
    assert list(latest) == ["split_cifar10_adn (1)", "split_cifar10_cnn (2)"]
    assert list(latest["split_cifar10_cnn (2)"]) == pytest.approx([0.8] * 5)
    assert list(average["split_cifar10_adn (1)"]) == pytest.approx([0.9, 0.895, 0.89, 0.885, 0.88])
    plt.close(figure)


def test_bars_are_the_tasks_and_their_mean_beside_the_published(rows):
    figure = cifar_figures.bars(rows[3:], "x")
    (axes,) = figure.axes
    heights = [bar.get_height() for bar in axes.patches]
    assert heights == pytest.approx([0.65, 0.66, 0.67, 0.68, 0.69, 0.70, 0.675])
    assert [line.get_ydata()[0] for line in axes.lines] == [0.72]  # the published mean
    plt.close(figure)


def test_every_figure_with_rows_is_drawn_and_no_other(rows, tmp_path):
    changed = row("split_cifar100_cnn", 0, fading(10, 0.5))
    changed["config"]["lr"] = 1.0  # not as named
    drawn = cifar_figures.draw_all([*rows, changed], tmp_path)
    assert [path.name for path in drawn] == ["split_cifar10.png", "split_cifar10_bars.png", "si_split_cifar10_100.png"]
    assert all(path.stat().st_size > 10000 for path in drawn)
    assert report.notes(rows) == ["split_cifar10_cnn: instead", "split_cifar10_adn: instead"]
