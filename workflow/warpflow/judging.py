"""What a policy is trained and judged with, loaded from the folders of earlier stages."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from warpflow.models import load_policy, load_reward_model, load_tokenizer
from warpflow.rewards import Reward, load_function, model_reward, text_reward
from warpflow.rows import read_rows
from warpflow.sampling import encode_prompts


@dataclass(frozen=True)
class JudgeArguments:
    """What every script that judges policies is told of them: flags of these names."""

    sft: str = field(metadata={"help": "checkpoint of θ_sft"})
    reward_model: str = field(metadata={"help": "checkpoint of the reward model"})
    data: str = field(metadata={"help": "data folder"})
    max_prompt_tokens: int = field(metadata={"help": "longer prompts are an error"})
    gold: str | None = field(default=None, metadata={"help": "package.module:function"})


@dataclass(frozen=True)
class Judges:
    """θ_sft, its tokenizer, r, gold (where there is one), and the tokenised prompts."""

    sft: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    reward: Reward
    gold: Reward | None
    train_prompts: list[list[int]]
    eval_prompts: list[list[int]]


def load_judges(given: JudgeArguments) -> Judges:
    """Load them to the device.

    Raises:
        ValueError: a prompt of more than `max_prompt_tokens` tokens; names file and prompt.
    """
    tokenizer = load_tokenizer(given.sft)
    model = load_reward_model(given.reward_model).requires_grad_(False)
    gold = given.gold
    train_prompts, eval_prompts = (
        read_prompts(tokenizer, f"{given.data}/{part}_prompts.jsonl", given.max_prompt_tokens)
        for part in ("train", "eval")
    )
    return Judges(
        sft=load_policy(given.sft).requires_grad_(False),
        tokenizer=tokenizer,
        reward=model_reward(model, load_tokenizer(given.reward_model), tokenizer),
        gold=text_reward(load_function(gold), tokenizer, gold) if gold else None,
        train_prompts=train_prompts,
        eval_prompts=eval_prompts,
    )


def read_prompts(
    tokenizer: PreTrainedTokenizerBase, path: str, max_prompt_tokens: int
) -> list[list[int]]:
    """Token ids of the prompts of a JSONL file, none longer than `max_prompt_tokens`."""
    prompts = [row["prompt"] for row in read_rows(path)]
    encoded = encode_prompts(tokenizer, prompts)
    for prompt, ids in zip(prompts, encoded, strict=True):
        if len(ids) > max_prompt_tokens:
            raise ValueError(
                f"{path}: a prompt of {len(ids)} tokens, expected at most {max_prompt_tokens} "
                f"(policy.max_prompt_tokens): shorten it or raise the limit: {prompt[:80]!r}"
            )
    return encoded
