"""Section `evaluate_policy` of the config, and what one evaluation is told."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from warpflow.settings.base import Count, Function, Integer, Natural, section
from warpflow.settings.sampling import Sampling


@section
class Evaluation:
    """How many completions an evaluation is made of."""

    prompts: Annotated[Integer, Field(ge=2)] = 400
    """Held-out prompts; standard errors fall with its root."""
    samples_per_prompt: Count = 2
    """Completions of each; 2 or more give the self-similarity."""
    batch_size: Count = 256
    """Completions sampled together; lower it when memory is short."""
    completions: Natural = 12
    """Completions stored to read."""


@section
class EvaluatePolicy(Evaluation):
    """Evaluation on held-out prompts."""

    gold: Function | None = "warpflow.data.toy_reviews:gold_score"
    """`package.module:function` that training never sees, or null. It is called as those of
    `rewards` are."""
    points_per_job: Count | None = None
    """Policies that one job evaluates; null: all of an iteration. 1 on a cluster where every point
    is to have a GPU of its own. The results do not depend on it."""


@section
class EvaluationSettings(Sampling, Evaluation):
    """One evaluation: section `evaluate_policy`, with how `policy` samples."""
