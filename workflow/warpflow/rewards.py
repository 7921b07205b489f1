"""Rewards: a sequence-classification model, or a Python function named in the config.

Both become a `Reward`: a function from a batch of completions to one float per completion.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from warpflow.log_probs import Completions

Reward = Callable[[Completions], Tensor]
TextScorer = Callable[[list[str], list[str], list[bool]], Sequence[float]]


def model_reward(
    model: PreTrainedModel,
    model_tokenizer: PreTrainedTokenizerBase,
    policy_tokenizer: PreTrainedTokenizerBase,
    batch_size: int = 256,
) -> Reward:
    """The reward r(x, y) of a one-label sequence classifier.

    A reward model trained by this pipeline stores the mean and standard deviation of its scores
    in its config (`reward_mean`, `reward_std`); scores are returned in those units. Where both
    models share a vocabulary the sampled ids are scored as they are, else the decoded text.
    """
    mean = getattr(model.config, "reward_mean", 0.0)
    std = getattr(model.config, "reward_std", 1.0)
    same_vocabulary = model_tokenizer.get_vocab() == policy_tokenizer.get_vocab()

    @torch.no_grad()
    def score(batch: Completions) -> Tensor:
        if same_vocabulary:
            rows = token_rows(batch)
        else:
            rows = model_tokenizer(full_texts(batch, policy_tokenizer))["input_ids"]
        scores = [
            sequence_scores(model, rows[i : i + batch_size])
            for i in range(0, len(rows), batch_size)
        ]
        return (torch.cat(scores) - mean) / std

    return score


def sequence_scores(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> Tensor:
    """[B] scores of token sequences, right-padded here."""
    width, pad_id, device = max(map(len, rows)), model.config.pad_token_id, model.device
    ids = torch.tensor([list(row) + [pad_id] * (width - len(row)) for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    is_token = torch.arange(width, device=device)[None] < lengths[:, None]
    return model(input_ids=ids, attention_mask=is_token.long()).logits[:, 0].float()


def text_reward(scorer: TextScorer, policy_tokenizer: PreTrainedTokenizerBase, name: str) -> Reward:
    """The reward of a function ``(prompts, completions, finished) -> floats``.

    A wrong count (ValueError) or a value that is not finite (FloatingPointError) stops the run:
    it is never replaced by 0.
    """

    def score(batch: Completions) -> Tensor:
        prompts, responses = (
            prompt_texts(batch, policy_tokenizer),
            response_texts(batch, policy_tokenizer),
        )
        values = [float(v) for v in scorer(prompts, responses, batch.finished.tolist())]
        if len(values) != len(prompts):
            raise ValueError(f"{name} returned {len(values)} scores for {len(prompts)} completions")
        for value, prompt, response in zip(values, prompts, responses, strict=True):
            if not math.isfinite(value):
                raise FloatingPointError(f"{name} returned {value} for {prompt!r} + {response!r}")
        return torch.tensor(values, dtype=torch.float32, device=batch.response_ids.device)

    return score


def load_function(name: str) -> TextScorer:
    """The function that a config names as ``package.module:function``."""
    module, separator, function = name.partition(":")
    if not separator:
        raise ValueError(f"{name!r}: expected package.module:function")
    return getattr(importlib.import_module(module), function)


def token_rows(batch: Completions) -> list[list[int]]:
    """Each row's real tokens, prompt and response, as a list."""
    ids = torch.cat([batch.prompt_ids, batch.response_ids], 1)
    is_token = torch.cat([batch.is_prompt, batch.is_response], 1)
    return [row[mask].tolist() for row, mask in zip(ids, is_token, strict=True)]


def full_texts(batch: Completions, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Prompt and response decoded together, without special tokens."""
    return tokenizer.batch_decode(token_rows(batch), skip_special_tokens=True)


def prompt_texts(batch: Completions, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    rows = [ids[mask].tolist() for ids, mask in zip(batch.prompt_ids, batch.is_prompt, strict=True)]
    return tokenizer.batch_decode(rows, skip_special_tokens=True)


def response_texts(batch: Completions, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    rows = [
        ids[mask].tolist() for ids, mask in zip(batch.response_ids, batch.is_response, strict=True)
    ]
    return tokenizer.batch_decode(rows, skip_special_tokens=True)
