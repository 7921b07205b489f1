"""Figures drawn from the evaluation tables, one function per figure.

Each `plot_*` function takes the tables as DataFrames and a `FigureStyle`, and returns a matplotlib
`Figure`; none of them reads or writes files or touches pyplot's state. Colour and line style stand
for the experiment in every figure, marker and shade for the iteration.
"""

import difflib
import io
import math
import os
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Literal

import matplotlib
import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from warpflow.settings.base import section
from warpflow.settings.figures import Figures

# On top of matplotlib's own defaults, so that no user's matplotlibrc changes the bytes.
SETTINGS = {
    "svg.hashsalt": "warpflow",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.handlelength": 3,  # a full dash-dot
}
fixed_settings = matplotlib.style.context(["default", SETTINGS])

LineStyle = Literal["-", "--", "-.", ":"]
LINE_STYLES: tuple[LineStyle, ...] = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SFT_LOOK = {"color": "black", "marker": "*", "markersize": 12, "linestyle": "none"}
LABELLED_EXPERIMENTS = 4  # whose η are written beside the points
# Of KL on a root scale, as far as there is room.
SQRT_TICKS = (0, 0.05, 0.1, 0.2, 0.5, 1, 2, 3, 5, 7, 10, 15, 20, 30, 40, 60, 80, 100, 150, 200, 300)
OPTIMUM_LOOKS = {
    "optimum": {"color": "0.65", "linewidth": 1.4, "zorder": 0.5},
    "best_of_n": {"color": "0.65", "linewidth": 1.2, "linestyle": "--", "zorder": 0.5},
}
OPTIMUM_LABELS = {"optimum": "optimal front", "best_of_n": "best of n"}
SMOOTHING_SHARE = 0.1  # window of the rolling mean, about, as a share of the run

AXIS_LABELS = {
    "reward": "Reward",
    "gold": "Gold reward",
    "kl_exact": "KL to SFT (nats)",
    "kl_to_anchor": "KL to the anchor (nats)",
    "eta": "Interpolation rate η",
    "merge_weight": "Weight λ of member 1",
    "step": "RL step",
    "training_reward": "Training reward",
    "cosine_task_vectors": "Cosine of task vectors",
    "cosine_weights": "Cosine of full weights",
    "norm_ratio": "Ratio of task-vector norms",
    "self_similarity": "Self-similarity of a prompt's completions",
    "distinct_2": "Distinct bigrams (share)",
    "entropy": "Entropy (nats per token)",
    "length": "Length (tokens)",
}

MESSAGES = {
    "fronts": "No policy was evaluated. Give `interpolate_policy.etas` several values.",
    "eta_sweep": "No experiment was evaluated at two or more η. "
    "Give `interpolate_policy.etas` several values.",
    "lambda_sweep": "No merge of two members at a set weight was evaluated. Add experiments with "
    "`members: 2`, `merge_policies.weight` between 0 and 1, and 1 in `interpolate_policy.etas`.",
    "geometry": "There is no pair of members to compare. Set `members` to 2 or more.",
    "training": "No training steps were recorded. Set `train_policy.steps` above 0 and "
    "`train_policy.log_every` below it.",
    "trajectories": "No policy was evaluated during training. Set `train_policy.evaluate_every` "
    "below `train_policy.steps`.",
}


