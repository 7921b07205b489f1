"""What a policy is worth: reward, gold, KL to the SFT policy, length, entropy and diversity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from warpflow.evaluation.rewards import Reward
from warpflow.lm.log_probs import (
    Completions,
    gather_log_probs,
    logits_by_part,
    rows_per_pass,
)
from warpflow.lm.sampling import draw_uniforms, pad_left, sample_completions

# What evaluation.json keeps for each prompt.
PROMPT_VALUES = ("reward", "gold", "kl", "kl_exact", "length")


@dataclass(frozen=True)
class EvaluationSettings:
    """Section `evaluate_policy` of the config, with what it shares with `train_policy`."""

    prompts: int
    samples_per_prompt: int
    batch_size: int
    temperature: float
    max_new_tokens: int


@dataclass(frozen=True)
class Samples:
    """Completions of one policy with their scores; each [N], rows of one prompt adjacent."""

    batch: list[Completions]
    reward: Tensor
    gold: Tensor | None
    kl: Tensor  # log π(y|x) − log π_sft(y|x): unbiased, noisy, may be negative
    kl_exact: Tensor  # Σ_t KL(π(·|x, y_<t) ‖ π_sft(·|x, y_<t)): same mean, less variance
    entropy: Tensor  # Σ_t H(π(·|x, y_<t)): its mean is the entropy of whole completions
    length: Tensor
    finished: Tensor


@torch.no_grad()
def kls_and_entropy(
    policy: PreTrainedModel, sft: PreTrainedModel, batch: Completions, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Two estimators of KL(π ‖ π_sft) and one of the entropy of π, all over whole sequences, in
    nats, [B] each.

    The first is the log-ratio of the sampled sequence. The second replaces each token's log-ratio
    by its exact expectation over the vocabulary given the sampled prefix (Rao–Blackwell); the
    entropy is taken in the same way. All are unbiased for completions sampled from `policy` at
    `temperature`.
    """
    parts = torch.arange(len(batch.finished)).split(rows_per_pass(batch, policy.config.vocab_size))
    measured = []
    for part in parts:
        rows = batch.rows(part) if len(parts) > 1 else batch
        measured.append(kls_and_entropy_of_rows(policy, sft, rows, temperature))
    sampled, exact, entropy = (torch.cat(values) for values in zip(*measured, strict=True))
    return sampled, exact, entropy


def kls_and_entropy_of_rows(
    policy: PreTrainedModel, sft: PreTrainedModel, batch: Completions, temperature: float
) -> list[Tensor]:
    """`kls_and_entropy`, some tokens after the other where the logits of a row are too many."""
    parts, first = [], 0
    for logits, sft_logits in zip(
        *(logits_by_part(model, batch, temperature) for model in (policy, sft)), strict=True
    ):
        tokens = slice(first, first + logits.shape[1])
        first = tokens.stop
        part = replace(
            batch,
            response_ids=batch.response_ids[:, tokens],
            is_response=batch.is_response[:, tokens],
        )
        parts.append(kls_and_entropy_of_logits(logits, sft_logits, part))
    return [torch.stack(values).sum(0) for values in zip(*parts, strict=True)]


def kls_and_entropy_of_logits(
    logits: Tensor, sft_logits: Tensor, batch: Completions
) -> tuple[Tensor, Tensor, Tensor]:
    """`kls_and_entropy` of both models' logits [B, C, V]."""
    sampled = gather_log_probs(logits, batch) - gather_log_probs(sft_logits, batch)
    log_p, log_q = logits.log_softmax(-1), sft_logits.log_softmax(-1)
    p = log_p.exp()
    # The policy's own probabilities weigh the log-ratio; the reverse would be another divergence.
    exact = (p * (log_p - log_q)).sum(-1).masked_fill(~batch.is_response, 0.0)
    entropy = -(p * log_p).sum(-1).masked_fill(~batch.is_response, 0.0)
    return sampled.sum(1), exact.sum(1), entropy.sum(1)


