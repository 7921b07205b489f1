"""Rewards and golds that are served elsewhere, over HTTP. docs/your_rewards.md has the contract."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import urllib3
from urllib3.exceptions import HTTPError

from warpflow.evaluation.rewards import Call, showing
from warpflow.settings.rewards import Calls

PASSING = (408, 425, 429, 500, 502, 503, 504)  # HTTP statuses that may pass
PAUSE, LONGEST_PAUSE = 0.5, 60  # seconds before the second attempt, doubled each time


def call_endpoint(name: str, url: str, calls: Calls, key: str) -> Call:
    """Return a function that sends completions to an endpoint, `calls.batch_size` at a time.

    At once it asks for the scores of no completions, so that a wrong address is known before
    anything is computed.

    Args:
        name, key: the name of the reward or gold, and its key of the config, for messages.
        url: the address, in which variables of the environment are replaced.

    Raises:
        ConnectionError: the endpoint does not answer in time, or says that it cannot.
        ValueError: a variable is not set, or the reply is not a list of one score for each
            completion. No score is ever made up, here or in a call.
    """
    address = os.path.expandvars(url)
    if "$" in address:
        raise ValueError(
            f"{key}.url: the environment of this job has no variable for {url}: set it"
        )
    pool = open_pool(key, calls)

    def send(arguments: Mapping[str, list[Any]]) -> list[float | None]:
        try:
            reply = pool.request("POST", address, json=dict(arguments))
        except HTTPError as error:
            raise ConnectionError(
                f"the reward {name} at {address} did not answer, in {calls.retries + 1} attempts "
                f"of up to {calls.timeout:g} s each ({getattr(error, 'reason', error)}): look "
                f"whether it is served there; a slow one needs a lower {key}.batch_size "
                "or a longer timeout. A run goes on from its last saved state"
            ) from error
        return read_scores(reply.status, reply.data, len(arguments["completions"]), address, name)

    def call(arguments: Mapping[str, list[Any]]) -> list[float | None]:
        scores: list[float | None] = []
        for start in range(0, len(arguments["completions"]), calls.batch_size):
            part = {key: v[start : start + calls.batch_size] for key, v in arguments.items()}
            with showing(name, zip(part["prompts"], part["completions"], strict=True)):
                scores += send(part)
        return scores

    send({"prompts": [], "completions": [], "finished": [], "columns": []})
    return call


def open_pool(key: str, calls: Calls) -> urllib3.PoolManager:
    """Return connections that repeat a request after an error that may pass. Pauses grow each time,
    or last as long as Retry-After says."""
    secret = os.environ.get(calls.api_key_env) if calls.api_key_env else None
    if calls.api_key_env and not secret:
        raise ValueError(
            f"the environment variable {calls.api_key_env}, which {key}.api_key_env "
            "names, is not set"
        )
    return urllib3.PoolManager(
        headers={"Authorization": f"Bearer {secret}"} if secret else None,
        timeout=calls.timeout,
        retries=urllib3.Retry(
            calls.retries,
            status_forcelist=PASSING,
            allowed_methods=None,  # POST too, since scoring twice does no harm
            backoff_factor=PAUSE,
            backoff_max=LONGEST_PAUSE,
        ),
    )


def read_scores(
    status: int, data: bytes, count: int, address: str, name: str
) -> list[float | None]:
    """Return the scores in a reply. Raises ConnectionError or ValueError where it has none."""
    said = data[:300].decode(errors="replace")
    if status != 200:
        raise ConnectionError(f"the reward {name} at {address} says HTTP {status}: {said}")
    try:
        scores = json.loads(data)["scores"]
        values = [None if score is None else float(score) for score in scores]
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(
            f'the reward {name} at {address} sent {said!r}, expected {{"scores": [0.5, null, …]}} '
            f"with a number or null for each completion ({type(error).__name__}: {error})"
        ) from error
    if len(values) != count:
        raise ValueError(
            f"the reward {name} at {address} returned {len(values)} scores for {count} completions"
        )
    return values
