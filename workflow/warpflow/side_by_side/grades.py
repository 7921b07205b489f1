"""Grade two policies' answers side by side: scores, win rates, their intervals and one table.

The paper's graded scores (Table 1) are ±1.5 for much better, ±1 for better, ±0.5 for slightly
better and 0 for a tie. A judge gives either verdicts, or a score for each answer, and differences
of scores are graded here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd

from warpflow.fronts.bootstrap import means_over_prompts, percentiles, resample
from warpflow.side_by_side.answers import Answer

GRADES = (0.0, 0.5, 1.0, 1.5)
FEWEST = 10  # prompts that an interval needs; with fewer the bootstrap's is far too narrow
RESAMPLES = 2000
COLUMNS = [
    "a",
    "b",
    "judge",
    "n",
    "win_rate",
    "win_rate_low",
    "win_rate_high",
    "tie_rate",
    "score",
    "score_low",
    "score_high",
    "length_a",
    "length_b",
    "failed",
    "contradicting",
    "unit",
    "note",
]


def score_unit(scores: Mapping[str, Sequence[float]]) -> float:
    """Return the unit of a judge's scores, their standard deviation over all answers of all
    contestants. So every pair of a comparison is graded by the same unit."""
    return float(np.concatenate([np.asarray(values, float) for values in scores.values()]).std())


def grade_differences(
    differences: np.ndarray, unit: float, thresholds: Sequence[float]
) -> np.ndarray:
    """Return graded scores [N] of score differences A − B.

    Args:
        thresholds: in units of `unit`. A tie is up to the first, slightly better up to the second,
            better up to the third, and much better beyond.
    """
    if unit == 0:  # every answer has the same score
        return np.zeros(len(differences))
    steps = np.searchsorted(np.asarray(thresholds), np.abs(differences) / unit, side="left")
    return np.sign(differences) * np.asarray(GRADES)[steps]


def combine_orders(first: Sequence[float | None], swapped: Sequence[float | None]) -> np.ndarray:
    """Return graded scores [N] of A, the mean of the verdicts with A shown first and with B shown
    first, both from A's point of view. The mean cancels what a judge gives to a position. It is NaN
    where one of the two failed."""
    both = np.array([first, swapped], dtype=float)  # None becomes NaN
    return both.mean(0)


def is_contradicting(first: Sequence[float | None], swapped: Sequence[float | None]) -> np.ndarray:
    """Return [N] whether the judge prefers one answer in one order and the other answer in the
    other order."""
    product = np.array(first, dtype=float) * np.array(swapped, dtype=float)
    return product < 0


def bootstrap_interval(values: np.ndarray, confidence: float, seed: int) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean over prompts, for values that differ."""
    draws = means_over_prompts(resample(len(values), RESAMPLES, seed), values[None])[:, 0]
    _, low, high = percentiles(draws, confidence)
    return low, high


def wilson_interval(share: float, n: int, confidence: float) -> tuple[float, float]:
    """Return Wilson's score interval of a rate over n prompts. Unlike the bootstrap's it has a
    width where the rate is 0 or 1."""
    z2 = NormalDist().inv_cdf((1 + confidence) / 2) ** 2
    middle = share + z2 / (2 * n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n**2)))
    return (middle - half) / (1 + z2 / n), (middle + half) / (1 + z2 / n)


def compare_pair(
    grades: np.ndarray, lengths_a: np.ndarray, lengths_b: np.ndarray, confidence: float, seed: int
) -> dict[str, Any]:
    """Return the numbers of one row of the table, from A's graded scores [N]. NaN is a judgement
    that failed, which counts for neither rate nor length."""
    is_judged = ~np.isnan(grades)
    kept = grades[is_judged]
    row: dict[str, Any] = {"n": len(kept), "failed": int((~is_judged).sum())}
    if not len(kept):
        return row | {"note": "no judgement"}
    rate = float((kept > 0).mean())
    row |= {"win_rate": rate, "tie_rate": (kept == 0).mean(), "score": kept.mean()}
    row |= {"length_a": lengths_a[is_judged].mean(), "length_b": lengths_b[is_judged].mean()}
    if len(kept) < FEWEST:
        return row | {"note": f"no interval: {len(kept)} prompts, needs {FEWEST}"}
    row["win_rate_low"], row["win_rate_high"] = wilson_interval(rate, len(kept), confidence)
    if (kept == kept[0]).all():
        return row | {"note": f"no interval of the score: all {len(kept)} are the same"}
    row["score_low"], row["score_high"] = bootstrap_interval(kept, confidence, seed)
    return row


def side_by_side_table(
    judgements: Mapping[str, Mapping[str, Any]],
    answers: Mapping[str, Sequence[Answer]],
    *,
    pairs: Sequence[tuple[str, str]],
    thresholds: Sequence[float],
    confidence: float,
    seed: int,
) -> pd.DataFrame:
    """Return side_by_side.csv, with a row for each pair and judge.

    Args:
        judgements: what `judge_answers` wrote, by judge: `scores` of each contestant's answers, or
            `verdicts` on pairs.
        answers: the matched answers by contestant. Lengths are in characters, as in AlpacaEval,
            because contestants share no tokenizer.
    """
    lengths = {name: np.array([len(a.text) for a in rows]) for name, rows in answers.items()}
    rows = []
    for judge, document in judgements.items():
        for a, b in pairs:
            row: dict[str, Any] = {"a": a, "b": b, "judge": judge}
            if "scores" in document:
                scores = document["scores"]
                unit = score_unit(scores)
                difference = np.array(scores[a], float) - np.array(scores[b], float)
                grades = grade_differences(difference, unit, thresholds)
                row["unit"] = unit
            else:
                verdicts = find_verdicts(document, a, b)
                grades = combine_orders(**verdicts)
                row["contradicting"] = int(is_contradicting(**verdicts).sum())
            rows.append(row | compare_pair(grades, lengths[a], lengths[b], confidence, seed))
    return pd.DataFrame(rows).reindex(columns=COLUMNS)


def find_verdicts(document: Mapping[str, Any], a: str, b: str) -> dict[str, list[float | None]]:
    """Return the verdicts on one pair, in both orders."""
    found = next(v for v in document["verdicts"] if (v["a"], v["b"]) == (a, b))
    return {"first": found["first"], "swapped": found["swapped"]}
