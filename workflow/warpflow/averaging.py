"""The three weight averages of WARP: EMA (stage 1), merging (stage 2), LITI (stage 3).

All of them are linear in the weights, so a merge of a group of tensors is known once the
coefficients of its task vectors δ_m = θ_m − θ_init are; and the coefficients of every method
here depend on the task vectors through their Gram matrix alone (norms and angles). A merge
method is therefore one pure function ``(gram, weight) -> coefficients``, listed in `METHODS`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

# Below this sin Ω the two directions are taken as collinear and SLERP is LERP (its limit).
MIN_SIN_OMEGA = 1e-6

GRANULARITIES = ("layer", "tensor", "model")


# --- stage 1 -----------------------------------------------------------------------------------


@torch.no_grad()
def update_ema_(anchor: Sequence[Tensor], policy: Sequence[Tensor], mu: float) -> None:
    """θ_ema ← (1 − μ) θ_ema + μ θ, in place (Algorithm 1). μ = 1 copies the policy.

    Both must be fp32: with the paper's μ = 0.01 and lr = 1e-6 a bf16 average stands still.
    """
    for tensor in (*anchor, *policy):
        if tensor.dtype != torch.float32:
            raise TypeError(
                f"EMA tensors must be float32, got {tensor.dtype}: load masters in fp32"
            )
    torch._foreach_lerp_(list(anchor), list(policy), mu)


# --- stage 2 -----------------------------------------------------------------------------------


def slerp_coefficients(gram: Tensor, weight: float | None = None) -> Tensor:
    """Spherical interpolation of task vectors (Section 3.2; Eq. 26 for M > 2).

    Args:
        gram: [M, M] float64, ``gram[a, b] = <δ_a, δ_b>`` over one group of tensors.
        weight: λ, the weight of the second of two policies; None means 1/M. For M > 2 the
            policies are merged one after another with λ = 1/m at the m-th, as in the paper.

    Returns:
        [M] float64: coefficients c with ``merged = θ_init + Σ c_m δ_m``. For two vectors
        ``sin((1−λ)Ω)/sinΩ, sin(λΩ)/sinΩ``. Where Ω is undefined (a zero task vector) or sinΩ
        is about 0, the step is LERP.
    """
    return _merge_in_sequence(gram, weight, _slerp_pair)


def lerp_coefficients(gram: Tensor, weight: float | None = None) -> Tensor:
    """Linear interpolation: 1/M each, or (1 − λ, λ) for two. Shapes as `slerp_coefficients`."""
    return _merge_in_sequence(gram, weight, lambda norm_a, norm_b, dot, step: (1 - step, step))


def lerp_norm_matched_coefficients(gram: Tensor, weight: float | None = None) -> Tensor:
    """LERP rescaled to the members' λ-weighted mean norm: LERP's direction, SLERP's length.

    It tells whether SLERP gains by its direction or only because it does not shrink. For two
    task vectors of equal norm at λ = ½ it *is* SLERP (c = 1 / (2 cos(Ω/2))). Opposite task
    vectors, whose mean is zero, are left unscaled.
    """
    mean = lerp_coefficients(gram, weight)
    target = (mean * gram.diagonal().clamp(min=0).sqrt()).sum()
    norm = (mean @ gram @ mean).clamp(min=0).sqrt()
    return mean * (target / norm) if norm > MIN_SIN_OMEGA * target else mean


# Another merge method is one function above and one line here; config: merge_policies.method.
METHODS: dict[str, Callable[[Tensor, float | None], Tensor]] = {
    "slerp": slerp_coefficients,
    "lerp": lerp_coefficients,
    "lerp_norm_matched": lerp_norm_matched_coefficients,
}


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
    """Ω in radians; the cosine is clamped, since rounding may push it outside [−1, 1]."""
    return math.acos(max(-1.0, min(1.0, dot / (norm_a * norm_b))))


def layer_groups(names: Iterable[str], granularity: str = "layer") -> dict[str, list[str]]:
    """Tensors that share one Ω, in the order given.

    ``layer`` (the paper's): one group per transformer block; every tensor outside the blocks
    is its own group. ``tensor``: each its own. ``model``: all in one.
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
            # A model of two stacks (vision and language, say) has two blocks of each number.
            stack = "layer " if len(stacks) == 1 else name[: block.start(1)]
            group = stack + block.group(1)
        groups.setdefault(group, []).append(name)
    return groups


def gram_matrix(init: Sequence[Tensor], policies: Sequence[Sequence[Tensor]]) -> Tensor:
    """[M, M] float64 inner products of the M task vectors over one group of tensors.

    `policies[m][k]` is tensor k of policy m, of the shape of `init[k]`. Differences are taken in
    fp32 or better (never in bf16, where small task vectors vanish) and summed in fp64.
    """
    members = len(policies)
    gram = torch.zeros(members, members, dtype=torch.float64)
    for k, start in enumerate(init):
        deltas = torch.stack([(p[k].double() - start.double()).flatten() for p in policies])
        gram += deltas @ deltas.T
    return gram


def combine(init: Tensor, policies: Sequence[Tensor], coefficients: Tensor) -> Tensor:
    """θ_init + Σ c_m (θ_m − θ_init), computed in fp32, in the wider dtype of init and policies
    (fp32 policies of a bf16 init would lose their small task vectors in its dtype).

    A coefficient of 1 with all others 0 returns that policy bit for bit (M = 1, λ = 0 or 1).
    """
    values = [float(c) for c in coefficients]
    if sorted(values) == [0.0] * (len(values) - 1) + [1.0]:
        return policies[values.index(1.0)].clone()
    start = init.float()
    merged = start.clone()
    for policy, coefficient in zip(policies, values, strict=True):
        merged.add_(policy.float() - start, alpha=coefficient)
    return merged.to(torch.promote_types(init.dtype, policies[0].dtype))


def merge(
    init: Mapping[str, Tensor],
    policies: Sequence[Mapping[str, Tensor]],
    method: str = "slerp",
    granularity: str = "layer",
    weight: float | None = None,
) -> dict[str, Tensor]:
    """Merge M ≥ 1 policies that were fine-tuned from `init` (Section 3.2).

    The *task vectors* are merged, not the full weights (whose angle is about 0), and the
    policies, not their EMAs. Integer tensors (buffers) must be equal and are copied.

    Raises:
        ValueError: unknown method or granularity, M = 0, names or shapes that differ.
    """
    if method not in METHODS:
        raise ValueError(f"merge method {method!r}: expected one of {', '.join(METHODS)}")
    if not policies:
        raise ValueError("nothing to merge: expected at least one policy")
    for index, policy in enumerate(policies):
        check_same_tensors(init, policy, f"policy {index}")
    merged: dict[str, Tensor] = {}
    for names in layer_groups(init, granularity).values():
        floating = [name for name in names if init[name].is_floating_point()]
        starts = [init[name] for name in floating]
        gram = gram_matrix(starts, [[p[name] for name in floating] for p in policies])
        coefficients = METHODS[method](gram, weight)
        for name in floating:
            merged[name] = combine(init[name], [p[name] for p in policies], coefficients)
        for name in set(names) - set(floating):
            merged[name] = _copy_equal(name, init[name], [p[name] for p in policies])
    return {name: merged[name] for name in init}


def check_same_tensors(init: Mapping[str, Tensor], policy: Mapping[str, Tensor], what: str) -> None:
    """Raise ValueError naming the tensors in which `policy` differs from `init`."""
    missing, extra = sorted(set(init) - set(policy)), sorted(set(policy) - set(init))
    if missing or extra:
        raise ValueError(
            f"{what} is not of the initialisation's architecture: {missing=}, {extra=}"
        )
    for name, tensor in init.items():
        if tensor.shape != policy[name].shape:
            shapes = f"{tuple(policy[name].shape)}, expected {tuple(tensor.shape)}"
            raise ValueError(f"{what}: tensor {name} has shape {shapes} as in the initialisation")


def _copy_equal(name: str, tensor: Tensor, others: Sequence[Tensor]) -> Tensor:
    if not all(torch.equal(tensor, other) for other in others):
        raise ValueError(f"integer tensor {name} differs between policies and cannot be averaged")
    return tensor.clone()


# --- stage 3 -----------------------------------------------------------------------------------


def interpolate(
    init: Mapping[str, Tensor], policy: Mapping[str, Tensor], eta: float
) -> dict[str, Tensor]:
    """LITI: (1 − η) θ_init + η θ (Section 3.3). η = 0 and 1 return the endpoints bit for bit;
    η in (1, 2] extrapolates. Dtypes as in `combine`."""
    if not 0 <= eta <= 2:
        raise ValueError(f"eta {eta}: expected 0 <= eta <= 2")
    check_same_tensors(init, policy, "the policy")
    return {
        name: _between(start, policy[name], eta)
        if start.is_floating_point()
        else _copy_equal(name, start, [policy[name]])
        for name, start in init.items()
    }


def _between(start: Tensor, end: Tensor, eta: float) -> Tensor:
    if eta in (0, 1):  # torch.lerp turns −0 into 0
        return (end if eta else start).clone()
    between = torch.lerp(start.float(), end.float(), eta)
    return between.to(torch.promote_types(start.dtype, end.dtype))


# --- geometry (Fig. 11) ------------------------------------------------------------------------


def geometry(
    init: Mapping[str, Tensor], policies: Sequence[Mapping[str, Tensor]], granularity: str = "layer"
) -> list[dict[str, object]]:
    """A row per group and pair of policies: cosine of the task vectors, their norms, and the
    cosine of the full weights, as in the paper's Fig. 11. NaN where a task vector is zero."""
    rows: list[dict[str, object]] = []
    for group, names in layer_groups(init, granularity).items():
        floating = [name for name in names if init[name].is_floating_point()]
        starts = [init[name] for name in floating]
        tensors = [[p[name] for name in floating] for p in policies]
        deltas = gram_matrix(starts, tensors)
        weights = gram_matrix([torch.zeros_like(s) for s in starts], tensors)
        for a in range(len(policies)):
            for b in range(a + 1, len(policies)):
                rows.append(
                    {
                        "group": group,
                        "member_a": a,
                        "member_b": b,
                        "cosine_task_vectors": _cosine(deltas, a, b),
                        "cosine_weights": _cosine(weights, a, b),
                        "norm_a": math.sqrt(deltas[a, a]),
                        "norm_b": math.sqrt(deltas[b, b]),
                    }
                )
    return rows


def _cosine(gram: Tensor, a: int, b: int) -> float:
    norms = math.sqrt(gram[a, a] * gram[b, b])
    return float(gram[a, b]) / norms if norms > 0 else math.nan
