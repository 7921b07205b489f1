"""Evaluate a policy: reward, gold, KL to the SFT policy, length, entropy and diversity."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedModel

from warpflow.evaluation.rewards import Reward
from warpflow.evaluation.sample import Measured, sample_and_measure
from warpflow.gold_names import GOLD
from warpflow.lm.log_probs import Completions

if TYPE_CHECKING:
    from warpflow.settings.evaluate_policy import EvaluationSettings

DISTINCT_PROMPTS = 100  # distinct n-grams are counted over the first completions of so many


@dataclass(frozen=True)
class Samples:
    """Completions of one policy with their scores, [N] each. Rows of one prompt are adjacent."""

    batch: list[Completions]
    reward: Tensor
    golds: Mapping[str, Tensor]  # by column
    kl: Tensor  # as in `Measured`
    kl_exact: Tensor
    entropy: Tensor
    length: Tensor
    finished: Tensor


def evaluate(
    policy: PreTrainedModel,
    sft: PreTrainedModel,
    reward: Reward,
    golds: Mapping[str, Reward],
    prompts: Sequence[Sequence[int]],
    settings: EvaluationSettings,
    *,
    eos_ids: Sequence[int],
    pad_id: int,
    seed: int,
) -> Samples:
    """Call `sample_and_measure` and score the completions."""
    parts = sample_and_measure(
        policy,
        sft,
        prompts[: settings.prompts],
        samples_per_prompt=settings.samples_per_prompt,
        batch_size=settings.batch_size,
        temperature=settings.temperature,
        max_new_tokens=settings.max_new_tokens,
        eos_ids=eos_ids,
        pad_id=pad_id,
        seed=seed,
    )
    return score(parts, reward, golds)


def score(parts: Iterable[Measured], reward: Reward, golds: Mapping[str, Reward]) -> Samples:
    """Return completions with their rewards and the scores of each gold reward."""
    kept: list[Measured] = []
    scores: dict[str, list[Tensor]] = {name: [] for name in ("reward", *golds)}
    for part in parts:
        kept.append(part)
        for name, scorer in {"reward": reward, **golds}.items():
            scores[name].append(scorer(part.batch).cpu())
    joined = {name: torch.cat(values) for name, values in scores.items()}
    return Samples(
        batch=[part.batch.cpu() for part in kept],
        reward=joined.pop("reward"),
        golds=joined,
        kl=torch.cat([part.kl for part in kept]).cpu(),
        kl_exact=torch.cat([part.kl_exact for part in kept]).cpu(),
        entropy=torch.cat([part.entropy for part in kept]).cpu(),
        length=torch.cat([part.batch.lengths for part in kept]).float().cpu(),
        finished=torch.cat([part.batch.finished for part in kept]).cpu(),
    )


def gold_values(samples: Samples) -> dict[str, Tensor | None]:
    """Return the scores of the gold rewards by column. Without gold, column `gold` is None, so that
    tables have it."""
    return dict(samples.golds) or {GOLD: None}


def values_of(samples: Samples) -> dict[str, Tensor | None]:
    """Return the values that are averaged, by column."""
    of_kl = {"kl": samples.kl, "kl_exact": samples.kl_exact}
    golds = gold_values(samples)
    return {"reward": samples.reward, **golds, **of_kl, "length": samples.length}


def prompt_means(values: Tensor, samples_per_prompt: int) -> Tensor:
    """Return the means [N / K] of values [N] over the K completions of each prompt, in float64."""
    return values.double().view(-1, samples_per_prompt).mean(1)


def mean_and_error(values: Tensor, samples_per_prompt: int) -> tuple[float, float]:
    """Return the mean of values [N] and its standard error over prompts.

    Completions of one prompt are not independent, so they are averaged first. The error of a single
    prompt is NaN, because one draw says nothing about the spread.
    """
    prompts = prompt_means(values, samples_per_prompt)
    error = prompts.std().item() / math.sqrt(len(prompts)) if len(prompts) > 1 else math.nan
    return prompts.mean().item(), error


def summarise(samples: Samples, texts: Sequence[str], samples_per_prompt: int) -> dict[str, object]:
    """Return the row of `evaluations.csv` for one policy. `texts` are the decoded completions
    [N]."""
    row: dict[str, object] = {"n_prompts": len(texts) // samples_per_prompt}
    for name, values in values_of(samples).items():
        mean, error = (None, None) if values is None else mean_and_error(values, samples_per_prompt)
        row |= {name: mean, f"{name}_se": error}
        row |= {} if values is None else pass_at_k(name, values, samples_per_prompt)
    row["unfinished"] = 1 - samples.finished.float().mean().item()
    row["entropy"] = entropy_per_token(samples)
    row |= distinct_shares(texts, samples_per_prompt)
    row["self_similarity"] = self_similarity(texts, samples_per_prompt)
    return row


def pass_at_k(name: str, values: Tensor, samples_per_prompt: int) -> dict[str, float]:
    """Return `pass_at_k.NAME` and its error for k = 2, 4, … K, with K completions of each prompt.
    It is an unbiased estimate of the chance that one of k completions is right (Chen et al. 2021,
    arXiv 2107.03374, Eq. 1). The mean is the chance for k = 1. The result is empty where a value is
    neither 0 nor 1, or K is 1.

    Args:
        values: [N]; rows of one prompt are adjacent.
    """
    if not ((values == 0) | (values == 1)).all():
        return {}
    total, row = samples_per_prompt, dict[str, float]()
    right = values.view(-1, total).sum(1).long().tolist()
    for k in sorted({2**power for power in range(1, total.bit_length())} | {total} - {1}):
        ways = math.comb(total, k)
        chances = torch.tensor([1 - math.comb(total - count, k) / ways for count in right])
        mean, error = mean_and_error(chances, 1)
        row |= {f"pass_at_{k}.{name}": mean, f"pass_at_{k}.{name}_se": error}
    return row


def summarise_terms(
    samples: Samples, terms: Mapping[str, Reward], samples_per_prompt: int
) -> dict[str, float | None]:
    """Return mean and error of each term of the reward, unweighted, which show what a policy
    raised. For a term that does not apply to all completions they are over those that it applies
    to, whose share is reported too."""
    row: dict[str, float | None] = {}
    for term_name, term in terms.items():
        name = f"reward.{term_name}"
        values = torch.cat([term(batch) for batch in samples.batch]).cpu()
        applies = ~values.isnan()
        if applies.all():
            mean, error = mean_and_error(values, samples_per_prompt)
            row |= {name: mean, f"{name}_se": error}
            row |= pass_at_k(name, values, samples_per_prompt)
            continue
        means = values.double().view(-1, samples_per_prompt).nanmean(1)
        means = means[~means.isnan()]
        found = mean_and_error(means, 1) if len(means) else (None, None)
        row |= {name: found[0], f"{name}_se": found[1]}
        row[f"applies.{term_name}"] = applies.float().mean().item()
    return row


def prompt_values(samples: Samples, samples_per_prompt: int) -> dict[str, list[float] | None]:
    """Return the means over each prompt's completions, in the order of prompts, to six digits. They
    pair two policies, which saw the same prompts and random numbers. Gold is None where there is
    none.
    """
    rows: dict[str, list[float] | None] = {}
    for name, values in values_of(samples).items():
        means = None if values is None else prompt_means(values, samples_per_prompt).tolist()
        rows[name] = means and [float(f"{mean:.6g}") for mean in means]
    return rows


def entropy_per_token(samples: Samples) -> float:
    """Return the mean entropy of the next token over all sampled tokens, at the temperature, in
    nats."""
    return (samples.entropy.double().sum() / samples.length.double().sum()).item()


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    """Return all n-grams of words that white space separates, in order."""
    words = text.split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Return the share of distinct n-grams among those of all texts, or 0 without n-grams. It falls
    with the number of texts; see `distinct_shares`."""
    grams = [gram for text in texts for gram in ngrams(text, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def distinct_shares(texts: Sequence[str], samples_per_prompt: int) -> dict[str, float]:
    """Return `distinct_1` to `distinct_3` over one completion of each of the first prompts, and the
    number of these completions, `distinct_completions`, which is at most `DISTINCT_PROMPTS`.

    The share of distinct n-grams falls with the number of texts, so only rows with the same number
    are comparable. A fixed number makes evaluations of 400 prompts and trajectories of 200
    comparable.

    Args:
        texts: the decoded completions [N]; those of one prompt are adjacent.
    """
    first = texts[::samples_per_prompt][:DISTINCT_PROMPTS]
    shares = {f"distinct_{n}": distinct_n(first, n) for n in (1, 2, 3)}
    return {**shares, "distinct_completions": len(first)}


def self_similarity(texts: Sequence[str], samples_per_prompt: int) -> float | None:
    """Return the mean Jaccard similarity of the bigrams of two completions of one prompt, which
    shows lost diversity as Fig. 19 does. Return None where each prompt has one completion. Pairs
    are averaged over prompts, so its expectation depends neither on the number of prompts nor on
    that of completions."""
    if samples_per_prompt < 2:
        return None
    similarities = []
    for start in range(0, len(texts), samples_per_prompt):
        first, second = (set(ngrams(texts[start + k], 2)) for k in (0, 1))
        union = first | second
        similarities.append(len(first & second) / len(union) if union else 1.0)
    return sum(similarities) / len(similarities)
