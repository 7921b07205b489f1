"""What a policy is trained and judged with, loaded from the folders of earlier stages."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from warpflow.models import load_policy, load_reward_model, load_tokenizer
from warpflow.rewards import Reward, load_function, model_reward, text_reward
from warpflow.rows import read_rows
from warpflow.sampling import encode_prompts


@dataclass(frozen=True)
class Judges:
    """θ_sft, its tokenizer, r, gold (where there is one), and the tokenised prompts."""

    sft: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    reward: Reward
    gold: Reward | None
    train_prompts: list[list[int]]
    eval_prompts: list[list[int]]


def load_judges(
    sft: str, reward_model: str, data: str, *, gold: str | None, max_prompt_tokens: int
) -> Judges:
    """Load them to the device.

    Raises:
        ValueError: a prompt of more than `max_prompt_tokens` tokens; names file and prompt.
    """
    tokenizer = load_tokenizer(sft)
    model = load_reward_model(reward_model).requires_grad_(False)
    return Judges(
        sft=load_policy(sft).requires_grad_(False),
        tokenizer=tokenizer,
        reward=model_reward(model, load_tokenizer(reward_model), tokenizer),
        gold=text_reward(load_function(gold), tokenizer, gold) if gold else None,
        train_prompts=read_prompts(tokenizer, f"{data}/train_prompts.jsonl", max_prompt_tokens),
        eval_prompts=read_prompts(tokenizer, f"{data}/eval_prompts.jsonl", max_prompt_tokens),
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
