"""The first page of a run: what a group of experiments found, in one HTML file without network.

The page is `summary.html` beside this file, and this file fills it. Nothing on it is measured anew.
Read next: `warpflow.fronts.recommended` and `warpflow.fronts.words`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import vl_convert
from jinja2 import Environment, StrictUndefined

from warpflow.figures.interactive_front import front_chart
from warpflow.figures.rows import has_values, sft_row
from warpflow.figures.style import FigureStyle
from warpflow.fronts.recommended import Recommended, point_name, recommend
from warpflow.fronts.words import (
    NO_RUNS,
    baseline_sentences,
    merging_sentences,
    signed,
    verdict_sentences,
)
from warpflow.gold_names import gold_columns

TEMPLATE = Path(__file__).with_name("summary.html")
VEGA = "window.vegaEmbed = vegaEmbed;"  # all that the page uses of the bundled libraries
PROMPTS = 5  # the number of prompts with completions on the page
# These columns, with the experiment, identify a row of shares.csv.
USE = ("experiment", "stage", "iteration", "towards", "eta")


@dataclass(frozen=True)
class Tables:
    """The tables of a page, as `collect_evaluations` and `compare_fronts` write them.

    Attributes:
        evaluations: the means of the replicates.
        completions: those of every evaluated policy. costs: the table of `fronts.costs`.
    """

    evaluations: pd.DataFrame
    trajectories: pd.DataFrame
    completions: pd.DataFrame
    optimum: pd.DataFrame
    verdicts: pd.DataFrame
    comparisons: pd.DataFrame
    shares: pd.DataFrame
    costs: pd.DataFrame


def summary_page(tables: Tables, group: str, style: FigureStyle) -> str:
    """Return the page as HTML.

    Args:
        group: the group of experiments.

    Raises:
        ValueError: nothing was evaluated.
    """
    evaluations = tables.evaluations
    if evaluations.empty:
        raise ValueError("evaluations.csv has no rows: nothing was evaluated, so run `snakemake`")
    sft = sft_row(evaluations, tables.trajectories)
    found = list(recommend(evaluations, sft, style.kl_budget))
    chart = front_chart(evaluations, tables.trajectories, tables.completions, style, tables.optimum)
    verdicts = [
        *merging_sentences(evaluations, tables.comparisons),
        *verdict_sentences(tables.verdicts),
    ]
    replicates = replicate_count(tables.verdicts)
    interval_over = first_value(tables.shares, "interval_over", "the prompts")
    columns, prompts = side_by_side(tables.completions, sft, found)
    quantities = ["reward", *gold_columns(evaluations)]
    quantities = [name for name in quantities if evaluations[name].notna().any()]
    page = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(TEMPLATE.read_text(encoding="utf-8"))
    base = evaluations["experiment"].iloc[0]
    return page.render(
        title=f"WARP, group {group}: what the run found",
        about=about(evaluations, replicates),
        group=group,
        base=base,
        confidence=f"{style.confidence:.0%}",
        no_runs=NO_RUNS if replicates == 1 else "",
        verdicts=[item for item in verdicts if item.answer != "not measured"],
        not_measured=[item for item in verdicts if item.answer == "not measured"],
        quantities=quantities,
        points=[describe_point(item, tables.shares, quantities, style.z) for item in found],
        interval_over=interval_over,
        columns=columns,
        prompts=prompts,
        baselines=list(baseline_sentences(tables.comparisons)),
        costs=cost_rows(tables.costs),
        vega=vl_convert.javascript_bundle(VEGA),
        chart=script_json(chart),
    )


def script_json(value: Any) -> str:
    """Return JSON for the inside of a script element, which no text in it can close."""
    text = json.dumps(value, ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def about(evaluations: pd.DataFrame, replicates: int) -> str:
    """Say in one line how much was measured."""
    experiments = evaluations["experiment"].nunique()
    prompts = int(evaluations["n_prompts"].max()) if "n_prompts" in evaluations else 0
    return (
        f"{experiments} experiment{'s' * (experiments != 1)}, "
        f"{replicates} replicate{'s' * (replicates != 1)}, "
        f"{evaluations['policy'].nunique()} policies evaluated"
        + (f" on {prompts} held-out prompts." if prompts else ".")
    )


def replicate_count(verdicts: pd.DataFrame) -> int:
    """Return the run's number of replicates, or 1 where no row says it."""
    return int(verdicts["replicates"].max()) if has_values(verdicts, "replicates") else 1


