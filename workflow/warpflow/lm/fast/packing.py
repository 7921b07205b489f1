"""Log-probabilities of completions, with all tokens of a batch side by side.

No token is a pad, and a prompt's tokens are there once for its K completions. Only attention sees
rows, and rows of similar length together. This is for models that `lm.fast.layers` covers.
`lm.log_probs` scores others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad, scaled_dot_product_attention
from transformers import PreTrainedModel

from warpflow.lm.fast.layers import Network
from warpflow.lm.log_probs import (
    LOGITS_AT_ONCE,
    Completions,
    log_probs_beside_kls,
    recomputed_in_parts,
    split_by_length,
)


@dataclass(frozen=True)
class Pack:
    """The N tokens that a model has to read to score a batch, and their rows. There are R rows of T
    tokens with pads on the right, in parts of similar length, and S tokens in all.

    Attributes:
        ids: [N] int64, the prompts, each once, then the completions without their last tokens.
        places: [S] int64, the position of each token in its row.
        rows: [S] int64, which of the N tokens it is. Pads have any, as causal attention does not
            see them.
        shapes: (R, T) of each part.
        returns: [N] int64, which of the S has a token's attention.
        predicting: [M] int64, which of the N predicts each response token.
        targets: [M] int64, the response tokens, row by row.
    """

    ids: Tensor
    places: Tensor
    rows: Tensor
    shapes: list[tuple[int, int]]
    returns: Tensor
    predicting: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Rows:
    """A `layers.Layout` with causal attention within the rows of a pack."""

    packed: Pack
    cos: Tensor
    sin: Tensor

    def spread(self, x: Tensor) -> Tensor:
        return x.index_select(0, self.packed.rows)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        sizes = [rows * length for rows, length in self.packed.shapes]
        attended = []
        for *parts, shape in zip(
            queries.split(sizes), keys.split(sizes), values.split(sizes), self.packed.shapes,
            strict=True,
        ):  # fmt: skip
            q, k, v = (part.unflatten(0, shape).transpose(1, 2) for part in parts)
            grouped = q.shape[1] != k.shape[1]
            out = scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=scale, enable_gqa=grouped
            )
            attended.append(out.transpose(1, 2).reshape(len(parts[0]), -1))
        return torch.cat(attended).index_select(0, self.packed.returns)


def pack(batch: Completions, each: int = 1) -> Pack:
    """Put a batch's tokens side by side.

    Args:
        each: the number of adjacent rows that have one prompt.
    """
    device, is_response = batch.prompt_ids.device, batch.is_response
    prompts, is_prompt = batch.prompt_ids[::each], batch.is_prompt[::each]
    is_read = is_response & pad(is_response[:, 1:], (0, 1))  # all but a row's last token
    ids = torch.cat([prompts[is_prompt], batch.response_ids[is_read]])
    prompt, answer = batch.is_prompt.sum(1, keepdim=True), is_read.sum(1, keepdim=True)  # [B, 1]
    ends = is_prompt.sum(1).cumsum(0).repeat_interleave(each)[:, None]
    first_prompt, total = ends - prompt, is_prompt.sum()
    first_answer = total + answer.cumsum(0) - answer
    step = torch.arange(batch.prompt_ids.shape[1] + is_response.shape[1], device=device)
    places, tokens, shapes = [], [], []
    returns, done = torch.empty_like(ids), 0
    for rows in split_by_length(batch, None):
        length = prompt[rows] + answer[rows]
        at = step[: int(length.max())]
        before = first_prompt[rows] + at
        numbers = torch.where(at < prompt[rows], before, first_answer[rows] + at - prompt[rows])
        is_token = at < length
        numbers = numbers.where(is_token, 0)
        stands = done + torch.arange(numbers.numel(), device=device).view_as(numbers)
        # Any of a prompt's K copies will do, as they attend to the same tokens.
        returns[numbers[is_token]] = stands[is_token]
        tokens.append(numbers.flatten())
        places.append(at.expand_as(numbers).flatten())
        shapes.append((len(rows), len(at)))
        done += numbers.numel()
    before = step[: is_response.shape[1]] - 1
    predicting = torch.where(before < 0, first_prompt + prompt - 1, first_answer + before)
    targets = batch.response_ids[is_response]
    return Pack(
        ids, torch.cat(places), torch.cat(tokens), shapes, returns, predicting[is_response], targets
    )


def packed_hidden(network: Network, packed: Pack) -> Tensor:
    """Return the hidden states [M, D] that predict the response tokens, row by row."""
    layouts = {
        kind: Rows(packed, cos[:, None], sin[:, None])
        for kind, (cos, sin) in network.angles(packed.places).items()
    }
    hidden = network(packed.ids, [layouts[kind] for kind in network.kinds])
    return hidden.index_select(0, packed.predicting)


def packed_log_probs(model: PreTrainedModel, packed: Pack, temperature: float) -> Tensor:
    """Return log π [M] of the response tokens. Where logits are many, the output layer and the
    softmax are computed for some tokens at a time, and once more in the backward pass."""
    network = Network(model)

    def of_tokens(hidden: Tensor, targets: Tensor) -> Tensor:
        logits = network.logits(hidden)
        scaled = logits if temperature == 1 else logits / temperature
        return -cross_entropy(scaled, targets, reduction="none")

    hidden = packed_hidden(network, packed)
    size = max(1, LOGITS_AT_ONCE // model.config.vocab_size)
    return recomputed_in_parts(of_tokens, (hidden, packed.targets), [size, size])


def packed_kls(
    model: PreTrainedModel, other: PreTrainedModel, packed: Pack, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return `packed_log_probs` [M], and the KL [M] from `model` to `other` of each response
    token's whole distribution. `other` has no gradient. Logits are computed in parts as in
    `packed_log_probs`."""
    network, beside = Network(model), Network(other)
    hidden = packed_hidden(network, packed)
    with torch.no_grad():
        compared = packed_hidden(beside, packed)

    def of_tokens(hidden: Tensor, compared: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            others = beside.logits(compared)
        return log_probs_beside_kls(network.logits(hidden), others, targets, temperature)

    size = max(1, LOGITS_AT_ONCE // (2 * model.config.vocab_size))
    values = recomputed_in_parts(of_tokens, (hidden, compared, packed.targets), [size] * 3)
    return values[:, 0], values[:, 1]


@torch.no_grad()
def packed_logits(model: PreTrainedModel, packed: Pack, temperature: float) -> Iterator[Tensor]:
    """Yield float32 logits [m, V], divided by `temperature`, that predict the response tokens, row
    by row. Each part has as many tokens as `LOGITS_AT_ONCE` allows."""
    network = Network(model)
    hidden = packed_hidden(network, packed)
    for part in hidden.split(max(1, LOGITS_AT_ONCE // model.config.vocab_size)):
        yield network.logits(part) / temperature
