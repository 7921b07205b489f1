"""Estimators of KL(π_θ ‖ π_anchor), and where each enters the gradient.

With lr_t = log π_θ(y_t | x, y_<t) − log π_anchor(y_t | x, y_<t), sums over a completion's tokens t:

    k1     Σ lr_t                        Schulman, "Approximating KL divergence"
    k2     Σ ½ lr_t²
    k3     Σ (exp(−lr_t) − 1 + lr_t)     in the loss: GRPO (arXiv 2402.03300)
    exact  Σ_t Σ_v π_θ(v | y_<t) (log π_θ(v | y_<t) − log π_anchor(v | y_<t))    arXiv 2504.10637

docs/knobs.md says what each does to the gradient of the KL of whole sequences, and
tests/training/test_kl.py shows it by enumeration.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


def k1(policy: Tensor, anchor: Tensor) -> Tensor:
    """Return the log-ratio of sequences [B] from log-probabilities of tokens [B, C], 0 on pads."""
    return policy.sum(1) - anchor.sum(1)


def k2(policy: Tensor, anchor: Tensor) -> Tensor:
    """Return the sum of half the squared log-ratios, [B]."""
    return ((policy - anchor) ** 2 / 2).sum(1)


def k3(policy: Tensor, anchor: Tensor) -> Tensor:
    """Return the sum of exp(−lr) − 1 + lr, [B]. No term of it is below 0."""
    log_ratio = policy - anchor
    return ((-log_ratio).expm1() + log_ratio).sum(1)


@dataclass(frozen=True)
class KlEstimator:
    """An estimator, and where it enters.

    Attributes:
        of_tokens: maps log-probabilities [B, C] of the sampled tokens under policy and anchor to
            [B]. None stands for exact, which takes the distributions over all words.
        in_reward: whether it is subtracted from the reward, times β, without gradient.
        in_loss: whether it is added to the loss, times β, with gradient.
    """

    of_tokens: Callable[[Tensor, Tensor], Tensor] | None
    in_reward: bool = False
    in_loss: bool = False


# A new estimator needs one function above and one line here. Its key is train_policy.kl_estimator.
KL_ESTIMATORS: dict[str, KlEstimator] = {
    "k1": KlEstimator(k1, in_reward=True),
    # The reward alone would leave out how the KL of a step changes, and the loss alone which steps
    # the policy comes to. Both together are the gradient.
    "exact": KlEstimator(None, in_reward=True, in_loss=True),
    "k2": KlEstimator(k2, in_loss=True),
    "k3": KlEstimator(k3, in_loss=True),
    "k2_in_reward": KlEstimator(k2, in_reward=True),
    "k3_in_reward": KlEstimator(k3, in_reward=True),
}
