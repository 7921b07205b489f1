"""Curves of a value over KL, one for each replicate, and their comparison at equal KL.

The order of averaging matters. Replicates that lie on the same concave curve, but end at different
KLs, have mean points below it. So each replicate's curve is read at the KL first, and the mean over
replicates is taken last, in `bootstrap.interval`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from warpflow.fronts.bootstrap import Array

GRID = 65  # the number of KLs at which curves are compared over a range


@dataclass(frozen=True)
class Curve:
    """Draws of points in the plane of KL and a value (reward or gold), [B + 1, R, n] each. They are
    a front in the order of η, or an RL run in the order of its steps.

    Between neighbours in KL the value is linear in √KL. A front rises with √KL near SFT, so a line
    in KL lies below it. With points at η = 0, 0.3, 0.5, 0.7, 0.85, 1 and 1.3 and KL ∝ η², the mean
    error over KL up to η = 1, relative to the value there, is 0 for a reward ∝ √KL (with lines in
    KL −0.008), −0.008 for KL^¼ (−0.019), and +0.006 for a reward linear in KL (0).
    """

    kl: Array
    value: Array

    def sorted(self) -> Curve:
        order = np.argsort(self.kl, axis=-1, kind="stable")
        return Curve(
            np.take_along_axis(self.kl, order, -1), np.take_along_axis(self.value, order, -1)
        )

    def at(self, kl: Array) -> Array:
        """Return values […, k] at KLs [k] or […, k]. Beyond an end they are those of the end point.
        An estimate of the KL below 0 counts as 0."""
        curve = self.sorted()
        kl = np.broadcast_to(kl, (*curve.kl.shape[:-1], np.shape(kl)[-1]))
        if self.points == 1:
            return np.broadcast_to(curve.value, kl.shape)
        right = (curve.kl[..., None, :] <= kl[..., None]).sum(-1).clip(1, self.points - 1)
        x0, x1 = (np.take_along_axis(root(curve.kl), index, -1) for index in (right - 1, right))
        y0, y1 = (np.take_along_axis(curve.value, index, -1) for index in (right - 1, right))
        width = np.where(x1 > x0, x1 - x0, 1.0)
        return y0 + (y1 - y0) * ((root(kl) - x0) / width).clip(0, 1)

    @property
    def points(self) -> int:
        return self.kl.shape[-1]

    def starts(self) -> Array:
        """The smallest KL of each replicate's estimate, [R]."""
        return self.kl[0].min(-1)

    def ends(self) -> Array:
        """The largest KL of each replicate's estimate, [R]."""
        return self.kl[0].max(-1)


def root(kl: Array) -> Array:
    return np.sqrt(np.maximum(kl, 0.0))


class Compared(NamedTuple):
    """The KLs of a comparison, from `low` to `high`. With `at_own` each replicate was compared at
    its own KL between these two."""

    low: float
    high: float
    at_own: bool = False

    @property
    def is_range(self) -> bool:
        return self.high > self.low and not self.at_own

    def __str__(self) -> str:
        if self.is_range:
            return f"mean over KL {self.low:.3g} to {self.high:.3g}, which all replicates reach"
        if self.high > self.low:
            return f"at each replicate's own KL, {self.low:.3g} to {self.high:.3g}"
        return f"at KL {self.high:.3g}"


def common_range(*curves: Curve) -> Compared | None:
    """Return the KLs that all replicates of all curves reach, or None where there are none or only
    one."""
    low = max(float(curve.starts().max()) for curve in curves)
    high = min(float(curve.ends().min()) for curve in curves)
    return Compared(low, high) if low < high else None


def difference_at(first: Sequence[Curve], second: Sequence[Curve], kl: Array) -> Array:
    """Return the mean of the first curves minus that of the second, [B + 1, R, k], at equal KL and
    in the same replicate."""
    above, below = (np.mean([c.at(kl) for c in curves], axis=0) for curves in (first, second))
    return above - below


def mean_difference(
    first: Sequence[Curve], second: Sequence[Curve]
) -> tuple[Array, Compared] | None:
    """Return `difference_at` averaged over the common range of KL, [B + 1, R], and that range.

    A curve of a single point is compared at the KL that the point has in each replicate and draw.
    Return None where the curves have no KL in common in all their replicates.
    """
    curves = [*first, *second]
    point = next((curve for curve in curves if curve.points == 1), None)
    if point is not None:
        own = point.kl[0, :, 0]
        if any((curve.starts() > own).any() or (own > curve.ends()).any() for curve in curves):
            return None
        compared = Compared(float(own.min()), float(own.max()), at_own=True)
        return difference_at(first, second, point.kl)[..., 0], compared
    between = common_range(*curves)
    if between is None:
        return None
    grid = np.linspace(between.low, between.high, GRID)
    return mean_over(difference_at(first, second, grid)), between


def mean_over(values: Array) -> Array:
    """Return the mean […] of values […, k] on an even grid, by trapezoids."""
    return (values[..., 1:] + values[..., :-1]).mean(-1) / 2


def hypervolume(curve: Curve, floor: Array, end: float) -> Array:
    """Return the area [B + 1, R] between the curve and the reward of SFT (`floor`, [B + 1, R]), for
    KL from 0 to `end`.

    At each KL the largest value at that KL or a smaller one counts, because a policy closer to SFT
    may be used in place of one further away. So a front that stops before `end` goes on flat.
    Before its first point a curve counts nothing, and nothing counts below the floor.
    """
    grid = np.linspace(0, end, 4 * GRID)
    is_reached = grid >= curve.kl.min(-1, keepdims=True)
    values = np.where(is_reached, curve.at(grid), -np.inf)
    best = np.maximum(np.maximum.accumulate(values, axis=-1) - floor[..., None], 0.0)
    return mean_over(best) * end


def second_differences(x: Array, y: Array) -> Array:
    """Return second derivatives […, n − 2] from triples of neighbours. x [n] rises in any spacing,
    and y is […, n]. They are positive where y is convex."""
    slopes = np.diff(y, axis=-1) / np.diff(x)
    return 2 * np.diff(slopes, axis=-1) / (x[2:] - x[:-2])
