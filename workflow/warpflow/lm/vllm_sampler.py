"""Sampling by vLLM, in this process and with the policy's own weights (`train_policy.sampler`).

One engine is started for a run. Before each step it takes over all weights and forgets all keys and
values that it has computed, so that nothing of it outlives a step. Each completion has a seed of
its own, which is a function of the run's seed, step and row. docs/vllm.md says what was tried.

vLLM is no dependency: it is imported here, where a run asks for it (`make vllm`). This is tested
with version 0.32.0 on CPUs.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from warpflow.lm.log_probs import Completions
from warpflow.lm.models import cached_numbers, head_width
from warpflow.settings.train_policy import LOWEST_OF_VLLM

# In this process and with no thread bound to a core; nothing is reported to anyone.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
BLOCK = 32  # tokens of a block of the key-value cache
TOKENS_AT_ONCE = 4096  # of prompts, that vLLM reads in one forward pass
WIDTHS = {"float32": 4, "bfloat16": 2}  # bytes


@dataclass(frozen=True)
class Engine:
    """A running vLLM. `params` is its class SamplingParams."""

    llm: Any
    params: Any


def version() -> str:
    """Return package and version of the installed vLLM. Its package for CPUs has another name."""
    names = importlib.metadata.packages_distributions()["vllm"]
    return f"{names[0]} {importlib.metadata.version(names[0])}"


# --- what it takes -----------------------------------------------------------------------------


def cache_bytes(config: PreTrainedConfig, rows: int, tokens: int, dtype: str) -> int:
    """Return the bytes of the key-value cache that the engine is given. It holds `rows` sequences
    of at most `tokens` tokens, and one more, since vLLM keeps a block for itself."""
    blocks = -(-tokens // BLOCK) * (rows + 1)
    return cached_numbers(config) * BLOCK * blocks * WIDTHS[dtype]


def require_room(needed: int, free: int) -> None:
    """Raise MemoryError where a GPU has no room for the engine's weights and cache."""
    if needed > free:
        raise MemoryError(
            f"train_policy.sampler: vllm takes {needed / 1e9:.1f} GB for a second copy of the "
            f"weights and its key-value cache, and the GPU has {free / 1e9:.1f} GB left: set "
            "sampler to own, sampling_batch_size lower, or anchor_memory and frozen_memory to host "
            "(scripts/estimate_resources.py says what a run takes)"
        )


# --- the engine --------------------------------------------------------------------------------


def start_engine(
    path: str | Path, policy: PreTrainedModel, *, rows: int, tokens: int, dtype: str
) -> Engine:
    """Start vLLM with the model of a checkpoint folder.

    Args:
        policy: the folder's model, with whose weights vLLM will sample.
        rows: how many completions are sampled at once.
        tokens: how many a prompt and its completion have at most.
        dtype: float32 or bfloat16, for weights, products and cache.

    Raises:
        ValueError: vLLM has no such model, or knows its weights by other names.
        MemoryError: a GPU has no room for it.
    """
    check_names(policy, path)
    cache = cache_bytes(policy.config, rows, tokens, dtype)
    if policy.device.type == "cuda":
        weights = sum(p.numel() for p in policy.parameters()) * WIDTHS[dtype]
        require_room(weights + cache, torch.cuda.mem_get_info(policy.device)[0])
    os.environ.update(ENVIRONMENT)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    with unchanged_process():
        vllm = importlib.import_module("vllm")
        require_architecture(policy, vllm.ModelRegistry.get_supported_archs())
        if policy.device.type == "cpu":
            attention = importlib.import_module("vllm.v1.attention.backends.cpu_attn")
            known = attention.CPUAttentionBackend.get_supported_head_sizes()
            require_head_width(policy.config, known)
        llm = vllm.LLM(
            model=str(path),
            skip_tokenizer_init=True,  # prompts and completions are ids
            generation_config="vllm",  # no default of the model's own: no top-k, no other EOS
            model_impl="vllm",
            dtype=dtype,
            use_tqdm_on_load=False,
            enforce_eager=True,
            max_model_len=tokens,
            max_num_seqs=rows,
            max_num_batched_tokens=max(TOKENS_AT_ONCE, tokens, rows),
            block_size=BLOCK,
            kv_cache_memory_bytes=cache,
            logprobs_mode="processed_logprobs",  # at the temperature, of the ids that can be drawn
            seed=0,  # of no completion: each has its own
        )
    return Engine(llm, vllm.SamplingParams)


