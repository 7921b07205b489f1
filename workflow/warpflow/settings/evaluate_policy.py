"""Section `evaluate_policy` of the config, and what one evaluation is told."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Discriminator, Field, Tag, with_config
from typing_extensions import TypedDict

from warpflow.settings.base import MODEL_CONFIG, Count, Integer, Level, Natural, section
from warpflow.settings.rewards import Served
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


FUNCTION_OR_MODEL = r"^([\w.]+:\w+|[^:]+)$"


def is_function_or_model(source: str) -> str:
    if not re.fullmatch(FUNCTION_OR_MODEL, source):
        raise ValueError(
            "package.module:function, the folder or hub name of a reward model, or "
            "{url: http://…} for an endpoint"
        )
    return source


def kind_of_source(given: Any) -> str:
    """Return what kind of gold this is, so that an error is about this kind only. The tags have
    blanks because a gold's name has none."""
    if not isinstance(given, Mapping):
        return "a function or a model"
    return "held out" if "held_out_preferences" in given else "an endpoint"


def kind_of_gold(given: Any) -> str:
    """Return whether this is one gold, or several golds by name."""
    is_one = not isinstance(given, Mapping) or {"held_out_preferences", "url"} & given.keys()
    return "one gold" if is_one else "several golds"


GoldSource = Annotated[
    Annotated[
        str,
        AfterValidator(is_function_or_model),
        Field(json_schema_extra={"pattern": FUNCTION_OR_MODEL}),
        Tag("a function or a model"),
    ]
    | Annotated[HeldOut, Tag("held out")]
    | Annotated[Served, Tag("an endpoint")],
    Discriminator(kind_of_source),
]
GoldSources = dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w-]*$")], GoldSource | None]
Golds = Annotated[
    Annotated[GoldSource, Tag("one gold")] | Annotated[GoldSources, Tag("several golds")],
    Discriminator(kind_of_gold),
]


@section
class EvaluatePolicy(Evaluation):
    """Evaluation on held-out prompts."""

    gold: Golds | None = "warpflow.data.toy_reviews:gold_score"
    """The gold reward, which training never sees, or null. It is a function
    `package.module:function`, called as those of `rewards` are; a reward model (a folder or a hub
    name); `held_out_preferences: 0.5`, a reward model that is trained here on that share of the
    preferences, which the other one then never sees; or `url: http://…`, an endpoint
    (docs/your_rewards.md). Several golds have names: `{model: {held_out_preferences: 0.5}, words:
    my_rewards:words, judge: {url: http://node7:8000/score}}`."""
    points_per_job: Count | None = None
    """How many policies one job evaluates; null takes all of an iteration. Set 1 on a cluster where
    every point is to have a GPU of its own. The results do not depend on it."""


@section
class EvaluationSettings(Sampling, Evaluation):
    """One evaluation: section `evaluate_policy`, with how `policy` samples."""
