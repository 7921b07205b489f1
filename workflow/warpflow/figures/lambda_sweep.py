"""SLERP against LERP over the merge weight λ (Figs. 3c and 8)."""

from collections.abc import Iterable, Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from warpflow.figures.labels import Placed, place_texts
from warpflow.figures.panels import (
    add_legend,
    draw_points,
    label_axes,
    message_figure,
    new_figure,
)
from warpflow.figures.rows import has_values, liti_fronts, split_by
from warpflow.figures.style import (
    LINE_STYLES,
    FigureStyle,
    Look,
    experiment_looks,
    fixed_settings,
    marker_of,
)

MESSAGE = (
    "No merge of two members at a set weight was evaluated. Add experiments with `members: 2`, "
    "`merge_policies.weight` between 0 and 1, and 1 in `interpolate_policy.etas`."
)

SETTING_COLUMNS = ["merge_method", "iteration", "anchor", "beta", "mu"]


@fixed_settings
def plot_lambda_sweep(evaluations: pd.DataFrame, style: FigureStyle) -> Figure:
    """Draw SLERP against LERP of two members over the merge weight λ (Figs. 3c and 8)."""
    curves = lambda_curves(evaluations)
    if not curves:
        return message_figure(style, MESSAGE)
    looks = experiment_looks(evaluations, evaluations, style.palette)
    pairs = [("merge_weight", "reward"), ("merge_weight", "kl_exact"), ("kl_exact", "reward")]
    figure, [panels] = new_figure(style, [len(pairs)])
    methods = [str(curve["merge_method"].iloc[0]) for curve in curves.values()]
    of_method = method_looks(methods, evaluations, looks)
    handles = []
    for index, (name, curve) in enumerate(curves.items()):
        method = methods[index]
        line = {
            "color": of_method[method].color,
            "linestyle": LINE_STYLES[methods[:index].count(method) % len(LINE_STYLES)],
            "marker": marker_of(index + 1),
            "markersize": 4.5,
        }
        for axes, (x, y) in zip(panels, pairs, strict=True):
            draw_points(axes, curve, x, y, style.z, name, linewidth=1.6, **line)
        handles.append(Line2D([], [], label=name, **line))  # type: ignore[arg-type]
    for axes, (x, y) in zip(panels, pairs, strict=True):
        label_axes(axes, x, y)
    add_legend(figure, handles, style)
    texts = [
        Placed(
            point["kl_exact"],
            point["reward"],
            f"{point['merge_weight']:g}",
            str(handle.get_color()),
        )
        for curve, handle in zip(curves.values(), handles, strict=True)
        for point in curve.to_dict("records")
    ]
    place_texts(figure, panels[-1], texts)
    return figure


def lambda_curves(evaluations: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return curves over λ with their ends, one per merge method and training setting, sorted by λ.

    Merges are the interpolations of two members at η = 1. A merge without a weight is at λ = 1/2
    and joins a curve that has other points. λ = 0 and 1 are the trained members 0 and 1.
    """
    is_merge = (evaluations["stage"] == "interpolate_policy") & (evaluations["members"] == 2)
    merges = evaluations[is_merge & (evaluations["eta"] == 1)]
    found = []
    for _, rows in split_by(merges, *SETTING_COLUMNS):
        if has_values(rows, "merge_weight"):
            rows = rows.sort_values("merge_weight", na_position="last", kind="stable")
            points = rows.assign(merge_weight=rows["merge_weight"].fillna(0.5))
            curve = pd.concat([points, end_points(evaluations, rows)])
            found.append(curve.drop_duplicates("merge_weight").sort_values("merge_weight"))
    return dict(zip(curve_names(found), found, strict=True))


def end_points(evaluations: pd.DataFrame, merges: pd.DataFrame) -> pd.DataFrame:
    """Return the two policies that are merged. They are members 0 and 1 of the merges' own
    experiments if these list them, else of the first experiment with the same iteration, anchor, β
    and μ."""
    method = merges["merge_method"].iloc[0]
    rows = evaluations[
        (evaluations["stage"] == "train_policy") & evaluations["member"].isin([0, 1])
    ]
    for column in SETTING_COLUMNS[1:]:
        value = merges[column].iloc[0]
        rows = rows[rows[column].isna() if pd.isna(value) else rows[column] == value]
    own = rows[rows["experiment"].isin(merges["experiment"])]
    rows = own if own["member"].nunique() == 2 else rows
    rows = rows.drop_duplicates("member")
    return rows.assign(merge_weight=rows["member"].astype(float), merge_method=method)


def curve_names(curves: Sequence[pd.DataFrame]) -> list[str]:
    """Name curves by the merge method, and by what else tells them apart."""
    if not curves:
        return []
    settings = pd.concat([curve[SETTING_COLUMNS].iloc[:1] for curve in curves])
    telling = [
        column for column in SETTING_COLUMNS[1:] if settings[column].nunique(dropna=False) > 1
    ]
    return [
        ", ".join([str(row["merge_method"]), *(f"{column} {row[column]}" for column in telling)])
        for _, row in settings.iterrows()
    ]


def method_looks(
    methods: Iterable[str], evaluations: pd.DataFrame, looks: dict[str, Look]
) -> dict[str, Look]:
    """Return a look for each merge method: that of the first experiment with a LITI front that
    merges so, else one that no other method has, as far as there are any."""
    fronts = liti_fronts(evaluations)
    merged = fronts[fronts["members"] > 1].drop_duplicates("merge_method")
    users = dict(zip(merged["merge_method"], merged["experiment"], strict=True))
    others = [method for method in dict.fromkeys(methods) if method not in users]
    free = [name for name in looks if name not in users.values()] or list(looks)
    users |= {method: free[i % len(free)] for i, method in enumerate(others)}
    return {method: looks[name] for method, name in users.items()}
