"""Section `compare_answers` of the config: who answers, who judges."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, WrapValidator, with_config
from typing_extensions import TypedDict

from warpflow.settings.base import (
    MODEL_CONFIG,
    Count,
    Function,
    Level,
    Natural,
    NonNegative,
    Positive,
    section,
)

JUDGE_TEMPLATE = "config/judge_prompt.txt"  # the question to a chat judge that names no other


@section
class ChatSettings:
    """A judge behind an OpenAI-compatible endpoint."""

    base_url: Annotated[str, Field(pattern=r"^https?://")]
    """Up to /v1; requests go to base_url/chat/completions."""
    model: str
    """Name of the model there."""
    template: str = JUDGE_TEMPLATE
    """File of the question, with {instruction}, {first} and {second}."""
    api_key_env: Annotated[str, Field(pattern=r"^\w+$")] | None = None
    """Name of the environment variable that holds the key; null: no key."""
    parameters: dict[str, Any] = Field(default_factory=lambda: {"temperature": 0})
    """Of the request, beside model and messages."""
    requests: Count = 4
    """At once."""
    retries: Natural = 6
    """Of one request."""
    timeout: Positive = 120.0
    """Of one request, in seconds."""
    price_input: NonNegative = 0.0
    """Per million tokens."""
    price_output: NonNegative = 0.0
    """Per million tokens."""


def one_key(*names: str) -> list[Any]:
    """A mapping with one of these keys."""

    def has_one(given: dict[str, Any]) -> dict[str, Any]:
        if len(given) != 1:
            raise ValueError(f"1 key only, of {', '.join(names)}")
        return given

    limits: dict[str, Any] = {"minProperties": 1, "maxProperties": 1}
    return [AfterValidator(has_one), Field(json_schema_extra=limits)]


@with_config(MODEL_CONFIG)
class Contestant(TypedDict, total=False):
    """One that answers."""

    policy: str
    """Of the run: experiment/iteration/η, or a result's name."""
    path: str
    """Another checkpoint, folder or hub name."""
    answers: str
    """File of stored answers in AlpacaEval's JSON format."""


@with_config(MODEL_CONFIG)
class Judge(TypedDict, total=False):
    """One that judges."""

    function: Function
    """package.module:function, called as rewards are."""
    reward_model: str
    """train_reward_model, or a classifier with one label, folder or hub name."""
    # Checked, and left as it was written: it goes into a flag.
    chat: Annotated[ChatSettings, WrapValidator(lambda given, check: (check(given), given)[1])]
    """An OpenAI-compatible endpoint."""


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$")]


@section
class Comparison:
    """Answers to the same prompts, judged in pairs."""

    contestants: Annotated[
        dict[Name, Annotated[Contestant, *one_key("policy", "path", "answers")]],
        Field(min_length=2),
    ]
    """By name, in order, each one of: `policy` (of the run: experiment/iteration/η, or a result's
    name), `path` (another checkpoint, folder or hub name), `answers` (file of stored answers in
    AlpacaEval's JSON format)."""
    judges: Annotated[
        dict[Name, Annotated[Judge, *one_key("function", "reward_model", "chat")]],
        Field(min_length=1),
    ]
    """By name, each one of: `function` (package.module:function, called as rewards are),
    `reward_model` (train_reward_model, or a classifier with one label, folder or hub name), `chat`
    (an OpenAI-compatible endpoint: base_url, model, api_key_env, template, parameters, requests at
    once, retries, timeout in seconds, price_input and price_output per million tokens)."""
    prompts: Count | None = None
    """The first so many prompts, of the first file of stored answers where there is one, else of
    the held-out ones; null: all."""
    pairs: Literal["all", "first"] = "all"
    """All pairs, or the first contestant against each other one."""
    thresholds: Annotated[list[NonNegative], Field(min_length=3, max_length=3)] = Field(
        default_factory=lambda: [0.1, 0.5, 1.0]
    )
    """Of judges that score: a difference of up to these many standard deviations of the judge's
    scores is a tie, slightly better (±0.5), better (±1); beyond, much better (±1.5)."""
    confidence: Level = 0.95
    """Level of the intervals over prompts."""
    max_prompt_tokens: Count | None = None
    """Of policies that answer here; null: policy.max_prompt_tokens."""
    max_new_tokens: Count | None = None
    """As that; null: policy.max_new_tokens."""
    temperature: Positive | None = None
    """As that; null: policy.temperature."""

    @property
    def stored(self) -> dict[str, str]:
        """Files of stored answers, by contestant. The first one's instructions are the prompts."""
        return {name: c["answers"] for name, c in self.contestants.items() if "answers" in c}

    @property
    def sampled(self) -> dict[str, str]:
        """Policies that answer here, by contestant: of the run, or a checkpoint's path."""
        return {
            name: str(next(iter(c.values())))
            for name, c in self.contestants.items()
            if "answers" not in c
        }


Comparisons = dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w-]*$")], Comparison | None]
