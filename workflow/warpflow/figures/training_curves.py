"""The RL runs over their steps: what they logged, and policies evaluated on the way (Fig. 12)."""

from collections.abc import Callable, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from warpflow.figures.panels import (
    AXIS_LABELS,
    add_legend,
    experiment_handles,
    iteration_handles,
    label_axes,
    new_figure,
    write_message,
)
from warpflow.figures.rows import distinct_runs, has_values
from warpflow.figures.style import (
    FigureStyle,
    LineStyle,
    Look,
    experiment_looks,
    fixed_settings,
    run_groups,
)
from warpflow.gold_names import gold_columns

NO_STEPS = (
    "No training steps were recorded. Set `train_policy.steps` above 0 and "
    "`train_policy.log_every` below it."
)
NO_TRAJECTORIES = (
    "No policy was evaluated during training. Set `train_policy.evaluate_every` below "
    "`train_policy.steps`."
)

SMOOTHING_SHARE = 0.1  # the window of the rolling mean is about this share of the run


@fixed_settings
def plot_training_curves(
    evaluations: pd.DataFrame,
    training: pd.DataFrame,
    trajectories: pd.DataFrame,
    style: FigureStyle,
) -> Figure:
    """Draw what each run logged per step, and the policies evaluated on the way (Fig. 12).

    `evaluations` only fixes the colours of the experiments.
    """
    logged = ["reward", "kl_to_anchor"]
    names = ["reward", "kl_exact", *gold_columns(trajectories)]
    metrics = [name for name in names if has_values(trajectories, name)]
    figure, [top, bottom] = new_figure(
        style, [len(logged) if len(training) else 1, max(1, len(metrics))]
    )
    both = pd.concat([table[["experiment", "iteration"]] for table in (training, trajectories)])
    looks = experiment_looks(evaluations, both, style.palette)

    def banded(
        axes: Axes, rows: pd.DataFrame, y: str, label: str, color: str, linestyle: LineStyle
    ) -> None:
        draw_band(axes, rows, y, style.z, label, color, linestyle)

    if len(training):
        draw_runs(top, logged, training, looks, draw_smoothed)
        top[0].set_ylabel(AXIS_LABELS["training_reward"])
    else:
        write_message(top[0], NO_STEPS)
    if metrics:
        draw_runs(bottom, metrics, trajectories, looks, banded)
    else:
        write_message(bottom[0], NO_TRAJECTORIES)
    if len(both):
        runs = pd.concat([distinct_runs(table) for table in (training, trajectories)])
        handles = experiment_handles(runs["experiment"], looks)
        shades = iteration_handles(both["iteration"], markers=False)
        add_legend(figure, [*handles, *shades], style)
    return figure


def draw_runs(
    panels: Sequence[Axes],
    metrics: Sequence[str],
    table: pd.DataFrame,
    looks: dict[str, Look],
    draw: Callable[[Axes, pd.DataFrame, str, str, str, LineStyle], None],
) -> None:
    """Call `draw(axes, rows, y, label, color, linestyle)` for each metric and run of a table."""
    for axes, metric in zip(panels, metrics, strict=True):
        for label, rows, color, linestyle in run_groups(table, looks):
            draw(axes, rows, metric, label, color, linestyle)
        label_axes(axes, "step", metric)
        axes.locator_params(axis="x", integer=True)


def draw_band(
    axes: Axes,
    rows: pd.DataFrame,
    y: str,
    z: float,
    label: str,
    color: str,
    linestyle: LineStyle,
) -> None:
    """Draw a run's values over its steps as a thin line, with a band of z·se around it."""
    steps, values = rows["step"].to_numpy(dtype=float), rows[y].to_numpy(dtype=float)
    spread = z * rows[f"{y}_se"].to_numpy(dtype=float)
    axes.plot(steps, values, color=color, linestyle=linestyle, linewidth=1.2, label=label)
    axes.fill_between(steps, values - spread, values + spread, color=color, alpha=0.12, linewidth=0)


def draw_smoothed(
    axes: Axes, rows: pd.DataFrame, y: str, label: str, color: str, linestyle: LineStyle
) -> None:
    """Draw a run's raw values over its steps faintly and their centred rolling mean on top."""
    window = 2 * round(SMOOTHING_SHARE * len(rows) / 2) + 1  # odd, so that it has a centre
    smooth = rows[y].rolling(window, center=True, min_periods=1).mean()
    axes.plot(rows["step"], rows[y], color=color, alpha=0.15, linewidth=0.6, label="_raw")
    axes.plot(rows["step"], smooth, color=color, linestyle=linestyle, linewidth=1.3, label=label)
