"""Every experiment against the base one, and every policy against the best that there can be."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from warpflow.evaluation.optimum import optimum_at, reliable_front
from warpflow.fronts.bootstrap import (
    Array,
    Curve,
    difference_at,
    hypervolume,
    interval,
    mean_difference,
)
from warpflow.fronts.measurements import USE, Measurements

KL_SHARES = (0.25, 0.5, 0.75)  # of the common range, where differences are listed one by one

Row = dict[str, object]


def comparisons_table(measured: Measurements, confidence: float) -> pd.DataFrame:
    """comparisons.csv: the last front of each experiment minus the base experiment's, at the same
    iteration and at the base's last.

    Columns: `measure` is `mean reward` (and `mean gold`) over the KLs from `kl_low` to `kl_high`
    that both reach, `reward` at one KL, or `hypervolume` up to `kl_high`, the larger KL of both;
    `estimate`, `low`, `high` of the difference, and `result`: above, below, undecided, or why not.
    """
    rows = []
    last = measured.iterations(measured.base)[-1]
    for name in measured.experiments[1:]:
        own = measured.iterations(name)[-1]
        for i in sorted({min(own, last), last}):
            key: Row = {"experiment": name, "iteration": own}
            key |= {"against": measured.base, "against_iteration": i}
            for found in compare(measured, confidence, (name, own), (measured.base, i)):
                rows.append(key | found)
    columns = ["experiment", "iteration", "against", "against_iteration", "measure", "kl_low"]
    columns += ["kl_high", "estimate", "low", "high", "result", "prompts", "replicates"]
    return pd.DataFrame(rows, columns=columns)


def compare(
    measured: Measurements, confidence: float, first: tuple[str, int], second: tuple[str, int]
) -> Iterator[Row]:
    """Rows of one pair of fronts, none where a front is missing."""
    for quantity in ("reward", "gold") if measured.has_gold else ("reward",):
        a, b = (measured.front(*arm, quantity) for arm in (first, second))
        if a is None or b is None:
            return
        found = mean_difference([a], [b])
        if found is None:
            yield {"measure": f"mean {quantity}", "result": "no KL in common"}
            continue
        draws, (low, high) = found
        yield difference_row(measured, confidence, f"mean {quantity}", draws, low, high)
        if quantity == "reward" and high > low:
            yield from rows_at(measured, confidence, a, b, low, high)


def rows_at(
    measured: Measurements, confidence: float, a: Curve, b: Curve, low: float, high: float
) -> Iterator[Row]:
    """Differences at some KLs of the common range, and of the hypervolumes."""
    kls = low + (high - low) * np.array(KL_SHARES)
    for kl, draws in zip(kls, difference_at([a], [b], kls).T, strict=True):
        yield difference_row(measured, confidence, "reward", draws, kl, kl)
    end, floor = max(a.ends()[1], b.ends()[1]), measured.sft_reward()
    draws = hypervolume(a, floor, end) - hypervolume(b, floor, end)
    yield difference_row(measured, confidence, "hypervolume", draws, 0.0, end)


def difference_row(
    measured: Measurements, confidence: float, measure: str, draws: Array, low: float, high: float
) -> Row:
    estimate, least, most = interval(draws, confidence)
    result = "above" if least > 0 else "below" if most < 0 else "undecided"
    if not measured.has_enough_prompts:
        result = "too few prompts"
    row: Row = {"measure": measure, "kl_low": low, "kl_high": high, "estimate": estimate}
    row |= {"low": least, "high": most, "result": result}
    return row | {"prompts": measured.prompts, "replicates": measured.replicates}


# ----------------------------------------------------------------------- share of the optimum


def shares_table(
    measured: Measurements, optimum: pd.DataFrame, confidence: float, seed: int
) -> pd.DataFrame:
    """shares.csv: of each use of a policy, its gain in reward over SFT as a share of the optimal
    policy's gain at the same KL.

    The optimum is of other samples than the policies, so its own error is drawn from a normal of
    its standard error, one draw for the whole front, whose points rise and fall together. The
    share is empty where KL is 0 or beyond the reliable end of the optimal front.
    """
    noise = np.random.default_rng(seed).standard_normal(len(measured.resamples.prompts))
    noise[0] = 0.0
    end = float(reliable_front(optimum)["kl"].max())
    sft = measured.sft_reward()
    rows = []
    for use, part in measured.evaluations.groupby(USE, dropna=False, sort=False):
        policies = measured.of_replicates(part)
        kl, reward = (measured.mean(policies, name) for name in ("kl_exact", "reward"))
        row: Row = dict(zip(USE, use, strict=True))
        row |= {"kl": kl[0], "reward": reward[0], "gain": reward[0] - sft[0]}
        row |= {"optimal_gain": float(optimum_at(optimum, kl[:1])[0])}
        row |= {"share": None, "low": None, "high": None}
        if 0 < kl[0] <= end:
            inside = np.minimum(kl, end)
            best = optimum_at(optimum, inside) + noise * optimum_at(optimum, inside, "gain_se")
            share, low, high = interval((reward - sft) / best, confidence)
            row |= {"share": share, "low": low, "high": high}
        rows.append(row)
    return pd.DataFrame(rows)