def stop_engine(engine: Engine) -> None:
    """Give back what it holds, its process group among it, which others may end before it."""
    engine.llm.llm_engine.engine_core.shutdown()


def require_architecture(policy: PreTrainedModel, known: Sequence[str] | set[str]) -> None:
    """Raise ValueError where vLLM has no implementation of the policy's architecture."""
    name = type(policy).__name__
    if name not in known:
        raise ValueError(
            f"train_policy.sampler: vLLM {version()} has no architecture {name}: set sampler to "
            f"own, or take a policy of one of its {len(known)} architectures"
        )


def require_head_width(config: PreTrainedConfig, known: Sequence[int]) -> None:
    """Raise ValueError where vLLM's attention on a CPU has no heads of the policy's width."""
    width = head_width(config)
    if width not in known:
        raise ValueError(
            f"train_policy.sampler: the policy's attention heads are {width} wide, and those of "
            f"vLLM {version()} on a CPU {', '.join(map(str, known))}: set sampler to own, or take "
            "a policy with such heads"
        )


def check_names(policy: PreTrainedModel, path: str | Path) -> None:
    """Raise ValueError where the policy's weights have other names in memory than in its files:
    vLLM knows the latter. Those of mixtures of experts do in transformers."""
    in_files: set[str] = set()
    files = list(Path(path).glob("*.safetensors"))
    if not files:
        raise ValueError(
            f"train_policy.sampler: vllm reads a checkpoint folder, and {path} has no "
            "*.safetensors: give --init such a folder, or set sampler to own"
        )
    for file in files:
        with safe_open(file, "pt") as weights:
            in_files |= set(weights.keys())
    in_memory = {name for name, _ in policy.named_parameters()}
    if other := sorted(in_memory - in_files):
        raise ValueError(
            f"train_policy.sampler: vllm takes weights over by their names in the files of {path}, "
            f"and {len(other)} have another name in memory, {other[0]} among them: set sampler to "
            "own"
        )


@torch.no_grad()
def load_weights_(engine: Engine, policy: PreTrainedModel) -> None:
    """Give the engine all weights of the policy, and let it forget what it computed with others.

    On a CPU vLLM keeps a copy of an output layer's weights that is laid out for its products.
    Where they are tied to the embedding, it does not renew that copy, so that this does.
    """
    llm = engine.llm
    weights = ((name, weight.detach()) for name, weight in policy.named_parameters())
    llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
    if policy.device.type == "cpu":
        llm.apply_model(renew_output_layer_)
    if not llm.reset_prefix_cache():
        raise RuntimeError("vLLM did not reset its prefix cache: a request is still running")


def renew_output_layer_(model: Any) -> None:
    """Lay out a tied output layer's weights anew."""
    layer = getattr(model, "lm_head", None)
    if layer is not None and hasattr(layer, "cpu_linear") and layer.weight.numel():
        layers = importlib.import_module("vllm.model_executor.layers.utils")
        layers.dispatch_cpu_unquantized_gemm(layer, remove_weight=False)


@contextmanager
def unchanged_process() -> Iterator[None]:
    """Leave random numbers and the number of threads as they were. vLLM seeds the generators of
    Python, NumPy and torch, and on a CPU puts a function that does nothing in the place of
    `torch.set_num_threads`."""
    set_threads, threads = torch.set_num_threads, torch.get_num_threads()
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            torch.set_num_threads = set_threads
            torch.set_num_threads(threads)
            random.setstate(python)
            np.random.set_state(numpy)


# --- completions -------------------------------------------------------------------------------


