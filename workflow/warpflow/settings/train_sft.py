"""Section `train_sft` of the config."""

from __future__ import annotations

from warpflow.settings.base import Count, Natural, NonNegative, Positive, section
from warpflow.settings.supervised import SupervisedSettings


@section
class TrainSft(SupervisedSettings):
    """Supervised fine-tuning with AdamW and cosine decay."""

    steps: Natural = 600
    """The number of optimiser steps; 0 where the policy of policy.path is fine-tuned already."""
    batch_size: Count = 64
    learning_rate: Positive = 3e-3
    warmup_steps: Natural = 30
    weight_decay: NonNegative = 0.0