@section
class FigureStyle(Figures):
    """Look of all figures: section `figures` of the config."""

    def __post_init__(self) -> None:
        if self.palette not in matplotlib.colormaps:
            near = difflib.get_close_matches(self.palette, list(matplotlib.colormaps), n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else "try okabe_ito or viridis."
            raise ValueError(
                f"figures.palette: expected the name of a matplotlib colormap, "
                f"got {self.palette!r}; {hint}"
            )

    @property
    def z(self) -> float:
        """Half-width of the confidence interval in standard errors."""
        return NormalDist().inv_cdf(0.5 + self.confidence / 2)


# ---------------------------------------------------------------------------- look of a line


@dataclass(frozen=True)
class Look:
    """How one experiment is drawn, the same in every figure. last: number of its last iteration."""

    color: str
    linestyle: LineStyle
    last: int

    def shade(self, iteration: int) -> str:
        return shade(self.color, iteration, self.last)


def palette_colors(palette: str, count: int) -> list[str]:
    """Hex colours of a colormap: all of a short list's readable ones, else `count` even samples."""
    colormap = matplotlib.colormaps[palette]
    if isinstance(colormap, ListedColormap) and colormap.N <= 32:
        colors = [to_hex(color) for color in colormap(np.arange(colormap.N))]
        readable = [color for color in colors if luminance(color) < 0.7]
        return list(dict.fromkeys(readable or colors))
    # The light end of a continuous map is hard to see on white.
    return [to_hex(color) for color in colormap(np.linspace(0, 0.85, max(count, 1)))]


def luminance(color: str) -> float:
    """Relative luminance of a colour, 0 (black) to 1 (white), as WCAG 2 defines it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def experiment_looks(
    evaluations: pd.DataFrame, others: pd.DataFrame, palette: str
) -> dict[str, Look]:
    """Map each experiment to its `Look`, in the order in which the evaluations list them.

    Experiments that are only points of the λ sweep come last: they are drawn by merge method and
    must not use up the palette. Experiments that only `others` names follow.
    """
    names = list(dict.fromkeys(evaluations["experiment"]))
    swept = set(evaluations.loc[evaluations["merge_weight"].notna(), "experiment"])
    swept -= set(liti_fronts(evaluations)["experiment"])
    main = [name for name in names if name not in swept]
    rest = [name for name in dict.fromkeys([*names, *others["experiment"]]) if name not in main]
    both = pd.concat([table[["experiment", "iteration"]] for table in (evaluations, others)])
    last = both.groupby("experiment")["iteration"].max().to_dict()
    colors = palette_colors(palette, len(main))
    looks = {}
    for index, name in enumerate([*main, *rest]):
        cycle, position = divmod(index, len(colors))
        linestyle = LINE_STYLES[cycle % len(LINE_STYLES)]
        looks[name] = Look(colors[position], linestyle, int(last[name]))
    return looks


def shade(color: str, iteration: int, last: int) -> str:
    """Lighter for earlier iterations; the last one has the full colour."""
    white = 0.0 if last <= 1 else 0.55 * (last - iteration) / (last - 1)
    red, green, blue = (channel * (1 - white) + white for channel in to_rgb(color))
    return to_hex((red, green, blue))


def marker_of(iteration: int) -> str:
    return MARKERS[(iteration - 1) % len(MARKERS)]


# ------------------------------------------------------------------------- choosing the rows


def liti_fronts(evaluations: pd.DataFrame) -> pd.DataFrame:
    """Rows of interpolations in groups (experiment, iteration, towards) with two or more η."""
    rows = evaluations[evaluations["stage"] == "interpolate_policy"]
    groups = rows.groupby(["experiment", "iteration", "towards"], dropna=False)
    return rows[groups["eta"].transform("nunique") > 1]


def single_policies(evaluations: pd.DataFrame) -> pd.DataFrame:
    """Rows that no front or λ sweep draws: trained members and interpolations at a single η.

    A policy that several experiments share is kept once, for the first of them.
    """
    in_front = evaluations["policy"].isin(liti_fronts(evaluations)["policy"])
    # One member at η = 1 is that member again, under another path.
    repeats = (evaluations["stage"] == "interpolate_policy") & (
        (evaluations["members"] == 1) & (evaluations["eta"] == 1)
    )
    swept = evaluations["merge_weight"].notna() & (evaluations["stage"] == "interpolate_policy")
    return evaluations[~in_front & ~repeats & ~swept].drop_duplicates("policy")


def split_by(table: pd.DataFrame, *columns: str) -> Iterator[tuple[tuple, pd.DataFrame]]:
    """(values of the columns, rows) of each group, in the table's order; an empty value counts."""
    for values, rows in table.groupby(list(columns), sort=False, dropna=False):
        yield tuple(values) if isinstance(values, tuple) else (values,), rows


def drop_shared(table: pd.DataFrame, group: Sequence[str], parts: Sequence[str]) -> pd.DataFrame:
    """Leave out what an earlier experiment has already: groups of whose parts all are known.

    Experiments that differ only after training use the same runs, so their rows are equal; to six
    digits, because the geometry of a pair may depend in the last ones on how many members there
    are.
    """
    seen: set[str] = set()
    kept = []
    for _, rows in split_by(table, "experiment", *group):
        contents = {
            part.drop(columns="experiment").to_csv(index=False, float_format="%.6g")
            for _, part in split_by(rows, *parts)
        }
        if not contents <= seen:
            kept.append(rows)
        seen |= contents
    return pd.concat(kept) if kept else table


def distinct_runs(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of a per-step table with each run once, under the first experiment that uses it; of a
    trajectory the policy's own, not those of its averages."""
    if "weights" in table:
        table = table[table["weights"] == "policy"].drop(columns="weights")
    return drop_shared(table, ["replicate", "iteration", "member"], ["member"])


def sft_row(evaluations: pd.DataFrame, trajectories: pd.DataFrame) -> pd.Series | None:
    """The SFT policy: η = 0 of an interpolation towards it, else step 0 of iteration 1."""
    rows = evaluations[(evaluations["towards"] == "sft") & (evaluations["eta"] == 0)]
    if rows.empty:
        rows = trajectories[(trajectories["iteration"] == 1) & (trajectories["step"] == 0)]
    return None if rows.empty else rows.iloc[0]


def has_values(table: pd.DataFrame, column: str) -> bool:
    return bool(table[column].notna().any())


# ------------------------------------------------------------------------------ λ-sweep rows

SETTING_COLUMNS = ["merge_method", "iteration", "anchor", "beta", "mu"]


def lambda_curves(evaluations: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Curves over λ, one per merge method and training setting, sorted by λ, with their ends.

    Merges are the two-member interpolations at η = 1. One without a weight is at λ = 1/2 and
    joins a curve that has other points. λ = 0 and 1 are the trained members 0 and 1.
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
    """The two merged policies: members 0 and 1 of the merges' own experiments if these list them,
    else of the first experiment with the same iteration, anchor, β and μ."""
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
    """The merge method, and whatever else tells the curves apart."""
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
    """Each merge method's look: that of the first experiment with a LITI front which merges so,
    else one that no other method has (as far as there are any)."""
    fronts = liti_fronts(evaluations)
    merged = fronts[fronts["members"] > 1].drop_duplicates("merge_method")
    users = dict(zip(merged["merge_method"], merged["experiment"], strict=True))
    others = [method for method in dict.fromkeys(methods) if method not in users]
    free = [name for name in looks if name not in users.values()] or list(looks)
    users |= {method: free[i % len(free)] for i, method in enumerate(others)}
    return {method: looks[name] for method, name in users.items()}


# ----------------------------------------------------------------------------- drawing parts


def new_figure(style: FigureStyle, panels: Sequence[int]) -> tuple[Figure, list[list[Axes]]]:
    """A figure with `panels[i]` equally wide panels in row i."""
    figure = Figure(
        figsize=(style.width, style.height * len(panels)), dpi=style.dpi, layout="constrained"
    )
    layout = figure.get_layout_engine()
    assert isinstance(layout, ConstrainedLayoutEngine)
    layout.set(w_pad=0.1, h_pad=0.08)
    columns = math.lcm(*panels)
    grid = figure.add_gridspec(len(panels), columns)
    rows = []
    for row, count in enumerate(panels):
        span = columns // count
        cells = [grid[row, i * span : (i + 1) * span] for i in range(count)]
        rows.append([figure.add_subplot(cell) for cell in cells])
    return figure, rows


def write_message(axes: Axes, message: str) -> None:
    """Fill a panel that has no rows with a sentence instead of an empty frame."""
    axes.set_axis_off()
    axes.text(
        0.5,
        0.5,
        textwrap.fill(message, 60),
        ha="center",
        va="center",
        color="0.35",
        transform=axes.transAxes,
    )


def message_figure(style: FigureStyle, message: str) -> Figure:
    figure, [[axes]] = new_figure(style, [1])
    write_message(axes, message)
    return figure


def label_axes(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(AXIS_LABELS[x])
    axes.set_ylabel(AXIS_LABELS[y])


def draw_points(
    axes: Axes, rows: pd.DataFrame, x: str, y: str, z: float, label: str, **line: object
) -> None:
    """Draw rows with error bars of z·se on the axes that have a standard error."""

    def half_width(column: str) -> np.ndarray | None:
        errors = f"{column}_se"
        return z * rows[errors].to_numpy(dtype=float) if errors in rows else None

    axes.errorbar(
        rows[x].to_numpy(dtype=float),
        rows[y].to_numpy(dtype=float),
        xerr=half_width(x),
        yerr=half_width(y),
        label=label,
        elinewidth=0.8,
        **line,  # type: ignore[arg-type]
    )


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


@dataclass(frozen=True)
class Placed:
    """A text to place next to a point of an axes, in data coordinates."""

    x: float
    y: float
    text: str
    color: str


Box = tuple[float, float, float, float]  # left, low, right, high in pixels


def place_texts(figure: Figure, axes: Axes, texts: Sequence[Placed], size: float = 6.5) -> None:
    """Write each text beside its point, first come first served, clear of all points and texts.

    A text that finds no free place is left out. Needs the final limits of the axes, so it is
    called after everything else is drawn.
    """
    figure.draw_without_rendering()
    point = figure.dpi / 72
    shown = [item for item in texts if math.isfinite(item.x) and math.isfinite(item.y)]
    pixels = [axes.transData.transform((item.x, item.y)) for item in shown]
    markers = [(x - 2 * point, y - 2 * point, x + 2 * point, y + 2 * point) for x, y in pixels]
    taken: list[Box] = list(dict.fromkeys(markers))
    for item, (x, y) in zip(shown, pixels, strict=True):
        width = 0.62 * size * len(item.text)
        for dx, dy in ((4, -3 - size), (-4 - width, 4), (4, 4), (-4 - width, -3 - size)):
            left, low = x + dx * point, y + dy * point
            box = (left, low, left + width * point, low + size * point)
            if lies_inside(box, axes) and not any(overlap(box, other) for other in taken):
                taken.append(box)
                write_beside(axes, item, (dx, dy), size)
                break


def write_beside(axes: Axes, item: Placed, offset: tuple[float, float], size: float) -> None:
    """Write a text with a white rim at an offset (points) from its point."""
    note = axes.annotate(
        item.text,
        (item.x, item.y),
        xytext=offset,
        textcoords="offset points",
        fontsize=size,
        color=item.color,
        zorder=5,
        path_effects=[withStroke(linewidth=1.5, foreground="white")],
    )
    note.set_in_layout(False)


def lies_inside(box: Box, axes: Axes) -> bool:
    frame = axes.bbox
    return frame.x0 <= box[0] and frame.y0 <= box[1] and box[2] <= frame.x1 and box[3] <= frame.y1


def overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def limit_kl_view(axes: Axes, front: float, farthest: float) -> None:
    """Cut the view where a run goes over three times as far as the fronts, and say so."""
    if farthest > 3 * front > 0:
        axes.set_xlim(-0.04 * front, 1.5 * front)
        axes.set_xlabel(f"{axes.get_xlabel()}\n(cut here; runs go on to {farthest:.3g})")


def scale_kl(axes: Axes, scale: str) -> None:
    """Give the axis of KL its scale, once everything is drawn; the root goes on below 0."""
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


# ----------------------------------------------------------------------------------- legends


def add_legend(figure: Figure, handles: Sequence[Line2D], style: FigureStyle) -> None:
    """A legend below the panels; the figure grows so that they keep their height."""
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = max(1, min(len(handles), int(style.width / (0.7 + 0.068 * longest))))
    lines = math.ceil(len(handles) / columns)
    figure.set_figheight(figure.get_figheight() + 0.18 * lines + 0.15)
    figure.legend(handles=list(handles), loc="outside lower center", ncols=columns)


def experiment_handles(names: Iterable[str], looks: dict[str, Look]) -> list[Line2D]:
    """One entry per drawn experiment, in the order of the looks."""
    drawn = set(names)
    return [
        Line2D([], [], color=look.color, linestyle=look.linestyle, linewidth=2, label=name)
        for name, look in looks.items()
        if name in drawn
    ]


def iteration_handles(iterations: Iterable[int], markers: bool = True) -> list[Line2D]:
    """One entry per iteration (by marker, or by shade alone), none if there is only one."""
    numbers = sorted({int(iteration) for iteration in iterations})
    if len(numbers) < 2:
        return []
    return [
        Line2D(
            [],
            [],
            color=shade("#333333", number, numbers[-1]),
            marker=marker_of(number) if markers else "none",
            markersize=5,
            linestyle="none" if markers else "-",
            label=f"iteration {number}",
        )
        for number in numbers
    ]


# ----------------------------------------------------------------------------------- figures


def front_groups(
    fronts: pd.DataFrame, looks: dict[str, Look]
) -> Iterator[tuple[str, pd.DataFrame, dict]]:
    """(label, rows sorted by η, line properties) of every LITI front."""
    for (name, iteration, towards), rows in split_by(fronts, "experiment", "iteration", "towards"):
        color = looks[name].shade(iteration)
        line = {
            "color": color,
            "linestyle": looks[name].linestyle,
            "marker": marker_of(iteration),
            "markersize": 4,
            "markerfacecolor": "white" if towards == "init" else color,
            "linewidth": 1.6,
            "zorder": 3,
        }
        yield f"{name}, iteration {iteration}", rows.sort_values("eta"), line


def run_groups(
    table: pd.DataFrame, looks: dict[str, Look]
) -> Iterator[tuple[str, pd.DataFrame, str, LineStyle]]:
    """(label, rows sorted by step, colour, line style) of every run of a per-step table."""
    runs = distinct_runs(table)
    columns = ("experiment", "replicate", "iteration", "member")
    for (name, replicate, iteration, member), rows in split_by(runs, *columns):
        label = f"{name}, replicate {replicate}, iteration {iteration}, member {member:g}"
        yield label, rows.sort_values("step"), looks[name].shade(iteration), looks[name].linestyle


def draw_fronts_panel(
    axes: Axes,
    evaluations: pd.DataFrame,
    trajectories: pd.DataFrame,
    y: str,
    looks: dict[str, Look],
    z: float,
    optimum: pd.DataFrame | None = None,
) -> None:
    """LITI fronts, trajectories, single policies, SFT and optimum in the plane of KL and `y`."""
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
            # From SFT on: the optimum's level is that of other prompts and samples.
            values = sft[y] + rows[y] - rows[y].iloc[0]
            axes.plot(rows["kl"], values, label=kind, **OPTIMUM_LOOKS[kind])  # type: ignore[arg-type]
    label_axes(axes, "kl_exact", y)


def optimal_curves(optimum: pd.DataFrame | None) -> Iterator[tuple[str, pd.DataFrame]]:
    """(kind, reliable rows by KL) of what optimum.csv has, from SFT (KL 0) on."""
    if optimum is not None:
        reliable = optimum[optimum["reliable"]]
        for (kind,), rows in split_by(reliable, "kind"):
            yield kind, rows.sort_values("kl")


def front_texts(fronts: pd.DataFrame, y: str, looks: dict[str, Look]) -> Iterator[Placed]:
    """The η along the last fronts of the first experiments; more texts would hide the lines."""
    first = list(dict.fromkeys(fronts["experiment"]))[:LABELLED_EXPERIMENTS]
    last = fronts["iteration"] == fronts.groupby("experiment")["iteration"].transform("max")
    chosen = fronts[last & fronts["experiment"].isin(first) & (fronts["eta"] != 0)]
    for row in chosen.to_dict("records"):
        yield Placed(row["kl_exact"], row[y], f"{row['eta']:g}", looks[row["experiment"]].color)


def front_handles(
    evaluations: pd.DataFrame,
    trajectories: pd.DataFrame,
    looks: dict[str, Look],
    optimum: pd.DataFrame | None = None,
) -> list[Line2D]:
    """Legend of the fronts: experiments, iterations, and what a thick and a thin line mean."""
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


@fixed_settings
def plot_fronts(
    evaluations: pd.DataFrame,
    trajectories: pd.DataFrame,
    style: FigureStyle,
    optimum: pd.DataFrame | None = None,
) -> Figure:
    """KL–reward fronts of LITI against the RL trajectories (Figs. 1b and 4c of the paper), and the
    optimal front above them where it was estimated.

    A second panel shows the gold reward if there is one.
    """
    tables = (evaluations, trajectories)
    metrics = [m for m in ("reward", "gold") if any(has_values(table, m) for table in tables)]
    if not metrics:
        return message_figure(style, MESSAGES["fronts"])
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


@fixed_settings
def plot_eta_sweep(evaluations: pd.DataFrame, style: FigureStyle) -> Figure:
    """Reward, KL and gold reward against η, per experiment and iteration (Fig. 10)."""
    fronts = liti_fronts(evaluations)
    if fronts.empty:
        return message_figure(style, MESSAGES["eta_sweep"])
    looks = experiment_looks(evaluations, evaluations, style.palette)
    metrics = [metric for metric in ("reward", "kl_exact", "gold") if has_values(fronts, metric)]
    figure, [panels] = new_figure(style, [len(metrics)])
    for axes, metric in zip(panels, metrics, strict=True):
        for label, rows, line in front_groups(fronts, looks):
            draw_points(axes, rows, "eta", metric, style.z, label, **line)
        label_axes(axes, "eta", metric)
    handles = experiment_handles(fronts["experiment"], looks)
    add_legend(figure, [*handles, *iteration_handles(fronts["iteration"])], style)
    return figure


@fixed_settings
def plot_lambda_sweep(evaluations: pd.DataFrame, style: FigureStyle) -> Figure:
    """SLERP against LERP of two members over the merge weight λ (Figs. 3c and 8)."""
    curves = lambda_curves(evaluations)
    if not curves:
        return message_figure(style, MESSAGES["lambda_sweep"])
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


def draw_geometry_panel(
    axes: Axes,
    geometry: pd.DataFrame,
    y: str,
    groups: Sequence[str],
    looks: dict[str, Look],
) -> None:
    """Mean over the pairs of members as a line over the layer groups, each pair as a faint dot."""
    positions = {group: i for i, group in enumerate(groups)}
    for (name, iteration), rows in split_by(geometry, "experiment", "iteration"):
        color = looks[name].shade(iteration)
        axes.plot(
            rows["group"].map(positions), rows[y], ".", color=color, alpha=0.3, label="_pairs"
        )
        mean = rows.groupby("group", sort=False)[y].mean()
        mean = mean.reindex([group for group in groups if group in mean.index])
        axes.plot(
            [positions[group] for group in mean.index],
            mean,
            color=color,
            linestyle=looks[name].linestyle,
            marker=marker_of(iteration),
            markersize=4,
            linewidth=1.3,
            label=f"{name}, iteration {iteration}",
        )
    every = math.ceil(len(groups) / 16)
    names = [group.removeprefix("model.").removesuffix(".weight") for group in groups[::every]]
    axes.set_xticks(range(0, len(groups), every), names, rotation=90, fontsize=7)
    axes.set_ylabel(AXIS_LABELS[y])


@fixed_settings
def plot_geometry(evaluations: pd.DataFrame, geometry: pd.DataFrame, style: FigureStyle) -> Figure:
    """Angles and norms of the members' task vectors, layer by layer (Fig. 11).

    `evaluations` only fixes the colours of the experiments.
    """
    if geometry.empty:
        return message_figure(style, MESSAGES["geometry"])
    looks = experiment_looks(evaluations, geometry, style.palette)
    pairs = drop_shared(geometry, ["replicate", "iteration"], ["member_a", "member_b"])
    pairs = pairs.assign(norm_ratio=norm_ratio(pairs))
    groups = list(dict.fromkeys(pairs["group"]))
    metrics = ["cosine_task_vectors", "cosine_weights", "norm_ratio"]
    figure, [panels] = new_figure(style, [len(metrics)])
    for axes, metric in zip(panels, metrics, strict=True):
        draw_geometry_panel(axes, pairs, metric, groups, looks)
    # One scale for both cosines shows at once how much closer the full weights are.
    lowest = np.nanmin(pairs[metrics[:2]].to_numpy(dtype=float), initial=0.0)
    for axes in panels[:2]:
        axes.set_ylim(lowest - 0.05, 1.05)
    panels[2].axhline(1, color="0.5", linewidth=0.8, zorder=0, label="_equal norms")
    handles = experiment_handles(pairs["experiment"], looks)
    add_legend(figure, [*handles, *iteration_handles(pairs["iteration"])], style)
    return figure


def norm_ratio(geometry: pd.DataFrame) -> pd.Series:
    """Norm of member b's task vector over that of member a; NaN where the latter is zero."""
    return geometry["norm_b"] / geometry["norm_a"].where(geometry["norm_a"] > 0)


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


@fixed_settings
def plot_training_curves(
    evaluations: pd.DataFrame,
    training: pd.DataFrame,
    trajectories: pd.DataFrame,
    style: FigureStyle,
) -> Figure:
    """What each run logged per step, and the policies evaluated on the way (Fig. 12).

    `evaluations` only fixes the colours of the experiments.
    """
    logged = ["reward", "kl_to_anchor"]
    metrics = [m for m in ("reward", "kl_exact", "gold") if has_values(trajectories, m)]
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
        write_message(top[0], MESSAGES["training"])
    if metrics:
        draw_runs(bottom, metrics, trajectories, looks, banded)
    else:
        write_message(bottom[0], MESSAGES["trajectories"])
    if len(both):
        runs = pd.concat([distinct_runs(table) for table in (training, trajectories)])
        handles = experiment_handles(runs["experiment"], looks)
        shades = iteration_handles(both["iteration"], markers=False)
        add_legend(figure, [*handles, *shades], style)
    return figure


# ------------------------------------------------------------------------------------ saving


@fixed_settings
def save_figure(figure: Figure, folder: Path, name: str) -> tuple[Path, Path]:
    """Write folder/name.png and folder/name.svg; equal figures give equal bytes.

    The files are replaced by rename: an existing one may be a read-only link into DVC's cache.
    """
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
    for kind, entries in metadata.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=figure.dpi, metadata=entries)
        unfinished = folder / f".{name}.{kind}.tmp"
        unfinished.write_bytes(buffer.getvalue())
        os.replace(unfinished, folder / f"{name}.{kind}")
    return folder / f"{name}.png", folder / f"{name}.svg"
