"""Envelopes over β of both anchors at equal KL, and their difference (claim 1, envelopes)."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from warpflow.figures.front_panels import scale_kl
from warpflow.figures.panels import add_legend, message_figure, new_figure
from warpflow.figures.style import FigureStyle, fixed_settings, palette_colors

MESSAGE = (
    "No anchor was compared over β. Give experiments with train_policy.anchor ema and sft, each at "
    "several train_policy.beta (group `anchor_beta`)."
)
ARMS = ("ema", "sft")
DIFFERENCE = "ema - sft"


@fixed_settings
def plot_envelopes(envelopes: pd.DataFrame, style: FigureStyle) -> Figure:
    """Draw two panels for each set of runs that differ only in anchor and β. One has the best
    reward over β that each anchor has at a KL, with the β that gives it. The other has the
    difference of the two.

    Args:
        envelopes: envelopes.csv of rule compare_fronts.
    """
    envelopes = envelopes.fillna({"training_changes": ""})
    groups = [
        (changes, rows)
        for changes, rows in envelopes.groupby("training_changes", sort=False)
        if DIFFERENCE in set(rows["arm"])
    ]
    if not groups:
        return message_figure(style, MESSAGE)
    colors = dict(zip(ARMS, palette_colors(style.palette, len(ARMS)), strict=False))
    figure, panels = new_figure(style, [2] * len(groups))
    for (changes, rows), (left, right) in zip(groups, panels, strict=True):
        for arm in ARMS:
            draw_envelope(left, rows[rows["arm"] == arm], colors[arm])
        draw_difference(right, rows[rows["arm"] == DIFFERENCE])
        for axes, label in ((left, "Reward"), (right, "Reward, EMA less SFT anchor")):
            scale_kl(axes, "sqrt")
            axes.set_xlabel("KL to SFT (nats)")
            axes.set_ylabel(label)
            axes.set_title(str(changes))
    add_legend(figure, arm_handles(rows_of(groups), colors), style)
    return figure


def rows_of(groups: Sequence[tuple[object, pd.DataFrame]]) -> pd.DataFrame:
    return pd.concat([rows for _, rows in groups])


def draw_envelope(axes: Axes, rows: pd.DataFrame, color: str) -> None:
    """Draw one arm with its interval. A β is written where the envelope first takes it."""
    axes.fill_between(rows["kl"], rows["low"], rows["high"], color=color, alpha=0.2, linewidth=0)
    axes.plot(rows["kl"], rows["reward"], color=color, label=str(rows["arm"].iloc[0]))
    for _, row in rows[rows["beta"] != rows["beta"].shift()].iterrows():
        axes.annotate(
            f"β {row['beta']:g}",
            (row["kl"], row["reward"]),
            xytext=(0, 5),
            textcoords="offset points",
            ha="center",
            fontsize=6.5,
            color=color,
        )


def draw_difference(axes: Axes, rows: pd.DataFrame) -> None:
    axes.axhline(0, color="0.6", linewidth=0.8)
    axes.fill_between(rows["kl"], rows["low"], rows["high"], color="0.3", alpha=0.2, linewidth=0)
    axes.plot(rows["kl"], rows["reward"], color="0.2", label=DIFFERENCE)


def arm_handles(envelopes: pd.DataFrame, colors: dict[str, str]) -> list[Line2D]:
    """Return the legend: the anchors with the β that were tried, and what the bands are intervals
    over."""
    names = {"ema": "EMA anchor", "sft": "SFT anchor"}
    handles = []
    for arm, color in colors.items():
        betas = envelopes.loc[envelopes["arm"] == arm, "betas"].iloc[0]
        label = f"{names[arm]}, best of β {betas}"
        handles.append(Line2D([], [], color=color, linewidth=2, label=label))
    over = envelopes["interval_over"].iloc[0]
    handles.append(
        Line2D([], [], color="0.3", alpha=0.3, linewidth=6, label=f"interval over {over}")
    )
    return handles
