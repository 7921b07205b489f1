"""Section `generate_data` of the config."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from warpflow.settings.base import Count, Integer, Positive, section


@section
class GenerateData:
    """The embedded synthetic language. The section is used when `data` is `generate_data`."""

    sft_examples: Count = 8000
    """The number of reviews in the SFT corpus."""
    preference_pairs: Annotated[Integer, Field(ge=2)] = 4000
    """The number of noisy preference pairs for the reward model."""
    preference_noise_scale: Positive = 2.0
    """With a higher value annotators agree with gold more often. It is s in P(a preferred) = σ(s ·
    (gold_a − gold_b)). A lower value gives noisier preferences, and a reward model that is easier
    to hack."""
    train_prompts: Count = 1500
    """The number of prompts for RL."""
    eval_prompts: Count = 400
    """The number of held-out prompts, none of which is among those for RL."""
