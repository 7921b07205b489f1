"""How much memory an RL run takes, known before it runs.

The steps of a run (sample, score, backward, evaluate) are gone through once with fake tensors,
which have shapes and no data, by the code that runs them in earnest; what is alive at once is
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

from warpflow.evaluation.sample import kls_and_entropy_of_logits
from warpflow.lm.fast.packing import Pack, pack, packed_log_probs
from warpflow.lm.log_probs import (
    Completions,
    log_probs_of,
    predicting_logits,
    rows_per_pass,
    tokens_per_pass,
)
from warpflow.lm.models import round_matrices_
from warpflow.lm.sampling import draw_tokens, make_cache
from warpflow.lm.scoring import can_pack
from warpflow.training.anchors import is_sft_itself
from warpflow.training.reinforce import (
    ReinforceSettings,
    compute_in,
    needed_averages,
    prepare_policy_,
    recomputing,
)

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Estimate:
    """Bytes on the device that trains.

    Attributes:
        held: throughout the run, by what holds them.
        phases: on top of that while a phase lasts; one phase at a time.
    """

    held: dict[str, int]
    phases: dict[str, int]

    @property
    def peak(self) -> int:
        return sum(self.held.values()) + max(self.phases.values())


def describe(estimate: Estimate) -> str:
    """The estimate to read, largest part first."""
    lines = [f"  at most {in_units(estimate.peak)} on the device (on a CPU, besides libraries)"]
    for title, parts in (("held", estimate.held), ("and at a time", estimate.phases)):
        shown = sorted(((size, name) for name, size in parts.items() if size), reverse=True)
        lines.append(f"  {title}: " + ", ".join(f"{name} {in_units(n)}" for n, name in shown))
    return "\n".join(lines)


def in_units(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e10 else f"{size / 1e6:.0f} MB"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the host, had no memory left for a tensor."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def advise(settings: ReinforceSettings, estimate: Estimate) -> str:
    """What to do about memory that ran out: the settings to lower, and the estimate."""
    return (
        "out of memory. Lower train_policy.micro_batch_size (now "
        f"{settings.micro_batch_size or settings.batch_size}), set gradient_checkpointing to true "
        f"(now {str(settings.gradient_checkpointing).lower()}) or anchor_memory to host (now "
        f"{settings.anchor_memory}); the run's saved steps are kept. Its estimate:\n"
        f"{describe(estimate)}\n  `python scripts/estimate_resources.py` says what a setting saves"
    )


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors made inside it that are alive, and the most there ever were."""

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
        """A tensor from before: its views, such as a weight's transpose, are not new."""
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
) -> Estimate:
    """The memory of scripts/train_policy.py, every prompt and completion at its limit.

    Args:
        policy, reward: configs of θ and of the reward model; no weights are loaded. None where
            functions alone reward.
        prompt_tokens: limit of a prompt.
    """
    with torch.device("meta"):
        theta, anchor, sft = (build(AutoModelForCausalLM, policy) for _ in range(3))
        judge = build(AutoModelForSequenceClassification, reward) if reward else None
        held = {
            "policy": bytes_of(theta),
            "SFT policy": bytes_of(sft),
            "reward model": bytes_of(judge) if judge else 0,
        }
        prepare_policy_(theta, settings, seed=0)
        if settings.anchor_memory == "bfloat16":
            round_matrices_(anchor)
    trained = sum(p.nbytes for p in theta.parameters() if p.requires_grad)
    held |= {
        "anchor": anchor_bytes(anchor, settings),
        "LoRA": bytes_of(theta) - held["policy"],
        "Adam": 2 * trained,
    }
    rows = min(settings.micro_batch_size or settings.batch_size, settings.batch_size)
    packed = full_pack([theta, anchor], rows, settings, prompt_tokens)
    with FakeTensorMode():
        for model in (theta, anchor, sft, judge):
            if model is not None:
                make_fake_(model)
        length = settings.max_new_tokens
        batch = fake_completions(settings.batch_size, prompt_tokens, length)
        sampled = settings.sampling_batch_size or settings.batch_size
        drawn = fake_completions(max(sampled, settings.samples_per_prompt), prompt_tokens, length)
        part = make_fake(packed) if packed else fake_completions(rows, prompt_tokens, length)
        shown = fake_completions(min(evaluate_prompts, evaluate_batch_size), prompt_tokens, length)
        together = min(len(shown.finished), rows_per_pass(shown, policy.vocab_size))
        compared = fake_completions(
            together, prompt_tokens, min(length, tokens_per_pass(together, policy.vocab_size))
        )
        each = settings.samples_per_prompt
        phases: dict[str, Callable[[], object]] = {
            "sampling": lambda: sample(theta, drawn, each, settings.compute_dtype),
            "reward": lambda: judge_rows(judge, batch) if judge else None,
            "anchor's scores": lambda: score(anchor, part, settings),
            "forward and backward": lambda: backward(theta, part, settings),
            "evaluation: sampling": lambda: sample(theta, shown, 1, "float32"),
            "evaluation: KL": lambda: compare(theta, sft, compared),
        }
        peaks = {name: peak_of(phase) for name, phase in phases.items()}
    if settings.anchor_memory == "host":
        peaks["anchor's scores"] += bytes_of(anchor)
    return Estimate(held, peaks)


