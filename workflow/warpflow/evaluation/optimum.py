"""The best that any policy can reach: the optimal KL–reward front, and best-of-n beside it.

Of all policies with the same KL to π_sft, ``π*(y|x) ∝ π_sft(y|x) · exp(r(x, y) / β)`` has the
largest reward. β is the same for all prompts and runs along the front. π* is never sampled:
averages under it are averages over SFT samples with weights ∝ exp(r / β), normalised by their own
sum. That holds as long as many samples share the weight, which the effective sample size (ESS)
shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from warpflow.gold_names import GOLD
from warpflow.settings.estimate_optimum import OptimumSettings

Array = NDArray[np.float64]

AUTO_POINTS = 24  # the number of the front's points where β is chosen here
DISJOINT_SETS = 8  # best-of-n needs this many sets of n among the samples


# ------------------------------------------------------------------------------- the front


def tilt(reward: Array, beta: float) -> tuple[Array, Array]:
    """Return the weights of SFT samples under π* of one β, and the KL of π* to π_sft.

    Args:
        reward: [P, n], the rewards of n SFT samples of each prompt. beta: above 0; infinity gives
            π_sft itself.

    Returns:
        [P, n] weights that sum to 1 over a prompt's samples, and [P] KL in nats per sequence:
        ``E_w[r] / β − log Z`` with ``Z`` the mean of ``exp(r / β)``. At most log n.
    """
    scaled = reward / beta
    top = scaled.max(1, keepdims=True)
    tilted = np.exp(scaled - top)
    weights = tilted / tilted.sum(1, keepdims=True)
    log_z = top[:, 0] + np.log(tilted.mean(1))
    return weights, np.maximum((weights * scaled).sum(1) - log_z, 0.0)


def effective_samples(weights: Array) -> Array:
    """Return the effective sample sizes ``1 / Σ w²`` [P] of weights [P, n]."""
    return 1 / (weights**2).sum(1)


def is_reliable(weights: Array, settings: OptimumSettings) -> bool:
    """Whether enough samples carry the weight, on average and at the worst decile of prompts."""
    sizes = effective_samples(weights)
    return bool(
        sizes.mean() >= settings.min_ess and np.quantile(sizes, 0.1) >= settings.min_ess_decile
    )


def choose_betas(reward: Array, settings: OptimumSettings) -> list[float]:
    """Return the β of the front, falling from infinity (π_sft) to the last reliable one.

    ``betas: auto`` spaces the points evenly in √KL, because near π_sft the reward grows with it.
    """
    if settings.betas != "auto":
        return sorted({*settings.betas, math.inf})[::-1]
    spread = float(reward.std(1).mean())
    if spread == 0:  # every completion is as good as any other
        return [math.inf]
    flat, steep = 1e3 * spread, 1e-4 * spread
    last = bisect(lambda beta: is_reliable(tilt(reward, beta)[0], settings), flat, steep)

    def kl(beta: float) -> float:
        return float(tilt(reward, beta)[1].mean())

    def beta_at(target: float) -> float:
        return bisect(lambda beta: kl(beta) <= target, flat, last)

    shares = [(k / AUTO_POINTS) ** 2 for k in range(1, AUTO_POINTS)]
    return [math.inf, *(beta_at(share * kl(last)) for share in shares), last]


def bisect(holds: Callable[[float], bool], start: float, end: float) -> float:
    """Return the value nearest to `end` at which `holds` is true. It is true at `start` and changes
    once."""
    if holds(end):
        return end
    for _ in range(40):
        middle = math.sqrt(start * end)
        start, end = (middle, end) if holds(middle) else (start, middle)
    return start


def best_of_n_weights(reward: Array, n: int) -> Array:
    """Return the weights [P, N] of N samples in the expected best of n drawn without replacement.

    The i-th smallest is the best of ``C(i − 1, n − 1)`` of the ``C(N, n)`` sets. That is unbiased
    for the best of n fresh samples. Samples of equal reward share their weight, as a fair tie-break
    does.
    """
    prompts, samples = reward.shape
    rank = np.arange(samples, dtype=float)  # how many are smaller
    ratios = np.clip(rank - (n - 1) + 1, 0, None)[:-1] / (rank[:-1] + 1)
    sorted_weights = n / samples * np.append(np.cumprod(ratios[::-1])[::-1], 1.0)
    weights = np.empty_like(reward)
    for prompt in range(prompts):
        order = np.argsort(reward[prompt], kind="stable")
        _, group = np.unique(reward[prompt][order], return_inverse=True)
        means = np.bincount(group, sorted_weights) / np.bincount(group)
        weights[prompt, order] = means[group]
    return weights


def best_of_n_kl(n: int) -> float:
    """Return ``log n − (n − 1) / n``, an upper bound of the KL of best-of-n to π_sft, in nats per
    sequence. The two are equal where no two completions have the same reward and each has a
    negligible probability."""
    return math.log(n) - (n - 1) / n


# ------------------------------------------------------------------------------- the table


def optimum_table(
    reward: Array, golds: Mapping[str, Array], settings: OptimumSettings
) -> pd.DataFrame:
    """Return optimum.csv: the optimal front by falling β, then best-of-n by n.

    Args:
        reward: [P, n], the rewards of n SFT samples of each prompt. golds: the same for each gold,
            by column.

    Returns:
        Means over prompts with their standard errors (`_se`), which are between prompts, as a
            bootstrap over prompts converges to. `gain` is the reward less that of π_sft on the same
            prompts. `kl` of best-of-n is an upper bound. `ess` and `ess_decile` are the effective
            sample size on average and at the worst decile of prompts.
    """
    rows = []
    for beta in choose_betas(reward, settings):
        weights, kl = tilt(reward, beta)
        row = {"kind": "optimum", "beta": beta, "n": None} | mean_with_error("kl", kl)
        rows.append(row | weighted_row(weights, reward, golds, settings))
    for n in best_of(reward.shape[1]):
        weights = best_of_n_weights(reward, n)
        row = {"kind": "best_of_n", "beta": None, "n": n, "kl": best_of_n_kl(n), "kl_se": 0.0}
        # There are at least DISJOINT_SETS sets of n that do not overlap, so this is always
        # reliable.
        rows.append(row | weighted_row(weights, reward, golds, settings) | {"reliable": True})
    return pd.DataFrame(rows).astype({"n": "Int64", "beta": float})


def best_of(samples: int) -> list[int]:
    """Return the n of best-of-n: 1, 2, 4 … as far as the samples make up enough sets."""
    return [2**k for k in range(samples.bit_length()) if 2**k * DISJOINT_SETS <= samples]


def weighted_row(
    weights: Array, reward: Array, golds: Mapping[str, Array], settings: OptimumSettings
) -> dict[str, float | bool | None]:
    """Return the columns that the weights [P, n] of any policy determine."""
    sizes = effective_samples(weights)
    rewards = (weights * reward).sum(1)
    row: dict[str, float | bool | None] = {**mean_with_error("reward", rewards)}
    row |= mean_with_error("gain", rewards - reward.mean(1))
    if not golds:
        row |= {GOLD: None, f"{GOLD}_se": None}
    for name, gold in golds.items():
        row |= mean_with_error(name, (weights * gold).sum(1))
    row |= {"ess": float(sizes.mean()), "ess_decile": float(np.quantile(sizes, 0.1))}
    return row | {"reliable": is_reliable(weights, settings)}


def mean_with_error(name: str, values: Array) -> dict[str, float]:
    """Return the mean of values [P] and its standard error, which is NaN for a single prompt."""
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return {name: float(values.mean()), f"{name}_se": float(error)}


def reliable_front(table: pd.DataFrame) -> pd.DataFrame:
    """Return the reliable part of the optimal front, by rising KL, from π_sft on."""
    return table[(table["kind"] == "optimum") & table["reliable"]].sort_values("kl")


def optimum_at(table: pd.DataFrame, kl: Array, column: str = "gain") -> Array:
    """Return a column of the optimal front at any KL, or NaN beyond the front's reliable end.

    Values between points are interpolated linearly. The front of a sample is monotone and concave
    like the true one, so the line lies below it. The gap is small where points are as close as with
    ``betas: auto``.
    """
    front = reliable_front(table)
    points, values = front["kl"].to_numpy(float), front[column].to_numpy(float)
    return np.interp(kl, points, values, left=math.nan, right=math.nan)
