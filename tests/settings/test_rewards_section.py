"""Section `rewards`: weights, functions and endpoints."""

import pytest

from warpflow.gold_names import gold_sources, held_out_shares, is_endpoint, is_function
from warpflow.reward_terms import endpoint_calls, gold_calls, reward_terms, reward_weights

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
    assert endpoint_calls(GIVEN) == {"rewards.served": calls}
    assert endpoint_calls(slower)["rewards.served"] == calls | {
        "timeout": 99.0,
        "retries": 1,
        "batch_size": 2,
    }
    assert endpoint_calls({"reward_model": 1.0}) == {}


@pytest.mark.parametrize("rewards", [{"reward_model": 1.0}, {"mine:short": 2, "reward_model": 0}])
def test_weights_alone_are_what_they_were(rewards: dict[str, float]) -> None:
    """Then the keys of earlier results stay."""
    assert reward_terms(rewards) == {n: float(w) for n, w in rewards.items() if w}


def test_a_gold_endpoint_is_its_url_and_version_and_nothing_of_how_it_is_called() -> None:
    one = {"url": "$HOST/score", "version": "2", "timeout": 9}
    gold = {"f": "mine:short", "served": one, "half": {"held_out_preferences": 0.5}}
    sources = gold_sources(gold)
    assert list(sources) == ["gold.f", "gold.served", "gold.half"], "the first one recommends"
    assert sources["gold.served"] == '{"url": "$HOST/score", "version": "2"}'
    assert gold_sources(gold | {"served": one | {"timeout": 99}}) == sources
    assert [(is_endpoint(s), is_function(s)) for s in sources.values()] == [
        (False, True),
        (True, False),
        (False, False),
    ]
    assert gold_calls(gold).keys() == {"evaluate_policy.gold.served"}
    assert gold_calls(gold)["evaluate_policy.gold.served"]["timeout"] == 9
    assert held_out_shares(gold) == [0.5]
    assert gold_sources(one) == {"gold": sources["gold.served"]}
    assert gold_calls(one).keys() == {"evaluate_policy.gold"}
    assert gold_calls(None) == gold_calls("mine:short") == {}


def test_a_reward_may_be_named_gold_beside_a_gold_endpoint() -> None:
    calls = endpoint_calls({"gold": {"url": "http://a", "weight": 1}})
    assert not calls.keys() & gold_calls({"url": "http://b"}).keys()
