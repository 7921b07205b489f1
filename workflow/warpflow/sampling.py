"""Sampling completions with a key-value cache and a random stream of one's own.

`model.generate()` is not used: it takes no `generator`, so runs could be neither reproduced
nor resumed in mid-stream, and it filters by top-k 50 unless told otherwise, which biases the
log-ratios of the KL.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from warpflow.log_probs import Completions, positions


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of each prompt, BOS first where the tokenizer has one."""
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    encoded = tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
    ids = [bos + row for row in encoded]
    for prompt, row in zip(prompts, ids, strict=True):
        if not row:
            raise ValueError(f"prompt {prompt!r} has no tokens and the tokenizer has no BOS token")
    return ids


def pad_left(
    rows: Sequence[Sequence[int]], pad_id: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """[B, P] ids padded on the left, and the [B, P] mask that is True on real tokens."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    return ids.to(device), mask.to(device)


@torch.no_grad()
def sample_completions(
    model: PreTrainedModel,
    prompt_ids: Tensor,
    is_prompt: Tensor,
    *,
    max_new_tokens: int,
    temperature: float,
    eos_id: int,
    pad_id: int,
    generator: torch.Generator,
) -> Completions:
    """Draw y ~ π(·|x) at `temperature`, from the whole vocabulary (no top-k, no top-p).

    Sequences that ended leave the batch, so that no forward pass is spent on pads, and sampling
    stops when all have ended.

    Args:
        prompt_ids, is_prompt: [B, P], left-padded (`pad_left`).
        generator: on the model's device; consumed in place.
    """
    batch, device = prompt_ids.shape[0], prompt_ids.device
    response = torch.full((batch, max_new_tokens), pad_id, dtype=torch.int64, device=device)
    lengths = torch.full((batch,), max_new_tokens, dtype=torch.int64, device=device)
    finished = torch.zeros(batch, dtype=torch.bool, device=device)
    alive = torch.arange(batch, device=device)  # row of `response` that each active row fills
    is_token, next_ids, cache = is_prompt, prompt_ids, DynamicCache(config=model.config)
    for step in range(max_new_tokens):
        logits = model(
            input_ids=next_ids,
            attention_mask=is_token.long(),
            position_ids=positions(is_token)[:, -next_ids.shape[1] :],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        probabilities = torch.softmax(logits.float() / temperature, -1)
        next_ids = torch.multinomial(probabilities, 1, generator=generator)
        response[alive, step] = next_ids[:, 0]
        ended = next_ids[:, 0] == eos_id
        is_token = torch.cat([is_token, is_token.new_ones(len(alive), 1)], 1)
        if ended.any():
            lengths[alive[ended]] = step + 1
            finished[alive[ended]] = True
            keep = (~ended).nonzero()[:, 0]
            if not len(keep):
                break
            cache.batch_select_indices(keep)
            alive, next_ids, is_token = alive[keep], next_ids[keep], is_token[keep]
    width = int(lengths.max())
    is_response = torch.arange(width, device=device)[None] < lengths[:, None]
    return Completions(prompt_ids, is_prompt, response[:, :width], is_response, finished)
