"""Intervals by bootstrap, and comparisons of KL–reward curves at matched KL.

Everything that is compared is measured on the same prompts with the same random numbers, and the
replicates are repeats of the whole procedure. `Resamples` holds one set of weights of prompts and
replicates for all policies, so that what prompts and replicates have in common cancels in every
difference. Row 0 of the weights is the sample itself: an array of draws [B + 1, …] carries its
estimate in row 0 and what B resamples make of it in the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Verdict = Literal["held", "did not hold", "undecided", "not measured", "reported"]

GRID = 65  # values of the KL at which curves are compared over a range


# ------------------------------------------------------------------------------- resampling


@dataclass(frozen=True)
class Resamples:
    """Weights of prompts [B + 1, P] and of replicates [B + 1, R]; row 0 weighs all alike."""

    prompts: Array
    replicates: Array

    def mean(self, values: Array) -> Array:
        """[B + 1] means of values [R, P'] of the first P' prompts."""
        weights = self.prompts[:, : values.shape[1]]
        of_prompts = weights @ values.T / weights.sum(1, keepdims=True)
        return (of_prompts * self.replicates).sum(1) / self.replicates.sum(1)


def resample(prompts: int, replicates: int, count: int, seed: int) -> Resamples:
    """Draw prompts and replicates with replacement, independently of one another.

    Prompts are crossed with replicates (each replicate sees the same), so both levels are drawn
    once per resample. Of R replicates R − 1 are drawn, which makes the variance of their mean
    unbiased where there are few (Rao and Wu, 1988). One replicate is always itself: intervals
    then say nothing of the spread between runs.
    """
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(prompts, np.full(prompts, 1 / prompts), count)
    chances = np.full(replicates, 1 / replicates)
    runs = generator.multinomial(max(replicates - 1, 1), chances, count)
    return Resamples(
        np.vstack([np.ones(prompts), drawn]).astype(float),
        np.vstack([np.ones(replicates), runs]).astype(float),
    )


def interval(draws: Array, confidence: float) -> tuple[float, float, float]:
    """(estimate, low, high) of draws [B + 1]: percentiles of the resamples."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws[1:], [tail, 1 - tail])
    return float(draws[0]), float(low), float(high)


def decide(low: float, high: float, reference: float = 0.0) -> Verdict:
    """Held: the interval is above the reference. Did not hold: below it. Else undecided."""
    if np.isnan(low) or np.isnan(high):
        return "undecided"
    if low > reference:
        return "held"
    return "did not hold" if high < reference else "undecided"


# ----------------------------------------------------------------------------------- curves


@dataclass(frozen=True)
class Curve:
    """Draws of points in the plane of KL and a value (reward or gold), [B + 1, n] each: a front
    in the order of η, or an RL run in that of its steps. Each draw is joined by lines in the
    order of its KL."""

    kl: Array
    value: Array

    def sorted(self) -> Curve:
        order = np.argsort(self.kl, axis=1, kind="stable")
        return Curve(
            np.take_along_axis(self.kl, order, 1), np.take_along_axis(self.value, order, 1)
        )

    def at(self, kl: Array) -> Array:
        """[B + 1, k] values at KLs [k] or [B + 1, k]; the end points' beyond the ends."""
        curve = self.sorted()
        kl = np.broadcast_to(kl, (len(curve.kl), np.shape(kl)[-1]))
        if curve.kl.shape[1] == 1:
            return np.broadcast_to(curve.value, kl.shape)
        right = (curve.kl[:, None, :] <= kl[..., None]).sum(-1).clip(1, curve.kl.shape[1] - 1)
        x0, x1 = (np.take_along_axis(curve.kl, index, 1) for index in (right - 1, right))
        y0, y1 = (np.take_along_axis(curve.value, index, 1) for index in (right - 1, right))
        width = np.where(x1 > x0, x1 - x0, 1.0)
        return y0 + (y1 - y0) * ((kl - x0) / width).clip(0, 1)

    def ends(self) -> tuple[float, float]:
        """Smallest and largest KL of the estimate."""
        return float(self.kl[0].min()), float(self.kl[0].max())


def common_range(*curves: Curve) -> tuple[float, float] | None:
    """The KLs that all curves' estimates reach; None where they do not overlap.

    The range of a single point is its KL.
    """
    low = max(curve.ends()[0] for curve in curves)
    high = min(curve.ends()[1] for curve in curves)
    return (low, high) if low <= high else None


def difference_at(first: Sequence[Curve], second: Sequence[Curve], kl: Array) -> Array:
    """[B + 1, k]: the mean of the first curves minus that of the second, at equal KL."""
    above, below = (np.mean([c.at(kl) for c in curves], axis=0) for curves in (first, second))
    return above - below


def mean_difference(
    first: Sequence[Curve], second: Sequence[Curve]
) -> tuple[Array, tuple[float, float]] | None:
    """[B + 1] of `difference_at`, averaged over the common range of KL, and that range.

    A curve of a single point is compared at the KL that the point has in each draw. None where
    the curves have no KL in common.
    """
    curves = [*first, *second]
    between = common_range(*curves)
    if between is None:
        return None
    points = [curve for curve in curves if curve.kl.shape[1] == 1]
    if points:
        return difference_at(first, second, points[0].kl)[:, 0], between
    differences = difference_at(first, second, np.linspace(*between, GRID))
    return (differences[:, 1:] + differences[:, :-1]).mean(1) / 2, between


def envelope(curves: Sequence[Curve]) -> Curve:
    """The best of several curves at each KL that at least one reaches (on a grid).

    The largest of noisy values is too large on average, which favours the curves in it.
    """
    low = min(curve.ends()[0] for curve in curves)
    high = max(curve.ends()[1] for curve in curves)
    grid = np.union1d(np.linspace(low, high, GRID), [end for c in curves for end in c.ends()])
    reached = []
    for curve in curves:
        start, end = curve.ends()
        reached.append(np.where((grid >= start) & (grid <= end), curve.at(grid), -np.inf))
    best = np.max(reached, axis=0)
    covered = np.isfinite(best[0])
    draws = len(best)
    return Curve(np.tile(grid[covered], (draws, 1)), best[:, covered])


def hypervolume(curve: Curve, floor: Array, end: float) -> Array:
    """[B + 1] area between the curve and the reward of SFT (`floor`, [B + 1]), KL from 0 to `end`.

    At a KL counts the largest value at that KL or a smaller one, as a policy closer to SFT may be
    used in place of one further away; so a front that stops before `end` goes on flat. Before its
    first point a curve counts nothing, and nothing counts below the floor.
    """
    grid = np.linspace(0, end, 4 * GRID)
    is_reached = grid[None] >= curve.kl.min(1, keepdims=True)
    values = np.where(is_reached, curve.at(grid), -np.inf)
    best = np.maximum.accumulate(values, axis=1) - floor[:, None]
    best = np.maximum(best, 0.0)
    return (best[:, 1:] + best[:, :-1]).sum(1) / 2 * (grid[1] - grid[0])


def second_differences(x: Array, y: Array) -> Array:
    """[B + 1, n − 2] second derivatives from triples of neighbours: x [n] rising, in any spacing,
    y [B + 1, n]. Positive where y is convex."""
    slopes = np.diff(y, axis=1) / np.diff(x)
    return 2 * np.diff(slopes, axis=1) / (x[2:] - x[:-2])
