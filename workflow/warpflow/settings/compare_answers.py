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
    """The address up to /v1; requests go to base_url/chat/completions."""
    model: str
    """The name of the model there."""
    template: str = JUDGE_TEMPLATE
    """The file with the question; it contains {instruction}, {first} and {second}."""
    api_key_env: Annotated[str, Field(pattern=r"^\w+$")] | None = None
    """The name of the environment variable that holds the key; null sends no key."""
    parameters: dict[str, Any] = Field(default_factory=lambda: {"temperature": 0})
    """What a request contains beside model and messages."""
    requests: Count = 4
    """The number of requests that run at once."""
    retries: Natural = 6
    """The number of times that a failed request is sent again."""
    timeout: Positive = 120.0
    """The time limit of one request, in seconds."""
    price_input: NonNegative = 0.0
    """The price of a million tokens of input."""
    price_output: NonNegative = 0.0
    """The price of a million tokens of output."""


def one_key(*names: str) -> list[Any]:
    """Make annotations for a mapping with one of these keys."""

    def has_one(given: dict[str, Any]) -> dict[str, Any]:
        if len(given) != 1:
            raise ValueError(f"1 key only, of {', '.join(names)}")
        return given

    limits: dict[str, Any] = {"minProperties": 1, "maxProperties": 1}
    return [AfterValidator(has_one), Field(json_schema_extra=limits)]


@with_config(MODEL_CONFIG)
class Contestant(TypedDict, total=False):
    """A contestant, which answers."""

    policy: str
    """A policy of the run: experiment/iteration/η, or the name of a result."""
    path: str
    """Another checkpoint: a folder or a hub name."""
    answers: str
    """A file of stored answers in the JSON format of AlpacaEval."""


@with_config(MODEL_CONFIG)
class Judge(TypedDict, total=False):
    """A judge of answers."""

    function: Function
    """A function as package.module:function; it is called as rewards are."""
    reward_model: str
    """train_reward_model, or a classifier with one label (a folder or a hub name)."""
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
    """The contestants by name, in order. Each has one of these keys: `policy` (a policy of the run:
    experiment/iteration/η, or the name of a result), `path` (another checkpoint: a folder or a hub
    name), `answers` (a file of stored answers in the JSON format of AlpacaEval)."""
    judges: Annotated[
        dict[Name, Annotated[Judge, *one_key("function", "reward_model", "chat")]],
        Field(min_length=1),
    ]
    """The judges by name. Each has one of these keys: `function` (package.module:function, called
    as rewards are), `reward_model` (train_reward_model, or a classifier with one label, a folder or
    a hub name), `chat` (an OpenAI-compatible endpoint with base_url, model, api_key_env, template,
    parameters, requests at once, retries, timeout in seconds, price_input and price_output per
    million tokens)."""
    prompts: Count | None = None
    """How many prompts are answered, the first ones; null takes all. They come from the first file
    of stored answers where there is one, else from the held-out prompts."""
    pairs: Literal["all", "first"] = "all"
    """Which pairs are judged: all of them, or the first contestant against each other one."""
    thresholds: Annotated[list[NonNegative], Field(min_length=3, max_length=3)] = Field(
        default_factory=lambda: [0.1, 0.5, 1.0]
    )
    """How judges that score are graded. A difference up to the first number is a tie, up to the
    second slightly better (±0.5), up to the third better (±1), and beyond it much better (±1.5);
    the unit is one standard deviation of the judge's scores."""
    confidence: Level = 0.95
    """The level of the intervals over prompts."""
    max_prompt_tokens: Count | None = None
    """The limit of a prompt for policies that answer here; null takes policy.max_prompt_tokens."""
    max_new_tokens: Count | None = None
    """The limit of their answers; null takes policy.max_new_tokens."""
    temperature: Positive | None = None
    """The temperature at which they are sampled; null takes policy.temperature."""

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