def evaluate(
    policy: PreTrainedModel,
    sft: PreTrainedModel,
    reward: Reward,
    gold: Reward | None,
    prompts: Sequence[Sequence[int]],
    settings: EvaluationSettings,
    *,
    eos_ids: Sequence[int],
    pad_id: int,
    seed: int,
    part: slice = slice(None),
) -> Samples:
    """Sample from `policy` on the first `settings.prompts` prompts and score the completions.

    Every policy sees the same prompts with the same random numbers, so differences between
    policies are paired, and the batch size changes nothing.

    Args:
        part: of these prompts only (None: all), with the random numbers that they have among all.
            Processes that each take a part make the whole by `join_samples`.
    """
    chosen, each = prompts[: settings.prompts], settings.samples_per_prompt
    uniforms = draw_uniforms(
        len(chosen) * each, settings.max_new_tokens, policy.device, seed, "evaluate_policy"
    )
    if part is not None:
        uniforms = uniforms.unflatten(0, (-1, each))[part].flatten(0, 1)
        chosen = chosen[part]
    parts: list[tuple[Completions, Tensor, Tensor | None, Tensor, Tensor, Tensor]] = []
    per_batch = max(1, settings.batch_size // each)
    for start in range(0, len(chosen), per_batch):
        ids, mask = pad_left(chosen[start : start + per_batch], pad_id, policy.device)
        batch = sample_completions(
            policy,
            ids,
            mask,
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            eos_ids=eos_ids,
            pad_id=pad_id,
            uniforms=uniforms[start * each : (start + per_batch) * each],
            samples_per_prompt=each,
        )
        measured = kls_and_entropy(policy, sft, batch, settings.temperature)
        parts.append((batch, reward(batch), gold(batch) if gold else None, *measured))
    batches, reward_values, gold_values, *measures = zip(*parts, strict=True) if parts else [()] * 6
    kl, kl_exact, entropy = (joined(values) for values in measures)
    return Samples(
        batch=[batch.cpu() for batch in batches],
        reward=joined(reward_values),
        gold=joined(gold_values) if gold else None,
        kl=kl,
        kl_exact=kl_exact,
        entropy=entropy,
        length=joined([batch.lengths for batch in batches]).float(),
        finished=joined([batch.finished for batch in batches]).bool(),
    )


def joined(values: Sequence[Any]) -> Tensor:
    """Tensors one after the other in host memory; there may be none."""
    return torch.cat([value.cpu() for value in values]) if values else torch.empty(0)


def join_samples(parts: Sequence[Samples]) -> Samples:
    """The samples of all prompts from those of parts of them, in their order."""
    names = ("reward", "gold", "kl", "kl_exact", "entropy", "length", "finished")
    columns = {name: [getattr(part, name) for part in parts] for name in names}
    golden = columns["gold"][0] is not None
    whole: dict[str, Any] = {
        name: joined(values) for name, values in columns.items() if name != "gold" or golden
    }
    batch = [batch for part in parts for batch in part.batch]
    return Samples(batch=batch, **({"gold": None} | whole))


def prompt_means(values: Tensor, samples_per_prompt: int) -> Tensor:
    """[N / K] float64: means of [N] values over the K completions of each prompt."""
    return values.double().view(-1, samples_per_prompt).mean(1)


def mean_and_error(values: Tensor, samples_per_prompt: int) -> tuple[float, float]:
    """Mean of [N] values and its standard error over prompts.

    Completions of one prompt are not independent, so they are averaged first. The error of a
    single prompt is NaN: one draw says nothing of the spread.
    """
    prompts = prompt_means(values, samples_per_prompt)
    error = prompts.std().item() / math.sqrt(len(prompts)) if len(prompts) > 1 else math.nan
    return prompts.mean().item(), error


def summarise(samples: Samples, texts: Sequence[str], samples_per_prompt: int) -> dict[str, object]:
    """The row of `evaluations.csv` for one policy. `texts`: the decoded responses, [N]."""
    row: dict[str, object] = {"n_prompts": len(texts) // samples_per_prompt}
    for name in ("reward", "gold", "kl", "kl_exact", "length"):
        values = getattr(samples, name)
        mean, error = (None, None) if values is None else mean_and_error(values, samples_per_prompt)
        row |= {name: mean, f"{name}_se": error}
    row["unfinished"] = 1 - samples.finished.float().mean().item()
    row["entropy"] = entropy_per_token(samples)
    row |= {f"distinct_{n}": distinct_n(texts, n) for n in (1, 2, 3)}
    row["self_similarity"] = self_similarity(texts, samples_per_prompt)
    return row


def prompt_values(samples: Samples, samples_per_prompt: int) -> dict[str, list[float] | None]:
    """Means over the completions of each prompt, in the prompts' order, to six digits: what pairs
    two policies, which saw the same prompts and random numbers. Gold is None where there is none.
    """
    rows: dict[str, list[float] | None] = {}
    for name in PROMPT_VALUES:
        values = getattr(samples, name)
        means = None if values is None else prompt_means(values, samples_per_prompt).tolist()
        rows[name] = means and [float(f"{mean:.6g}") for mean in means]
    return rows


def entropy_per_token(samples: Samples) -> float:
    """Mean entropy of the next token over all sampled tokens, in nats, at the temperature."""
    return (samples.entropy.double().sum() / samples.length.double().sum()).item()


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    """All n-grams of white-space separated words, in order."""
    words = text.split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Share of n-grams, over all texts, that differ from one another; 0 without n-grams."""
    grams = [gram for text in texts for gram in ngrams(text, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def self_similarity(texts: Sequence[str], samples_per_prompt: int) -> float | None:
    """Mean Jaccard similarity of the bigrams of two completions of one prompt (as Fig. 19:
    diversity lost); None where each prompt has one completion."""
    if samples_per_prompt < 2:
        return None
    similarities = []
    for start in range(0, len(texts), samples_per_prompt):
        first, second = (set(ngrams(texts[start + k], 2)) for k in (0, 1))
        union = first | second
        similarities.append(len(first & second) / len(union) if union else 1.0)
    return sum(similarities) / len(similarities)
