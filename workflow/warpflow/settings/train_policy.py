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
    Number,
    Positive,
    Share,
    Unique,
    listed,
    named_in,
    section,
)
from warpflow.settings.sampling import Sampling

# These optimisers need a package which is not installed with the others.
BY_BITSANDBYTES = ("adam_8bit", "adamw_8bit")
INSTALL_BITSANDBYTES = "pip install --no-deps bitsandbytes==0.50.2"

# These kinds of attention need a package which is not installed with the others; its import name.
FLASH_PACKAGES = {
    "flash_attention_2": "flash_attn",
    "flash_attention_3": "flash_attn_interface",
}


# Another sampler that needs an environment of its own.
INSTALL_VLLM = "make vllm"
LOWEST_OF_VLLM = 0.01  # temperature: vLLM raises a lower one to this


@section
class TrainPolicy:
    """The RL runs (stage 1, Algorithm 1)."""

    steps: Count | Annotated[list[Count], NonEmpty] = 400
    """The number of optimiser steps T of a run, or a list with one number for each iteration. The
    last number of a list holds for all later iterations. Paper: [9000, 7000, 7000, 5000]."""
    batch_size: Count = 4
    """The number of completions per step. The default is small, so that noise limits a run. Paper:
    128."""
    samples_per_prompt: Count = 2
    """K, the number of completions of each prompt in a batch. It divides batch_size; baseline rloo
    needs 2 or more."""
    learning_rate: Positive = 1e-4
    """The learning rate of Adam after the warm-up. Paper: 1.0e-6."""
    warmup_steps: Natural = 20
    """The number of steps in which the learning rate rises linearly. Paper: 100."""
    max_grad_norm: Positive = 1.0
    """The global norm that gradients are clipped to. The paper does not say that it clips. The
    default clips in nearly every step, so that all updates have the same length."""
    beta: NonNegative = 0.3
    """β, the weight of the KL penalty inside the reward (paper: 0.1). The KL is that of whole
    sequences. For the EMA anchor 0.3 gave most reward at a KL of 1.2 to 2.2 in the sweep of
    docs/anchors.md."""
    kl_estimator: Annotated[str, *named_in("training/kl.py", "KL_ESTIMATORS")] = "k1"
    """The estimator of the KL penalty: k1 (the paper's, the log-ratio of the sequence), exact, k2,
    k3 (GRPO's), k2_in_reward or k3_in_reward. k1 and exact have the gradient of the sequence's KL,
    the others are biased. exact takes the KL of each token's whole distribution, in the reward and
    in the loss. k2 and k3 are in the loss. docs/knobs.md says what each does."""
    mu: Share = 0.03
    """μ, the rate of the EMA anchor; keep steps × μ at 5 or more. Each step does θ_ema ←
    (1 − μ) θ_ema + μ θ. Paper: 0.01 with 9000 steps."""
    anchor: Annotated[str, *named_in("training/anchors.py", "ANCHORS")] = "ema"
    """The policy that the KL penalty is measured to: ema (WARP), init, sft, hard_reset or
    elastic_reset. ema is the run's own moving average, init its initialisation and sft the SFT
    policy. hard_reset is a copy of the policy that is renewed every `reset_every` steps. With
    elastic_reset the anchor is the initialisation; every `reset_every` steps the policy falls back
    to its moving average, and that average to the initialisation (arXiv 2312.07551)."""
    baseline: Literal["none", "batch", "rloo"] = "rloo"
    """The baseline of the policy gradient: none (as printed in the paper), batch or rloo. batch is
    the mean of the batch. rloo is the mean of the prompt's other completions."""
    reset_every: Count = 100
    """The number of steps between the resets of anchors hard_reset and elastic_reset."""
    reset_optimizer: Flag = False
    """Whether each of these resets also starts the optimiser anew. ProRL (arXiv 2505.24864) does
    so, with anchor hard_reset. The warm-up of the learning rate does not start again."""
    anchor_every: Count = 1
    """The number of steps between the moves of anchor ema; the paper moves it in every step. It is
    τ of TR-DPO (arXiv 2404.09656), whose α is mu. A run's time constant is anchor_every / mu
    steps."""
    length_penalty: NonNegative = 0.0
    """What each token of a completion takes from its reward. Paper, Appendix E: 0.0005."""
    micro_batch_size: Count | None = None
    """The number of completions per forward and backward pass; lower it when memory is short. null
    takes all of them. The gradient is the same, at the price of one more scoring pass."""
    sampling_batch_size: Count | None = None
    """The number of completions that are sampled at once; lower it when their cache fills a GPU.
    null takes all of them. The completions are the same. At least the completions of one prompt are
    sampled together."""
    sampler: Literal["own", "vllm"] = "own"
    """What samples the completions of the RL runs: own, or vllm, which needs an environment of its
    own (docs/vllm.md). own gives the same bytes from run to run. vllm keeps a second copy of the
    weights, in compute_dtype. Each completion is weighted by how likely it is under the policy and
    under vLLM. Evaluations always sample with own. vllm excludes LoRA, FSDP and several
    processes."""
    importance_cap: Annotated[Number, Field(ge=1)] = 2.0
    """C of sampler vllm: a completion counts by min(π(y|x) / μ(y|x), C), where μ is what vLLM says
    it drew from (truncated importance sampling). A lower C means less variance and more bias."""
    sampling_gap_limit: Positive | None = None
    """The largest mean of |log π − log μ| over a step's tokens with sampler vllm. A run stops
    beyond it. null stands for 0.01, and for 0.1 with compute_dtype bfloat16, where rounding alone
    gave about 0.05 (docs/vllm.md)."""
    gradient_checkpointing: Flag = False
    """Whether activations are computed again, which takes less memory and one more forward pass."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """The type of matrix products; bfloat16 is for GPUs, as it is slower on a CPU. Master weights,
    optimiser, EMA and merges stay fp32."""
    attn_implementation: (
        Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3"] | None
    ) = None
    """The attention of policy, anchor and SFT in the RL runs, as transformers names it; null leaves
    the choice to transformers, which takes sdpa for most models. Our own faster layers compute
    sdpa. With any other attention the library's forward pass samples and scores. The flash ones
    need compute_dtype bfloat16, a GPU and the package flash-attn."""
    use_kernels: Flag = False
    """Whether transformers replaces layers of policy, anchor and SFT in the RL runs, such as RMS
    norms, by kernels. It downloads them from the hub with the package kernels. Only kernels that
    have a gradient are taken, and a run stops where none replaces a layer of its model. Our own
    faster layers are not used then (docs/knobs.md)."""
    anchor_memory: Literal["device", "host", "bfloat16"] = "device"
    """Where the anchor's fp32 weights are; host and bfloat16 take less GPU memory. With device they
    are beside the policy. With host they are in host memory, and are sent to the device for the
    scoring of each step. With bfloat16 they are in host memory, and a bf16 copy is on the device;
    this needs compute_dtype bfloat16. docs/memory.md says what each costs."""
    frozen_memory: Literal["device", "host"] = "device"
    """Where the weights of the reward model and of θ_sft are between their uses: device, or host,
    which takes less GPU memory. The scores are the same."""
    optimizer: Literal["adam", "adamw", "adam_8bit", "adamw_8bit"] = "adam"
    """The optimiser: adam (the paper's), adamw, or adam_8bit and adamw_8bit (bitsandbytes), whose
    moments take a quarter of the memory. Adam's two moments are 8 bytes a weight in fp32, and about
    2 in 8 bits (arXiv 2110.02861). The two of 8 bits do not work with FSDP."""
    weight_decay: NonNegative = 0.0
    """The decoupled weight decay of adamw and adamw_8bit. It draws the weights to 0, and not to the
    initialisation. With 0 adamw is adam."""
    carry_optimizer: Flag = False
    """Whether member m goes on with the optimiser of member m of the iteration before; false starts
    a fresh one. The paper does not say. Checkpoints of runs then hold the optimiser and take three
    times the bytes. This does not work with LoRA or FSDP."""
    lora_rank: Count | None = None
    """The rank of a LoRA (peft) that is trained in place of all weights; null trains all weights.
    It is on every linear layer. Anchor and checkpoints hold the merged weights."""
    lora_alpha: Count = 32
    """The scale of the LoRA times its rank: ΔW = lora_alpha / lora_rank · BA."""
    save_every: Count = 50
    """The number of steps between saves of the state that an interrupted run resumes from. The
    state holds weights, EMA and optimiser. A resumed run ends with the same bytes."""
    log_every: Count = 5
    """The number of steps between rows of training.csv."""
    evaluate_every: Count = 50
    """The number of steps between points of the trajectory. Paper: 100."""
    evaluate_prompts: Annotated[Integer, Field(ge=2)] = 200
    """The number of held-out prompts on which those points are measured."""
    evaluate_weights: Annotated[list[Literal["policy", "ema", "average"]], NonEmpty, *Unique] = (
        listed("policy")
    )
    """The weights that have a trajectory: policy, ema or average (of the run's weights so far). ema
    is the moving average of rate mu. ema and average each take memory for another copy of the
    weights."""


@section
class ReinforceSettings(Sampling, TrainPolicy):
    """One RL run: section `train_policy`, and how `policy` samples."""

    steps: Count = 400
    """The number of optimiser steps T of this run."""