def row_seeds(uniforms: Tensor) -> list[int]:
    """Return a seed for each row: all 53 bits of its first uniform [B, T]. The uniforms depend on
    seed, step and row alone (`sampling.draw_uniforms`), and so do the seeds."""
    return [int(first * 2**53) for first in uniforms[:, 0].tolist()]


def sample_by_vllm(
    engine: Engine,
    model: PreTrainedModel,
    prompt_ids: Tensor,
    is_prompt: Tensor,
    *,
    max_new_tokens: int,
    temperature: float,
    eos_ids: Sequence[int],
    pad_id: int,
    uniforms: Tensor,
    samples_per_prompt: int = 1,
) -> Completions:
    """Sample as `sampling.sample_completions` does, with its arguments and its meaning of EOS and
    length. The completions carry the log-probabilities of their tokens as vLLM gives them.

    A row's randomness is its seed (`row_seeds`), so that only its first uniform is used. On a CPU
    its completion does not depend on the other rows.
    """
    if temperature < LOWEST_OF_VLLM:
        raise ValueError(
            f"policy.temperature: got {temperature:g}, but vLLM samples at {LOWEST_OF_VLLM} "
            "or more: raise it, or set train_policy.sampler to own"
        )
    prompt_ids, is_prompt = (
        rows.repeat_interleave(samples_per_prompt, 0) for rows in (prompt_ids, is_prompt)
    )
    prompts = [
        {"prompt_token_ids": ids[real].tolist()}
        for ids, real in zip(prompt_ids.cpu(), is_prompt.cpu(), strict=True)
    ]
    allowed = sampled_ids(model)
    params = [
        engine.params(
            temperature=temperature,
            top_p=1.0,
            top_k=0,
            min_p=0.0,
            max_tokens=max_new_tokens,
            seed=seed,
            ignore_eos=True,  # of vLLM's own; these end a completion, and are its last token:
            stop_token_ids=list(eos_ids),
            allowed_token_ids=allowed,
            logprobs=0,  # of the sampled token alone
            detokenize=False,
        )
        for seed in row_seeds(uniforms)
    ]
    with unchanged_process():
        load_weights_(engine, model)
        answers = [a.outputs[0] for a in engine.llm.generate(prompts, params, use_tqdm=False)]
    drawn = [list(answer.token_ids) for answer in answers]
    log_probs = [
        [at[token].logprob for token, at in zip(ids, answer.logprobs, strict=True)]
        for ids, answer in zip(drawn, answers, strict=True)
    ]
    return as_completions(prompt_ids, is_prompt, drawn, log_probs, eos_ids, pad_id)


def sampled_ids(model: PreTrainedModel) -> list[int] | None:
    """Return the ids that can be drawn, as in `log_probs.of_known_ids`. None means all ids of the
    model."""
    known = getattr(model.config, "sampled_vocab_size", None)
    gaps = set(getattr(model.config, "unsampled_ids", None) or ())
    if known is None and not gaps:
        return None
    return [token for token in range(known or model.config.vocab_size) if token not in gaps]


def as_completions(
    prompt_ids: Tensor,
    is_prompt: Tensor,
    drawn: Sequence[Sequence[int]],
    log_probs: Sequence[Sequence[float]],
    eos_ids: Sequence[int],
    pad_id: int,
) -> Completions:
    """Turn lists of tokens and of their log-probabilities into tensors with pads on the right.

    Args:
        drawn: each row's ids up to its EOS, which is included, or up to the limit.
    """
    device = prompt_ids.device
    width = max(map(len, drawn))

    def table(rows: Sequence[Sequence[Any]], fill: float, dtype: torch.dtype) -> Tensor:
        full = [[*row, *[fill] * (width - len(row))] for row in rows]
        return torch.tensor(full, dtype=dtype, device=device)

    lengths = torch.tensor([len(row) for row in drawn], device=device)
    return Completions(
        prompt_ids,
        is_prompt,
        table(drawn, pad_id, torch.int64),
        torch.arange(width, device=device)[None] < lengths[:, None],
        torch.tensor([row[-1] in eos_ids for row in drawn], device=device),
        table(log_probs, 0.0, torch.float32),
    )
