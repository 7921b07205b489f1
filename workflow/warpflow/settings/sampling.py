"""How completions are sampled: the part of section `policy` that other sections' jobs share."""

from __future__ import annotations

from warpflow.settings.base import Count, Positive, section


@section
class Sampling:
    """How completions are sampled."""

    max_new_tokens: Count = 48
    """The largest number of tokens of a completion. Raise it when the share of unfinished
    completions is high."""
    temperature: Positive = 0.9
    """The temperature of sampling and of all log-probabilities, in training and evaluation. Paper:
    0.9."""
