"""The plane of KL and reward as an interactive Vega-Lite chart of what `figures.fronts` draws.

Colours and dashes are those of the other figures. The chart holds its data, so that it needs no
network. Read next: `warpflow.figures.summary`, the page that it is on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import pandas as pd

from warpflow.figures.front_panels import OPTIMUM_LABELS, from_sft, optimal_curves
from warpflow.figures.rows import (
    distinct_runs,
    has_values,
    liti_fronts,
    sft_row,
    single_policies,
)
from warpflow.figures.style import FigureStyle, experiment_looks
from warpflow.gold_names import gold_columns

WIDTH, HEIGHT = 560, 380  # size of the plane in pixels
# The axis is the root of the KL where the reader asks for it. The labels still say the KL.
X = "root_axis ? sqrt(max(datum.kl, 0)) : datum.kl"
X_LABEL = "format(root_axis ? datum.value * datum.value : datum.value, '.3~g')"
DASHES = ([1, 0], [6, 3], [6, 3, 1, 3], [1, 2])  # as style.LINE_STYLES


def front_chart(
    evaluations: pd.DataFrame,
    trajectories: pd.DataFrame,
    completions: pd.DataFrame,
    style: FigureStyle,
    optimum: pd.DataFrame | None = None,
) -> dict[str, Any]:
    """Return a Vega-Lite specification of fronts, single policies, RL trajectories, SFT and
    optimum.

    Hovering a point shows its experiment, iteration, η, reward, gold rewards, KL, length and its
    completion of the first stored prompt. A click on an entry of the legend draws only that
    experiment; with the shift key several can be chosen.

    Args:
        evaluations: the means of the replicates. completions: rows of completions.csv.

    Raises:
        ValueError: nothing was evaluated.
    """
    tables = (evaluations, trajectories)
    quantities = [
        name
        for name in ("reward", *gold_columns(evaluations))
        if any(name in table and has_values(table, name) for table in tables)
    ]
    if not quantities:
        raise ValueError("evaluations.csv has no reward: give `interpolate_policy.etas` values")
    looks = experiment_looks(evaluations, trajectories, style.palette)
    drawn = pd.concat([liti_fronts(evaluations), single_policies(evaluations)])
    names = [name for name in looks if name in set(drawn["experiment"])]
    quantity = alt.param(
        name="quantity",
        value=quantities[0],
        bind=alt.binding_select(options=quantities, name="vertical axis: "),
    )
    root_axis = alt.param(
        name="root_axis",
        value=style.kl_scale == "sqrt",
        bind=alt.binding_checkbox(name="root of the KL: "),
    )
    runs = alt.param(
        name="runs", value=True, bind=alt.binding_checkbox(name="trajectories of the RL runs: ")
    )
    shown = alt.selection_point(name="shown", fields=["experiment"], bind="legend")
    color = alt.Color(
        "experiment:N",
        scale=alt.Scale(domain=names, range=[looks[name].color for name in names]),
        legend=alt.Legend(title="experiment (click to choose)", symbolType="stroke"),
    )
    iterations = sorted({int(i) for i in drawn["iteration"]})
    dash = alt.StrokeDash(
        "iteration:O",
        scale=alt.Scale(
            domain=iterations, range=[DASHES[(i - 1) % len(DASHES)] for i in iterations]
        ),
        legend=alt.Legend(title="iteration") if len(iterations) > 1 else None,
    )
    farthest = kl_limit(evaluations, trajectories)
    sft = sft_row(evaluations, trajectories)
    from_start = [] if sft is None else optimum_layers(sft, optimum, quantities, farthest)
    start = [] if sft is None else [sft_layer(sft, quantities, farthest)]
    chart = alt.layer(
        *from_start,
        trajectory_layer(trajectories, quantities, color, dash, shown, farthest),
        *point_layers(evaluations, completions, quantities, color, dash, shown, farthest, style.z),
        *start,
    )
    chart = chart.properties(width=WIDTH, height=HEIGHT).add_params(quantity, root_axis, runs)
    return chart.to_dict()


def kl_limit(evaluations: pd.DataFrame, trajectories: pd.DataFrame) -> float:
    """Return the largest KL of the axis. Runs that go more than three times as far as the fronts
    are cut, as in `figures.fronts`."""
    front = liti_fronts(evaluations)["kl_exact"].max()
    farthest = max(evaluations["kl_exact"].max(), trajectories["kl_exact"].max(), 1e-9)
    return float(1.5 * front if farthest > 3 * front > 0 else 1.04 * farthest)


def plane(data: pd.DataFrame, farthest: float) -> alt.Chart:
    """Return a chart of rows with columns `kl` and the quantities, in the plane that all layers
    share."""
    chart = alt.Chart(alt.Data(values=records(data)))
    chart = chart.transform_calculate(x=X, y="datum[quantity]")
    chart = chart.transform_filter(
        f"isValid(datum.y) && isValid(datum.kl) && datum.kl <= {farthest:g}"
    )
    return chart.encode(
        x=alt.X(
            "x:Q",
            title="KL to SFT (nats)",
            axis=alt.Axis(labelExpr=X_LABEL, tickCount=8),
            scale=alt.Scale(
                domainMax=alt.expr(f"root_axis ? sqrt({farthest:g}) : {farthest:g}"), nice=False
            ),
        ),
        y=alt.Y("y:Q", title=None, scale=alt.Scale(zero=False)),
    )


def records(data: pd.DataFrame) -> list[dict[str, Any]]:
    """Return rows as JSON values, with null for what is missing."""
    table = data.astype(object).where(data.notna(), None)
    rows: list[dict[str, Any]] = []
    for row in table.to_dict("records"):
        values = {str(k): v.item() if hasattr(v, "item") else v for k, v in row.items()}
        rows.append(
            {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in values.items()}
        )
    return rows


def point_layers(
    evaluations: pd.DataFrame,
    completions: pd.DataFrame,
    quantities: Sequence[str],
    color: alt.Color,
    dash: alt.StrokeDash,
    shown: alt.Parameter,
    farthest: float,
    z: float,
) -> list[alt.Chart]:
    """Draw fronts as lines with error bars and points, and single policies as small points."""
    lines, dots = (
        plane(point_rows(rows, completions, quantities), farthest).transform_filter(shown)
        for rows in (liti_fronts(evaluations), single_policies(evaluations))
    )
    bars = lines.transform_calculate(
        low=f"datum.y - {z:g} * datum[quantity + '_se']",
        high=f"datum.y + {z:g} * datum[quantity + '_se']",
    )
    tooltip = [
        alt.Tooltip(field(name), type="quantitative", title=title, format=form)
        if form
        else alt.Tooltip(field(name), type="nominal", title=title)
        for name, title, form in tooltips(quantities)
    ]
    return [
        bars.mark_rule(clip=True, strokeWidth=0.8).encode(
            color=color, y=alt.Y("low:Q", title=None), y2="high:Q"
        ),
        lines.mark_line(clip=True, strokeWidth=2).encode(
            color=color, strokeDash=dash, detail="front:N", order="eta:Q"
        ),
        dots.mark_point(clip=True, filled=True, size=22).encode(color=color, tooltip=tooltip),
        lines.mark_point(clip=True, filled=True, size=60)
        .encode(color=color, tooltip=tooltip)
        .add_params(shown),
    ]


def tooltips(quantities: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return (column, title, number format) of what hovering a point shows, in order."""
    return [
        ("experiment", "experiment", ""),
        ("iteration", "iteration", ""),
        ("eta", "η", "~g"),
        *((name, name, ".4~g") for name in quantities),
        ("kl", "KL to SFT (nats)", ".4~g"),
        ("length", "length (tokens)", ".3~g"),
        ("prompt", "a prompt", ""),
        ("completion", "its completion", ""),
    ]


