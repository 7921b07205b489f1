"""Sample completions of held-out prompts, and measure their KL to the SFT policy and entropy.

These need the policy itself. `warpflow.evaluation.evaluate` says what completions are worth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from warpflow.lm.log_probs import Completions
from warpflow.lm.sampling import draw_uniforms, pad_left, sample_completions
from warpflow.lm.scoring import logits_of_tokens


@dataclass(frozen=True)
class Measured:
    """Completions of one policy and what needs the policy itself, [N] each. Rows of one prompt are
    adjacent.

    Attributes:
        kl: log π(y|x) − log π_sft(y|x), which is unbiased and noisy, and may be negative.
        kl_exact: Σ_t KL(π(·|x, y_<t) ‖ π_sft(·|x, y_<t)), with the same mean and less variance.
        entropy: Σ_t H(π(·|x, y_<t)), whose mean is the entropy of whole completions.
    """

    batch: Completions
    kl: Tensor
    kl_exact: Tensor
    entropy: Tensor


def sample_and_measure(
    policy: PreTrainedModel,
    sft: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    samples_per_prompt: int,
    batch_size: int,
    temperature: float,
    max_new_tokens: int,
    eos_ids: Sequence[int],
    pad_id: int,
    seed: int,
    part: slice | None = None,
    lend_sft: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Iterator[Measured]:
    """Sample from `policy`, `batch_size` completions at a time, and measure their KL to `sft`.

    Every policy sees the same prompts with the same random numbers. So differences between policies
    are paired, and the batch size changes nothing.

    Args:
        prompts: token ids of each prompt.
        samples_per_prompt: completions of each prompt, in adjacent rows.
        part: the prompts to take, or None for all. They keep the random numbers that they have
            among all prompts, so that processes can share the prompts.
        lend_sft: a context that has θ_sft's weights on the device, where they are kept elsewhere.
    """
    each = samples_per_prompt
    uniforms = draw_uniforms(
        len(prompts) * each, max_new_tokens, policy.device, seed, "evaluate_policy"
    )
    if part is not None:
        uniforms = uniforms.unflatten(0, (-1, each))[part].flatten(0, 1)
        prompts = prompts[part]
    per_batch = max(1, batch_size // each)
    for start in range(0, len(prompts), per_batch):
        ids, mask = pad_left(prompts[start : start + per_batch], pad_id, policy.device)
        batch = sample_completions(
            policy,
            ids,
            mask,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            eos_ids=eos_ids,
            pad_id=pad_id,
            uniforms=uniforms[start * each : (start + per_batch) * each],
            samples_per_prompt=each,
        )
        with lend_sft():
            measured = kls_and_entropy(policy, sft, batch, temperature, each)
        yield Measured(batch, *measured)


def completion_rows(parts: Iterable[Measured], first: int = 0) -> Iterator[dict[str, Any]]:
    """Yield each completion, one for each prompt, as a row that can be scored later. It has the
    prompt's number, the sampled token ids, and what was measured.

    Args:
        first: the number of the first prompt.
    """
    prompt = first
    for part in parts:
        columns = [part.kl.tolist(), part.kl_exact.tolist(), part.entropy.tolist()]
        for index, (kl, kl_exact, entropy) in enumerate(zip(*columns, strict=True)):
            yield {
                "prompt": prompt,
                "ids": part.batch.response_ids[index][part.batch.is_response[index]].tolist(),
                "finished": bool(part.batch.finished[index]),
                "kl": kl,
                "kl_exact": kl_exact,
                "entropy": entropy,
            }
            prompt += 1


@torch.no_grad()
def kls_and_entropy(
    policy: PreTrainedModel,
    sft: PreTrainedModel,
    batch: Completions,
    temperature: float,
    each: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return two estimates of KL(π ‖ π_sft) and one of the entropy of π, [B] each. All are over
    whole sequences and in nats.

    The first is the log-ratio of the sampled sequence. The second replaces each token's log-ratio
    by its exact expectation over the vocabulary given the sampled prefix (Rao–Blackwell). The
    entropy is estimated in the same way. All are unbiased for completions sampled from `policy` at
    `temperature`.

    Args:
        each: the number of adjacent rows that have one prompt.
    """
    ids = batch.response_ids.flatten()
    by_token = torch.zeros(3, len(ids), device=ids.device)
    for tokens, (logits, sft_logits) in logits_of_tokens([policy, sft], batch, temperature, each):
        values = kls_and_entropy_of_logits(logits, sft_logits, ids[tokens])
        by_token[:, tokens] = torch.stack(values)
    sampled, exact, entropy = by_token.view(3, *batch.response_ids.shape).sum(-1)
    return sampled, exact, entropy


def kls_and_entropy_of_logits(
    logits: Tensor, sft_logits: Tensor, ids: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return `kls_and_entropy` for each token, [m], from both models' logits [m, V] and sampled ids
    [m]."""
    log_p, log_q = logits.log_softmax(-1), sft_logits.log_softmax(-1)
    p, ratio = log_p.exp(), log_p - log_q
    sampled = ratio.gather(-1, ids[:, None])[:, 0]
    # The policy's own probabilities weigh the log-ratio. The reverse would be another divergence.
    return sampled, (p * ratio).sum(-1), -(p * log_p).sum(-1)
