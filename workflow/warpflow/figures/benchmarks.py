"""Benchmark scores against KL to SFT: what alignment costs in capability (Table 2 of the paper)."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from warpflow.figures.panels import (
    AXIS_LABELS,
    add_legend,
    draw_points,
    experiment_handles,
    iteration_handles,
    message_figure,
    new_figure,
)
from warpflow.figures.rows import split_by
from warpflow.figures.style import FigureStyle, Look, fixed_settings, marker_of, palette_colors


@fixed_settings
def plot_benchmarks(table: pd.DataFrame, style: FigureStyle) -> Figure:
    """Draw capability against KL, with a panel for each task and metric. The paper's Table 2 has
    one point for each task; here there are several η."""
    if table.empty:
        return message_figure(style, "No benchmark was run. Set `benchmark_policy.tasks`.")
    panels = list(split_by(table, "task", "metric", "filter"))
    beside = min(3, len(panels))
    counts = [min(beside, len(panels) - i) for i in range(0, len(panels), beside)]
    figure, rows = new_figure(style, counts)
    last = table.groupby("experiment")["iteration"].max()
    names = list(dict.fromkeys(table["experiment"]))
    colors = palette_colors(style.palette, len(names))
    looks = {name: Look(colors[i % len(colors)], int(last[name])) for i, name in enumerate(names)}
    flat = [axes for row in rows for axes in row]
    for axes, ((task, metric, kind), points) in zip(flat, panels, strict=True):
        for (name, iteration), line in split_by(points, "experiment", "iteration"):
            draw_points(
                axes,
                line.sort_values("kl_exact"),
                "kl_exact",
                "value",
                style.z,
                f"{name}, iteration {iteration}",
                color=looks[name].shade(iteration),
                marker=marker_of(iteration),
                markersize=4,
                linewidth=1.3,
            )
        axes.set_title(task, fontsize=9)
        axes.set_xlabel(AXIS_LABELS["kl_exact"])
        axes.set_ylabel(metric if pd.isna(kind) or kind == "none" else f"{metric} ({kind})")
    handles = experiment_handles(names, looks)
    add_legend(figure, [*handles, *iteration_handles(table["iteration"])], style)
    return figure
