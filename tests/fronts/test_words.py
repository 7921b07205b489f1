"""Sentences say what their interval says, and nothing without one."""

import numpy as np
import pandas as pd
import pytest

from warpflow.fronts.words import (
    baseline_sentences,
    merging_sentences,
    signed,
    verdict_sentences,
)

STATEMENT = "the LITI front lies above the trajectory of RL"


def verdict(verdict: str, low: float, high: float, claim: str = "5 iteration 1") -> pd.DataFrame:
    row = {"claim": claim, "statement": STATEMENT, "verdict": verdict, "compared": "a − b"}
    numbers = {"estimate": (low + high) / 2, "low": low, "high": high, "reference": 0.0}
    return pd.DataFrame([row | numbers])


@pytest.mark.parametrize(
    ("word", "low", "high", "answer", "text"),
    [
        ("held", 0.08, 0.14, "yes", "The LITI front lies above the trajectory of RL: +0.11 [+0.08"),
        ("did not hold", -0.3, -0.1, "no", "Not so here: the LITI front"),
        ("undecided", -0.1, 0.3, "undecided", "on both sides of 0"),
        ("undecided", 0.1, 0.3, "undecided", "too few prompts"),
        (
            "one run",
            0.1,
            0.3,
            "one run",
            "in this one run; the interval over its prompts is above 0",
        ),
        ("one run", -0.1, 0.3, "one run", "the interval over its prompts contains 0"),
        ("not measured", np.nan, np.nan, "not measured", "Not measured here"),
        ("held", np.nan, np.nan, "undecided", "No interval, so nothing is said"),
        ("held", -np.inf, np.inf, "undecided", "No interval, so nothing is said"),
    ],
)
def test_verdicts_in_words(word: str, low: float, high: float, answer: str, text: str) -> None:
    [sentence] = verdict_sentences(verdict(word, low, high))
    assert (sentence.topic, sentence.answer) == ("Interpolation", answer)
    assert text in sentence.text


def test_a_yes_or_no_always_has_numbers() -> None:
    for word in ("held", "did not hold", "undecided", "one run"):
        for low, high in ((np.nan, 1.0), (0.1, np.nan), (0.1, 0.2), (-0.2, -0.1)):
            [sentence] = verdict_sentences(verdict(word, low, high))
            assert ("[" in sentence.text) == bool(np.isfinite([low, high]).all())
            assert sentence.answer not in ("yes", "no") or "[" in sentence.text


def test_side_claims_are_left_out_and_other_settings_are_named() -> None:
    shown = [
        *("1 envelopes", "1 envelopes, max_grad_norm 0.0", "2", "2 KL", "3", "1 same β"),
        *("5 iteration 2", "5 one run", "6 iteration 2", "6 diminishing", "lemma KL, iteration 1"),
    ]
    found = [s.topic for claim in shown for s in verdict_sentences(verdict("held", 1, 2, claim))]
    assert found == [
        "EMA anchor",
        "EMA anchor, max_grad_norm 0.0",
        "SLERP",
        "Interpolation",
        "Interpolation of one run",
        "Iterating",
        "Returns of iterating",
    ]


def comparison(experiment: str, result: str, low: float, high: float) -> dict:
    return {
        "experiment": experiment,
        "iteration": 1,
        "against": "warp",
        "against_iteration": 1,
        "measure": "mean reward",
        "kl_low": 0.5,
        "kl_high": 6.0,
        "estimate": (low + high) / 2,
        "low": low,
        "high": high,
        "result": result,
    }


def test_baselines_are_better_worse_or_undecided() -> None:
    rows = [
        comparison("lerp", "below", -0.3, -0.1),
        comparison("a", "above", 0.1, 0.3),
        comparison("b", "one run", 0.1, 0.3),
        comparison("c", "no KL in common", np.nan, np.nan),
        comparison("lerp", "above", 1, 2) | {"measure": "hypervolume"},
        comparison("lerp", "above", 1, 2) | {"against": "one_run"},
    ]
    found = list(baseline_sentences(pd.DataFrame(rows)))
    assert [item.answer for item in found] == ["worse", "better", "one run", "no KL in common"]
    assert (
        "reward at equal KL, minus that of warp, iteration 1: −0.20 [−0.30, −0.10]" in found[0].text
    )
    assert found[0].details == "over KL 0.5 to 6"
    assert "in this one run" in found[2].text
    assert "[" not in found[3].text


def test_merging_is_the_base_less_its_own_first_run_alone() -> None:
    runs = {"warp": ["p0", "p1"], "single": ["p0"], "other": ["p9"]}
    evaluations = pd.DataFrame(
        [
            {"experiment": name, "stage": "train_policy", "iteration": 1, "policy": policy}
            for name, policies in runs.items()
            for policy in policies
        ]
    )
    rows = [
        comparison("single", "below", -0.13, -0.08) | {"estimate": -0.11},
        comparison("other", "above", 1, 2),
    ]
    [sentence] = merging_sentences(evaluations, pd.DataFrame(rows))
    assert (sentence.topic, sentence.answer) == ("Merging", "yes")
    assert "merging 2 runs gives a better front than one of them" in sentence.text.lower()
    assert "+0.11 [+0.08, +0.13]" in sentence.text
    [alone] = merging_sentences(evaluations, pd.DataFrame([rows[0] | {"result": "one run"}]))
    assert alone.answer == "one run"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.1234, "+0.12"), (-0.5, "−0.50"), (0.0123, "+0.0123"), (0.0, "0"), (1234.0, "+1.23e+03")],
)
def test_numbers_have_their_sign(value: float, text: str) -> None:
    assert signed(value) == text
