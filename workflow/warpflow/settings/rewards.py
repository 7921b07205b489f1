"""Section `rewards` of the config: a weight, or an endpoint, by name."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from warpflow.settings.base import Count, Natural, Number, Positive, section

FUNCTION = r"[\w.]+:\w+"
OWN_NAME = r"[A-Za-z0-9][\w-]*"
KNOWN = "known keys: package.module:function, reward_model"


def is_reward(name: str) -> str:
    if not re.fullmatch(f"{FUNCTION}|{OWN_NAME}", name):
        raise ValueError(f"unknown key; {KNOWN}, or a name of your own for an endpoint")
    return name


@section
class Calls:
    """How an endpoint is called. It changes no result, and is in no key."""

    batch_size: Count = 64
    """The number of completions in one request."""
    retries: Natural = 5
    """The number of times that a failed request is sent again, each time after a longer pause."""
    timeout: Positive = 60.0
    """The time limit of one request, in seconds."""
    api_key_env: Annotated[str, Field(pattern=r"^\w+$")] | None = None
    """The name of the environment variable that holds the key, which is sent as `Authorization:
    Bearer`; null sends no key."""


@section
class Served(Calls):
    """An endpoint that scores completions over HTTP (docs/your_rewards.md)."""

    url: Annotated[str, Field(pattern=r"^(https?://|\$)")] = Field(kw_only=True)
    """The address that completions are sent to. Variables of the environment ($HOST) are replaced
    when it is called, so that the same reward may be at another place."""
    version: str | None = Field(default=None, kw_only=True)
    """The version of what is served. Change it when that changes: what it scored is due then."""


@section
class Endpoint(Served):
    """A reward that is served elsewhere, over HTTP (docs/your_rewards.md)."""

    weight: Number = Field(kw_only=True)
    """The weight of this reward in the sum."""


Rewards = dict[Annotated[str, AfterValidator(is_reward)], Number | Endpoint]
