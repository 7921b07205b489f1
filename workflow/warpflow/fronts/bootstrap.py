"""Intervals over prompts and runs that are honest with few replicates.

Everything that is compared is measured on the same prompts with the same random numbers. Replicates
repeat RL, merge and LITI with other seeds; they share the SFT policy, the reward model and the
prompts. So there are two sources of chance. The prompts are resampled (bootstrap), by weights that
all policies and replicates share, so that what policies have in common on a prompt cancels in
every difference. The runs are too few to resample; their variance is estimated from the replicates.

An array of draws [B + 1, R] holds a statistic of each replicate. Row 0 is the sample itself, and
the others are its values under B resamples of the prompts. So a statistic that is not linear, such
as a front at a given KL, is computed for each replicate first, and averaged over replicates last.
"""

from __future__ import annotations

import functools
import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Verdict = Literal["held", "did not hold", "undecided", "one run", "not measured", "reported"]


# ------------------------------------------------------------------------------- resampling


def resample(prompts: int, count: int, seed: int) -> Array:
    """Return weights [B + 1, P] of P prompts: how often each is drawn. Row 0 weighs all alike. The
    B = `count` others draw P prompts with replacement."""
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(prompts, np.full(prompts, 1 / prompts), count)
    return np.vstack([np.ones(prompts), drawn]).astype(float)


def half_of(weights: Array, half: int) -> Array:
    """Return the same weights [B + 1, P] on every other prompt, from prompt `half` (0 or 1) on, and
    almost 0 on the rest. A draw without a prompt of this half weighs all prompts of the half
    alike."""
    is_in = np.arange(weights.shape[1]) % 2 == half
    return (weights + 1e-9) * is_in


def means_over_prompts(weights: Array, values: Array) -> Array:
    """Return the means [B + 1, R] of values [R, P'], one for each replicate. They are over the
    prompts that both weights [B + 1, P] and values have, which are the first ones."""
    count = min(weights.shape[1], values.shape[1])
    used = weights[:, :count]
    return used @ values[:, :count].T / used.sum(1, keepdims=True)


# -------------------------------------------------------------------------------- intervals


def percentiles(draws: Array, confidence: float) -> tuple[float, float, float]:
    """Return (estimate, low, high) of draws [B + 1] of one sample, by percentiles of the
    resamples."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws[1:], [tail, 1 - tail])
    return float(draws[0]), float(low), float(high)


def variances(draws: Array, prompts: int) -> tuple[float, float]:
    """Return the variance of the replicates' mean in two parts, that of the runs and that of the
    prompts.

    A replicate's estimate is the truth + the effect of its run + an effect of the prompts that all
    replicates share + noise of its own. The spread of R estimates, divided by R, has the first and
    the last of these. What the resamples of two replicates have in common, their covariance, is
    the shared effect alone. So each part is counted once. With one replicate the first part is not
    known, and the second holds all that the prompts contribute.

    Args:
        draws: [B + 1, R]. prompts: how many were resampled. A bootstrap of P prompts has (P − 1) /
            P of the variance.
    """
    replicates = draws.shape[1]
    covariance = np.atleast_2d(np.cov(draws[1:], rowvar=False)) * prompts / (prompts - 1)
    if replicates == 1:
        return 0.0, float(covariance[0, 0])
    pairs = replicates * (replicates - 1)
    shared = (covariance.sum() - np.trace(covariance)) / pairs
    return float(draws[0].var(ddof=1) / replicates), max(float(shared), 0.0)


def interval(draws: Array, confidence: float, prompts: int) -> tuple[float, float, float]:
    """Return (estimate, low, high) of the mean over replicates of draws [B + 1, R].

    It uses Student's t with R − 1 degrees of freedom for the runs and P − 1 for the prompts. Where
    both contribute, it uses the mean of the two quantiles weighted by the variances (Cochran and
    Cox, 1950). In simulations of R = 2, 3 and 5 a 95 % interval covers in 94 to 98 % of cases,
    whichever source dominates. Two replicates have one degree of freedom, and an interval of 12.7
    standard errors to each side, which is honest and rarely useful. The interval of one replicate
    is only over its prompts.
    """
    estimate = float(draws[0].mean())
    replicates = draws.shape[1]
    if not np.isfinite(draws).all() or prompts < 2:
        return estimate, math.nan, math.nan
    of_runs, of_prompts = variances(draws, prompts)
    variance = of_runs + of_prompts
    if variance == 0:
        return estimate, estimate, estimate
    quantile = of_prompts * t_quantile(confidence, prompts - 1)
    if replicates > 1:
        quantile += of_runs * t_quantile(confidence, replicates - 1)
    half_width = quantile / variance * math.sqrt(variance)
    return estimate, estimate - half_width, estimate + half_width


@functools.lru_cache
def t_quantile(confidence: float, degrees: float) -> float:
    """Return t with ``P(|T| < t) = confidence`` of Student's T, to 5 digits.

    T = √ν · tan θ has the density ∝ cos^(ν − 1) θ, which is integrated by trapezoids.
    """
    theta = np.linspace(0, np.pi / 2, 200_001)
    density = np.cos(theta) ** (degrees - 1)
    mass = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return math.sqrt(degrees) * math.tan(np.interp(confidence * mass[-1], mass, theta))


def decide(low: float, high: float, reference: float = 0.0) -> Verdict:
    """Decide a claim: it held where the interval is above the reference, did not hold where it is
    below, and is undecided otherwise."""
    if np.isnan(low) or np.isnan(high):
        return "undecided"
    if low > reference:
        return "held"
    return "did not hold" if high < reference else "undecided"
