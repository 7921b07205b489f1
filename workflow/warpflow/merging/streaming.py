"""Merging (stage 2) of checkpoints of any size, a chunk of weights at a time.

A merge is θ_init + Σ c_m (θ_m − θ_init), or c_0 θ_init + … where full weights are merged. It reads
each group of tensors twice: once for the Gram matrix of its task vectors, which gives the
coefficients c, once to apply them. Groups are shared out to processes, not threads (docs/log.md):
each runs in its core's cache at the speed of memory, and reading, arithmetic and writing of several
overlap.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from warpflow.merging.chunks import (
    Emit,
    Tensors,
    check_sources,
    chunk_starts,
    collector,
    combine_into,
    new_scratch,
    one_thread,
    require_finite,
    task_vectors,
)
from warpflow.merging.methods import (
    METHODS,
    VECTORS,
    geometry_rows,
    layer_groups,
    merge_coefficients,
)
from warpflow.merging.workers import share_out


def merge_into(
    emit: Emit,
    init: Tensors,
    policies: Sequence[Tensors],
    method: str = "slerp",
    granularity: str = "layer",
    weight: float | None = None,
    vectors: str = "task_vectors",
    workers: int = 1,
) -> list[dict[str, object]]:
    """Merge M ≥ 1 policies that were fine-tuned from `init` (Section 3.2) into result 0.

    The *task vectors* are merged, not the full weights (whose angle is about 0) unless `vectors`
    says so, and the policies, not their EMAs. Integer tensors (buffers) must be equal and are
    copied.

    Args:
        workers: processes that share the groups; with more than one, `emit` is called in these.
            The result does not depend on it.

    Returns:
        Rows of `methods.geometry_rows`, for each group.

    Raises:
        ValueError: unknown method, granularity or vectors, M = 0, names or shapes that differ, NaN
            or Inf.
    """
    if method not in METHODS:
        raise ValueError(f"merge method {method!r}: expected one of {', '.join(METHODS)}")
    if vectors not in VECTORS:
        raise ValueError(f"vectors {vectors!r}: expected one of {', '.join(VECTORS)}")
    if not policies:
        raise ValueError("nothing to merge: expected at least one policy")
    if weight is not None and not 0 <= weight <= 1:
        raise ValueError(f"weight {weight}: expected 0 <= weight <= 1, λ of the second of two")
    sources = [init, *policies]
    check_sources(sources)
    groups = list(layer_groups(init, granularity).items())
    scratch = new_scratch(sources)

    def merge_group(number: int) -> list[dict[str, object]]:
        group, names = groups[number]
        floating = [name for name in names if init[name].is_floating_point()]
        gram = gram_matrix(sources, floating, scratch)
        coefficients = merge_coefficients(method, gram, weight, vectors).tolist()
        for name in names:
            combine_into(emit, sources, name, [coefficients], scratch)
        return geometry_rows(group, gram)

    with one_thread():
        return list(itertools.chain(*share_out(merge_group, len(groups), workers)))


def gram_matrix(sources: Sequence[Tensors], names: Sequence[str], scratch: Tensor) -> Tensor:
    """[M + 1, M + 1] float64 inner products of θ_init, δ_1 … δ_M over the tensors `names`.

    Differences are taken in fp32 (never in bf16, where small task vectors vanish), products summed
    in fp32 within a chunk and in fp64 over chunks.
    """
    gram = torch.zeros(len(sources), len(sources), dtype=torch.float64)
    for name in names:
        flat = [source[name].reshape(-1) for source in sources]
        for start in chunk_starts(flat[0].numel()):
            rows = task_vectors(flat, start, scratch)
            gram += rows @ rows.T
    if not gram.isfinite().all():
        for name in names:
            require_finite(sources, name)
        raise ValueError(f"inner products overflow in {names[0]} …: weights beyond 1e19?")
    return gram


# --- results in memory -------------------------------------------------------------------------


def merge(
    init: Tensors,
    policies: Sequence[Tensors],
    method: str = "slerp",
    granularity: str = "layer",
    weight: float | None = None,
    vectors: str = "task_vectors",
) -> dict[str, Tensor]:
    """`merge_into` memory."""
    emit, results = collector([init, *policies], 1)
    merge_into(emit, init, policies, method, granularity, weight, vectors)
    return results[0]


def rounding_loss(
    dtype: torch.dtype,
    init: Tensors,
    combine: Callable[[Tensors, Sequence[Tensors]], Tensors],
    policies: Sequence[Tensors],
    count: int = 4096,
) -> float:
    """‖round(θ) − θ‖ / ‖θ − θ_init‖ of a result θ rounded to `dtype`: the share of its task vector
    that is lost, on the first `count` weights of each tensor.

    Args:
        combine: (init, policies) → θ in memory, e.g. a `merge` with its settings; called layer by
            layer, so that memory does not grow with their number.
    """
    lost = moved = 0.0
    for names in layer_groups(init).values():
        start, *others = [
            {
                name: source[name].reshape(-1)[:count].float()
                for name in names
                if source[name].is_floating_point()
            }
            for source in (init, *policies)
        ]
        for name, exact in combine(start, others).items():
            lost += float((exact.to(dtype).float() - exact).double().square().sum())
            moved += float((exact - start[name]).double().square().sum())
    return math.sqrt(lost / moved) if moved else 0.0
