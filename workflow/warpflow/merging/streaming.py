"""Merge checkpoints of any size (stage 2), a chunk of weights at a time.

A merge reads each group of tensors twice: once for the Gram matrix of its task vectors, which gives
the coefficients c of θ_init + Σ c_m (θ_m − θ_init), and once to apply them. An elementwise method
that trims reads twice more, for the magnitudes from which on it keeps a weight. Groups are
distributed to processes, not threads (docs/log.md). Each runs in its core's cache at the speed of
memory, and reading, arithmetic and writing of several groups overlap.
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
    DENSITY,
    METHODS,
    VECTORS,
    Elementwise,
    geometry_rows,
    layer_groups,
    lerp_coefficients,
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
    density: float | None = None,
    workers: int = 1,
) -> list[dict[str, object]]:
    """Merge M ≥ 1 policies that were fine-tuned from `init` (Section 3.2) into result 0.

    The *task vectors* are merged, not the full weights (whose angle is about 0), unless `vectors`
    says so. They are those of the policies, not of their EMAs. Integer tensors (buffers) must be
    equal and are copied.

    Args:
        density: the share of a task vector's weights in each group that an elementwise method
            keeps, the largest ones. None takes `methods.DENSITY`.
        workers: the number of processes that share the groups. With more than one, `emit` is called
            in these processes. The result does not depend on it.

    Returns:
        Rows of `methods.geometry_rows`, for each group.

    Raises:
        ValueError: see `check_method`; or M = 0, names or shapes differ, or a weight is NaN or Inf.
    """
    check_method(method, vectors, weight, density)
    if not policies:
        raise ValueError("nothing to merge: expected at least one policy")
    sources = [init, *policies]
    check_sources(sources)
    groups = list(layer_groups(init, granularity).items())
    scratch = new_scratch(sources)
    # A single policy is passed on bit for bit, whatever the method.
    chosen = METHODS[method] if len(policies) > 1 else lerp_coefficients

    def merge_group(number: int) -> list[dict[str, object]]:
        group, names = groups[number]
        floating = [name for name in names if init[name].is_floating_point()]
        gram = gram_matrix(sources, floating, scratch)
        if isinstance(chosen, Elementwise):
            weights = lerp_coefficients(gram[1:, 1:], weight).float()
            thresholds = magnitude_thresholds(sources, floating, density or DENSITY, scratch)
            for name in names:
                merge_elements_into(emit, sources, name, chosen, weights, thresholds, scratch)
        else:
            coefficients = merge_coefficients(chosen, gram, weight, vectors).tolist()
            for name in names:
                combine_into(emit, sources, name, [coefficients], scratch)
        return geometry_rows(group, gram)

    with one_thread():
        return list(itertools.chain(*share_out(merge_group, len(groups), workers)))


def check_method(method: str, vectors: str, weight: float | None, density: float | None) -> None:
    """Raise ValueError for settings that are unknown, out of range, or not used by this method."""
    if method not in METHODS:
        raise ValueError(f"merge method {method!r}: expected one of {', '.join(METHODS)}")
    if vectors not in VECTORS:
        raise ValueError(f"vectors {vectors!r}: expected one of {', '.join(VECTORS)}")
    if weight is not None and not 0 <= weight <= 1:
        raise ValueError(f"weight {weight}: expected 0 <= weight <= 1, λ of the second of two")
    is_elementwise = isinstance(METHODS[method], Elementwise)
    if is_elementwise and vectors != "task_vectors":
        raise ValueError(
            f"vectors {vectors!r}: merge method {method} trims task vectors; set vectors to "
            "task_vectors"
        )
    if density is not None and not is_elementwise:
        raise ValueError(
            f"density {density}: merge method {method} keeps all weights; leave density out, or "
            "set method to ties"
        )
    if density is not None and not 0 < density <= 1:
        raise ValueError(f"density {density}: expected 0 < density <= 1, the share that is kept")


def gram_matrix(sources: Sequence[Tensors], names: Sequence[str], scratch: Tensor) -> Tensor:
    """Return the [M + 1, M + 1] float64 inner products of θ_init, δ_1 … δ_M over the tensors
    `names`.

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


def magnitude_thresholds(
    sources: Sequence[Tensors], names: Sequence[str], density: float, scratch: Tensor
) -> Tensor:
    """Return the k-th largest magnitude of each task vector over the tensors `names`, [M] fp32. k
    is `density` times their number of weights, rounded up.

    It is exact and takes two passes and flat memory. The bits of a float without its sign grow with
    it. So the first pass counts the upper 16 bits of all magnitudes, and the second one the lower
    16 bits of those whose upper ones are the k-th's.
    """
    elements = sum(sources[0][name].numel() for name in names)
    left = torch.full((len(sources) - 1,), math.ceil(density * elements))
    found = torch.zeros(len(left), dtype=torch.int32)
    for shift in (16, 0):
        counts = torch.zeros(len(left), 1 << 16, dtype=torch.int64)
        for name in names:
            flat = [source[name].reshape(-1) for source in sources]
            for start in chunk_starts(flat[0].numel()):
                bits = task_vectors(flat, start, scratch)[1:].abs().view(torch.int32)
                for count, row, known in zip(counts, bits, found, strict=True):
                    row = row if shift else row[row >> 16 == known >> 16]
                    count += torch.bincount((row >> shift) & 0xFFFF, minlength=1 << 16)
        for m, count in enumerate(counts):
            from_the_top = count.flip(0).cumsum(0)
            passed = int((from_the_top < left[m]).sum())  # bins above the k-th's
            found[m] |= ((1 << 16) - 1 - passed) << shift
            left[m] -= from_the_top[passed - 1] if passed else 0
    return found.view(torch.float32)


def merge_elements_into(
    emit: Emit,
    sources: Sequence[Tensors],
    name: str,
    method: Elementwise,
    weights: Tensor,
    thresholds: Tensor,
    scratch: Tensor,
) -> None:
    """Emit θ_init + the merged task vector of one tensor in fp32, as result 0.

    Args:
        weights, thresholds: [M], see `methods.Elementwise`.
    """
    flat = [source[name].reshape(-1) for source in sources]
    if not flat[0].is_floating_point():
        emit(0, name, 0, flat[0])
        return
    for start in chunk_starts(flat[0].numel()):
        rows = task_vectors(flat, start, scratch)
        emit(0, name, start, method.merge(rows[1:], weights, thresholds).add_(rows[0]))


# --- results in memory -------------------------------------------------------------------------


def merge(
    init: Tensors,
    policies: Sequence[Tensors],
    method: str = "slerp",
    granularity: str = "layer",
    weight: float | None = None,
    vectors: str = "task_vectors",
    density: float | None = None,
) -> dict[str, Tensor]:
    """Call `merge_into`, and return the result in memory."""
    emit, results = collector([init, *policies], 1)
    merge_into(emit, init, policies, method, granularity, weight, vectors, density)
    return results[0]


def rounding_loss(
    dtype: torch.dtype,
    init: Tensors,
    combine: Callable[[Tensors, Sequence[Tensors]], Tensors],
    policies: Sequence[Tensors],
    count: int = 4096,
) -> float:
    """Return ‖round(θ) − θ‖ / ‖θ − θ_init‖ of a result θ that is rounded to `dtype`. It is the
    share of the task vector that is lost, on the first `count` weights of each tensor.

    Args:
        combine: maps (init, policies) to θ in memory, e.g. a `merge` with its settings. It is
            called layer by layer, so that memory does not grow with their number.
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
