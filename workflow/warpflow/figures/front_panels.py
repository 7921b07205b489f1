"""The plane of KL and a metric, with LITI fronts, RL trajectories, single policies and optimum."""

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from warpflow.figures.panels import draw_points, experiment_handles, iteration_handles, label_axes
from warpflow.figures.rows import distinct_runs, liti_fronts, sft_row, single_policies, split_by
from warpflow.figures.style import Look, front_groups, marker_of, run_groups

SFT_LOOK = {"color": "black", "marker": "*", "markersize": 12, "linestyle": "none"}
OPTIMUM_LOOKS = {
    "optimum": {"color": "0.65", "linewidth": 1.4, "zorder": 0.5},
    "best_of_n": {"color": "0.65", "linewidth": 1.2, "linestyle": "--", "zorder": 0.5},
}
OPTIMUM_LABELS = {"optimum": "optimal front", "best_of_n": "best of n"}

SQRT_TICKS = (0, 0.05, 0.1, 0.2, 0.5, 1, 2, 3, 5, 7, 10, 15, 20, 30, 40, 60, 80, 100, 150, 200, 300)


def draw_fronts_panel(
    axes: Axes,
    evaluations: pd.DataFrame,
    trajectories: pd.DataFrame,
    y: str,
    looks: dict[str, Look],
    z: float,
    optimum: pd.DataFrame | None = None,
) -> None:
    """Draw LITI fronts, trajectories, single policies, SFT and optimum in the plane of KL and
    `y`."""
    for label, rows, color, linestyle in run_groups(trajectories, looks):
        axes.plot(
            rows["kl_exact"],
            rows[y],
            color=color,
            linestyle=linestyle,
            linewidth=0.8,
            alpha=0.75,
            zorder=1,
            label=f"trajectory: {label}",
        )
    singles = single_policies(evaluations)
    for (name, iteration), rows in split_by(singles, "experiment", "iteration"):
        draw_points(
            axes,
            rows,
            "kl_exact",
            y,
            z,
            f"policy: {name}, iteration {iteration}",
            color=looks[name].shade(iteration),
            marker=marker_of(iteration),
            markersize=3,
            linestyle="none",
            alpha=0.75,
            zorder=2,
        )
    for label, rows, line in front_groups(liti_fronts(evaluations), looks):
        draw_points(axes, rows, "kl_exact", y, z, f"front: {label}", **line)
    sft = sft_row(evaluations, trajectories)
    if sft is not None:
        axes.plot([0], [sft[y]], label="SFT", zorder=4, **SFT_LOOK)  # type: ignore[arg-type]
        for kind, rows in optimal_curves(optimum):
            values = from_sft(rows[y], sft[y])
            axes.plot(rows["kl"], values, label=kind, **OPTIMUM_LOOKS[kind])  # type: ignore[arg-type]
    label_axes(axes, "kl_exact", y)


def optimal_curves(optimum: pd.DataFrame | None) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield (kind, reliable rows by KL) for each curve of optimum.csv, from SFT (KL 0) on."""
    if optimum is not None:
        reliable = optimum[optimum["reliable"]]
        for (kind,), rows in split_by(reliable, "kind"):
            yield kind, rows.sort_values("kl")


def from_sft(values: pd.Series, sft: float) -> pd.Series:
    """Move a curve of the optimum to where SFT is, because its own level comes from other prompts
    and samples.

    Args:
        values: the curve by rising KL, SFT first. sft: the value of SFT in the evaluations.
    """
    return sft + values - values.iloc[0]


def front_handles(
    evaluations: pd.DataFrame,
    trajectories: pd.DataFrame,
    looks: dict[str, Look],
    optimum: pd.DataFrame | None = None,
) -> list[Line2D]:
    """Return the legend of the fronts: experiments, iterations, and what thick and thin lines
    mean."""
    fronts, singles = liti_fronts(evaluations), single_policies(evaluations)
    runs = distinct_runs(trajectories)
    drawn = [fronts["experiment"], singles["experiment"], runs["experiment"]]
    iterations = [*fronts["iteration"], *singles["iteration"], *runs["iteration"]]
    kinds = []
    if len(fronts):
        kinds.append(Line2D([], [], color="0.3", marker="o", linewidth=1.6, markersize=4.5))
        kinds[-1].set_label("LITI front, η at the markers")
    if (fronts["towards"] == "init").any():
        kinds.append(Line2D([], [], color="0.3", marker="o", markerfacecolor="white"))
        kinds[-1].set_label("LITI towards the iteration's init")
    if len(runs):
        kinds.append(Line2D([], [], color="0.3", linewidth=0.8, label="RL trajectory"))
    if len(singles):
        kinds.append(Line2D([], [], color="0.3", marker="o", markersize=3, linestyle="none"))
        kinds[-1].set_label("single policy")
    if sft_row(evaluations, trajectories) is not None:
        kinds.append(Line2D([], [], label="SFT", **SFT_LOOK))  # type: ignore[arg-type]
        for kind, _ in optimal_curves(optimum):
            kinds.append(Line2D([], [], label=OPTIMUM_LABELS[kind], **OPTIMUM_LOOKS[kind]))  # type: ignore[arg-type]
    names = pd.concat(drawn)
    return [*experiment_handles(names, looks), *iteration_handles(iterations), *kinds]


def scale_kl(axes: Axes, scale: str) -> None:
    """Give the KL axis its scale, once everything is drawn. The root continues below 0."""
    if scale == "linear":
        return
    right = axes.get_xlim()[1]
    functions = (lambda x: np.sign(x) * np.sqrt(np.abs(x)), lambda s: np.sign(s) * np.square(s))
    axes.set_xscale("function", functions=functions)
    axes.set_xlim(-0.0016 * right, right)  # 4 % of the width
    ticks: list[float] = [0]
    for tick in SQRT_TICKS:
        if tick <= right and math.sqrt(tick) >= math.sqrt(ticks[-1]) + 0.07 * math.sqrt(right):
            ticks.append(tick)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
