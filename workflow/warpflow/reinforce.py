"""REINFORCE with a KL penalty to a moving anchor: stage 1 of WARP (Algorithm 1, Section 3.1)."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from warpflow.averaging import update_ema_
from warpflow.log_probs import Completions, token_log_probs
from warpflow.rewards import Reward
from warpflow.sampling import pad_left, sample_completions
from warpflow.seeds import make_generator


def _help(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass(frozen=True)
class ReinforceSettings:
    """Section `train_policy` of the config; the paper's values are in config/README.md."""

    steps: int = field(metadata=_help("T, optimiser steps of one run"))
    batch_size: int = field(metadata=_help("completions per step"))
    samples_per_prompt: int = field(metadata=_help("K completions of each prompt in a batch"))
    learning_rate: float = field(metadata=_help("Adam's, after the warm-up"))
    warmup_steps: int = field(metadata=_help("linear warm-up of the learning rate"))
    max_grad_norm: float = field(metadata=_help("gradient clipping by global norm"))
    temperature: float = field(metadata=_help("of sampling, policy and anchor alike"))
    max_new_tokens: int = field(metadata=_help("limit of a completion's length"))
    beta: float = field(metadata=_help("β, weight of the KL penalty"))
    mu: float = field(metadata=_help("μ, rate of the EMA anchor"))
    anchor: Literal["ema", "init", "sft"] = field(metadata=_help("what the KL is measured to"))
    baseline: Literal["none", "batch", "rloo"] = field(metadata=_help("of the policy gradient"))
    length_penalty: float = field(metadata=_help("subtracted from the reward, per token"))


@dataclass(frozen=True)
class StepRow:
    """What one step reports; means over the batch."""

    step: int
    loss: float
    reward: float
    kl_to_anchor: float
    length: float
    unfinished: float
    grad_norm: float
    learning_rate: float


def penalised_rewards(
    rewards: Tensor, policy_log_probs: Tensor, anchor_log_probs: Tensor, beta: float
) -> Tensor:
    """r_β = r − β · log(π_θ(y|x) / π_anchor(y|x)): [B], whole-sequence log-ratio, no gradient.

    Args:
        rewards: [B]. policy_log_probs, anchor_log_probs: [B, C], 0 on pads.
    """
    log_ratio = (policy_log_probs.detach() - anchor_log_probs.detach()).sum(1)
    return rewards - beta * log_ratio


def advantages(rewards: Tensor, baseline: str, samples_per_prompt: int) -> Tensor:
    """[B] rewards less a baseline.

    ``none``: as printed in the paper. ``batch``: less the batch mean, which scales the expected
    gradient by (B − 1)/B. ``rloo``: less the mean of the *other* completions of the prompt
    (rows of one prompt are adjacent), which leaves it unbiased.
    """
    if baseline == "none":
        return rewards
    if baseline == "batch":
        return rewards - rewards.mean()
    if baseline == "rloo":
        if samples_per_prompt < 2:
            raise ValueError("baseline rloo needs train_policy.samples_per_prompt >= 2, got 1")
        groups = rewards.view(-1, samples_per_prompt)
        others = (groups.sum(1, keepdim=True) - groups) / (samples_per_prompt - 1)
        return (groups - others).flatten()
    raise ValueError(f"baseline {baseline!r}: expected none, batch or rloo")


def reinforce_loss(policy_log_probs: Tensor, advantage: Tensor) -> Tensor:
    """Scalar −mean_b(A_b · log π(y_b|x_b)), whose gradient is REINFORCE's.

    Args:
        policy_log_probs: [B, C], 0 on pads, with gradient. advantage: [B], without.
    """
    return -(advantage.detach() * policy_log_probs.sum(1)).mean()


def prompt_order(count: int, generator: torch.Generator) -> Iterator[int]:
    """Indices of prompts without end: each pass visits every prompt once, in a new order."""
    while True:
        yield from torch.randperm(count, generator=generator).tolist()


