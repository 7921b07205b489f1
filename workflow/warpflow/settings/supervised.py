"""What sections `train_sft` and `train_reward_model` of the config have in common."""

from __future__ import annotations

from warpflow.settings.base import Count, Natural, NonNegative, Positive, section


@section
class SupervisedSettings:
    """Supervised training; AdamW, cosine decay."""

    steps: Natural
    """Optimiser steps."""
    batch_size: Count
    """Examples per step."""
    learning_rate: Positive
    """AdamW's peak."""
    warmup_steps: Natural
    """Linear warm-up of the learning rate."""
    weight_decay: NonNegative
    """AdamW's."""
