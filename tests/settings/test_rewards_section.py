"""Section `rewards`: weights, functions and endpoints."""

import pytest

from warpflow.reward_terms import endpoint_calls, reward_terms, reward_weights

GIVEN = {
    "reward_model": 1,
    "mine:short": 0,
    "served": {"url": "http://a/score", "weight": 0.5, "timeout": 9, "version": "2"},
    "other": {"url": "$HOST/score", "weight": 0},
}


def test_terms_of_weight_zero_are_none() -> None:
    assert reward_weights(GIVEN) == {"reward_model": 1.0, "served": 0.5}


def test_how_an_endpoint_is_called_is_no_part_of_what_it_is() -> None:
    assert reward_terms(GIVEN) == {
        "reward_model": 1.0,
        "served": {"url": "http://a/score", "weight": 0.5, "version": "2"},
    }
    slower = GIVEN | {"served": GIVEN["served"] | {"timeout": 99, "retries": 1, "batch_size": 2}}
    assert reward_terms(slower) == reward_terms(GIVEN)
    calls = {"timeout": 9.0, "retries": 5, "batch_size": 64, "api_key_env": None}
    assert endpoint_calls(GIVEN) == {"served": calls}
    assert endpoint_calls(slower)["served"] == calls | {
        "timeout": 99.0,
        "retries": 1,
        "batch_size": 2,
    }
    assert endpoint_calls({"reward_model": 1.0}) == {}


@pytest.mark.parametrize("rewards", [{"reward_model": 1.0}, {"mine:short": 2, "reward_model": 0}])
def test_weights_alone_are_what_they_were(rewards: dict[str, float]) -> None:
    """Then the keys of earlier results stay."""
    assert reward_terms(rewards) == {n: float(w) for n, w in rewards.items() if w}
