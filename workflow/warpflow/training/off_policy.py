"""Completions that another program drew. This module says how far its distribution μ is from the
policy π that is trained, and how much each completion counts because of that.

Both have the same weights, and differ by rounding and by the order of sums. The gradient of
E_π[r] is E_μ[π/μ · r ∇log π], so that a completion y counts by π(y|x)/μ(y|x). Truncated at C
(Ionides 2008, Journal of Computational and Graphical Statistics 17) the weights have a bounded
variance and a small bias.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from warpflow.settings.train_policy import ReinforceSettings

# Largest mean of |log π − log μ| over the tokens of a step, by compute_dtype. Rounding gave about
# 1e-5 and 0.05 with SmolLM2-135M (docs/vllm.md).
GAP_LIMITS = {"float32": 0.01, "bfloat16": 0.1}
ROW_FACTOR = 10  # a single completion's mean may be larger than that of all tokens
SHOWN = 5


class OffPolicy(NamedTuple):
    """What a step's completions need because μ is not π.

    Attributes:
        weights: [B] min(π(y|x)/μ(y|x), C).
        gap: the mean of |log π − log μ| over all tokens.
    """

    weights: Tensor
    gap: float


def correct(
    log_pi: Tensor, log_mu: Tensor, is_response: Tensor, settings: ReinforceSettings, step: int
) -> OffPolicy:
    """Compare what policy and sampler say of the sampled tokens.

    Args:
        log_pi, log_mu: [B, C] for each response token, at the run's temperature.

    Raises:
        RuntimeError: rounding cannot explain the difference. The message names step, rows and
            likely causes.
    """
    distance = (log_pi - log_mu).abs().masked_fill(~is_response, 0.0)
    of_rows = distance.sum(1) / is_response.sum(1)
    gap = (distance.sum() / is_response.sum()).item()
    limit = settings.sampling_gap_limit or GAP_LIMITS[settings.compute_dtype]
    # Not `gap > limit`, since a gap that is no number is larger than any limit.
    is_near = gap <= limit and bool((of_rows <= ROW_FACTOR * limit).all())
    if not is_near:
        raise RuntimeError(explain(of_rows, gap, limit, step))
    difference = (log_pi - log_mu).masked_fill(~is_response, 0.0).sum(1)
    return OffPolicy(importance_weights(difference, settings.importance_cap), gap)


def importance_weights(difference: Tensor, cap: float) -> Tensor:
    """Return [B] min(π(y|x)/μ(y|x), C), given log π(y|x) − log μ(y|x) [B]."""
    return difference.exp().clamp(max=cap)


def explain(of_rows: Tensor, gap: float, limit: float, step: int) -> str:
    """Say which completions are how far apart, and why that may be.

    Args:
        of_rows: [B], each completion's mean of |log π − log μ|.
    """
    worst = of_rows.nan_to_num(nan=torch.inf).argsort(descending=True)[:SHOWN].tolist()
    rows = ", ".join(f"{row} ({of_rows[row]:.3g})" for row in worst)
    return (
        f"step {step}: |log π − log μ| between policy and vLLM is {gap:.3g} a token, expected at "
        f"most {limit:g} (train_policy.sampling_gap_limit), and {ROW_FACTOR} times that in a row; "
        f"furthest apart are rows {rows}. Likely causes: weights that vLLM did not take over (a "
        "model that it loads in another way than this version was tested with), a layer that it "
        "computes differently (attention windows, RoPE scaling, soft caps), compute_dtype bfloat16 "
        "with a large temperature or long completions. The step was not taken. Set "
        "train_policy.sampler to own, or, where rounding explains it, raise the limit"
    )
