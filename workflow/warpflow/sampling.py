"""Sampling completions with a key-value cache and randomness of one's own.

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
from warpflow.seeds import make_generator


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


def draw_uniforms(
    rows: int, max_new_tokens: int, device: torch.device | str, seed: int, *purpose: str | int
) -> Tensor:
    """[rows, max_new_tokens] float64 in [0, 1): all the randomness of one batch of completions.
    The numbers of a seed and purpose are the same on every device."""
    generator = make_generator("cpu", seed, *purpose)
    return torch.rand(rows, max_new_tokens, dtype=torch.float64, generator=generator).to(device)


def draw_tokens(logits: Tensor, uniforms: Tensor) -> Tensor:
    """[B, 1] tokens of softmax(logits) [B, V], each drawn by its uniform [B] through the inverse
    of the cumulative distribution, in fp64: fp32 sums would lose the rarest tokens."""
    cumulative = torch.softmax(logits, -1).double().cumsum(-1)
    # Rounding leaves the total a little off 1; scaled, a uniform below 1 always hits a token.
    threshold = uniforms[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, threshold, right=True)


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
    uniforms: Tensor,
) -> Completions:
    """Draw y ~ π(·|x) at `temperature`, from the whole vocabulary (no top-k, no top-p).

    Sequences that ended leave the batch, so that no forward pass is spent on pads, and sampling
    stops when all have ended. Token t of row b is drawn by `uniforms[b, t]`: a row's completion
    does not depend on which other rows share its batch, process or micro-batch.

    Args:
        prompt_ids, is_prompt: [B, P], left-padded (`pad_left`).
        uniforms: [B, max_new_tokens] float64 in [0, 1), of `draw_uniforms`.
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
        next_ids = draw_tokens(logits.float() / temperature, uniforms[alive, step])
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
