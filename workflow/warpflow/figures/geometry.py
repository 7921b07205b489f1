"""Angles and norms of task vectors, layer by layer (Fig. 11)."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from warpflow.figures.panels import (
    AXIS_LABELS,
    add_legend,
    experiment_handles,
    iteration_handles,
    message_figure,
    new_figure,
)
from warpflow.figures.rows import drop_shared, split_by
from warpflow.figures.style import (
    FigureStyle,
    Look,
    experiment_looks,
    fixed_settings,
    linestyle_of,
    marker_of,
)

MESSAGE = "There is no pair of members to compare. Set `members` to 2 or more."


@fixed_settings
def plot_geometry(evaluations: pd.DataFrame, geometry: pd.DataFrame, style: FigureStyle) -> Figure:
    """Draw angles and norms of the members' task vectors, layer by layer (Fig. 11).

    `evaluations` only fixes the colours of the experiments.
    """
    if geometry.empty:
        return message_figure(style, MESSAGE)
    looks = experiment_looks(evaluations, geometry, style.palette)
    pairs = drop_shared(geometry, ["replicate", "iteration"], ["member_a", "member_b"])
    pairs = pairs.assign(norm_ratio=norm_ratio(pairs))
    groups = list(dict.fromkeys(pairs["group"]))
    metrics = ["cosine_task_vectors", "cosine_weights", "norm_ratio"]
    figure, [panels] = new_figure(style, [len(metrics)])
    for axes, metric in zip(panels, metrics, strict=True):
        draw_geometry_panel(axes, pairs, metric, groups, looks)
    # One scale for both cosines shows at once how much closer the full weights are.
    lowest = np.nanmin(pairs[metrics[:2]].to_numpy(dtype=float), initial=0.0)
    for axes in panels[:2]:
        axes.set_ylim(lowest - 0.05, 1.05)
    panels[2].axhline(1, color="0.5", linewidth=0.8, zorder=0, label="_equal norms")
    handles = experiment_handles(pairs["experiment"], looks)
    add_legend(figure, [*handles, *iteration_handles(pairs["iteration"])], style)
    return figure


def draw_geometry_panel(
    axes: Axes,
    geometry: pd.DataFrame,
    y: str,
    groups: Sequence[str],
    looks: dict[str, Look],
) -> None:
    """Draw the mean over pairs of members as a line over the layer groups, and each pair as a faint
    dot."""
    positions = {group: i for i, group in enumerate(groups)}
    for (name, iteration), rows in split_by(geometry, "experiment", "iteration"):
        color = looks[name].shade(iteration)
        axes.plot(
            rows["group"].map(positions), rows[y], ".", color=color, alpha=0.3, label="_pairs"
        )
        mean = rows.groupby("group", sort=False)[y].mean()
        mean = mean.reindex([group for group in groups if group in mean.index])
        axes.plot(
            [positions[group] for group in mean.index],
            mean,
            color=color,
            linestyle=linestyle_of(iteration),
            marker=marker_of(iteration),
            markersize=4,
            linewidth=1.3,
            label=f"{name}, iteration {iteration}",
        )
    every = math.ceil(len(groups) / 16)
    names = [group.removeprefix("model.").removesuffix(".weight") for group in groups[::every]]
    axes.set_xticks(range(0, len(groups), every), names, rotation=90, fontsize=7)
    axes.set_ylabel(AXIS_LABELS[y])


def norm_ratio(geometry: pd.DataFrame) -> pd.Series:
    """Return the norm of member b's task vector over that of member a, or NaN where the latter is
    zero."""
    return geometry["norm_b"] / geometry["norm_a"].where(geometry["norm_a"] > 0)
