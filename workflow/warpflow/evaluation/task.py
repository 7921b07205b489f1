"""What a policy is trained and judged with, loaded from the folders of earlier stages."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from warpflow.data.files import Row, read_rows
from warpflow.evaluation.rewards import (
    READING,
    PromptRows,
    Reading,
    Reward,
    function_reward,
    index_rows,
    load_function,
    model_reward,
    weighted_sum,
)
from warpflow.lm.models import (
    ending_ids,
    load_config,
    load_policy,
    load_reward_model,
    load_reward_tokenizer,
    load_tokenizer,
    require_context,
    require_room,
    require_vocabulary,
)
from warpflow.lm.prompts import encode_prompts


@dataclass(frozen=True)
class JudgeArguments:
    """What every script that judges policies is told of them: flags of these names."""

    sft: str = field(metadata={"help": "checkpoint of θ_sft"})
    data: str = field(metadata={"help": "data folder"})
    max_prompt_tokens: int = field(metadata={"help": "longer prompts are an error"})
    rewards: str = field(
        metadata={"help": "JSON: reward_model or package.module:function → its weight in r(x, y)"}
    )
    reward_model: str | None = field(
        default=None, metadata={"help": "checkpoint of the reward model, where it has a weight"}
    )
    gold: str | None = field(
        default=None, metadata={"help": "package.module:function, measured and never trained on"}
    )


@dataclass(frozen=True)
class Judges:
    """θ_sft, its tokenizer, the ids that end a completion, r and its terms by name, gold (where
    there is one), and the tokenised prompts."""

    sft: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    eos_ids: list[int]
    reward: Reward
    terms: dict[str, Reward]
    gold: Reward | None
    train_prompts: list[list[int]]
    eval_prompts: list[list[int]]


def load_judges(given: JudgeArguments, max_new_tokens: int, reading: Reading = READING) -> Judges:
    """Load them to the device.

    Args:
        reading: of a reward model.

    Raises:
        ValueError: a prompt of more than `max_prompt_tokens` tokens; names file and prompt. A
            longest prompt and completion that exceed the policy's context, or whose cache exceeds
            the device. A reward model whose tokenizer has ids beyond its embedding.
    """
    config, tokens = load_config(given.sft), given.max_prompt_tokens + max_new_tokens
    require_context(config, tokens, given.sft)
    require_room(config, tokens, given.sft)
    tokenizer = load_tokenizer(given.sft)
    files = [f"{given.data}/{part}_prompts.jsonl" for part in ("train", "eval")]
    rows = [read_rows(file) for file in files]
    prompts = [
        encode_rows(tokenizer, part, file, given.max_prompt_tokens)
        for part, file in zip(rows, files, strict=True)
    ]

    @functools.cache  # only where a reward wants it: it refuses prompts that look alike
    def prompt_rows() -> PromptRows:
        return index_rows(prompts[0] + prompts[1], rows[0] + rows[1])

    def load_reward(name: str) -> Reward:
        if name != "reward_model":
            return function_reward(load_function(name), tokenizer, name, prompt_rows())
        if given.reward_model is None:
            raise ValueError(
                "--rewards gives reward_model a weight: give --reward_model its folder"
            )
        model = load_reward_model(given.reward_model).requires_grad_(False)
        reward_tokenizer = load_reward_tokenizer(given.reward_model)
        # Sampled ids are this tokenizer's too, where they are passed on as such.
        require_vocabulary(reward_tokenizer, model.config, given.reward_model)
        of_messages = not all(isinstance(row["prompt"], str) for row in rows[0] + rows[1])
        return model_reward(
            model,
            reward_tokenizer,
            tokenizer,
            prompt_rows() if of_messages else {},
            reading,
        )

    weights = json.loads(given.rewards)
    terms = {name: load_reward(name) for name in weights}
    return Judges(
        sft=load_policy(given.sft).requires_grad_(False),
        tokenizer=tokenizer,
        eos_ids=ending_ids(given.sft, tokenizer),
        reward=weighted_sum([(weight, terms[name]) for name, weight in weights.items()]),
        terms=terms,
        gold=load_reward(given.gold) if given.gold else None,
        train_prompts=prompts[0],
        eval_prompts=prompts[1],
    )


def encode_rows(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], path: str, max_prompt_tokens: int
) -> list[list[int]]:
    """Token ids of the prompts of a file's rows, none longer than `max_prompt_tokens`."""
    encoded = encode_prompts(tokenizer, [row["prompt"] for row in rows])
    for row, ids in zip(rows, encoded, strict=True):
        if len(ids) > max_prompt_tokens:
            raise ValueError(
                f"{path}: a prompt of {len(ids)} tokens, expected at most {max_prompt_tokens} "
                f"(policy.max_prompt_tokens): shorten it or raise the limit: {row['prompt']!r:.80}"
            )
    return encoded
