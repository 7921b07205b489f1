"""How completions are sampled: the part of section `policy` that other sections' jobs share."""

from __future__ import annotations

from warpflow.settings.base import Count, Positive, section


@section
class Sampling:
    """How completions are sampled."""

    max_new_tokens: Count = 48
    """Limit of a completion. Raise it when the share of unfinished completions is high."""
    temperature: Positive = 0.9
    """Of sampling, policy, anchor and evaluation alike. Paper: 0.9."""