def learning_rate_at(step: int, settings: ReinforceSettings) -> float:
    """Linear warm-up to a constant; `step` counts from 1."""
    return settings.learning_rate * min(1.0, step / max(1, settings.warmup_steps))


def choose_anchor(settings: ReinforceSettings, init: PreTrainedModel, sft: PreTrainedModel):
    """The frozen model that the KL is measured to, dropout off: the EMA starts as a copy of the
    init."""
    source = sft if settings.anchor == "sft" else init
    return copy.deepcopy(source).requires_grad_(False).eval()


def train_policy(
    policy: PreTrainedModel,
    sft: PreTrainedModel,
    reward: Reward,
    prompts: Sequence[Sequence[int]],
    settings: ReinforceSettings,
    *,
    eos_id: int,
    pad_id: int,
    seed: int,
) -> Iterator[StepRow]:
    """Train `policy` in place, yielding a row after each step.

    Args:
        policy: starts as θ_init, fp32. sft: θ_sft, used where the anchor is the SFT policy.
        prompts: token ids of each prompt.
        seed: of the order of prompts and of sampling, which is all that tells members apart.

    Raises:
        FloatingPointError: a loss, reward or gradient that is not finite; names step and seed.
    """
    anchor = choose_anchor(settings, policy, sft)
    order = prompt_order(len(prompts), make_generator("cpu", seed, "prompts"))
    sampler = make_generator(policy.device, seed, "sampling")
    optimizer = torch.optim.Adam(policy.parameters(), settings.learning_rate, fused=True)
    policy.eval()  # dropout off: the sampled and the scored policy are the same
    for step in range(1, settings.steps + 1):
        chosen = [next(order) for _ in range(settings.batch_size // settings.samples_per_prompt)]
        rows = [prompts[i] for i in chosen for _ in range(settings.samples_per_prompt)]
        prompt_ids, is_prompt = pad_left(rows, pad_id, policy.device)
        batch = sample_completions(
            policy,
            prompt_ids,
            is_prompt,
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            eos_id=eos_id,
            pad_id=pad_id,
            generator=sampler,
        )
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, settings)
        row = update_policy(policy, anchor, reward(batch), batch, optimizer, settings, step)
        if not all(math.isfinite(v) for v in (row.loss, row.reward, row.grad_norm)):
            raise FloatingPointError(
                f"step {step}, seed {seed}: loss {row.loss}, reward {row.reward}, gradient norm "
                f"{row.grad_norm}; lower train_policy.learning_rate or check the reward model"
            )
        optimizer.step()
        if settings.anchor == "ema":
            update_ema_(list(anchor.parameters()), list(policy.parameters()), settings.mu)
        yield row


def update_policy(
    policy: PreTrainedModel,
    anchor: PreTrainedModel,
    rewards: Tensor,
    batch: Completions,
    optimizer: torch.optim.Optimizer,
    settings: ReinforceSettings,
    step: int,
) -> StepRow:
    """Leave the clipped gradient of one batch on the policy's parameters; report the batch."""
    with torch.no_grad():
        anchor_log_probs = token_log_probs(anchor, batch, settings.temperature)
    policy_log_probs = token_log_probs(policy, batch, settings.temperature)
    shaped = rewards - settings.length_penalty * batch.lengths
    penalised = penalised_rewards(shaped, policy_log_probs, anchor_log_probs, settings.beta)
    advantage = advantages(penalised, settings.baseline, settings.samples_per_prompt)
    loss = reinforce_loss(policy_log_probs, advantage)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), settings.max_grad_norm)
    log_ratio = (policy_log_probs.detach() - anchor_log_probs).sum(1)
    return StepRow(
        step=step,
        loss=loss.item(),
        reward=rewards.mean().item(),
        kl_to_anchor=log_ratio.mean().item(),
        length=batch.lengths.float().mean().item(),
        unfinished=1 - batch.finished.float().mean().item(),
        grad_norm=norm.item(),
        learning_rate=optimizer.param_groups[0]["lr"],
    )
