"""Answers side by side: a matrix of win rates for each judge (Table 1 of the paper)."""

from __future__ import annotations

import dataclasses
import math

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from warpflow.figures.panels import message_figure, new_figure
from warpflow.figures.style import FigureStyle, fixed_settings

CELL = 0.65  # inches that the lines of text in a cell need
WIDE = 4  # with more contestants each judge gets a row of the figure
MIRRORED = {"a": "b", "b": "a", "length_a": "length_b", "length_b": "length_a"}


@fixed_settings
def plot_side_by_side(table: pd.DataFrame, style: FigureStyle) -> Figure:
    """Draw a matrix for each judge, row against column, coloured by the win rate, like the paper's
    Table 1. Each cell has the win rate, the graded score and the two mean lengths."""
    if table.empty:
        return message_figure(style, "No answers were compared. Set `compare_answers`.")
    names = list(dict.fromkeys([*table["a"], *table["b"]]))
    judges = list(dict.fromkeys(table["judge"]))
    beside = min(2 if len(names) <= WIDE else 1, len(judges))
    panels = [beside] * (len(judges) // beside)
    panels += [len(judges) % beside] if len(judges) % beside else []
    height = max(style.height, CELL * (len(names) + 2))
    figure, rows = new_figure(dataclasses.replace(style, height=height), panels)
    for axes, judge in zip([axes for row in rows for axes in row], judges, strict=True):
        draw_matrix(axes, table[table["judge"] == judge], names)
        axes.set_title(f"judge: {judge}", fontsize=9)
    return figure


def draw_matrix(axes: Axes, table: pd.DataFrame, names: list[str]) -> None:
    """Draw one judge's pairs, each in two cells. A pair that was not judged stays grey."""
    shares = np.full((len(names), len(names)), np.nan)
    for row in table.to_dict("records"):
        for cell in (row, mirror(row)):
            i, j = names.index(cell["a"]), names.index(cell["b"])
            shares[i, j] = cell["win_rate"] + cell["tie_rate"] / 2
            axes.text(j, i, cell_text(cell), ha="center", va="center", fontsize=6.5)
    # The middle of this map is white, and its ends are light enough for black text.
    colours = matplotlib.colormaps["RdBu"].with_extremes(bad="0.9")
    axes.imshow(np.ma.masked_invalid(shares), cmap=colours, vmin=-0.25, vmax=1.25, aspect="auto")
    axes.set_xticks(range(len(names)), names, rotation=20, ha="right", fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def mirror(row: dict) -> dict:
    """Return the same pair from B's point of view."""
    turned = row | {MIRRORED[key]: row[key] for key in MIRRORED}
    turned["score"], turned["score_low"], turned["score_high"] = (
        -row[key] for key in ("score", "score_high", "score_low")
    )
    turned["win_rate"] = 1 - row["win_rate"] - row["tie_rate"]
    return turned


def cell_text(row: dict) -> str:
    """Return win and tie rate, graded score with its interval where there is one, lengths and
    failures."""
    if not row["n"]:
        return f"no judgement\n({row['failed']:.0f} failed)"
    lines = [f"{row['win_rate']:.0%} (ties {row['tie_rate']:.0%})", signed(row["score"])]
    if not math.isnan(row["score_low"]):
        lines.append(f"[{signed(row['score_low'])}, {signed(row['score_high'])}]")
    lines.append(f"{row['length_a']:.0f} : {row['length_b']:.0f} chars")
    if row["failed"]:
        lines.append(f"{row['failed']:.0f} failed")
    return "\n".join(lines)


def signed(value: float) -> str:
    """Return a number with its sign, as +0.12, and never -0.00."""
    return f"{round(value, 2) or 0.0:+.2f}"
