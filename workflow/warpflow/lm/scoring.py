"""Score completions under policy and anchor.

All tokens are scored side by side where both models are covered (`lm.fast.packing`), else by the
library's forward pass on parts of rows of similar length (`lm.log_probs`). Logits of whole
distributions, for exact KLs, come in the same two ways.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from warpflow.lm.fast.layers import agrees, is_covered
from warpflow.lm.fast.packing import pack, packed_kls, packed_log_probs, packed_logits
from warpflow.lm.log_probs import (
    Completions,
    log_probs_and_kls_of,
    logits_by_part,
    predicting_logits,
    reads_prompts_once,
    rows_per_pass,
    split_by_length,
    token_log_probs,
)

COMPARED = 8  # on so many rows our scores are compared with the library's


@dataclass(frozen=True)
class Score:
    """What scores the completions of a part. Called with a model, it returns log π(y|x), [B].

    Attributes:
        tokens: maps a model to log π of each response token, [B, C], 0 on pads.
        kls: maps a model and another to `tokens` of the model, [B, C], and the KL from it to the
            other, [B, C], of each token's whole distribution, 0 on pads. The other has no gradient.
    """

    tokens: Callable[[PreTrainedModel], Tensor]
    kls: Callable[[PreTrainedModel, PreTrainedModel], tuple[Tensor, Tensor]]

    def __call__(self, model: PreTrainedModel) -> Tensor:
        return self.tokens(model).sum(1)


def scores_by_part(
    models: Sequence[PreTrainedModel],
    batch: Completions,
    temperature: float,
    *,
    each: int,
    size: int | None,
    undivided: bool = False,
) -> list[tuple[Tensor, Score]]:
    """Return parts of a batch as row indices, and what scores each part under any of `models`. All
    models are scored in the same way, so that equal weights give equal scores.

    Args:
        each: this many adjacent rows have one prompt.
        size: the largest number of rows of a part. None takes as many as is fast.
        undivided: whether all rows are one part where there is no `size`.
    """
    together = 1 if size and size % each else each  # a part has all of a prompt's rows, or any
    if all(can_pack(model, batch) for model in models):
        parts = split_by_length(batch, size or len(batch.finished), together)
        return [(p, packed_score(batch.rows(p), temperature, together)) for p in parts]
    if not reads_prompts_once(models[0], batch, together):
        together = 1
    size = size or (len(batch.finished) if undivided else None)
    parts = split_by_length(batch, size, together)
    return [(p, library_score(batch.rows(p), temperature, together)) for p in parts]


def can_pack(model: PreTrainedModel, batch: Completions) -> bool:
    """Whether `warpflow.lm.fast.packing` can score these: no window hides a token of a row."""
    longest = batch.prompt_ids.shape[1] + batch.response_ids.shape[1]
    window = getattr(model.config, "sliding_window", None)
    return is_covered(model) and (window is None or window >= longest)


def library_score(batch: Completions, temperature: float, together: int) -> Score:
    return Score(
        lambda model: token_log_probs(model, batch, temperature, together),
        lambda model, other: library_kls(model, other, batch, temperature),
    )


def library_kls(
    model: PreTrainedModel, other: PreTrainedModel, batch: Completions, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return `Score.kls` by the library's forward pass, each row by itself."""
    with torch.no_grad():
        others = predicting_logits(other, batch)
    return log_probs_and_kls_of(predicting_logits(model, batch), others, batch, temperature)


def packed_score(batch: Completions, temperature: float, each: int) -> Score:
    """Return a score by `packed_log_probs`, if that gives a few of the rows the library's
    scores."""
    packed = pack(batch, each)

    def tokens(model: PreTrainedModel) -> Tensor:
        if packing_agrees(model, batch, temperature, each):
            return in_rows(packed_log_probs(model, packed, temperature), batch)
        return library_score(batch, temperature, 1).tokens(model)

    def kls(model: PreTrainedModel, other: PreTrainedModel) -> tuple[Tensor, Tensor]:
        if not all(packing_agrees(m, batch, temperature, each) for m in (model, other)):
            return library_kls(model, other, batch, temperature)
        log_probs, values = packed_kls(model, other, packed, temperature)
        return in_rows(log_probs, batch), in_rows(values, batch)

    return Score(tokens, kls)


def packing_agrees(
    model: PreTrainedModel, batch: Completions, temperature: float, each: int
) -> bool:
    """Whether `packed_log_probs` gives a few of the rows the library's scores."""

    def of_few() -> tuple[Tensor, Tensor]:
        few = batch.rows(slice(max(COMPARED // each, 1) * each))
        ours = in_rows(packed_log_probs(model, pack(few, each), temperature), few).sum(1)
        return ours, library_score(few, temperature, 1)(model)

    return agrees(model, "scoring", of_few)


def in_rows(values: Tensor, batch: Completions) -> Tensor:
    """Return the response tokens' values [M] as [B, C], 0 on pads."""
    table = values.new_zeros(batch.is_response.shape)
    return table.masked_scatter(batch.is_response, values)


def logits_of_tokens(
    models: Sequence[PreTrainedModel], batch: Completions, temperature: float, each: int
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Yield float32 logits [m, V], divided by `temperature`, of each model (all in the same way)
    for some response tokens after the other, without gradient. Before them comes which tokens these
    are: [m] int64, places in the flattened [B · C] response tokens. Pads have none.

    Args:
        each: this many adjacent rows have one prompt.
    """
    places = batch.is_response.flatten().nonzero()[:, 0]
    if all(can_pack(m, batch) and packing_agrees(m, batch, temperature, each) for m in models):
        packed, first = pack(batch, each), 0
        for logits in zip(*(packed_logits(m, packed, temperature) for m in models), strict=True):
            yield places[first : first + len(logits[0])], list(logits)
            first += len(logits[0])
        return
    numbers = torch.arange(batch.is_response.numel(), device=places.device)
    numbers = numbers.view_as(batch.is_response)
    parts = torch.arange(len(numbers)).split(rows_per_pass(batch, models[0].config.vocab_size))
    for rows in parts:
        part, first = batch.rows(rows) if len(parts) > 1 else batch, 0
        for logits in zip(*(logits_by_part(m, part, temperature) for m in models), strict=True):
            columns = slice(first, first + logits[0].shape[1])
            is_token = part.is_response[:, columns]
            yield numbers[rows, columns][is_token], [values[is_token] for values in logits]
            first = columns.stop
