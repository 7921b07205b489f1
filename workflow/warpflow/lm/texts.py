"""Completions as lists of tokens and as texts."""

from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerBase

from warpflow.lm.log_probs import Completions


def token_rows(batch: Completions) -> list[list[int]]:
    """Return each row's real tokens, prompt and response, as a list."""
    ids = torch.cat([batch.prompt_ids, batch.response_ids], 1)
    is_token = torch.cat([batch.is_prompt, batch.is_response], 1)
    return [row[mask].tolist() for row, mask in zip(ids, is_token, strict=True)]


def full_texts(batch: Completions, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return prompt and response decoded together, without special tokens."""
    return tokenizer.batch_decode(token_rows(batch), skip_special_tokens=True)


def tokens_of_prompts(batch: Completions) -> list[list[int]]:
    """Return each row's real prompt tokens."""
    return [ids[mask].tolist() for ids, mask in zip(batch.prompt_ids, batch.is_prompt, strict=True)]


def prompt_texts(batch: Completions, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return tokenizer.batch_decode(tokens_of_prompts(batch), skip_special_tokens=True)


def response_texts(batch: Completions, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    rows = [
        ids[mask].tolist() for ids, mask in zip(batch.response_ids, batch.is_response, strict=True)
    ]
    return tokenizer.batch_decode(rows, skip_special_tokens=True)
