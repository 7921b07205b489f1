"""Compare every experiment with the base one, and every policy with the best possible one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from warpflow.evaluation.optimum import optimum_at, reliable_front
from warpflow.fronts.bootstrap import Array
from warpflow.fronts.curves import (
    Compared,
    Curve,
    difference_at,
    hypervolume,
    mean_difference,
)
from warpflow.fronts.measurements import USE, Measurements

KL_SHARES = (0.25, 0.5, 0.75)  # parts of the common range at which differences are listed

Row = dict[str, object]


def comparisons_table(measured: Measurements, confidence: float) -> pd.DataFrame:
    """Return comparisons.csv: the last front of each experiment minus the base experiment's front,
    at the same iteration and at the base's last one. The front of a single run is also compared
    with that of the base's own first run, where the group has this run by itself.

    Column `measure` is `mean reward` (and `mean gold`, or `mean gold.NAME` for each gold) over the
    KLs from `kl_low` to `kl_high` that all replicates of both reach; or `reward` at one KL; or
    `hypervolume` up to `kl_high`, the larger KL of both; or `end KL`, the KL at the largest η up to
    1. A front of one point is compared at that point's KL in each replicate. These KLs lie from
    `kl_low` to `kl_high`. `estimate`, `low` and `high` are those of the difference. `result` is
    above, below, undecided, one run, or why there is none.
    """
    rows = []
    for name, own, against, i in pairs(measured):
        key: Row = {"experiment": name, "iteration": own}
        key |= {"against": against, "against_iteration": i}
        for found in compare(measured, confidence, (name, own), (against, i)):
            rows.append(key | found)
    columns = ["experiment", "iteration", "against", "against_iteration", "measure", "kl_low"]
    columns += ["kl_high", "estimate", "low", "high", "result", "prompts", "replicates"]
    columns += ["interval_over"]
    return pd.DataFrame(rows, columns=columns)


def pairs(measured: Measurements) -> Iterator[tuple[str, int, str, int]]:
    """Yield (experiment, its last iteration, the other, an iteration of it) for every
    comparison."""
    last = measured.iterations(measured.base)[-1]
    single = next(iter(singles_of_base(measured)), None)
    for name in measured.experiments[1:]:
        own = measured.iterations(name)[-1]
        for i in sorted({min(own, last), last}):
            yield name, own, measured.base, i
        is_single = own == 1 and measured.settings(name)["members"] == 1
        if single and is_single and name != single:
            yield name, 1, single, 1


def singles_of_base(measured: Measurements) -> list[str]:
    """Return the first experiment of one member that is the base's own first run, or an empty
    list."""
    own = measured.members(measured.base, 1)[0]
    return [
        name
        for name in measured.experiments
        if name != measured.base and measured.members(name, 1) == [own]
    ][:1]


def compare(
    measured: Measurements, confidence: float, first: tuple[str, int], second: tuple[str, int]
) -> Iterator[Row]:
    """Yield the rows of one pair of fronts, or none where a front is missing."""
    for quantity in ("reward", *measured.golds):
        a, b = (measured.front(*arm, quantity) for arm in (first, second))
        if a is None or b is None:
            return
        found = mean_difference([a], [b])
        if found is None:
            yield {"measure": f"mean {quantity}", "result": "no KL in common"}
        else:
            draws, between = found
            yield difference_row(measured, confidence, f"mean {quantity}", draws, between)
            if quantity == "reward" and between.is_range:
                yield from rows_at(measured, confidence, a, b, between)
        if quantity == "reward":
            ends = a.kl[..., -1] - b.kl[..., -1]
            yield difference_row(measured, confidence, "end KL", ends, None)


def rows_at(
    measured: Measurements, confidence: float, a: Curve, b: Curve, between: Compared
) -> Iterator[Row]:
    """Yield the differences at some KLs of the common range, and of the hypervolumes."""
    kls = between.low + (between.high - between.low) * np.array(KL_SHARES)
    for kl, draws in zip(kls, np.moveaxis(difference_at([a], [b], kls), -1, 0), strict=True):
        yield difference_row(measured, confidence, "reward", draws, Compared(kl, kl))
    end, floor = float(max(a.ends().max(), b.ends().max())), measured.sft_reward()
    draws = hypervolume(a, floor, end) - hypervolume(b, floor, end)
    yield difference_row(measured, confidence, "hypervolume", draws, Compared(0.0, end))


def difference_row(
    measured: Measurements, confidence: float, measure: str, draws: Array, between: Compared | None
) -> Row:
    estimate, least, most = measured.interval(draws, confidence)
    result = "above" if least > 0 else "below" if most < 0 else "undecided"
    if measured.replicates == 1:
        result = "one run"
    if not measured.has_enough_prompts:
        result = "too few prompts"
    row: Row = {"measure": measure, "estimate": estimate, "low": least, "high": most}
    if between:
        row |= {"kl_low": between.low, "kl_high": between.high}
    row |= {"result": result, "prompts": measured.prompts, "replicates": measured.replicates}
    return row | {"interval_over": measured.interval_over}


# ----------------------------------------------------------------------- share of the optimum


def shares_table(
    measured: Measurements, optimum: pd.DataFrame, confidence: float, seed: int
) -> pd.DataFrame:
    """Return shares.csv: for each use of a policy, its gain in reward over SFT as a share of the
    optimal policy's gain at the same KL.

    The optimum is estimated from other samples than the policies. So its error is drawn from a
    normal distribution with its standard error. The whole front has one draw, as its points rise
    and fall together. The share is empty where the KL of a replicate is 0 or beyond the reliable
    end of the optimal front. `_low` and `_high` are the interval of the mean over replicates.
    """
    noise = np.random.default_rng(seed).standard_normal((len(measured.weights), 1))
    noise[0] = 0.0
    end = float(reliable_front(optimum)["kl"].max())
    sft = measured.sft_reward()
    rows = []
    for use, part in measured.evaluations.groupby(USE, dropna=False, sort=False):
        policies = measured.of_replicates(part)
        kl, reward = (measured.mean(policies, name) for name in ("kl_exact", "reward"))
        row: Row = dict(zip(USE, use, strict=True))
        for name, draws in (("kl", kl), ("reward", reward), ("gain", reward - sft)):
            mean, low, high = measured.interval(draws, confidence)
            row |= {name: mean, f"{name}_low": low, f"{name}_high": high}
        row |= {"optimal_gain": float(optimum_at(optimum, kl[0]).mean())}
        row |= {"share": None, "low": None, "high": None}
        if (kl[0] > 0).all() and (kl[0] <= end).all():
            inside = np.minimum(kl, end)
            best = optimum_at(optimum, inside) + noise * optimum_at(optimum, inside, "gain_se")
            share, low, high = measured.interval((reward - sft) / best, confidence)
            row |= {"share": share, "low": low, "high": high}
        rows.append(row | {"interval_over": measured.interval_over})
    return pd.DataFrame(rows)
