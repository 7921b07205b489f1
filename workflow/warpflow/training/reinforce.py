"""REINFORCE with a KL penalty to a moving anchor: stage 1 of WARP (Algorithm 1, Section 3.1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from warpflow.lm.log_probs import Completions
from warpflow.lm.models import compute_in
from warpflow.lm.sampling import draw_uniforms, pad_left, sample_in_chunks
from warpflow.lm.scoring import Score, scores_by_part
from warpflow.seeds import make_generator
from warpflow.settings.train_policy import BY_BITSANDBYTES, ReinforceSettings
from warpflow.training.adapters import add_adapters, merge_adapters
from warpflow.training.anchors import (
    ANCHORS,
    Anchor,
    make_anchor,
    move_anchor_,
    start_anchor,
)
from warpflow.training.distributed import (
    average_gradients_,
    gather,
    gathered,
    is_sharded,
    own_part,
    shard,
)
from warpflow.training.kl import KL_ESTIMATORS, k1
from warpflow.training.off_policy import correct
from warpflow.training.optimizers import make_optimizer

if TYPE_CHECKING:
    from warpflow.evaluation.rewards import Reward


# Draws completions with the arguments of `lm.sampling.sample_completions`.
Sampler = Callable[..., Completions]


@dataclass(frozen=True)
class StepRow:
    """What one step reports. The values are means over the batch as it was drawn.

    Attributes:
        sampling_gap: the mean of |log π − log μ| over tokens, where the sampler is not the policy
            itself (`warpflow.training.off_policy`).
        sampling_weight: the mean of the weights of completions, there too.
    """

    step: int
    loss: float
    reward: float
    kl_to_anchor: float
    length: float
    unfinished: float
    grad_norm: float
    learning_rate: float
    sampling_gap: float | None = None
    sampling_weight: float | None = None

    def values(self) -> dict[str, float]:
        """Return the values by name, without those that are absent."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def penalised_rewards(rewards: Tensor, kl: Tensor, beta: float) -> Tensor:
    """Return r_β = r − β · log(π_θ(y|x) / π_anchor(y|x)), [B], a part of the reward with no
    gradient.

    Args:
        rewards: [B]. kl: [B], the log-ratio of whole sequences, or another estimate of the KL
            (`warpflow.training.kl`).
    """
    return rewards - beta * kl.detach()


