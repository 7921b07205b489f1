"""How figures look: the section `figures` of the config, and what colours, lines and markers mean.

In every figure colour stands for the experiment, and line style, marker and shade for the
iteration.
"""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import matplotlib
import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.colors import ListedColormap, to_hex, to_rgb

from warpflow.figures.rows import distinct_runs, liti_fronts, split_by
from warpflow.settings.base import section
from warpflow.settings.figures import Figures

# These are set over matplotlib's own defaults, so that no user's matplotlibrc changes the bytes.
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


@section
class FigureStyle(Figures):
    """The look of all figures: section `figures` of the config."""

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
        """The half-width of the confidence interval in standard errors."""
        return NormalDist().inv_cdf(0.5 + self.confidence / 2)


@dataclass(frozen=True)
class Look:
    """How one experiment is drawn in every figure. `last` is the number of its last iteration."""

    color: str
    last: int

    def shade(self, iteration: int) -> str:
        return shade(self.color, iteration, self.last)


def linestyle_of(iteration: int) -> LineStyle:
    """Return solid, dashed, dash-dotted and dotted for iterations 1 to 4, and then again from
    solid."""
    return LINE_STYLES[(iteration - 1) % len(LINE_STYLES)]


def palette_colors(palette: str, count: int) -> list[str]:
    """Return the readable hex colours of a short list of colours, else `count` even samples of a
    map."""
    colormap = matplotlib.colormaps[palette]
    if isinstance(colormap, ListedColormap) and colormap.N <= 32:
        colors = [to_hex(color) for color in colormap(np.arange(colormap.N))]
        readable = [color for color in colors if luminance(color) < 0.7]
        return list(dict.fromkeys(readable or colors))
    # The light end of a continuous map is hard to see on white.
    return [to_hex(color) for color in colormap(np.linspace(0, 0.85, max(count, 1)))]


def luminance(color: str) -> float:
    """Return the relative luminance of a colour, 0 (black) to 1 (white), as WCAG 2 defines it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def experiment_looks(
    evaluations: pd.DataFrame, others: pd.DataFrame, palette: str
) -> dict[str, Look]:
    """Map each experiment to its `Look`, in the order in which the evaluations list them.

    Experiments that are only points of the λ sweep come last, because they are drawn by merge
    method and must not use up the palette. Experiments that only `others` names follow.
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
        looks[name] = Look(again(colors[position], cycle), int(last[name]))
    return looks


def again(color: str, cycle: int) -> str:
    """Change a colour of the palette that is used for the `cycle`-th time after the first. It
    becomes darker, or lighter where it is dark already."""
    kept = 0.6**cycle
    end = 0.0 if luminance(color) > 0.1 else 1.0
    red, green, blue = (channel * kept + end * (1 - kept) for channel in to_rgb(color))
    return to_hex((red, green, blue))


def shade(color: str, iteration: int, last: int) -> str:
    """Return a lighter colour for earlier iterations. The last one has the full colour."""
    white = 0.0 if last <= 1 else 0.55 * (last - iteration) / (last - 1)
    red, green, blue = (channel * (1 - white) + white for channel in to_rgb(color))
    return to_hex((red, green, blue))


def marker_of(iteration: int) -> str:
    return MARKERS[(iteration - 1) % len(MARKERS)]


def front_groups(
    fronts: pd.DataFrame, looks: dict[str, Look]
) -> Iterator[tuple[str, pd.DataFrame, dict]]:
    """Yield (label, rows sorted by η, line properties) of every LITI front."""
    for (name, iteration, towards), rows in split_by(fronts, "experiment", "iteration", "towards"):
        color = looks[name].shade(iteration)
        line = {
            "color": color,
            "linestyle": linestyle_of(iteration),
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
    """Yield (label, rows sorted by step, colour, line style) of every run of a per-step table."""
    runs = distinct_runs(table)
    columns = ("experiment", "replicate", "iteration", "member")
    for (name, replicate, iteration, member), rows in split_by(runs, *columns):
        label = f"{name}, replicate {replicate}, iteration {iteration}, member {member:g}"
        yield label, rows.sort_values("step"), looks[name].shade(iteration), linestyle_of(iteration)
