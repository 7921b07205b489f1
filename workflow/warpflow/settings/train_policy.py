"""Section `train_policy` of the config, and what one RL run is told."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from warpflow.settings.base import (
    Count,
    Flag,
    Integer,
    Natural,
    NonEmpty,
    NonNegative,
    Positive,
    Share,
    Unique,
    listed,
    named_in,
    section,
)
from warpflow.settings.sampling import Sampling

# Optimisers that need a package which is not installed with the others.
BY_BITSANDBYTES = ("adam_8bit", "adamw_8bit")
INSTALL_BITSANDBYTES = "pip install --no-deps bitsandbytes==0.50.2"

# Attention that needs a package which is not installed with the others, by what imports it.
FLASH_PACKAGES = {
    "flash_attention_2": "flash_attn",
    "flash_attention_3": "flash_attn_interface",
}


@section
class TrainPolicy:
    """The RL runs (stage 1, Algorithm 1)."""

    steps: Count | Annotated[list[Count], NonEmpty] = 400
    """T, optimiser steps; a list gives iteration 1, 2, … their own, the last from then on. Paper:
    [9000, 7000, 7000, 5000]."""
    batch_size: Count = 4
    """Completions per step; small: noise limits a run. Paper: 128."""
    samples_per_prompt: Count = 2
    """K completions of each prompt in a batch. It divides batch_size; baseline rloo needs 2 or
    more."""
    learning_rate: Positive = 1e-4
    """Adam's, after the warm-up. Paper: 1.0e-6."""
    warmup_steps: Natural = 20
    """Linear warm-up of the learning rate. Paper: 100."""
    max_grad_norm: Positive = 1.0
    """Gradient clipping by global norm. It is ours, the paper does not say that it clips. At the
    default it binds in nearly every step, so that all updates have the same length."""
    beta: NonNegative = 0.3
    """β of the KL penalty inside the reward (paper: 0.1). The KL is that of whole sequences. For
    the EMA anchor 0.3 gave most reward at a KL of 1.2 to 2.2 in the sweep of docs/anchors.md."""
    kl_estimator: Annotated[str, *named_in("training/kl.py", "KL_ESTIMATORS")] = "k1"
    """Of the KL penalty: k1 (the paper's, the log-ratio of the sequence), exact, k2, k3 (GRPO's),
    k2_in_reward, k3_in_reward. k1 and exact have the gradient of the sequence's KL, the others are
    biased. exact: of each token's whole distribution, in reward and loss. k2 and k3 are in the
    loss. docs/knobs.md says what each does."""
    mu: Share = 0.03
    """μ of the EMA anchor; keep steps × μ at 5 or more. It is the rate of θ_ema ←
    (1 − μ) θ_ema + μ θ. Paper: 0.01 with 9000 steps."""
    anchor: Annotated[str, *named_in("training/anchors.py", "ANCHORS")] = "ema"
    """What the KL penalty is measured to: ema (WARP), init, sft, hard_reset or elastic_reset. These
    are the run's own moving average, its initialisation, SFT, or a copy of itself renewed every
    `reset_every` steps. elastic_reset: its initialisation, while every `reset_every` steps the
    policy falls back to its moving average and that to the initialisation (arXiv 2312.07551)."""
    baseline: Literal["none", "batch", "rloo"] = "rloo"
    """Of the policy gradient: none (as printed in the paper), batch or rloo. batch: the mean of the
    batch. rloo: the mean of the prompt's other completions."""
    reset_every: Count = 100
    """Steps between the resets of anchors hard_reset and elastic_reset."""
    reset_optimizer: Flag = False
    """Whether each of these resets starts the optimiser anew too: ProRL's (arXiv 2505.24864), with
    anchor hard_reset. The warm-up of the learning rate does not start again."""
    anchor_every: Count = 1
    """Steps between the moves of anchor ema, τ of TR-DPO (arXiv 2404.09656), whose α is mu. A run's
    time constant is anchor_every / mu steps. 1: every step (the paper's)."""
    length_penalty: NonNegative = 0.0
    """Subtracted from the reward per token. Paper, Appendix E: 0.0005."""
    micro_batch_size: Count | None = None
    """Completions per forward and backward; lower it when memory is short. null: all of them. The
    gradient is the same, for one more scoring pass."""
    sampling_batch_size: Count | None = None
    """Completions sampled at once; lower it when their cache fills a GPU. null: all of them. The
    completions are the same; it holds the completions of one prompt at least."""
    gradient_checkpointing: Flag = False
    """Recompute activations: less memory, one more forward pass."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of matrix products; bfloat16 is for GPUs (slower on a CPU). Master weights, optimiser, EMA
    and merges stay fp32."""
    attn_implementation: (
        Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3"] | None
    ) = None
    """Attention of policy, anchor and SFT in the RL runs, as transformers names it; null: what
    transformers chooses, sdpa for most. Our own faster layers compute sdpa: with any other the
    library's forward pass samples and scores. The flash ones need compute_dtype bfloat16, a GPU and
    the package flash-attn."""
    anchor_memory: Literal["device", "host", "bfloat16"] = "device"
    """Of the anchor's fp32 weights; host or bfloat16: less GPU memory. device: they are
    with the policy. host: in host memory, sent to the device for the scoring of each step.
    bfloat16: in host memory, with a bf16 copy on the device; needs compute_dtype bfloat16. See
    docs/memory.md for what each costs."""
    frozen_memory: Literal["device", "host"] = "device"
    """Of the reward model's weights and θ_sft's between their uses: device, or host, which takes
    less GPU memory. The scores are the same."""
    optimizer: Literal["adam", "adamw", "adam_8bit", "adamw_8bit"] = "adam"
    """adam (the paper's), adamw, or adam_8bit and adamw_8bit, whose moments take a quarter of the
    memory (bitsandbytes). Adam's two moments are 8 bytes a weight in fp32, and about 2 in 8 bits
    (arXiv 2110.02861). Not with FSDP: 8 bits."""
    weight_decay: NonNegative = 0.0
    """Of adamw and adamw_8bit, decoupled. It draws the weights to 0, and not to the
    initialisation. With 0 adamw is adam."""
    carry_optimizer: Flag = False
    """Whether member m of iteration 2, 3, … goes on with the optimiser of member m of the one
    before; false: a fresh one. The paper does not say. Checkpoints of runs then hold it, three
    times the bytes. Not with LoRA or FSDP."""
    lora_rank: Count | None = None
    """A number: train a LoRA of this rank (peft) in place of all weights. It is on every linear
    layer; null: all weights are trained. Anchor and checkpoints hold the merged weights."""
    lora_alpha: Count = 32
    """LoRA's scale times its rank: ΔW = lora_alpha / lora_rank · BA."""
    save_every: Count = 50
    """Steps between saves of the state that an interrupted run resumes from. The state is weights,
    EMA and optimiser; the run goes on to the same bytes."""
    log_every: Count = 5
    """Steps between rows of training.csv."""
    evaluate_every: Count = 50
    """Steps between points of the trajectory. Paper: 100."""
    evaluate_prompts: Annotated[Integer, Field(ge=2)] = 200
    """Held-out prompts of those points."""
    evaluate_weights: Annotated[list[Literal["policy", "ema", "average"]], NonEmpty, *Unique] = (
        listed("policy")
    )
    """Whose trajectories: policy, also ema, average (of the run's weights so far). ema is the
    moving average of rate mu. The last two take memory for another copy of the weights."""


@section
class ReinforceSettings(Sampling, TrainPolicy):
    """One RL run: section `train_policy`, and how `policy` samples."""

    steps: Count = 400
    """T, optimiser steps of this run."""
