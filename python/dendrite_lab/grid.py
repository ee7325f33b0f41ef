"""The grids that the sources searched for some experiments' settings: their points, and what came out at each."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

from rich.table import Table

from .configuration import Configuration, as_typed, changed
from .errors import LabError


def points(config: Configuration) -> list[Configuration]:
    """The experiment with each combination of its grid's values, the last field's changing fastest."""
    if not config.grid:
        raise LabError(f"expected an experiment whose source searched a grid (split_cifar...), got {config.name}")
    combinations = product(*config.grid.values())
    return [changed(config, dict(zip(config.grid, map(as_typed, values), strict=True))) for values in combinations]


def check_unvaried(config: Configuration, names: Iterable[str]) -> None:
    """Raises LabError for a field that was set and that the grid sets to something else."""
    for name in names:
        values = config.grid.get(name)
        if values and values != (getattr(config, name),):
            raise LabError(f"--set {name}: expected a field that the grid does not vary ({as_typed(values)})")


def table(config: Configuration, rows: list[dict]) -> Table:
    """What rows at points of the grid reached, the best first."""
    out = Table(*config.grid, "seed", "accuracy, %", title=f"{config.name}: its grid")
    for row in sorted(rows, key=lambda row: -row["accuracy"]):
        values = (f"{row['config'][field]:g}" for field in config.grid)
        out.add_row(*values, str(row["seed"]), f"{100 * row['accuracy']:.2f}")
    return out