def advantages(rewards: Tensor, baseline: str, samples_per_prompt: int) -> Tensor:
    """Return the rewards less a baseline, [B].

    ``none`` has no baseline, as printed in the paper. ``batch`` subtracts the batch mean, which
    scales the expected gradient by (B − 1)/B. ``rloo`` subtracts the mean of the *other*
    completions of the prompt (rows of one prompt are adjacent), which leaves the gradient unbiased.
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
    """Return the scalar −mean_b(A_b · log π(y_b|x_b)), whose gradient is REINFORCE's.

    Args:
        policy_log_probs: [B], of whole sequences, with gradient. advantage: [B], without gradient.
    """
    return -(advantage.detach() * policy_log_probs).mean()


def prompts_at(step: int, count: int, per_step: int, seed: int) -> list[int]:
    """Return the indices of a step's prompts; steps count from 1. Each pass has a new order of
    prompts.

    They depend only on the step and the seed, so that a resumed run goes on with the right prompts.
    """
    first = (step - 1) * per_step
    places = range(first, first + per_step)
    orders = {
        epoch: torch.randperm(count, generator=make_generator("cpu", seed, "prompts", epoch))
        for epoch in {place // count for place in places}
    }
    return [int(orders[place // count][place % count]) for place in places]


def learning_rate_at(step: int, settings: ReinforceSettings) -> float:
    """Return the learning rate of a step (from 1): it rises linearly to a constant."""
    return settings.learning_rate * min(1.0, step / max(1, settings.warmup_steps))


@dataclass
class Run:
    """All that changes while a policy is trained. `warpflow.training.resume` saves and loads it.

    Attributes:
        step: the number of steps that are done.
        adapters: with LoRA, a handle on the adapters inside the policy.
        averages: the policy's averages beside the anchor, ``ema`` (rate μ) and ``average`` (plain).
    """

    policy: PreTrainedModel
    anchor: Anchor
    optimizer: torch.optim.Optimizer
    step: int = 0
    adapters: PeftModel | None = None
    averages: dict[str, Anchor] = field(default_factory=dict)

    def weights(self, name: str) -> Anchor:
        """Return the average of that name. Where the anchor is the EMA, it is the anchor."""
        return self.averages.get(name, self.anchor)


def needed_averages(settings: ReinforceSettings) -> list[str]:
    """Return the names of the averages that are not the anchor already."""
    names = {name for name in settings.evaluate_weights if name != "policy"}
    anchor = ANCHORS[settings.anchor]
    # An anchor that does not move in every step is no average of all steps.
    stands_for = anchor.stands_for if settings.anchor_every == 1 else frozenset()
    return sorted((names | anchor.needs) - stands_for)


def update_averages_(run: Run, settings: ReinforceSettings, step: int) -> None:
    """Do θ̄ ← (1 − rate) θ̄ + rate θ after step t. The EMA has rate μ, the mean of θ_1 … θ_t
    1/t."""
    for name, average in run.averages.items():
        move_anchor_(average, run.policy, settings.mu if name == "ema" else 1 / step)


def start_run(
    policy: PreTrainedModel,
    sft: PreTrainedModel,
    settings: ReinforceSettings,
    seed: int = 0,
    accelerator: Accelerator | None = None,
) -> Run:
    """Return a run before its first step, with a fresh optimiser and without dropout.

    Args:
        policy: θ_init in fp32. sft: θ_sft, used where the anchor is the SFT policy.
        seed: the seed of LoRA's initialisation.
        accelerator: for a run over several processes, which it shards if its configuration says so.

    Raises:
        ValueError: the settings exclude sharding.
    """
    # The anchor is a copy from before the adapters.
    anchor = start_anchor(settings.anchor, policy, sft, settings.anchor_memory)
    averages = {
        name: make_anchor(policy, settings.anchor_memory) for name in needed_averages(settings)
    }
    adapters = prepare_policy_(policy, settings, seed)
    optimizer = make_optimizer((p for p in policy.parameters() if p.requires_grad), settings)
    if accelerator and accelerator.is_fsdp2:
        check_sharding(settings)
        policy, anchor.model, optimizer = shard(policy, anchor.model, optimizer, accelerator)
    return Run(policy, anchor, optimizer, adapters=adapters, averages=averages)


def prepare_policy_(
    policy: PreTrainedModel, settings: ReinforceSettings, seed: int
) -> PeftModel | None:
    """Switch dropout off, and LoRA and gradient checkpointing on where the settings ask for
    them."""
    adapters = None
    if settings.lora_rank:
        adapters = add_adapters(policy, settings.lora_rank, settings.lora_alpha, seed)
    if settings.gradient_checkpointing:
        policy.activation_checkpointing_enable({"use_reentrant": False})
    policy.eval()
    return adapters


def check_sharding(settings: ReinforceSettings) -> None:
    """Raise ValueError for settings that do not work where every process has a shard."""
    if settings.anchor_memory != "device" or settings.lora_rank or needed_averages(settings):
        raise ValueError(
            "FSDP shards the policy and its anchor: set train_policy.anchor_memory to device, "
            "lora_rank to null, anchor to another than elastic_reset and evaluate_weights to "
            f"[policy], got {settings.anchor_memory}, {settings.lora_rank}, {settings.anchor} and "
            f"{settings.evaluate_weights}; or start without FSDP"
        )
    if settings.optimizer in BY_BITSANDBYTES:
        raise ValueError(
            f"train_policy.optimizer: got {settings.optimizer}, whose moments FSDP cannot shard: "
            "set it to adam or adamw, or start without FSDP"
        )
    if settings.carry_optimizer:
        raise ValueError(
            "train_policy.carry_optimizer: got true, but FSDP shards the optimiser, and a run "
            "keeps a whole one: set it to false, or start without FSDP"
        )
    if KL_ESTIMATORS[settings.kl_estimator].of_tokens is None:
        raise ValueError(
            f"train_policy.kl_estimator: got {settings.kl_estimator}, which reads policy and "
            "anchor at once, and FSDP shards both: set it to k1, or start without FSDP"
        )


def check_sampler(settings: ReinforceSettings, accelerator: Accelerator) -> None:
    """Raise ValueError for what sampler vllm cannot do: it takes over whole weights, of one
    process."""
    if settings.sampler == "own":
        return
    launched = [f"{accelerator.num_processes} processes"] if accelerator.num_processes > 1 else []
    launched += ["FSDP"] if accelerator.is_fsdp2 else []
    if launched:
        raise ValueError(
            f"train_policy.sampler: got {settings.sampler} in a run with {' and '.join(launched)}, "
            "expected one process that has all weights: set it to own, or start one process"
        )
    if settings.lora_rank:
        raise ValueError(
            f"train_policy.sampler: got {settings.sampler}, which takes over whole weights, but "
            f"lora_rank = {settings.lora_rank}: set it to own, or lora_rank to null"
        )


def finish_run(run: Run) -> PreTrainedModel:
    """Return the trained policy, with LoRA merged into its weights."""
    return merge_adapters(run.adapters) if run.adapters else run.policy


def train_policy(
    run: Run,
    reward: Reward,
    prompts: Sequence[Sequence[int]],
    settings: ReinforceSettings,
    *,
    eos_ids: Sequence[int],
    pad_id: int,
    seed: int,
    sampler: Sampler | None = None,
) -> Iterator[StepRow]:
    """Train `run.policy` in place up to `settings.steps`, yielding a row after each step.

    Args:
        prompts: token ids of each prompt.
        seed: the seed of the order of prompts and of sampling. Members differ in nothing else. Both
            depend only on the step, so that a loaded run goes on as if it had never stopped.
        sampler: what draws the completions. None means our own sampler.

    Raises:
        RuntimeError: the sampler's distribution is not the policy's (`off_policy.correct`).
        FloatingPointError: a loss, reward or gradient is not finite. The message names them.
    """
    for step in range(run.step + 1, settings.steps + 1):
        batch = sample_batch(run.policy, prompts, settings, step, eos_ids, pad_id, seed, sampler)
        for group in run.optimizer.param_groups:
            group["lr"] = learning_rate_at(step, settings)
        row = compute_gradient(run, reward(batch), batch, settings, step)
        if not all(math.isfinite(v) for v in (row.loss, row.reward, row.grad_norm)):
            raise FloatingPointError(
                f"step {step}, seed {seed}: loss {row.loss}, reward {row.reward}, gradient norm "
                f"{row.grad_norm}; lower train_policy.learning_rate or check the reward model"
            )
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)  # sampling takes the gradient's memory
        update_averages_(run, settings, step)
        ANCHORS[settings.anchor].after_step_(run, settings, step)
        run.step = step
        yield row


def sample_batch(
    policy: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    settings: ReinforceSettings,
    step: int,
    eos_ids: Sequence[int],
    pad_id: int,
    seed: int,
    sampler: Sampler | None = None,
) -> Completions:
    """Sample the completions of a step that belong to this process. Those of one prompt are
    adjacent rows. The prompt and the uniforms of a row do not depend on the number of processes."""
    per_step = settings.batch_size // settings.samples_per_prompt
    mine = own_part(per_step, "train_policy.batch_size / samples_per_prompt")
    chosen = prompts_at(step, len(prompts), per_step, seed)[mine]
    prompt_ids, is_prompt = pad_left([prompts[i] for i in chosen], pad_id, policy.device)
    rows, length = settings.batch_size, settings.max_new_tokens
    uniforms = draw_uniforms(rows, length, policy.device, seed, "sampling", step)
    draw = partial(
        sampler or partial(sample_in_chunks, rows_at_once=settings.sampling_batch_size),
        max_new_tokens=length,
        temperature=settings.temperature,
        eos_ids=eos_ids,
        pad_id=pad_id,
        uniforms=uniforms[own_part(rows, "train_policy.batch_size")],
        samples_per_prompt=settings.samples_per_prompt,
    )
    if sampler:  # which has a precision of its own
        return draw(policy, prompt_ids, is_prompt)
    with compute_in(settings.compute_dtype, policy.device), gathered(policy) as whole:
        return draw(whole, prompt_ids, is_prompt)


def compute_gradient(
    run: Run, rewards: Tensor, batch: Completions, settings: ReinforceSettings, step: int
) -> StepRow:
    """Leave the clipped gradient of one batch on the policy's parameters, and report the batch.

    Micro-batches take the memory of one of them and give the same gradient. The policy is scored
    once more then, because a part's advantages depend on the other parts, and on those of other
    processes.

    Args:
        rewards: [B / processes], the rewards of the rows in `batch`, which are this process's.
    """
    rows, device = len(batch.lengths), run.policy.device
    size = settings.micro_batch_size
    parts = scores_by_part(
        [run.policy, run.anchor.model],
        batch,
        settings.temperature,
        each=settings.samples_per_prompt,
        size=size,
        # If sharded, every process must take part in every forward pass: all need as many parts.
        undivided=is_sharded(run.policy),
    )

    estimator = KL_ESTIMATORS[settings.kl_estimator]
    anchored: list[Tensor | None] = [None] * len(parts)
    if estimator.of_tokens is not None:
        with torch.no_grad(), run.anchor.scoring(device) as anchor:
            anchored = [token_scores(anchor, score, settings) for _, score in parts]
    graphs: list[Scored] = []
    log_prob, kl, measured = torch.empty(3, rows, device=device)
    # Without micro-batches one forward pass serves both the reward and the gradient.
    with torch.set_grad_enabled(size is None):
        for (part, score), under_anchor in zip(parts, anchored, strict=True):
            scored = score_policy(run, score, under_anchor, settings)
            graphs.append(scored)
            log_prob[part], kl[part], measured[part] = (t.detach() for t in scored[:3])
    correction = None
    if batch.sampler_log_probs is not None:
        tokens = torch.zeros_like(batch.sampler_log_probs)
        for (part, _), scored in zip(parts, graphs, strict=True):
            tokens[part, : scored.tokens.shape[1]] = scored.tokens
        given = batch.sampler_log_probs, batch.is_response
        correction = correct(tokens, *given, settings, step)
    lengths, finished = gather(batch.lengths), gather(batch.finished)
    every_reward, every_log_prob, every_kl = gather(rewards), gather(log_prob), gather(kl)
    # A completion of π itself counts once.
    weights = correction.weights if correction else torch.ones_like(kl)
    every_weight = gather(weights) if correction else torch.ones_like(every_kl)
    shaped = every_reward - settings.length_penalty * lengths
    if estimator.in_reward:
        shaped = penalised_rewards(shaped, every_kl, settings.beta)
    advantage = advantages(shaped, settings.baseline, settings.samples_per_prompt) * every_weight
    mine = advantage[own_part(len(advantage), "train_policy.batch_size")]
    beta_of_loss = settings.beta if estimator.in_loss else 0.0
    run.optimizer.zero_grad(set_to_none=True)
    for (part, score), under_anchor, graph in zip(parts, anchored, graphs, strict=True):
        if not graph.log_prob.requires_grad:
            graph = score_policy(run, score, under_anchor, settings)
        term = reinforce_loss(graph.log_prob, mine[part])
        if beta_of_loss:
            term = term + beta_of_loss * (weights[part] * graph.kl).mean()
        (term * (len(part) / rows)).backward()  # type: ignore[no-untyped-call]
    average_gradients_(run.policy)
    norm = torch.nn.utils.clip_grad_norm_(run.policy.parameters(), settings.max_grad_norm)
    return StepRow(
        step=step,
        loss=(
            reinforce_loss(every_log_prob, advantage)
            + beta_of_loss * (every_weight * every_kl).mean()
        ).item(),
        reward=every_reward.mean().item(),
        kl_to_anchor=gather(measured).mean().item(),
        length=lengths.float().mean().item(),
        unfinished=1 - finished.float().mean().item(),
        grad_norm=norm.item(),
        learning_rate=run.optimizer.param_groups[0]["lr"],
        sampling_gap=correction.gap if correction else None,
        sampling_weight=weights.mean().item() if correction else None,
    )


class Scored(NamedTuple):
    """Scores of a part's completions, [B] each: log π_θ(y|x), the estimator's value of the KL to
    the anchor, and an unbiased estimate of that KL. The first two have a gradient where one is
    wanted. `tokens` holds log π_θ of each token, [B, C], without gradient."""

    log_prob: Tensor
    kl: Tensor
    measured: Tensor
    tokens: Tensor


def token_scores(model: PreTrainedModel, score: Score, settings: ReinforceSettings) -> Tensor:
    """Return the log-probabilities of a part's tokens [B, C], in the run's precision."""
    with compute_in(settings.compute_dtype, model.device), recomputing(model):
        return score.tokens(model)


def score_policy(
    run: Run, score: Score, under_anchor: Tensor | None, settings: ReinforceSettings
) -> Scored:
    """Score a part's completions under the policy, and estimate the KL to the anchor.

    Args:
        under_anchor: `token_scores` of the anchor. None: the estimator wants its distributions.
    """
    estimate, policy = KL_ESTIMATORS[settings.kl_estimator].of_tokens, run.policy
    if estimate is None or under_anchor is None:
        with (
            run.anchor.scoring(policy.device) as anchor,
            compute_in(settings.compute_dtype, policy.device),
            recomputing(policy),
        ):
            tokens, kls = score.kls(policy, anchor)
        exact = kls.sum(1)
        return Scored(tokens.sum(1), exact, exact, tokens.detach())
    tokens = token_scores(policy, score, settings)
    kl = estimate(tokens, under_anchor)
    return Scored(tokens.sum(1), kl, k1(tokens.detach(), under_anchor), tokens.detach())


@contextmanager
def recomputing(model: PreTrainedModel) -> Iterator[None]:
    """Let gradient checkpointing work where it was enabled and a gradient is wanted. Layers
    checkpoint only in training mode. This mode must not switch dropout on, and must end here,
    because the cache of sampling and checkpointing exclude each other."""
    layers = []
    if torch.is_grad_enabled() and getattr(model, "is_activation_checkpointing", False):
        layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    for layer in layers:
        layer.training = True  # only this flag, not those of the modules inside
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False
