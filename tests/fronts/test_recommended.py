"""Recommended points: the best, the knee, the last one within a budget."""

import numpy as np
import pandas as pd
import pytest

from warpflow.fronts.recommended import knee_of, point_name, recommend

ETAS = (0.3, 0.5, 1.0)


def rows(experiment: str = "warp", iteration: int = 2, **columns: list) -> pd.DataFrame:
    """A front of three η; reward rises with the root of KL, and gold turns down."""
    table = {"kl_exact": [1.0, 2.0, 8.0], "reward": [1.0, 1.4, 2.0], "gold": [0.8, 0.9, 0.2]}
    keys = {"experiment": experiment, "stage": "interpolate_policy", "iteration": iteration}
    return pd.DataFrame({**keys, "towards": "sft", "eta": ETAS, **table, **columns})


def sft() -> pd.Series:
    return pd.Series({"kl_exact": 0.0, "reward": 0.0, "gold": 0.0})


def found(evaluations: pd.DataFrame, start: pd.Series | None = None, budget: float = 0.0) -> dict:
    return {item.title: item for item in recommend(evaluations, start, budget)}


def names(evaluations: pd.DataFrame, start: pd.Series | None = None, budget: float = 0.0) -> list:
    points = recommend(evaluations, start, budget)
    return [None if item.row is None else point_name(item.row) for item in points]


def test_the_best_goes_by_gold_and_without_gold_by_reward() -> None:
    assert names(rows(), sft())[0] == "warp/2/0.5"
    without = rows(gold=[np.nan] * 3)
    assert names(without, sft())[0] == "warp/2/1"
    assert "most reward on held-out prompts" in found(without)
    other = rows("lerp", 1, gold=[0.0, 0.0, 5.0])
    assert names(pd.concat([rows(), other], ignore_index=True), sft())[0] == "lerp/1/1"


def test_the_knee_is_highest_above_the_chord_and_of_the_last_front_of_the_base() -> None:
    first = rows(iteration=1, reward=[9.0, 9.0, 9.0])
    other = rows("lerp", 3)
    table = pd.concat([first, rows(), other], ignore_index=True)
    # Above the chord from (0, 0) to (8, 2): 0.375, 0.45 and 0.
    assert names(table, sft())[1] == "warp/2/0.5"


@pytest.mark.parametrize(
    ("kl", "reward", "expected"),
    [
        ([0, 1, 4, 9], [0, 1, 2.1, 3], 2),
        ([9, 4, 1, 0], [3, 2.1, 1, 0], 1),
        ([0, 1, 2], [0, 1, 2], None),  # a line
        ([0, 1, 2], [0, 0.2, 2], None),  # convex
        ([0, 1, 2], [3, 2, 1], None),  # falls from the start
        ([0, 1], [0, 1], None),
        ([0, 1, 4, 9], [0, 1, 1.5, 0.5], 1),  # what comes after the most reward is no knee
    ],
)
def test_knees_of_curves(kl: list[float], reward: list[float], expected: int | None) -> None:
    assert knee_of(np.array(kl, dtype=float), np.array(reward, dtype=float)) == expected


@pytest.mark.parametrize(
    ("budget", "expected"),
    [(2.0, "warp/2/0.5"), (1.5, "warp/2/0.3"), (99, "warp/2/1"), (0.5, None)],
)
def test_the_largest_eta_within_the_budget(budget: float, expected: str | None) -> None:
    assert names(rows(), sft(), budget)[2] == expected


def test_without_a_budget_there_is_no_such_point_and_a_miss_says_why() -> None:
    assert len(names(rows(), sft())) == 2
    item = found(rows(), sft(), 0.5)["the largest η within 0.5 nats"]
    assert item.row is None and "the smallest KL is 1" in item.reason
    short = found(rows().iloc[:1])["the knee"]
    assert short.row is None and "3 points" in short.reason


def test_the_start_of_the_next_iteration_is_not_recommended() -> None:
    start = rows().iloc[[0]].assign(towards="init", gold=99.0)
    assert names(pd.concat([rows(), start], ignore_index=True), sft())[0] == "warp/2/0.5"
