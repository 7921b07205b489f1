"""How much memory an RL run takes, estimated before it runs.

The steps of a run (sample, score, backward, evaluate) run once with fake tensors, which have shapes
and no data. They run by the same code as a real run, and the bytes that are alive at once are
counted. So the estimate holds for any architecture, and follows the settings and the code.
docs/memory.md explains the parts and what the estimate was compared with.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from warpflow.evaluation.rewards import Reading
from warpflow.evaluation.sample import kls_and_entropy_of_logits
from warpflow.lm.fast.packing import Pack, pack, packed_kls, packed_log_probs
from warpflow.lm.log_probs import (
    Completions,
    log_probs_and_kls_of,
    log_probs_of,
    predicting_logits,
    rows_per_pass,
    tokens_per_pass,
)
from warpflow.lm.models import compute_in, round_matrices_
from warpflow.lm.sampling import casting_once, draw_tokens, make_cache
from warpflow.lm.scoring import can_pack
from warpflow.lm.vllm_sampler import TOKENS_AT_ONCE, WIDTHS, cache_bytes
from warpflow.settings.train_policy import BY_BITSANDBYTES
from warpflow.training.anchors import is_sft_itself
from warpflow.training.kl import KL_ESTIMATORS
from warpflow.training.reinforce import (
    ReinforceSettings,
    needed_averages,
    prepare_policy_,
    recomputing,
)

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Estimate:
    """Bytes on the device that trains.

    Attributes:
        held: the bytes that are held throughout the run, by what holds them.
        phases: the bytes on top of that while a phase lasts. Phases do not overlap.
    """

    held: dict[str, int]
    phases: dict[str, int]

    @property
    def peak(self) -> int:
        return sum(self.held.values()) + max(self.phases.values())


def describe(estimate: Estimate) -> str:
    """Return the estimate as text, with the largest part first."""
    lines = [f"  at most {in_units(estimate.peak)} on the device (on a CPU, besides libraries)"]
    for title, parts in (("held", estimate.held), ("and at a time", estimate.phases)):
        shown = sorted(((size, name) for name, size in parts.items() if size), reverse=True)
        lines.append(f"  {title}: " + ", ".join(f"{name} {in_units(n)}" for n, name in shown))
    return "\n".join(lines)


def in_units(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e10 else f"{size / 1e6:.0f} MB"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host had no memory left for a tensor."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def advise(settings: ReinforceSettings, estimate: Estimate) -> str:
    """Say what to do about memory that ran out: the settings to lower, and the estimate."""
    return (
        "out of memory. Lower train_policy.micro_batch_size (now "
        f"{settings.micro_batch_size or settings.batch_size}), set gradient_checkpointing to true "
        f"(now {str(settings.gradient_checkpointing).lower()}), or anchor_memory and frozen_memory "
        f"to host (now {settings.anchor_memory} and {settings.frozen_memory}); the run's saved "
        "steps are kept. Its estimate:\n"
        f"{describe(estimate)}\n  `python scripts/estimate_resources.py` says what a setting saves"
    )


class LiveBytes(TorchDispatchMode):
    """Count the live bytes of tensors that are made inside it, and the most there ever were."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.live = self.peak = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        tree_map_only(Tensor, self.note_older, (args, kwargs))
        result = function(*args, **(kwargs or {}))
        tree_map_only(Tensor, self.note, result)
        return result

    def note_older(self, tensor: Tensor) -> None:
        """Note a tensor from before. Its views, such as a weight's transpose, are not new."""
        self.note(tensor, is_new=False)

    def note(self, tensor: Tensor, is_new: bool = True) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.sizes:
            self.sizes[storage._cdata] = storage.nbytes() if is_new else 0
            self.live += self.sizes[storage._cdata]
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self.forget, storage._cdata)

    def forget(self, key: int) -> None:
        self.live -= self.sizes.pop(key)


