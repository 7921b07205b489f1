"""Averages of one run's own weights, compared with the run (Figs. 13 and 14)."""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from warpflow.figures.panels import (
    add_legend,
    draw_points,
    experiment_handles,
    iteration_handles,
    label_axes,
    message_figure,
    new_figure,
)
from warpflow.figures.rows import has_values, split_by
from warpflow.figures.style import FigureStyle, experiment_looks, fixed_settings, linestyle_of
from warpflow.gold_names import gold_columns

MARKERS = {"policy": "o", "ema": "s", "average": "^"}
NAMES = {"policy": "policy", "ema": "EMA, rate μ", "average": "mean of all steps"}
MESSAGE = (
    "No average was evaluated along a run. Give an experiment "
    "`train_policy: {evaluate_weights: [policy, ema, average]}`."
)


@fixed_settings
def plot_averages(
    evaluations: pd.DataFrame, trajectories: pd.DataFrame, style: FigureStyle
) -> Figure:
    """Draw the trajectories of the policy, of its EMA and of the plain mean of its weights in the
    plane of KL and reward (and gold). They show whether averaging one run's weights does what
    WARP's three averages do.

    `evaluations` only fixes the colours of the experiments.
    """
    runs = ["experiment", "replicate", "iteration", "member"]
    kinds = trajectories.groupby(runs)["weights"].transform("nunique")
    rows = trajectories[kinds > 1]
    if rows.empty:
        return message_figure(style, MESSAGE)
    looks = experiment_looks(evaluations, trajectories, style.palette)
    metrics = [name for name in ("reward", *gold_columns(rows)) if has_values(rows, name)]
    figure, [panels] = new_figure(style, [len(metrics)])
    for (name, _, iteration, _, kind), points in split_by(rows, *runs, "weights"):
        for axes, metric in zip(panels, metrics, strict=True):
            line: dict[str, Any] = {"color": looks[name].shade(iteration)}
            line |= {"linestyle": linestyle_of(iteration)}
            line |= {"marker": MARKERS[kind], "markersize": 3.5}
            label = f"{name}, iteration {iteration}: {NAMES[kind]}"
            points = points.sort_values("step")
            draw_points(axes, points, "kl_exact", metric, style.z, label, **line)
    for axes, metric in zip(panels, metrics, strict=True):
        label_axes(axes, "kl_exact", metric)
    styles = [
        Line2D([], [], color="0.3", marker=MARKERS[kind], linestyle="none", label=NAMES[kind])
        for kind in NAMES
        if (rows["weights"] == kind).any()
    ]
    handles = experiment_handles(rows["experiment"], looks)
    iterations = iteration_handles(rows["iteration"], markers=False)
    add_legend(figure, [*handles, *iterations, *styles], style)
    return figure
