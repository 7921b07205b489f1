"""Reward, KL and gold reward against η (Fig. 10)."""

import pandas as pd
from matplotlib.figure import Figure

from warpflow.figures.panels import (
    add_legend,
    draw_points,
    experiment_handles,
    iteration_handles,
    label_axes,
    message_figure,
    new_figure,
)
from warpflow.figures.rows import has_values, liti_fronts
from warpflow.figures.style import FigureStyle, experiment_looks, fixed_settings, front_groups
from warpflow.gold_names import gold_columns

MESSAGE = (
    "No experiment was evaluated at two or more η. Give `interpolate_policy.etas` several values."
)


@fixed_settings
def plot_eta_sweep(evaluations: pd.DataFrame, style: FigureStyle) -> Figure:
    """Draw reward, KL and gold reward against η, per experiment and iteration (Fig. 10)."""
    fronts = liti_fronts(evaluations)
    if fronts.empty:
        return message_figure(style, MESSAGE)
    looks = experiment_looks(evaluations, evaluations, style.palette)
    names = ["reward", "kl_exact", *gold_columns(fronts)]
    metrics = [name for name in names if has_values(fronts, name)]
    figure, [panels] = new_figure(style, [len(metrics)])
    for axes, metric in zip(panels, metrics, strict=True):
        for label, rows, line in front_groups(fronts, looks):
            draw_points(axes, rows, "eta", metric, style.z, label, **line)
        label_axes(axes, "eta", metric)
    handles = experiment_handles(fronts["experiment"], looks)
    add_legend(figure, [*handles, *iteration_handles(fronts["iteration"])], style)
    return figure
