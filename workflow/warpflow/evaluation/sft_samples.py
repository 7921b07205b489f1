"""Score many SFT samples of each prompt, from which `optimum` is estimated."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from warpflow.evaluation.optimum import Array, OptimumSettings
from warpflow.evaluation.rewards import Reward
from warpflow.lm.sampling import draw_uniforms, pad_left, sample_completions


def score_samples(
    sft: PreTrainedModel,
    scorers: Sequence[Reward],
    prompts: Sequence[Sequence[int]],
    settings: OptimumSettings,
    *,
    eos_ids: Sequence[int],
    pad_id: int,
    seed: int,
) -> Array:
    """Return the scores [scorers, P, n] of n completions of each of the first P prompts.

    At most `batch_size` completions are in memory at once. Each prompt has its own random numbers,
    so the batch size changes nothing.
    """
    each = settings.samples_per_prompt
    scores = []
    for index, prompt in enumerate(prompts[: settings.prompts]):
        ids, mask = pad_left([prompt], pad_id, sft.device)
        uniforms = draw_uniforms(
            each, settings.max_new_tokens, sft.device, seed, "estimate_optimum", index
        )
        parts: list[Tensor] = []
        for part in uniforms.split(settings.batch_size):
            batch = sample_completions(
                sft,
                ids,
                mask,
                max_new_tokens=settings.max_new_tokens,
                temperature=settings.temperature,
                eos_ids=eos_ids,
                pad_id=pad_id,
                uniforms=part,
                samples_per_prompt=len(part),
            )
            parts.append(torch.stack([scorer(batch).cpu().double() for scorer in scorers]))
        scores.append(torch.cat(parts, 1))
    return torch.stack(scores, 1).numpy()
