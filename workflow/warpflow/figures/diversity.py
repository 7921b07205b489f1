"""What alignment costs besides KL: the diversity and the length of completions (Figs. 18, 19)."""

import pandas as pd
from matplotlib.figure import Figure

from warpflow.figures.front_panels import draw_fronts_panel, front_handles
from warpflow.figures.panels import add_legend, message_figure, new_figure
from warpflow.figures.rows import has_values
from warpflow.figures.style import FigureStyle, experiment_looks, fixed_settings

METRICS = ("self_similarity", "distinct_2", "entropy", "length")
MESSAGE = "No diversity was measured. Set `evaluate_policy.samples_per_prompt` to 2 or more."


@fixed_settings
def plot_diversity(
    evaluations: pd.DataFrame, trajectories: pd.DataFrame, style: FigureStyle
) -> Figure:
    """Self-similarity, distinct bigrams, entropy and length against KL, two panels a row.

    Trajectories have no self-similarity: on the way a prompt gets one completion.
    """
    metrics = [metric for metric in METRICS if metric in evaluations]
    metrics = [metric for metric in metrics if has_values(evaluations, metric)]
    if not metrics:
        return message_figure(style, MESSAGE)
    looks = experiment_looks(evaluations, trajectories, style.palette)
    rows = [metrics[start : start + 2] for start in range(0, len(metrics), 2)]
    figure, panels = new_figure(style, [len(row) for row in rows])
    for axes, metric in zip([a for row in panels for a in row], metrics, strict=True):
        along = trajectories if metric in trajectories else trajectories.iloc[:0]
        draw_fronts_panel(axes, evaluations, along, metric, looks, style.z)
    add_legend(figure, front_handles(evaluations, trajectories, looks), style)
    return figure