def estimate_training(
    policy: PreTrainedConfig,
    reward: PreTrainedConfig | None,
    settings: ReinforceSettings,
    *,
    prompt_tokens: int,
    evaluate_prompts: int,
    evaluate_batch_size: int,
    shards: int = 1,
) -> Estimate:
    """Estimate the memory of scripts/train_policy.py, with every prompt and completion at its
    limit.

    Args:
        policy, reward: the configs of θ and of the reward model. No weights are loaded. `reward` is
            None where only functions reward.
        prompt_tokens: the largest number of tokens of a prompt.
        shards: the number of processes that FSDP shares policy, anchor, gradient and Adam among.
            The estimate is for each of them. The completions of a step are shared too.
    """
    with torch.device("meta"):
        attention = "eager" if settings.attn_implementation == "eager" else None
        theta, anchor, sampler, sft = (
            build(AutoModelForCausalLM, policy, attention) for _ in range(4)
        )
        judge = build(AutoModelForSequenceClassification, reward) if reward else None
        whole = bytes_of(theta)
        held = {"policy": whole // shards}
        prepare_policy_(theta, settings, seed=0)
        if settings.anchor_memory == "bfloat16":
            round_matrices_(anchor)
        if settings.compute_dtype == "bfloat16":
            round_matrices_(sampler)
            round_matrices_(sft)
            if judge:
                round_matrices_(judge)
    judge_bytes = bytes_of(judge) if judge else 0
    # As the anchor it is counted there.
    sft_bytes = 0 if is_sft_itself(settings.anchor, settings.anchor_memory) else bytes_of(sft)
    held |= {
        "SFT policy": sft_bytes if settings.frozen_memory == "device" else 0,
        "reward model": judge_bytes if settings.frozen_memory == "device" else 0,
        "anchor": anchor_bytes(anchor, settings) // shards,
        "LoRA": bytes_of(theta) - whole,
        "Adam": optimizer_bytes(theta, settings.optimizer) // shards,
    }
    if settings.sampler == "vllm":
        held |= engine_bytes(policy, whole // 4, settings, prompt_tokens)
    batch_size = settings.batch_size // shards
    rows = min(settings.micro_batch_size or batch_size, batch_size)
    packed = full_pack([theta, anchor], rows, settings, prompt_tokens) if shards == 1 else None
    exact = KL_ESTIMATORS[settings.kl_estimator].of_tokens is None
    with FakeTensorMode():
        for model in (theta, anchor, sampler, sft, judge):
            if model is not None:
                make_fake_(model if model is theta else model.requires_grad_(False))
        length, each = settings.max_new_tokens, settings.samples_per_prompt
        part = make_fake(packed) if packed else fake_completions(rows, prompt_tokens, length)
        read = fake_completions(
            min(settings.micro_batch_size or Reading.rows, batch_size), prompt_tokens, length
        )
        drawn = fake_completions(
            max(min(settings.sampling_batch_size or batch_size, batch_size), each),
            *(prompt_tokens, length),
        )
        shown = fake_completions(
            max(min(evaluate_prompts // shards, evaluate_batch_size), 1), prompt_tokens, length
        )
        together = min(len(shown.finished), rows_per_pass(shown, policy.vocab_size))
        compared = fake_completions(
            together, prompt_tokens, min(length, tokens_per_pass(together, policy.vocab_size))
        )
        drawing = theta if shards == 1 else sampler
        phases: dict[str, Callable[[], object]] = {
            "sampling": lambda: (
                sample(drawing, drawn, each, settings.compute_dtype)
                if settings.sampler == "own"
                else read_by_vllm(sampler, drawn, settings.compute_dtype)
            ),
            "reward": lambda: judge_rows(judge, read, settings.compute_dtype) if judge else None,
            "anchor's scores": lambda: None if exact else score(anchor, part, settings),
            "forward and backward": lambda: backward(
                theta, anchor if exact else None, part, settings
            ),
            "evaluation: sampling": lambda: sample(drawing, shown, 1, settings.compute_dtype),
            "evaluation: KL": lambda: compare(drawing, sft, compared, settings.compute_dtype),
        }
        peaks = {name: peak_of(phase) for name, phase in phases.items()}
    if settings.anchor_memory == "host":
        peaks["anchor's scores"] += bytes_of(anchor)
    if settings.frozen_memory == "host":
        peaks["reward"] += judge_bytes
        peaks["evaluation: KL"] += sft_bytes
    if shards > 1:
        add_shards_(peaks, theta, sampler, shards)
    return Estimate(held, peaks)


def add_shards_(
    peaks: dict[str, int], theta: PreTrainedModel, sampler: PreTrainedModel, shards: int
) -> None:
    """Add what the phases of a sharded run take beside those of a whole one. Weights are gathered,
    those of two layers at a time and those in no layer, and the gradient is smaller."""
    stacks = [m for m in theta.modules() if isinstance(m, torch.nn.ModuleList)]
    layers = [bytes_of(layer) for layer in max(stacks, key=bytes_of)]
    gathered = bytes_of(theta) - sum(layers) + 2 * max(layers)
    peaks["anchor's scores"] += gathered
    peaks["forward and backward"] += gathered - bytes_of(theta) * (shards - 1) // shards
    peaks["sampling"] += bytes_of(sampler)
    peaks["evaluation: sampling"] += bytes_of(sampler)
    peaks["evaluation: KL"] += bytes_of(sampler)


def build(family: Any, config: PreTrainedConfig, attention: str | None = None) -> PreTrainedModel:
    """Build a model. Attention other than eager is counted as sdpa, as only eager holds all
    attention weights."""
    given = {"attn_implementation": attention} if attention else {}
    return family.from_config(config, dtype=torch.float32, **given).eval()


def make_fake_(model: PreTrainedModel) -> None:
    """Replace a model's tensors without device by fake ones (peft cannot build on fake ones). What
    was tied stays tied."""
    fakes: dict[Tensor, Tensor] = {}
    for module in model.modules():
        stores: list[dict[str, Any]] = [module._parameters, module._buffers]
        for store in stores:
            for name, tensor in store.items():
                if tensor is None:
                    continue
                if tensor not in fakes:
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype)
                    is_parameter = isinstance(tensor, torch.nn.Parameter)
                    fakes[tensor] = (
                        torch.nn.Parameter(fake, tensor.requires_grad) if is_parameter else fake
                    )
                store[name] = fakes[tensor]


def bytes_of(model: torch.nn.Module) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())


def optimizer_bytes(model: torch.nn.Module, optimizer: str) -> int:
    """Return the bytes of the two moments of the trained weights. Moments in 8 bits have an fp32
    scale for each block of 256, and those of tensors of less than 4096 weights stay in fp32."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if optimizer not in BY_BITSANDBYTES:
        return 2 * sum(parameter.nbytes for parameter in trained)
    return 2 * sum(n + 4 * -(-n // 256) if n >= 4096 else 4 * n for n in map(torch.numel, trained))


def engine_bytes(
    policy: PreTrainedConfig, weights: int, settings: ReinforceSettings, prompt_tokens: int
) -> dict[str, int]:
    """Return what sampler vllm holds throughout the run: a copy of the policy's weights, of which
    there are `weights`, and the key-value cache that it is given."""
    rows, tokens = (
        settings.sampling_batch_size or settings.batch_size,
        prompt_tokens + settings.max_new_tokens,
    )
    return {
        "vLLM's weights": weights * WIDTHS[settings.compute_dtype],
        "vLLM's key-value cache": cache_bytes(policy, rows, tokens, settings.compute_dtype),
    }


def anchor_bytes(model: PreTrainedModel, settings: ReinforceSettings) -> int:
    """Return the bytes that the anchor holds on the device throughout. Averages of the policy
    beside the anchor are kept like it. The SFT policy is there only once where it is the anchor and
    stays on the device."""
    own = 0 if is_sft_itself(settings.anchor, settings.anchor_memory) else 1
    models = len(needed_averages(settings)) + own
    return 0 if settings.anchor_memory == "host" else models * bytes_of(model)


def peak_of(phase: Callable[[], object]) -> int:
    with LiveBytes() as counter:
        phase()
    return counter.peak


def fake_completions(rows: int, prompt: int, length: int) -> Completions:
    def ids(width: int) -> Tensor:
        return torch.zeros(rows, width, dtype=torch.int64)

    whole = ids(prompt).bool(), ids(length).bool()
    return Completions(ids(prompt), whole[0], ids(length), whole[1], torch.zeros(rows).bool())


def full_pack(
    models: list[PreTrainedModel], rows: int, settings: ReinforceSettings, prompt: int
) -> Pack | None:
    """Return a pack of prompts and completions at their limits, where these models' scores are
    packed."""
    length, each = settings.max_new_tokens, settings.samples_per_prompt
    ids = torch.zeros(rows, prompt + length, dtype=torch.int64)
    real = torch.ones_like(ids, dtype=torch.bool)
    batch = Completions(
        ids[:, :prompt], real[:, :prompt], ids[:, prompt:], real[:, prompt:], real[:, 0]
    )
    if not all(can_pack(model, batch) for model in models):
        return None
    return pack(batch, each if rows % each == 0 else 1)


def make_fake(packed: Pack) -> Pack:
    """Return tensors of the same shapes, in the mode that is on."""
    fakes: dict[str, Any] = {
        name: torch.empty(value.shape, dtype=value.dtype)
        for name, value in vars(packed).items()
        if isinstance(value, Tensor)
    }
    return replace(packed, **fakes)


# --- the phases, on fake tensors ---------------------------------------------------------------


@contextmanager
def computing(model: PreTrainedModel, settings: ReinforceSettings) -> Iterator[None]:
    with compute_in(settings.compute_dtype, CPU), recomputing(model):
        yield


@torch.no_grad()
def sample(model: PreTrainedModel, batch: Completions, each: int, dtype: str) -> None:
    """Read the prompts, once for `each` completions, and sample the first token. The cache has its
    final size by then."""
    rows, prompt = batch.prompt_ids.shape
    arguments: dict[str, Any] = {"use_cache": True, "logits_to_keep": 1}
    with compute_in(dtype, CPU), casting_once(model):
        cache = make_cache(model, prompt + batch.response_ids.shape[1])
        arguments["past_key_values"] = cache
        model(input_ids=batch.prompt_ids[: rows // each], **arguments)
        if each > 1:
            cache.batch_repeat_interleave(each)
        output = model(input_ids=batch.prompt_ids[:, :1], **arguments)
        draw_tokens(output.logits[:, -1].float(), torch.zeros(rows, dtype=torch.float64))


@torch.no_grad()
def read_by_vllm(model: PreTrainedModel, batch: Completions, dtype: str) -> None:
    """Read the prompts as vLLM does, one after the other in a row of tokens, and draw one token.
    Logits, probabilities and noise of each completion are in fp32. Where `dtype` is bfloat16 the
    model's weights are rounded already."""
    tokens = min(batch.prompt_ids.numel(), TOKENS_AT_ONCE)
    ids = batch.prompt_ids.flatten()[None, :tokens]
    with compute_in(dtype, CPU):
        output = model(input_ids=ids, use_cache=False, logits_to_keep=len(batch.prompt_ids))
        logits = output.logits[0].float()
        logits.softmax(-1).div_(torch.empty_like(logits)).argmax(-1)


@torch.no_grad()
def judge_rows(model: PreTrainedModel, batch: Completions, dtype: str) -> None:
    ids = torch.cat([batch.prompt_ids, batch.response_ids], 1)
    with compute_in(dtype, CPU):
        model(input_ids=ids, attention_mask=torch.ones_like(ids))


def log_probs(model: PreTrainedModel, part: Completions | Pack, temperature: float) -> Tensor:
    if isinstance(part, Pack):
        return packed_log_probs(model, part, temperature)
    return log_probs_of(predicting_logits(model, part, {}), part, temperature).sum(1)


@torch.no_grad()
def score(model: PreTrainedModel, part: Completions | Pack, settings: ReinforceSettings) -> None:
    with computing(model, settings):
        log_probs(model, part, settings.temperature)


def exact_kls(
    model: PreTrainedModel, anchor: PreTrainedModel, part: Completions | Pack, temperature: float
) -> Tensor:
    """Return the sum of log-probabilities and KLs to the anchor, a scalar."""
    if isinstance(part, Pack):
        found = packed_kls(model, anchor, part, temperature)
    else:
        with torch.no_grad():
            others = predicting_logits(anchor, part, {})
        found = log_probs_and_kls_of(predicting_logits(model, part, {}), others, part, temperature)
    return torch.stack(found).sum()


def backward(
    model: PreTrainedModel,
    anchor: PreTrainedModel | None,
    part: Completions | Pack,
    settings: ReinforceSettings,
) -> None:
    """Do the forward and backward pass of a part, with the anchor's forward pass where its KL is
    exact."""
    with computing(model, settings):
        graph = (
            log_probs(model, part, settings.temperature)
            if anchor is None
            else exact_kls(model, anchor, part, settings.temperature)
        )
    # This is not backward(), which copies fake gradients into .grad, where it moves real ones.
    torch.autograd.grad(graph.mean(), [p for p in model.parameters() if p.requires_grad])


@torch.no_grad()
def compare(policy: PreTrainedModel, sft: PreTrainedModel, batch: Completions, dtype: str) -> None:
    with compute_in(dtype, CPU):
        logits, sft_logits = (predicting_logits(model, batch, {}) / 1.0 for model in (policy, sft))
        ids = batch.response_ids.flatten()
        kls_and_entropy_of_logits(logits.flatten(0, 1), sft_logits.flatten(0, 1), ids)
