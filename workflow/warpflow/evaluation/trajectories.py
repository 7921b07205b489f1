"""Read and score RL trajectories: the completions that a run kept along its way.

A run writes completions and their KL to SFT, which need the policy of that step. It writes nothing
that training does not see. So a new gold reward scores the runs that are there and trains nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from warpflow.data.files import Row
from warpflow.evaluation.evaluate import (
    Samples,
    distinct_shares,
    entropy_per_token,
    mean_and_error,
    prompt_values,
    score,
    values_of,
)
from warpflow.evaluation.rewards import Reward
from warpflow.evaluation.sample import Measured
from warpflow.lm.log_probs import Completions
from warpflow.lm.sampling import pad_left
from warpflow.lm.texts import response_texts


def points(rows: Sequence[Row]) -> Iterator[tuple[dict[str, Any], list[Row]]]:
    """Yield the rows of `completions.jsonl` by step and weights, in the order they were written."""
    keys = dict.fromkeys((row["step"], row["weights"]) for row in rows)
    for step, weights in keys:
        chosen = [row for row in rows if (row["step"], row["weights"]) == (step, weights)]
        yield {"step": step, "weights": weights}, chosen


def measured_again(
    rows: Sequence[Row],
    prompts: Sequence[Sequence[int]],
    pad_id: int,
    batch_size: int,
    device: torch.device | str = "cpu",
) -> Iterator[Measured]:
    """Yield the completions of one point as tensors, `batch_size` at a time.

    Args:
        prompts: the token ids of the held-out prompts, which rows name by number.
    """
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        ids, is_prompt = pad_left([prompts[row["prompt"]] for row in part], pad_id, device)
        reversed_ids, reversed_mask = pad_left([row["ids"][::-1] for row in part], pad_id, device)
        batch = Completions(
            ids,
            is_prompt,
            reversed_ids.flip(1),  # padded on the right
            reversed_mask.flip(1),
            torch.tensor([row["finished"] for row in part], device=device),
        )
        yield Measured(batch, *(column(part, name) for name in ("kl", "kl_exact", "entropy")))


def column(rows: Sequence[Row], name: str) -> Tensor:
    return torch.tensor([row[name] for row in rows], dtype=torch.float32)


def score_trajectory(
    rows: Sequence[Row],
    prompts: Sequence[Sequence[int]],
    reward: Reward,
    golds: Mapping[str, Reward],
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int,
    device: torch.device | str = "cpu",
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return rows of means and standard errors for each point of one run, and rows of each prompt's
    values.

    Args:
        rows: the rows of `completions.jsonl`, with one completion for each prompt.
    """
    trajectory, values = [], []
    for key, chosen in points(rows):
        parts = measured_again(chosen, prompts, tokenizer.pad_token_id, batch_size, device)
        samples = score(parts, reward, golds)
        trajectory.append(key | summarise_point(samples, tokenizer))
        values.append(key | prompt_values(samples, 1))
    return trajectory, values


def summarise_point(samples: Samples, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return means and standard errors of one point's completions."""
    row: dict[str, Any] = {}
    for name, values in values_of(samples).items():
        row[name], row[f"{name}_se"] = (None, None) if values is None else mean_and_error(values, 1)
    texts = [text for batch in samples.batch for text in response_texts(batch, tokenizer)]
    return row | {"entropy": entropy_per_token(samples)} | distinct_shares(texts, 1)
