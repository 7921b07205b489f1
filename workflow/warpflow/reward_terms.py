"""Rewards as the config has them: weights by name, and endpoints, among golds as well."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from warpflow.gold_names import golds_by_column, is_endpoint
from warpflow.settings.rewards import Calls, Endpoint, Served

CALLS = {field.name for field in fields(Calls)}


def reward_weights(rewards: Mapping[str, Any]) -> dict[str, float]:
    """Return the weights of the terms by name. Those of weight 0 are no terms."""
    weights = {
        name: float(given["weight"] if isinstance(given, Mapping) else given)
        for name, given in rewards.items()
    }
    return {name: weight for name, weight in weights.items() if weight}


def reward_terms(rewards: Mapping[str, Any]) -> dict[str, Any]:
    """Return the reward by the terms' names: a weight, or the url, weight and version of an
    endpoint. It is in the keys of the jobs."""
    return {
        name: {
            key: value
            for key, value in asdict(Endpoint(**rewards[name])).items()
            if key not in CALLS and value is not None
        }
        if isinstance(rewards[name], Mapping)
        else weight
        for name, weight in reward_weights(rewards).items()
    }


def endpoint_calls(rewards: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return how each endpoint is called (`Calls`), by its key of the config. No job's key has
    it."""
    return {
        f"rewards.{name}": calls_of(Endpoint(**rewards[name]))
        for name in reward_weights(rewards)
        if isinstance(rewards[name], Mapping)
    }


def gold_calls(gold: Any) -> dict[str, dict[str, Any]]:
    """Return the same as `endpoint_calls` for the endpoints in `evaluate_policy.gold`."""
    return {
        f"evaluate_policy.{column}": calls_of(Served(**source))
        for column, source in golds_by_column(gold).items()
        if isinstance(source, Mapping) and is_endpoint(source)
    }


def calls_of(served: Served) -> dict[str, Any]:
    return {key: value for key, value in sorted(asdict(served).items()) if key in CALLS}
