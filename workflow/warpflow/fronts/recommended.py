"""Which points of the fronts a user may want: the best, the knee, the last within a KL budget.

Each is a row of `evaluations.csv`, the mean of its replicates, so that the tables, the summary and
`scripts/export_point.py` mean the same point by the same name, such as ``warp/2/0.5``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from warpflow.eta_names import eta_text
from warpflow.gold_names import gold_columns

NEEDED = 3  # a front with a knee has at least so many points


@dataclass(frozen=True)
class Recommended:
    """A point of a front, and why it is recommended.

    Attributes:
        title: what the point is, in a few words. reason: how it was chosen, as a sentence.
        row: its row of the evaluations. None: no point is of this kind, and `reason` says why.
    """

    title: str
    reason: str
    row: pd.Series | None


def point_name(row: pd.Series) -> str:
    """Return the name of a LITI point on command lines: experiment/iteration/η."""
    return f"{row['experiment']}/{int(row['iteration'])}/{eta_text(float(row['eta']))}"


def front_points(evaluations: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the LITI fronts, in the table's order. A start of the next iteration that
    is on no front is left out, and so is η = 0, which is the initialisation itself."""
    rows = evaluations[evaluations["stage"] == "interpolate_policy"]
    has_sft = rows["experiment"].isin(rows.loc[rows["towards"] == "sft", "experiment"])
    return rows[((rows["towards"] == "sft") | ~has_sft) & (rows["eta"] > 0)]


def last_front(evaluations: pd.DataFrame) -> pd.DataFrame:
    """Return the front of the base experiment's last iteration, by η. The base comes first in the
    table."""
    points = front_points(evaluations)
    points = points[points["experiment"] == evaluations["experiment"].iloc[0]]
    return points[points["iteration"] == points["iteration"].max()].sort_values("eta")


def recommend(
    evaluations: pd.DataFrame, sft: pd.Series | None, kl_budget: float = 0.0
) -> Iterator[Recommended]:
    """Yield the best point of all fronts, and two points on the last front of the base experiment:
    the knee and, with a budget, the largest η within it.

    Args:
        evaluations: a row for each use of a policy, the means of its replicates.
        sft: the row of the SFT policy, where the front starts, if it was evaluated.
        kl_budget: in nats per sequence; 0 means that there is none.
    """
    yield best(evaluations)
    front = last_front(evaluations)
    yield knee(front, sft)
    if kl_budget:
        yield within_budget(front, kl_budget)


def best(evaluations: pd.DataFrame) -> Recommended:
    """Return the point with the most gold reward, or without gold the most reward on held-out
    prompts. The first of several golds counts."""
    points = front_points(evaluations)
    golds = [name for name in gold_columns(evaluations) if points[name].notna().any()]
    quantity = golds[0] if golds else "reward"
    words = f"gold reward ({quantity})" if golds else "reward on held-out prompts"
    title = f"most {words}"
    values = points[quantity].dropna()
    if values.empty:
        return Recommended(title, "No LITI point was evaluated.", None)
    reason = (
        f"It has the largest mean of {len(values)} points; the largest of noisy means is "
        "a little too large."
    )
    return Recommended(title, reason, points.iloc[int(np.nanargmax(points[quantity]))])


def knee(front: pd.DataFrame, sft: pd.Series | None) -> Recommended:
    """Return the point beyond which a nat of KL buys less reward than on the front's average."""
    title = "the knee"
    points = front if sft is None else pd.concat([sft.to_frame().T, front])
    kl, reward = (points[name].to_numpy(dtype=float) for name in ("kl_exact", "reward"))
    found = knee_of(kl, reward)
    if len(points) < NEEDED or found is None:
        reason = f"The last front has no knee: it takes {NEEDED} points or more, of rising reward."
        return Recommended(title, reason, None)
    row = points.iloc[found]
    reason = (
        "Before it a nat of KL buys more reward than on the average of the front; after it less."
    )
    return Recommended(title, reason, row)


def knee_of(kl: np.ndarray, reward: np.ndarray) -> int | None:
    """Return the index of the point that lies highest above the chord from the point of the
    smallest KL to that of the most reward. This is the knee by the method Kneedle (Satopää et al.,
    2011), without its smoothing. Return None where no point lies above the chord.

    Args:
        kl, reward: [n], in any order.
    """
    if len(kl) < NEEDED:
        return None
    first, last = int(np.argmin(kl)), int(np.argmax(reward))
    width, height = kl[last] - kl[first], reward[last] - reward[first]
    if not (width > 0 and height > 0):
        return None
    above = (reward - reward[first]) / height - (kl - kl[first]) / width
    above[kl > kl[last]] = -math.inf
    found = int(np.argmax(above))
    return found if above[found] > 1e-9 else None


def within_budget(front: pd.DataFrame, kl_budget: float) -> Recommended:
    """Return the point of the largest η of a front whose KL to SFT is within the budget."""
    title = f"the largest η within {kl_budget:g} nats"
    inside = front[front["kl_exact"] <= kl_budget].sort_values("eta")
    if inside.empty:
        least = f", the smallest KL is {front['kl_exact'].min():.3g}" if len(front) else ""
        reason = f"No point of the last front has so little KL{least}."
        return Recommended(title, reason, None)
    reason = "Its estimated KL is at most figures.kl_budget; that of the next η is above it."
    if inside["eta"].max() == front["eta"].max():
        reason = "All points of the last front have at most figures.kl_budget."
    return Recommended(title, reason, inside.iloc[-1])
