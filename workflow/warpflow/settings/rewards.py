"""What a reward is made of, in section `rewards` of the config and in experiments."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

from warpflow.settings.base import Number


def is_reward(name: str) -> str:
    if name != "reward_model" and not re.fullmatch(r"[\w.]+:\w+", name):
        raise ValueError("unknown key; known keys: package.module:function, reward_model")
    return name


Rewards = dict[Annotated[str, AfterValidator(is_reward)], Number]