def field(column: str) -> str:
    """Escape a column's name, in which Vega-Lite would take a dot for a level of nested data."""
    return column.replace(".", r"\.")


def point_rows(
    rows: pd.DataFrame, completions: pd.DataFrame, quantities: Sequence[str]
) -> pd.DataFrame:
    """Return the columns of evaluated policies that the chart uses, with a completion for each
    policy."""
    columns = ["experiment", "iteration", "eta", "policy", "length"]
    columns += [name for quantity in quantities for name in (quantity, f"{quantity}_se")]
    table = rows.reindex(columns=columns).assign(
        kl=rows["kl_exact"],
        front=rows["experiment"] + "/" + rows["iteration"].astype(str) + rows["towards"].fillna(""),
    )
    first = completions.drop_duplicates("policy")[["policy", "prompt", "completion"]]
    return table.merge(first, on="policy", how="left").drop(columns="policy")


def trajectory_layer(
    trajectories: pd.DataFrame,
    quantities: Sequence[str],
    color: alt.Color,
    dash: alt.StrokeDash,
    shown: alt.Parameter,
    farthest: float,
) -> alt.Chart:
    """Draw a thin line for each RL run, where the reader wants them."""
    runs = distinct_runs(trajectories)
    keys = ["experiment", "replicate", "iteration", "member"]
    table = runs.reindex(columns=["experiment", "iteration", "step", *quantities])
    table["kl"] = runs["kl_exact"]
    table["run"] = [" ".join(map(str, values)) for values in runs[keys].to_numpy()]
    return (
        plane(table, farthest)
        .transform_filter(shown)
        .transform_filter("runs")
        .mark_line(clip=True, strokeWidth=0.8)
        .encode(
            color=color,
            strokeDash=dash,
            detail="run:N",
            order="step:Q",
            opacity=alt.value(0.6),
        )
    )


def sft_layer(sft: pd.Series, quantities: Sequence[str], farthest: float) -> alt.Chart:
    """Draw a star where all fronts start."""
    row = sft.reindex(list(quantities)).to_frame().T.assign(kl=0.0, name="SFT")
    star = plane(row, farthest).mark_text(text="★", fontSize=18)
    values = [alt.Tooltip(field(q), type="quantitative", format=".4~g") for q in quantities]
    return star.encode(tooltip=["name:N", *values])


def optimum_layers(
    sft: pd.Series, optimum: pd.DataFrame | None, quantities: Sequence[str], farthest: float
) -> list[alt.Chart]:
    """Draw the best that any policy can have, and best-of-n, from SFT on, as `figures.fronts`
    does."""
    parts = []
    for kind, rows in optimal_curves(optimum):
        values = {name: from_sft(rows[name], sft[name]) for name in quantities if name in rows}
        parts.append(rows[["kl"]].assign(kind=OPTIMUM_LABELS[kind], **values))
    if not parts:
        return []
    layer = plane(pd.concat(parts).reset_index(drop=True), farthest)
    return [
        layer.mark_line(clip=True, stroke="#999999", strokeWidth=1.4).encode(
            detail="kind:N", order="kl:Q", tooltip="kind:N"
        )
    ]
