"""How policies of one initialisation are merged (stage 2): one pure function for each method.

There are two kinds of methods, both listed in `METHODS`. WARP's and most others are linear in the
task vectors δ_m = θ_m − θ_init of a group of tensors, with coefficients that depend only on their
Gram matrix (norms and angles). Such a method is a function ``(gram, weight) -> coefficients``. TIES
and similar methods treat each weight by itself. Such a method is ``Elementwise(function)``.
`streaming` computes the Gram matrices of checkpoints and applies the methods.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

# Below this sin Ω two directions count as collinear, and SLERP becomes LERP, its limit.
MIN_SIN_OMEGA = 1e-6

# If the squared norm of θ_m is below this share of θ_init's, the sum δ_m + θ_init is rounding.
MIN_WEIGHTS = 1e-4
KARCHER_STEPS, KARCHER_TOLERANCE = 100, 1e-10  # about 5 steps at 90° between members

DENSITY = 0.2  # the share of a task vector that TIES keeps (the default of its paper)

GRANULARITIES = ("layer", "tensor", "model")
VECTORS = ("task_vectors", "full_weights")


def slerp_coefficients(gram: Tensor, weight: float | None = None) -> Tensor:
    """Return coefficients of the spherical interpolation of task vectors (Section 3.2; Eq. 26 for M
    > 2).

    Args:
        gram: [M, M] float64, ``gram[a, b] = <δ_a, δ_b>`` over one group of tensors.
        weight: λ, the weight of the second of two policies. None means 1/M. For M > 2 the policies
            are merged one after another with λ = 1/m at the m-th, as in the paper.

    Returns:
        [M] float64 coefficients c with ``merged = θ_init + Σ c_m δ_m``. For two vectors they are
            ``sin((1−λ)Ω)/sinΩ, sin(λΩ)/sinΩ``. Where Ω is undefined (a zero task vector) or sinΩ is
            about 0, the step is LERP.
    """
    return _merge_in_sequence(gram, weight, _slerp_pair)


def lerp_coefficients(gram: Tensor, weight: float | None = None) -> Tensor:
    """Return coefficients of linear interpolation: 1/M each, or (1 − λ, λ) for two policies. Shapes
    are those of `slerp_coefficients`."""
    return _merge_in_sequence(gram, weight, lambda norm_a, norm_b, dot, step: (1 - step, step))


def lerp_norm_matched_coefficients(gram: Tensor, weight: float | None = None) -> Tensor:
    """Rescale LERP to the members' λ-weighted mean norm: LERP's direction with SLERP's length.

    It shows whether SLERP gains by its direction or only because it does not shrink. For two task
    vectors of equal norm at λ = ½ it *is* SLERP (c = 1 / (2 cos(Ω/2))). Opposite task vectors,
    whose mean is zero, are left unscaled.
    """
    mean = lerp_coefficients(gram, weight)
    target = (mean * gram.diagonal().clamp(min=0).sqrt()).sum()
    norm = (mean @ gram @ mean).clamp(min=0).sqrt()
    return mean * (target / norm) if norm > MIN_SIN_OMEGA * target else mean


def karcher_coefficients(gram: Tensor, weight: float | None = None) -> Tensor:
    """Return coefficients of the spherical mean of all members at once. This is our answer to the
    paper's remark that merging one after another is "certainly suboptimal". The members' order does
    not matter.

    The mean direction minimises the squared angles to the task vectors' directions. It is the
    Karcher or Fréchet mean on the sphere, by fixed-point iteration of its log and exp maps in the
    space of coefficients. Its length is the mean length of the task vectors. For two of equal norm
    it is SLERP. With a zero task vector, or where the plain mean vanishes (opposite ones), it is
    LERP.
    """
    weights = lerp_coefficients(gram, weight)
    norms = gram.diagonal().clamp(min=0).sqrt()
    if bool((norms == 0).any()):
        return weights
    cosines = (gram / norms.outer(norms)).clamp(-1, 1)
    mean = weights.clone()  # coefficients of the unit vectors δ_m / ‖δ_m‖
    for _ in range(KARCHER_STEPS):
        length = (mean @ cosines @ mean).clamp(min=0).sqrt()
        if length < MIN_SIN_OMEGA:
            return weights
        mean = mean / length
        to_mean = (cosines @ mean).clamp(-1, 1)
        angles = to_mean.acos()
        sines = angles.sin()
        stretch = torch.where(sines > MIN_SIN_OMEGA, angles / sines.clamp(min=1e-300), 1.0)
        # log map: Σ w_m θ_m / sin θ_m (u_m − cos θ_m μ), a tangent at the mean
        tangent = weights * stretch
        tangent = tangent - (tangent @ to_mean) * mean
        step = float((tangent @ cosines @ tangent).clamp(min=0).sqrt())
        if step < KARCHER_TOLERANCE:
            break
        mean = math.cos(step) * mean + math.sin(step) / step * tangent
    return mean * (weights @ norms) / norms


def model_stock_coefficients(gram: Tensor, weight: float | None = None) -> Tensor:
    """Return coefficients of Model Stock (arXiv 2403.19522): LERP drawn back to θ_init by ``t = M
    cosθ / (1 + (M − 1) cosθ)``, with cosθ the mean cosine between two task vectors.

    Orthogonal task vectors, such as noise around one centre, give t = 0, which is θ_init. So does a
    mean cosine below 0, where the formula would reverse the direction. With a zero task vector it
    is LERP.
    """
    mean = lerp_coefficients(gram, weight)
    members, norms = len(gram), gram.diagonal().clamp(min=0).sqrt()
    if members == 1 or bool((norms == 0).any()):
        return mean
    cosines = (gram / norms.outer(norms)).clamp(-1, 1)
    cosine = max(0.0, float(cosines.sum() - cosines.trace()) / (members * (members - 1)))
    return mean * (members * cosine / (1 + (members - 1) * cosine))


@dataclass(frozen=True)
class Elementwise:
    """A method that treats each weight by itself.

    Attributes:
        merge: ``(deltas, weights, thresholds) -> [n]`` returns the merged task vector of n weights.
            It takes their task vectors [M, n] in fp32, the members' weights λ [M], and for each
            member the magnitude [M] from which on a weight is among the `density` largest of its
            group.
    """

    merge: Callable[[Tensor, Tensor, Tensor], Tensor]


def ties(deltas: Tensor, weights: Tensor, thresholds: Tensor) -> Tensor:
    """Do TIES-Merging (arXiv 2306.01708): trim, elect a sign, take the disjoint mean.

    Only the largest magnitudes of each task vector stay. Each weight gets the sign of the larger
    sum, and the λ-weighted mean over the members that have this sign. It is 0 where none has it, or
    where the sums are equal. Shapes are as in `Elementwise`.
    """
    trimmed = deltas.masked_fill(deltas.abs() < thresholds[:, None], 0.0)
    weighted = weights[:, None] * trimmed
    elected = weighted.sum(0).sign()
    agrees = (trimmed.sign() == elected) & (elected != 0)
    total = (weights[:, None] * agrees).sum(0)
    return torch.where(total > 0, (weighted * agrees).sum(0) / total, 0.0)


# A new merge method needs one function above and one line here. Its key is merge_policies.method.
METHODS: dict[str, Callable[[Tensor, float | None], Tensor] | Elementwise] = {
    "slerp": slerp_coefficients,
    "lerp": lerp_coefficients,
    "lerp_norm_matched": lerp_norm_matched_coefficients,
    "karcher": karcher_coefficients,
    "model_stock": model_stock_coefficients,
    "ties": Elementwise(ties),
}


def merge_coefficients(
    method: Callable[[Tensor, float | None], Tensor],
    gram: Tensor,
    weight: float | None = None,
    vectors: str = "task_vectors",
) -> Tensor:
    """Return the coefficients of θ_init and of each task vector of one group of tensors in the
    merge.

    Args:
        method: a method of `METHODS` that gives coefficients.
        gram: [M + 1, M + 1] float64 inner products of θ_init, δ_1 … δ_M.
        vectors: what `method` averages: ``task_vectors`` (the paper's) or ``full_weights`` θ_m,
            whose angle is so near 0 that their SLERP is about LERP (the paper's Fig. 9).

    Returns:
        [M + 1] float64 c with ``merged = c_0 θ_init + Σ c_m δ_m``. For task vectors c_0 = 1.
    """
    if vectors == "full_weights":
        coefficients = method(_weights_gram(gram), weight)
        return torch.cat([coefficients.sum().view(1), coefficients])
    return torch.cat([gram.new_ones(1), method(gram[1:, 1:], weight)])


def _weights_gram(gram: Tensor) -> Tensor:
    """Return the inner products [M, M] of the full weights θ_m from those of θ_init, δ_1 … δ_M."""
    return gram[1:, 1:] + gram[0, 0] + gram[0, 1:] + gram[0, 1:, None]


def _merge_in_sequence(
    gram: Tensor,
    weight: float | None,
    pair: Callable[[float, float, float, float], tuple[float, float]],
) -> Tensor:
    """Merge δ_1 … δ_M one after another, the m-th with λ = 1/m (or `weight`, for two)."""
    members = gram.shape[0]
    if weight is not None and members != 2:
        raise ValueError(f"a weight λ is for two policies; got λ = {weight} for {members}")
    merged = torch.zeros(members, dtype=torch.float64)
    merged[0] = 1.0
    for m in range(1, members):
        step = 1 / (m + 1) if weight is None else weight
        product = gram @ merged
        norm_merged = math.sqrt(max(float(merged @ product), 0.0))
        norm_next = math.sqrt(max(float(gram[m, m]), 0.0))
        scale_merged, scale_next = pair(norm_merged, norm_next, float(product[m]), step)
        merged = merged * scale_merged
        merged[m] = scale_next
    return merged


def _slerp_pair(norm_a: float, norm_b: float, dot: float, step: float) -> tuple[float, float]:
    if norm_a == 0 or norm_b == 0:
        return 1 - step, step
    omega = angle(norm_a, norm_b, dot)
    if math.sin(omega) < MIN_SIN_OMEGA:
        return 1 - step, step
    return math.sin((1 - step) * omega) / math.sin(omega), math.sin(step * omega) / math.sin(omega)


def angle(norm_a: float, norm_b: float, dot: float) -> float:
    """Return Ω in radians. The cosine is clamped, since rounding may push it outside [−1, 1]."""
    return math.acos(max(-1.0, min(1.0, dot / (norm_a * norm_b))))


def layer_groups(names: Iterable[str], granularity: str = "layer") -> dict[str, list[str]]:
    """Return the groups of tensors that share one Ω, in the order given.

    ``layer`` (the paper's) has one group per transformer block, and every tensor outside the blocks
    is its own group. With ``tensor`` each tensor is its own group. With ``model`` all are in one.
    """
    if granularity not in GRANULARITIES:
        raise ValueError(f"granularity {granularity!r}: expected one of {', '.join(GRANULARITIES)}")
    names = list(names)
    blocks = {
        name: re.search(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.", name) for name in names
    }
    stacks = {name[: block.start(1)] for name, block in blocks.items() if block}
    groups: dict[str, list[str]] = {}
    for name, block in blocks.items():
        group = name
        if granularity == "model":
            group = "model"
        elif granularity == "layer" and block:
            # A model with two stacks, such as vision and language, has two blocks of each number.
            stack = "layer " if len(stacks) == 1 else name[: block.start(1)]
            group = stack + block.group(1)
        groups.setdefault(group, []).append(name)
    return groups


# --- geometry (Fig. 11) ------------------------------------------------------------------------


def geometry_rows(group: str, gram: Tensor) -> list[dict[str, object]]:
    """Return a row per pair of policies for one group of tensors. It has Ω in radians, cosine and
    norms of the task vectors, and the cosine of the full weights, as in the paper's Fig. 11.

    Args:
        gram: [M + 1, M + 1] float64 inner products of θ_init, δ_1 … δ_M.

    Returns:
        Rows with NaN where a task vector is zero, or the full weights nearly cancel.
    """
    weights = _weights_gram(gram)
    deltas = gram[1:, 1:]
    norms = deltas.diagonal().clamp(min=0).sqrt().tolist()
    rows: list[dict[str, object]] = []
    for a, b in itertools.combinations(range(len(norms)), 2):
        cosine = _cosine(deltas, a, b)
        rows.append(
            {
                "group": group,
                "member_a": a,
                "member_b": b,
                "omega": math.acos(cosine),
                "cosine_task_vectors": cosine,
                "cosine_weights": _cosine(weights, a, b, least=MIN_WEIGHTS * float(gram[0, 0])),
                "norm_a": norms[a],
                "norm_b": norms[b],
            }
        )
    return rows


def _cosine(gram: Tensor, a: int, b: int, least: float = 0.0) -> float:
    if min(gram[a, a], gram[b, b]) <= least:
        return math.nan
    return max(-1.0, min(1.0, float(gram[a, b]) / math.sqrt(gram[a, a] * gram[b, b])))
