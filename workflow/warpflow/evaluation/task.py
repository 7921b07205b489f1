"""Load what a policy is trained and judged with from the folders of earlier stages."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from warpflow.data.files import read_rows
from warpflow.evaluation.endpoints import call_endpoint
from warpflow.evaluation.rewards import (
    READING,
    PromptRows,
    Reading,
    Reward,
    applying,
    called_reward,
    function_reward,
    index_rows,
    load_function,
    model_reward,
    weighted_sum,
)
from warpflow.gold_names import GOLD, is_endpoint, is_function
from warpflow.lm.classifiers import load_classifier
from warpflow.lm.models import (
    ending_ids,
    load_config,
    load_policy,
    load_reward_tokenizer,
    load_tokenizer,
    require_context,
    require_room,
    require_vocabulary,
)
from warpflow.lm.prompts import encode_rows
from warpflow.reward_terms import reward_weights
from warpflow.settings.base import Count, listed, section
from warpflow.settings.rewards import Calls


@section
class JudgeArguments:
    """Arguments of every script that judges policies."""

    sft: str
    """The checkpoint of θ_sft."""
    data: str
    """The data folder."""
    max_prompt_tokens: Count
    """The largest number of tokens of a prompt; a longer one is an error."""
    rewards: str
    """JSON that maps reward_model or package.module:function to its weight in r(x, y), and the name
    of an endpoint to its url, weight and version."""
    reward_model: str | None = None
    """The checkpoint of the reward model, where it has a weight."""
    gold: list[str] = listed()
    """The golds, which are measured and never trained on. Each is a package.module:function, the
    folder or hub name of a reward model, or JSON with the url and version of an endpoint."""
    gold_names: list[str] = listed(GOLD)
    """The columns of the golds, in the same order."""
    endpoints: str = "{}"
    """JSON that maps an endpoint's key of the config, as rewards.NAME, to how it is called. It
    changes no result."""


@dataclass(frozen=True)
class Scorers:
    """The policy's tokenizer, the ids that end a completion, r and its terms by name, golds by
    column, and the tokenised prompts."""

    tokenizer: PreTrainedTokenizerBase
    eos_ids: list[int]
    reward: Reward
    terms: dict[str, Reward]
    golds: dict[str, Reward]
    train_prompts: list[list[int]]
    eval_prompts: list[list[int]]


@dataclass(frozen=True)
class Judges(Scorers):
    """What scores completions, and θ_sft, to which their KL is measured."""

    sft: PreTrainedModel


def load_judges(
    given: JudgeArguments,
    max_new_tokens: int,
    reading: Reading = READING,
    attention: str | None = None,
) -> Judges:
    """Load what scores completions, and θ_sft, to the device.

    Args:
        reading: how a reward model reads.
        attention: the attention of θ_sft; see `lm.models.load_whole`.

    Raises:
        ValueError: as in `load_scorers`; or the longest prompt and completion exceed the policy's
            context, or their cache exceeds the device.
    """
    config, tokens = load_config(given.sft), given.max_prompt_tokens + max_new_tokens
    require_context(config, tokens, given.sft)
    require_room(config, tokens, given.sft)
    scorers = load_scorers(given, reading)
    sft = load_policy(given.sft, attention).requires_grad_(False)
    return Judges(**vars(scorers), sft=sft)


def load_scorers(given: JudgeArguments, reading: Reading = READING) -> Scorers:
    """Load what scores completions to the device. Of θ_sft only the tokenizer is loaded.

    Raises:
        ValueError: a prompt has more than `max_prompt_tokens` tokens; the message names file and
            prompt. Or the tokenizer of a reward model has ids beyond its embedding.
    """
    tokenizer = load_tokenizer(given.sft)
    files = [f"{given.data}/{part}_prompts.jsonl" for part in ("train", "eval")]
    rows = [read_rows(file) for file in files]
    prompts = [
        encode_rows(tokenizer, part, file, given.max_prompt_tokens)
        for part, file in zip(rows, files, strict=True)
    ]

    @functools.cache  # only where a reward needs it, as it refuses prompts that look alike
    def prompt_rows() -> PromptRows:
        return index_rows(prompts[0] + prompts[1], rows[0] + rows[1])

    def load_reward(name: str) -> Reward:
        return load_function_reward(name) if is_function(name) else load_model_reward(name)

    def load_function_reward(name: str) -> Reward:
        return function_reward(load_function(name), tokenizer, name, prompt_rows())

    def load_model_reward(path: str) -> Reward:
        model = load_classifier(path).requires_grad_(False)
        reward_tokenizer = load_reward_tokenizer(path)
        # Where the tokenizers are the same, the sampled ids are passed on.
        same = reward_tokenizer.get_vocab() == tokenizer.get_vocab()
        sampled = load_config(given.sft).get_text_config().vocab_size if same else 0
        require_vocabulary(reward_tokenizer, model.config, path, sampled)
        of_messages = not all(isinstance(row["prompt"], str) for row in rows[0] + rows[1])
        return model_reward(
            model,
            reward_tokenizer,
            tokenizer,
            prompt_rows() if of_messages else {},
            reading,
        )

    def load_term(name: str, term: Any) -> Reward:
        if isinstance(term, dict):
            return load_endpoint(name, term["url"], f"rewards.{name}")
        return load_reward(str(given.reward_model) if name == "reward_model" else name)

    def load_gold(column: str, source: str) -> Reward:
        if is_endpoint(source):
            return load_endpoint(column, json.loads(source)["url"], f"evaluate_policy.{column}")
        return load_reward(source)

    def load_endpoint(name: str, url: str, key: str) -> Reward:
        calls = Calls(**json.loads(given.endpoints).get(key, {}))
        call = call_endpoint(name, url, calls, key)
        return called_reward(call, tokenizer, name, prompt_rows())

    rewards = json.loads(given.rewards)
    if "reward_model" in rewards and given.reward_model is None:
        raise ValueError("--rewards gives reward_model a weight: give --reward_model its folder")
    if given.gold and len(given.gold_names) != len(given.gold):
        raise ValueError(
            f"--gold_names: got {len(given.gold_names)} names, expected {len(given.gold)}, one for "
            "each of --gold"
        )
    terms = {name: load_term(name, term) for name, term in rewards.items()}
    weights = reward_weights(rewards)
    return Scorers(
        tokenizer=tokenizer,
        eos_ids=ending_ids(given.sft, tokenizer),
        reward=weighted_sum([(weight, terms[name]) for name, weight in weights.items()], tokenizer),
        terms=terms,
        golds={
            column: applying(load_gold(column, source), column, tokenizer)
            for column, source in zip(given.gold_names, given.gold, strict=False)
        },
        train_prompts=prompts[0],
        eval_prompts=prompts[1],
    )
