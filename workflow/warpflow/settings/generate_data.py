"""Section `generate_data` of the config."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from warpflow.settings.base import Count, Integer, Positive, section


@section
class GenerateData:
    """The embedded synthetic language. Used when `data` is `generate_data`."""

    sft_examples: Count = 8000
    """Reviews in the SFT corpus."""
    preference_pairs: Annotated[Integer, Field(ge=2)] = 4000
    """Noisy preference pairs for the reward model."""
    preference_noise_scale: Positive = 2.0
    """Higher: annotators agree with gold more often. It is s in P(a preferred) =
    σ(s · (gold_a − gold_b)); lower is noisier, and the reward model easier to hack."""
    train_prompts: Count = 1500
    """Prompts for RL."""
    eval_prompts: Count = 400
    """Held-out prompts; disjoint from the former."""
