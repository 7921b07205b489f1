"""Sample completions with a key-value cache and explicit randomness.

`model.generate()` is not used. It takes no `generator`, so runs could be neither reproduced nor
resumed. By default it filters by top-k 50, which biases the log-ratios of the KL.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from warpflow.lm.fast.decoding import Decoder
from warpflow.lm.fast.layers import agrees, is_covered
from warpflow.lm.log_probs import LOGITS_AT_ONCE, Completions, mask_arguments, of_known_ids
from warpflow.seeds import make_generator


def pad_left(
    rows: Sequence[Sequence[int]], pad_id: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Return ids [B, P] padded on the left, and the mask [B, P] that is True on real tokens."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    return ids.to(device), mask.to(device)


def draw_uniforms(
    rows: int, max_new_tokens: int, device: torch.device | str, seed: int, *purpose: str | int
) -> Tensor:
    """Return [rows, max_new_tokens] float64 in [0, 1), all the randomness of one batch of
    completions. A seed and purpose give the same numbers on every device."""
    generator = make_generator("cpu", seed, *purpose)
    return torch.rand(rows, max_new_tokens, dtype=torch.float64, generator=generator).to(device)


def draw_tokens(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Draw tokens [B, 1] from softmax(logits) [B, V], each by its uniform [B] through the inverse
    of the cumulative distribution. This is in fp64, because fp32 sums would lose the rarest
    tokens."""
    rows = max(1, LOGITS_AT_ONCE // logits.shape[1])
    if len(logits) > rows:
        parts = zip(logits.split(rows), uniforms.split(rows), strict=True)
        return torch.cat([draw_tokens(*part) for part in parts])
    cumulative = torch.softmax(logits, -1).double().cumsum(-1)
    # Rounding leaves the total a little off 1. Scaled by it, a uniform below 1 always hits a token.
    threshold = uniforms[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, threshold, right=True)


# Sequences that ended leave a batch once they are this share of it.
LEAVING_SHARE = 0.25
# The tokens between two checks of which sequences have ended. A GPU has to wait for each check.
LOOK_EVERY = {"cpu": 1, "cuda": 8}


class PreallocatedLayer(DynamicLayer):
    """A layer of the key-value cache that writes into a buffer of the final length, where
    `DynamicLayer` copies all keys and values at every token."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.buffers: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        start = 0
        if self.buffers is None:
            self.lazy_initialization(key_states, value_states)
            self.buffers = (self._buffer(key_states), self._buffer(value_states))
        else:
            start = self._filled()[0].shape[2]
        count = key_states.shape[2]
        keys, values = self.buffers
        keys.narrow(2, start, count).copy_(key_states)
        values.narrow(2, start, count).copy_(value_states)
        self.keys, self.values = (t.narrow(2, 0, start + count) for t in self.buffers)
        return self.keys, self.values

    def _filled(self) -> tuple[Tensor, Tensor]:
        assert self.keys is not None and self.values is not None
        return self.keys, self.values

    def _buffer(self, states: Tensor) -> Tensor:
        """Return a buffer in the dtype in which attention computes. Under autocast rotated keys
        come in fp32, and all would be cast again for every token."""
        batch, heads, _, width = states.shape
        kind = states.device.type
        is_cast = torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if is_cast else states.dtype
        return states.new_empty(batch, heads, self.capacity, width, dtype=dtype)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row `repeats` times, before the first token is drawn."""
        keys, values = (t.repeat_interleave(repeats, 0) for t in self._filled())
        self.buffers = None
        self.is_initialized = False
        self.update(keys, values)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows by moving them to the front of the buffers. Only the filled part is
        copied."""
        assert self.buffers is not None
        end = self._filled()[0].shape[2]
        for buffer in self.buffers:
            buffer[: len(indices), :, :end] = buffer[indices, :, :end]
        keys, values = (buffer[: len(indices)] for buffer in self.buffers)
        self.buffers = (keys, values)
        self.keys, self.values = keys[:, :, :end], values[:, :, :end]


@contextmanager
def casting_once(model: PreTrainedModel) -> Iterator[None]:
    """Let autocast cast each frozen weight once, as it does with trained ones, and not for every
    token. It keeps the casts of weights that require a gradient until it ends. Use this only where
    no gradient is taken."""
    frozen: list[Tensor] = []
    if torch.is_autocast_enabled(model.device.type):
        frozen = [weight for weight in model.parameters() if not weight.requires_grad]
    for weight in frozen:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight in frozen:
            weight.requires_grad_(False)


def make_cache(model: PreTrainedModel, capacity: int) -> DynamicCache:
    """Return a key-value cache for up to `capacity` tokens. Layers with a shorter sliding window
    stay the library's own."""
    cache = DynamicCache(config=model.config)
    cache.layers = [
        layer if slides(layer, capacity) else PreallocatedLayer(capacity) for layer in cache.layers
    ]
    return cache


def slides(layer: object, capacity: int) -> bool:
    """Whether a layer of the library's cache has to forget tokens within `capacity`, or is of a
    kind that `PreallocatedLayer` does not know."""
    if type(layer) is DynamicSlidingWindowLayer:
        return layer.sliding_window < capacity
    return type(layer) is not DynamicLayer


def make_decoder(
    model: PreTrainedModel,
    cache: DynamicCache,
    capacity: int,
    prompt_ids: Tensor,
    is_prompt: Tensor,
) -> Decoder | None:
    """Return a faster decoder, where `lm.fast.layers` covers the model, none of its layers slides,
    and the library finds the same logits after these prompts and one token. Else return None."""
    if not all(type(layer) is PreallocatedLayer for layer in cache.layers) or not is_covered(model):
        return None

    def two_steps(step: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        after = pad(is_prompt, (0, 1), value=True)
        return torch.cat([step(prompt_ids, is_prompt), step(prompt_ids[:, -1:], after)])

    def compute() -> tuple[Tensor, Tensor]:  # one after the other, as each has its own cache
        padded = not bool(is_prompt.all())
        trial = Decoder(model, make_cache(model, capacity).layers, capacity)
        ours = two_steps(partial(trial, padded=padded))
        del trial
        cache = make_cache(model, capacity)
        return ours, two_steps(
            lambda ids, is_token: next_logits(model, ids, is_token, is_prompt, cache)
        )

    if not agrees(model, "sampling", compute):
        return None
    return Decoder(model, cache.layers, capacity)


def sample_in_chunks(
    model: PreTrainedModel,
    prompt_ids: Tensor,
    is_prompt: Tensor,
    *,
    rows_at_once: int | None,
    pad_id: int,
    uniforms: Tensor,
    samples_per_prompt: int,
    **settings: Any,
) -> Completions:
    """Call `sample_completions` for so many completions at a time, at least those of one prompt,
    because their key-value cache takes the memory. Each row has its own uniforms, so this changes
    nothing.

    Args:
        rows_at_once: the number of completions at a time. None takes all.
    """
    each = samples_per_prompt
    prompts = max(1, (rows_at_once or len(uniforms)) // each)
    with casting_once(model):
        parts = [
            sample_completions(
                model,
                prompt_ids[start : start + prompts],
                is_prompt[start : start + prompts],
                pad_id=pad_id,
                uniforms=uniforms[start * each : (start + prompts) * each],
                samples_per_prompt=each,
                **settings,
            )
            for start in range(0, len(prompt_ids), prompts)
        ]
    return parts[0] if len(parts) == 1 else join(parts, pad_id)


def join(parts: Sequence[Completions], pad_id: int) -> Completions:
    """Join the rows of batches whose prompts are equally wide."""
    width = max(part.response_ids.shape[1] for part in parts)

    def widened(rows: Tensor, fill: int) -> Tensor:
        return pad(rows, (0, width - rows.shape[1]), value=fill)

    return Completions(
        torch.cat([part.prompt_ids for part in parts]),
        torch.cat([part.is_prompt for part in parts]),
        torch.cat([widened(part.response_ids, pad_id) for part in parts]),
        torch.cat([widened(part.is_response, False) for part in parts]),
        torch.cat([part.finished for part in parts]),
    )


@torch.no_grad()
def sample_completions(
    model: PreTrainedModel,
    prompt_ids: Tensor,
    is_prompt: Tensor,
    *,
    max_new_tokens: int,
    temperature: float,
    eos_ids: Sequence[int],
    pad_id: int,
    uniforms: Tensor,
    samples_per_prompt: int = 1,
) -> Completions:
    """Draw y ~ π(·|x) at `temperature`, from all that the tokenizer has (no top-k, no
    top-p).

    A prompt is read once for all its completions. Sequences that ended leave the batch once they
    are a quarter of it, since each leave copies the cache. Sampling stops when all have ended. On a
    GPU both are checked every few tokens (`LOOK_EVERY`). Token t of row b is drawn by `uniforms[b,
    t]`. So a row's completion does not depend on which other rows share its batch, process or
    micro-batch.

    Args:
        prompt_ids, is_prompt: [N, P], left-padded (`pad_left`).
        eos_ids: any of these ends a completion, and is its last token.
        uniforms: [B, max_new_tokens] float64 in [0, 1), of `draw_uniforms`, B = N · K.
        samples_per_prompt: K; the completions of a prompt are adjacent rows of the result.
    """
    device = prompt_ids.device
    capacity = prompt_ids.shape[1] + max_new_tokens
    cache = make_cache(model, capacity)
    decoder = make_decoder(model, cache, capacity, prompt_ids, is_prompt)
    padded = not bool(is_prompt.all())
    if decoder:
        logits = decoder(prompt_ids, is_prompt, padded)
    else:
        logits = next_logits(model, prompt_ids, is_prompt, is_prompt, cache)
    if samples_per_prompt > 1:
        cache.batch_repeat_interleave(samples_per_prompt)
        logits, prompt_ids, is_prompt = (
            rows.repeat_interleave(samples_per_prompt, 0)
            for rows in (logits, prompt_ids, is_prompt)
        )
    batch, width = prompt_ids.shape
    drawn = torch.full((max_new_tokens, batch), pad_id, dtype=torch.int64, device=device)
    rows = torch.arange(batch, device=device)  # the column of `drawn` for each row of the batch
    is_done = torch.zeros(batch, dtype=torch.bool, device=device)
    is_token = pad(is_prompt, (0, max_new_tokens), value=True)
    ends = torch.tensor(eos_ids, device=device)
    every = LOOK_EVERY.get(device.type, 1)
    for step in range(max_new_tokens):
        scaled = logits if temperature == 1 else logits / temperature
        next_ids = draw_tokens(scaled, uniforms[:, step])
        next_ids.masked_fill_(is_done[:, None], pad_id)
        drawn[step].index_copy_(0, rows, next_ids[:, 0])
        is_done = is_done | torch.isin(next_ids[:, 0], ends)
        if step + 1 == max_new_tokens:
            break
        done = 0 if (step + 1) % every else int(is_done.sum())
        if done == len(rows):
            break
        if done and done >= LEAVING_SHARE * len(rows):
            keep = (~is_done).nonzero()[:, 0]
            cache.batch_select_indices(keep)
            rows, next_ids, is_token, is_done, uniforms = (
                tensor[keep] for tensor in (rows, next_ids, is_token, is_done, uniforms)
            )
        read = is_token[:, : width + step + 1]
        if decoder:
            logits = decoder(next_ids, read, padded)
        else:
            logits = next_logits(model, next_ids, read, is_prompt, cache, padded)
    return completed(prompt_ids, is_prompt, drawn[: step + 1].t(), ends)


def completed(prompt_ids: Tensor, is_prompt: Tensor, response: Tensor, ends: Tensor) -> Completions:
    """Return completions from what was drawn [B, T], up to the first of the ids `ends` in each
    row."""
    is_end = torch.isin(response, ends)
    finished = is_end.any(1)
    lengths = torch.where(finished, is_end.int().argmax(1) + 1, response.shape[1])
    longest = int(lengths.max())
    is_response = torch.arange(longest, device=response.device)[None] < lengths[:, None]
    drawn = response[:, :longest].contiguous()
    return Completions(prompt_ids, is_prompt, drawn, is_response, finished)


def next_logits(
    model: PreTrainedModel,
    ids: Tensor,
    is_token: Tensor,
    is_prompt: Tensor,
    cache: DynamicCache,
    padded: bool | None = None,
) -> Tensor:
    """Return float32 logits [B, V] after the tokens `ids`, the last of `is_token`.

    Args:
        padded: whether a prompt is padded, where it is known. A look makes a GPU wait.
    """
    masks = mask_arguments(is_token, is_prompt, padded)
    if masks:
        masks["position_ids"] = masks["position_ids"][:, -ids.shape[1] :]
    output = model(input_ids=ids, **masks, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return of_known_ids(output.logits[:, -1], model).float()
