"""KL–reward fronts of LITI against the RL trajectories (Figs. 1b and 4c of the paper)."""

from collections.abc import Iterator

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from warpflow.figures.front_panels import draw_fronts_panel, front_handles, scale_kl
from warpflow.figures.labels import Placed, place_texts
from warpflow.figures.panels import add_legend, message_figure, new_figure
from warpflow.figures.rows import has_values, liti_fronts
from warpflow.figures.style import FigureStyle, Look, experiment_looks, fixed_settings
from warpflow.gold_names import gold_columns

MESSAGE = "No policy was evaluated. Give `interpolate_policy.etas` several values."


@fixed_settings
def plot_fronts(
    evaluations: pd.DataFrame,
    trajectories: pd.DataFrame,
    style: FigureStyle,
    optimum: pd.DataFrame | None = None,
) -> Figure:
    """Draw KL–reward fronts of LITI against the RL trajectories (Figs. 1b and 4c of the paper), and
    the optimal front above them where it was estimated.

    Further panels show the gold rewards, if there are any.
    """
    tables = (evaluations, trajectories)
    names = ["reward", *gold_columns(evaluations)]
    metrics = [m for m in names if any(has_values(table, m) for table in tables)]
    if not metrics:
        return message_figure(style, MESSAGE)
    looks = experiment_looks(evaluations, trajectories, style.palette)
    figure, [panels] = new_figure(style, [len(metrics)])
    fronts = liti_fronts(evaluations)
    farthest = max(evaluations["kl_exact"].max(), trajectories["kl_exact"].max(), 0)
    for axes, metric in zip(panels, metrics, strict=True):
        draw_fronts_panel(axes, evaluations, trajectories, metric, looks, style.z, optimum)
        limit_kl_view(axes, fronts["kl_exact"].max(), farthest)
        scale_kl(axes, style.kl_scale)
    add_legend(figure, front_handles(evaluations, trajectories, looks, optimum), style)
    for axes, metric in zip(panels, metrics, strict=True):
        place_texts(figure, axes, list(front_texts(fronts, metric, looks)))
    return figure


def limit_kl_view(axes: Axes, front: float, farthest: float) -> None:
    """Cut the view where a run goes more than three times as far as the fronts, and say so."""
    if farthest > 3 * front > 0:
        axes.set_xlim(-0.04 * front, 1.5 * front)
        axes.set_xlabel(f"{axes.get_xlabel()}\n(cut here; runs go on to {farthest:.3g})")


def front_texts(fronts: pd.DataFrame, y: str, looks: dict[str, Look]) -> Iterator[Placed]:
    """Yield the η along the last front of the first experiment, and at the end of the others' last
    fronts, as many as can be told apart. All fronts of a run have the same η."""
    last = fronts["iteration"] == fronts.groupby("experiment")["iteration"].transform("max")
    chosen = fronts[last & (fronts["eta"] != 0)].sort_values("eta", ascending=False, kind="stable")
    first, is_end = next(iter(fronts["experiment"]), None), ~chosen.duplicated("experiment")
    is_first = chosen["experiment"] == first
    for row in [*chosen[is_end].to_dict("records"), *chosen[is_first & ~is_end].to_dict("records")]:
        yield Placed(row["kl_exact"], row[y], f"{row['eta']:g}", looks[row["experiment"]].color)
