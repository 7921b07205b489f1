"""The picture of a model card: the fronts of the run, and where the point is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from warpflow.figures.cli import read_tables
from warpflow.figures.fronts import plot_fronts
from warpflow.figures.style import FigureStyle
from warpflow.gold_names import gold_columns

MARK: dict[str, Any] = {
    "color": "#d1005b",
    "marker": "o",
    "markersize": 15,
    "fillstyle": "none",
    "zorder": 6,
}


def write_front(
    tables: Path, out: Path, metrics: Mapping[str, Any], style: FigureStyle
) -> pd.DataFrame | None:
    """Draw the figure `fronts` with a circle around the point.

    Args:
        tables: the folder of a group's evaluations.csv, trajectories.csv and optimum.csv.
        out: the PNG file. metrics: those of the point, with reward, gold rewards and `kl_exact`.

    Returns:
        evaluations.csv, or None where the tables are not there and nothing was drawn.
    """
    if not (tables / "evaluations.csv").is_file():
        return None
    evaluations, trajectories, optimum = read_tables(
        tables, ["evaluations", "trajectories", "optimum"]
    )
    figure = plot_fronts(evaluations, trajectories, style, optimum)
    names = ["reward", *gold_columns(evaluations)]
    drawn = [n for n in names if evaluations[n].notna().any() or trajectories[n].notna().any()]
    for axes, name in zip(figure.axes, drawn, strict=True):
        if metrics.get(name) is not None:
            axes.plot([metrics["kl_exact"]], [metrics[name]], linestyle="none", **MARK)
    figure.savefig(out, metadata={"Software": None})
    return pd.read_csv(tables / "evaluations.csv")