def first_value(table: pd.DataFrame, column: str, default: str) -> str:
    return str(table[column].dropna().iloc[0]) if has_values(table, column) else default


# ------------------------------------------------------------------------- points to take


def describe_point(
    found: Recommended, shares: pd.DataFrame, quantities: Sequence[str], z: float
) -> dict[str, Any]:
    """Return what a row of the table of points shows."""
    described: dict[str, Any] = {"title": found.title, "reason": found.reason, "name": ""}
    row = found.row
    if row is None:
        return described
    share = share_of(row, shares)
    described |= {
        "name": point_name(row),
        "quantities": [with_error(row, name, z) for name in quantities],
        "kl": with_error(row, "kl_exact", z),
        "length": f"{row['length']:.3g}" if "length" in row and pd.notna(row["length"]) else "",
        "gain": between(share, "gain", "gain_low", "gain_high", signed),
        "share": between(share, "share", "low", "high", "{:.0%}".format),
    }
    return described


def share_of(row: pd.Series, shares: pd.DataFrame) -> Mapping[str, Any]:
    """Return the row of shares.csv for a point, or an empty one where there is none."""
    found = shares
    for name in USE:
        found = found[found[name] == row[name]]
    return {} if found.empty else {str(k): v for k, v in found.iloc[0].items()}


def with_error(row: pd.Series, name: str, z: float) -> str:
    """Write a value as ``1.23 [1.20, 1.26]``, with z standard errors to either side."""
    value, error = row[name], row.get(f"{name}_se")
    if pd.isna(value):
        return ""
    if error is None or pd.isna(error):
        return f"{value:.3g} (no interval)"
    return f"{value:.3g} [{value - z * error:.3g}, {value + z * error:.3g}]"


def between(row: Mapping[str, Any], name: str, low: str, high: str, text: Any) -> str:
    """Write a value of shares.csv with its interval. The text is empty where one of the three is
    missing."""
    values = [row.get(key) for key in (name, low, high)]
    if any(value is None or pd.isna(value) for value in values):
        return ""
    middle, least, most = (text(value) for value in values)
    return f"{middle} [{least}, {most}]"


# ------------------------------------------------------------------------------- side by side


def side_by_side(
    completions: pd.DataFrame, sft: pd.Series | None, found: Sequence[Recommended]
) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the titles of the columns, and the completions of SFT and of the points to the first
    prompts, each point once. Those of SFT are stored where η = 0 is on a front."""
    rows = [item.row for item in found if item.row is not None]
    points = {point_name(row): str(row["policy"]) for row in rows}
    policies = {"SFT": sft.get("policy") if sft is not None else None} | points
    columns = {
        name: by_prompt(completions[completions["policy"] == policy])
        for name, policy in policies.items()
    }
    prompts = list(dict.fromkeys(p for column in columns.values() for p in column))[:PROMPTS]
    cells = [[column.get(prompt) for column in columns.values()] for prompt in prompts]
    return list(columns), [
        {"prompt": prompt, "cells": row} for prompt, row in zip(prompts, cells, strict=True)
    ]


def by_prompt(rows: pd.DataFrame) -> dict[str, dict[str, str]]:
    """Return the first completion of each prompt with its scores, in words."""
    if rows.empty:
        return {}
    names = ["reward", *gold_columns(rows)]
    cells: dict[str, dict[str, str]] = {}
    for row in rows.to_dict("records"):
        scores = [f"{name} {row[name]:.3g}" for name in names if pd.notna(row[name])]
        scores += [] if row["finished"] else ["cut at the limit"]
        text = "" if pd.isna(row["completion"]) else str(row["completion"])
        cells.setdefault(str(row["prompt"]), {"text": text, "scores": ", ".join(scores)})
    return cells


# --------------------------------------------------------------------------------------- cost


def cost_rows(costs: pd.DataFrame) -> list[list[str]]:
    """Return the cells of the table of costs, with the sum last."""
    if costs.empty:
        return []
    total = dict(costs[["jobs", "restored", "hours", "cpu_hours"]].sum())
    total |= {"rule": "all", "largest_gb": costs["largest_gb"].max()}
    return [cost_cells(row) for row in [*costs.to_dict("records"), total]]


def cost_cells(row: Mapping[str, Any]) -> list[str]:
    return [
        str(row["rule"]),
        f"{row['jobs']:.0f}",
        f"{row['restored']:.0f}",
        f"{row['hours']:.3f}",
        f"{row['cpu_hours']:.3f}",
        f"{row['largest_gb']:.2f}" if pd.notna(row["largest_gb"]) else "",
    ]
