"""Section `train_reward_model` of the config."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from warpflow.settings.base import Count, Integer, Natural, NonNegative, Positive, section
from warpflow.settings.supervised import SupervisedSettings


@section
class TrainRewardModel(SupervisedSettings):
    """The Bradley–Terry reward model, trained from the SFT weights, or your own."""

    steps: Count = 200
    batch_size: Count = 64
    """The number of preference pairs per step."""
    learning_rate: Positive = 1e-3
    warmup_steps: Natural = 20
    weight_decay: NonNegative = 0.01
    held_out: Annotated[Integer, Field(ge=2)] = 500
    """The number of pairs that are kept from training, to measure accuracy and the unit of the
    reward. Rewards are reported in standard deviations over these texts."""
    path: str | None = None
    """Your trained Hugging Face reward model; null trains one. It classifies sequences, with one
    label."""
