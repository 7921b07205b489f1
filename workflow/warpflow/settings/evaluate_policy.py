"""Section `evaluate_policy` of the config, and what one evaluation is told."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, with_config
from typing_extensions import TypedDict

from warpflow.settings.base import MODEL_CONFIG, Count, Integer, Level, Natural, section
from warpflow.settings.sampling import Sampling


@section
class Evaluation:
    """How many completions an evaluation is made of."""

    prompts: Annotated[Integer, Field(ge=2)] = 400
    """The number of held-out prompts; standard errors fall with its root."""
    samples_per_prompt: Count = 2
    """The number of completions of each prompt; 2 or more give the self-similarity."""
    batch_size: Count = 256
    """The number of completions that are sampled together; lower it when memory is short."""
    completions: Natural = 12
    """The number of completions that are stored to be read."""


@with_config(MODEL_CONFIG)
class HeldOut(TypedDict):
    """A gold reward model that is trained here."""

    held_out_preferences: Level
    """The share of the preferences that it is trained on."""


# A function, or the folder or hub name of a reward model.
FunctionOrModel = Annotated[str, Field(pattern=r"^([\w.]+:\w+|[^:]+)$")]
GoldSource = FunctionOrModel | HeldOut
GoldSources = dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w-]*$")], GoldSource | None]


@section
class EvaluatePolicy(Evaluation):
    """Evaluation on held-out prompts."""

    gold: GoldSource | GoldSources | None = "warpflow.data.toy_reviews:gold_score"
    """The gold reward, which training never sees, or null. It is a function
    `package.module:function`, called as those of `rewards` are; a reward model (a folder or a hub
    name); or `held_out_preferences: 0.5`, a reward model that is trained here on that share of the
    preferences, which the other one then never sees. Several golds have names: `{model:
    {held_out_preferences: 0.5}, words: my_rewards:words}`."""
    points_per_job: Count | None = None
    """How many policies one job evaluates; null takes all of an iteration. Set 1 on a cluster where
    every point is to have a GPU of its own. The results do not depend on it."""


@section
class EvaluationSettings(Sampling, Evaluation):
    """One evaluation: section `evaluate_policy`, with how `policy` samples."""
