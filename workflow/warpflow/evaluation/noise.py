"""A reward that says nothing about the text. It shows what policy-gradient noise does by itself.

A reward that is drawn anew at each call could not be reproduced once a run resumes. So the draw is
a hash of prompt, completion and how often the pair came before in the same call. Such a function is
fixed, and a policy could in principle learn it. But a hash has no structure, so a policy cannot
generalise. It would have to see the same completion of the same prompt again and again, and
completions seldom repeat while the policy has entropy. Equal completions within one batch get
different rewards.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any


def normal(prompts: Sequence[Any], completions: Sequence[str], **_: object) -> list[float]:
    """Return a standard normal number for each completion, the same for the same call. The unit of
    a trained reward model is also one standard deviation."""
    seen: Counter[str] = Counter()
    values = []
    for prompt, completion in zip(prompts, completions, strict=True):
        text = repr((prompt, completion))
        values.append(normal_of(f"{seen[text]}{text}"))
        seen[text] += 1
    return values


def normal_of(text: str) -> float:
    """Return a standard normal number from the SHA-256 of a text."""
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
    return NormalDist().inv_cdf((number + 0.5) / 2**48)
