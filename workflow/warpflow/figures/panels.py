"""The parts of every figure: panels, labelled axes, points, legends, and messages without rows."""

import math
import textwrap
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from warpflow.figures.style import FigureStyle, Look, linestyle_of, marker_of, shade

AXIS_LABELS = {
    "reward": "Reward",
    "gold": "Gold reward",
    "kl_exact": "KL to SFT (nats)",
    "kl_to_anchor": "KL to the anchor (nats)",
    "eta": "Interpolation rate η",
    "merge_weight": "Weight λ of member 1",
    "step": "RL step",
    "training_reward": "Training reward",
    "cosine_task_vectors": "Cosine of task vectors",
    "cosine_weights": "Cosine of full weights",
    "norm_ratio": "Ratio of task-vector norms",
    "self_similarity": "Self-similarity of a prompt's completions",
    "distinct_2": "Distinct bigrams (share)",
    "entropy": "Entropy (nats per token)",
    "length": "Length (tokens)",
}


def new_figure(style: FigureStyle, panels: Sequence[int]) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure with `panels[i]` equally wide panels in row i."""
    figure = Figure(
        figsize=(style.width, style.height * len(panels)), dpi=style.dpi, layout="constrained"
    )
    layout = figure.get_layout_engine()
    assert isinstance(layout, ConstrainedLayoutEngine)
    layout.set(w_pad=0.1, h_pad=0.08)
    columns = math.lcm(*panels)
    grid = figure.add_gridspec(len(panels), columns)
    rows = []
    for row, count in enumerate(panels):
        span = columns // count
        cells = [grid[row, i * span : (i + 1) * span] for i in range(count)]
        rows.append([figure.add_subplot(cell) for cell in cells])
    return figure, rows


def write_message(axes: Axes, message: str) -> None:
    """Fill a panel that has no rows with a sentence instead of an empty frame."""
    axes.set_axis_off()
    axes.text(
        0.5,
        0.5,
        textwrap.fill(message, 60),
        ha="center",
        va="center",
        color="0.35",
        transform=axes.transAxes,
    )


def message_figure(style: FigureStyle, message: str) -> Figure:
    figure, [[axes]] = new_figure(style, [1])
    write_message(axes, message)
    return figure


def label_axes(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(AXIS_LABELS[x])
    axes.set_ylabel(AXIS_LABELS.get(y) or f"Gold reward: {y.removeprefix('gold.')}")


def draw_points(
    axes: Axes, rows: pd.DataFrame, x: str, y: str, z: float, label: str, **line: object
) -> None:
    """Draw rows with error bars of z·se on the axes that have a standard error."""

    def half_width(column: str) -> np.ndarray | None:
        errors = f"{column}_se"
        return z * rows[errors].to_numpy(dtype=float) if errors in rows else None

    axes.errorbar(
        rows[x].to_numpy(dtype=float),
        rows[y].to_numpy(dtype=float),
        xerr=half_width(x),
        yerr=half_width(y),
        label=label,
        elinewidth=0.8,
        **line,  # type: ignore[arg-type]
    )


def add_legend(figure: Figure, handles: Sequence[Line2D], style: FigureStyle) -> None:
    """Add a legend below the panels. The figure grows, so that they keep their height."""
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = max(1, min(len(handles), int(style.width / (0.7 + 0.068 * longest))))
    lines = math.ceil(len(handles) / columns)
    figure.set_figheight(figure.get_figheight() + 0.18 * lines + 0.15)
    figure.legend(handles=list(handles), loc="outside lower center", ncols=columns)


def experiment_handles(names: Iterable[str], looks: dict[str, Look]) -> list[Line2D]:
    """Return one entry per drawn experiment, in the order of the looks."""
    drawn = set(names)
    return [
        Line2D([], [], color=look.color, linewidth=2, label=name)
        for name, look in looks.items()
        if name in drawn
    ]


def iteration_handles(iterations: Iterable[int], markers: bool = True) -> list[Line2D]:
    """Return one entry per iteration, or none if there is only one. It shows line style and shade,
    and the marker where the figure has markers."""
    numbers = sorted({int(iteration) for iteration in iterations})
    if len(numbers) < 2:
        return []
    return [
        Line2D(
            [],
            [],
            color=shade("#333333", number, numbers[-1]),
            marker=marker_of(number) if markers else "none",
            markersize=5,
            linestyle=linestyle_of(number),
            label=f"iteration {number}",
        )
        for number in numbers
    ]
