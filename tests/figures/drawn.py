"""Draw a figure from example tables, and read back what it shows."""

import importlib
from collections.abc import Callable

import numpy as np
from example_tables import Tables
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from warpflow.figures.style import FigureStyle

FIGURES = ("fronts", "eta_sweep", "lambda_sweep", "geometry", "training_curves")
STYLE = FigureStyle()


def draw(name: str, tables: Tables, style: FigureStyle = STYLE) -> Figure:
    """Draw the figure NAME from the tables that its script would read."""
    needed = {
        "fronts": ("evaluations", "trajectories"),
        "geometry": ("evaluations", "geometry"),
        "training_curves": ("evaluations", "training", "trajectories"),
    }.get(name, ("evaluations",))
    module = importlib.import_module(f"warpflow.figures.{name}")
    plot: Callable[..., Figure] = getattr(module, f"plot_{name}")
    return plot(*(tables[key] for key in needed), style)


def lines(axes: Axes, start: str = "") -> dict[str, Line2D]:
    """Labelled lines of a panel; labels with an underscore are decoration."""
    labelled = {str(line.get_label()): line for line in axes.lines}
    return {k: v for k, v in labelled.items() if k.startswith(start) and not k.startswith("_")}


def lines_of(axes: Axes, prefix: str) -> list[Line2D]:
    labelled = [*axes.lines, *axes.containers]
    found = [item for item in labelled if str(item.get_label()).startswith(prefix)]
    return [item if isinstance(item, Line2D) else item.lines[0] for item in found]


def containers(axes: Axes) -> list[str]:
    return [str(container.get_label()) for container in axes.containers]


def data_of(axes: Axes, label: str) -> np.ndarray:
    """(n, 2) points of the error-bar series with that label."""
    [found] = [c for c in axes.containers if c.get_label() == label]
    return np.asarray(found[0].get_xydata())


def heights(line: Line2D) -> np.ndarray:
    return np.asarray(line.get_ydata(), dtype=float)


def legend_texts(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def message_of(axes: Axes) -> str:
    return " ".join(" ".join(text.get_text() for text in axes.texts).split())
