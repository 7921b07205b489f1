"""What alignment costs besides KL: the diversity and the length of completions (Figs. 18, 19)."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from warpflow.figures.front_panels import draw_fronts_panel, front_handles
from warpflow.figures.panels import add_legend, message_figure, new_figure
from warpflow.figures.rows import has_values
from warpflow.figures.style import FigureStyle, Look, experiment_looks, fixed_settings

COUNT = "distinct_completions"  # the number that the share of distinct bigrams is over
METRICS = ("self_similarity", "distinct_2", "entropy", "length")
MESSAGE = "No diversity was measured. Set `evaluate_policy.samples_per_prompt` to 2 or more."


@fixed_settings
def plot_diversity(
    evaluations: pd.DataFrame, trajectories: pd.DataFrame, style: FigureStyle
) -> Figure:
    """Draw self-similarity, distinct bigrams, entropy and length against KL, in two panels a row.

    Trajectories have no self-similarity, because along a run a prompt gets only one completion.
    """
    if COUNT not in evaluations:
        evaluations = evaluations.drop(columns="distinct_2", errors="ignore")
    metrics = [metric for metric in METRICS if metric in evaluations]
    metrics = [metric for metric in metrics if has_values(evaluations, metric)]
    if not metrics:
        return message_figure(style, MESSAGE)
    looks = experiment_looks(evaluations, trajectories, style.palette)
    rows = [metrics[start : start + 2] for start in range(0, len(metrics), 2)]
    figure, panels = new_figure(style, [len(row) for row in rows])
    for axes, metric in zip([a for row in panels for a in row], metrics, strict=True):
        along = trajectories if metric in trajectories else trajectories.iloc[:0]
        if metric == "distinct_2":
            draw_distinct(axes, evaluations, along, looks, style.z)
        else:
            draw_fronts_panel(axes, evaluations, along, metric, looks, style.z)
    add_legend(figure, front_handles(evaluations, trajectories, looks), style)
    return figure


def draw_distinct(
    axes: Axes,
    evaluations: pd.DataFrame,
    trajectories: pd.DataFrame,
    looks: dict[str, Look],
    z: float,
) -> None:
    """Draw the share of distinct bigrams of the rows that have it over equally many completions,
    because the share falls with their number. The panel says the number, and whether rows are left
    out."""
    count = evaluations[COUNT].max()
    policies, steps = (with_count(table, count) for table in (evaluations, trajectories))
    draw_fronts_panel(axes, policies, steps, "distinct_2", looks, z)
    axes.set_ylabel(f"Distinct bigrams (share, {count:g} completions)")
    left_out = len(evaluations) + len(trajectories) - len(policies) - len(steps)
    if left_out:
        axes.set_title(f"{left_out} rows of other numbers of completions are left out", fontsize=8)


def with_count(table: pd.DataFrame, count: float) -> pd.DataFrame:
    """Return the rows that were measured over `count` completions. A table that does not say how
    many has none."""
    return table[table[COUNT] == count] if COUNT in table else table.iloc[:0]
