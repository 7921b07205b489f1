"""Section `estimate_optimum` of the config, and what the estimate is told."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from warpflow.settings.base import Count, Integer, NonEmpty, Number, Positive, section
from warpflow.settings.sampling import Sampling


@section
class EstimateOptimum:
    """The best reward that any policy can have at each KL, estimated from SFT samples. All policies
    are measured against it: the optimal KL–reward front, and best-of-n beside it."""

    prompts: Annotated[Integer, Field(ge=2)] = 40
    """The number of held-out prompts, the first ones."""
    samples_per_prompt: Annotated[Integer, Field(ge=8)] = 1000
    """The number of SFT samples of each prompt. The KL that is reliably reached grows with its
    logarithm."""
    betas: Literal["auto"] | Annotated[list[Positive], NonEmpty] = "auto"
    """The β of the front's points; auto goes up to the last reliable one. The points are π* ∝ π_sft
    exp(r / β); auto makes 24 of them, evenly spaced in √KL."""
    min_ess: Annotated[Number, Field(ge=1)] = 50
    """The effective sample size that a reliable point has on average over the prompts. It is 1 / Σ
    w²."""
    min_ess_decile: Annotated[Number, Field(ge=1)] = 10
    """The effective sample size that a reliable point has at the worst decile of the prompts."""
    batch_size: Count = 256
    """The number of completions that are sampled together; lower it when memory is short."""


@section
class OptimumSettings(Sampling, EstimateOptimum):
    """One estimate: section `estimate_optimum`, with how `policy` samples."""