def build(family: Any, config: PreTrainedConfig) -> PreTrainedModel:
    return family.from_config(config, dtype=torch.float32).eval()


def make_fake_(model: PreTrainedModel) -> None:
    """Put fake tensors in the place of a model's tensors without device (peft cannot build on fake
    ones); what was tied stays tied."""
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


def bytes_of(model: PreTrainedModel) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())


def anchor_bytes(model: PreTrainedModel, settings: ReinforceSettings) -> int:
    """On the device; the fp32 weights of ``host`` and ``bfloat16`` are in host memory besides. The
    SFT policy, where it is the anchor and stays on the device, is there once. Averages of the
    policy beside the anchor are kept as the anchor is."""
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
    """Of prompts and completions at their limits, where these models' scores are packed."""
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
    """Tensors of the same shapes, in the mode that is on."""
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
    """Reading the prompts, once for `each` completions, and the first token: the cache has its
    final size by then."""
    rows, prompt = batch.prompt_ids.shape
    cache = make_cache(model, prompt + batch.response_ids.shape[1])
    arguments = {"past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
    with compute_in(dtype, CPU):
        model(input_ids=batch.prompt_ids[: rows // each], **arguments)
        if each > 1:
            cache.batch_repeat_interleave(each)
        output = model(input_ids=batch.prompt_ids[:, :1], **arguments)
        draw_tokens(output.logits[:, -1].float(), torch.zeros(rows, dtype=torch.float64))


@torch.no_grad()
def judge_rows(model: PreTrainedModel, batch: Completions, rows: int = 256) -> None:
    ids = torch.cat([batch.prompt_ids, batch.response_ids], 1)[:rows]
    model(input_ids=ids, attention_mask=torch.ones_like(ids))


def log_probs(model: PreTrainedModel, part: Completions | Pack, temperature: float) -> Tensor:
    if isinstance(part, Pack):
        return packed_log_probs(model, part, temperature)
    return log_probs_of(predicting_logits(model, part, {}), part, temperature).sum(1)


@torch.no_grad()
def score(model: PreTrainedModel, part: Completions | Pack, settings: ReinforceSettings) -> None:
    with computing(model, settings):
        log_probs(model, part, settings.temperature)


def backward(model: PreTrainedModel, part: Completions | Pack, settings: ReinforceSettings) -> None:
    with computing(model, settings):
        graph = log_probs(model, part, settings.temperature)
    # Not backward(): fake gradients are copied into .grad, where real ones are moved.
    torch.autograd.grad(graph.mean(), [p for p in model.parameters() if p.requires_grad])


@torch.no_grad()
def compare(policy: PreTrainedModel, sft: PreTrainedModel, batch: Completions) -> None:
    logits, sft_logits = (predicting_logits(model, batch, {}) / 1.0 for model in (policy, sft))
    kls_and_entropy_of_logits(logits, sft_logits, batch)
