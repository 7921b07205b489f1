"""What sections `train_sft` and `train_reward_model` of the config have in common."""

from __future__ import annotations

from warpflow.settings.base import Count, Natural, NonNegative, Positive, section


@section
class SupervisedSettings:
    """Supervised training with AdamW and cosine decay."""

    steps: Natural
    """The number of optimiser steps."""
    batch_size: Count
    """The number of examples per step."""
    learning_rate: Positive
    """The largest learning rate of AdamW."""
    warmup_steps: Natural
    """The number of steps in which the learning rate rises linearly."""
    weight_decay: NonNegative
    """The weight decay of AdamW."""
