"""Section `estimate_optimum` of the config, and what the estimate is told."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from warpflow.settings.base import Count, Integer, NonEmpty, Number, Positive, section
from warpflow.settings.sampling import Sampling


@section
class EstimateOptimum:
    """The best reward at each KL that any policy can have, from SFT samples. It is the ruler of all
    policies: the optimal KL–reward front, and best-of-n."""

    prompts: Annotated[Integer, Field(ge=2)] = 40
    """Held-out prompts, the first ones."""
    samples_per_prompt: Annotated[Integer, Field(ge=8)] = 1000
    """SFT samples of each. The KL that is reliably reached grows with their logarithm."""
    betas: Literal["auto"] | Annotated[list[Positive], NonEmpty] = "auto"
    """β of the front's points; auto: up to the last that is reliable. The points are π* ∝ π_sft
    exp(r / β); auto makes 24, evenly spaced in √KL."""
    min_ess: Annotated[Number, Field(ge=1)] = 50
    """Effective samples of a reliable point, on average over the prompts. The effective sample size
    is 1 / Σ w²."""
    min_ess_decile: Annotated[Number, Field(ge=1)] = 10
    """The same at the prompts' worst decile."""
    batch_size: Count = 256
    """Completions sampled together; lower it when memory is short."""


@section
class OptimumSettings(Sampling, EstimateOptimum):
    """One estimate: section `estimate_optimum`, with how `policy` samples."""
