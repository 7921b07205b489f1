"""The terms of the reward as the config has them: weights by name, and endpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from warpflow.settings.rewards import Calls, Endpoint

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
    """Return how each endpoint is called (`Calls`), which is in no key."""
    return {
        name: {key: asdict(Endpoint(**rewards[name]))[key] for key in sorted(CALLS)}
        for name in reward_weights(rewards)
        if isinstance(rewards[name], Mapping)
    }
