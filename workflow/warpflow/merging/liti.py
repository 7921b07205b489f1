"""LITI (stage 3) of checkpoints of any size: several points of a front in one pass."""

from __future__ import annotations

from collections.abc import Sequence

from warpflow.merging.chunks import (
    Emit,
    Tensors,
    check_etas,
    check_sources,
    combine_into,
    new_scratch,
    one_thread,
)
from warpflow.merging.workers import share_out


def interpolate_into(
    emit: Emit, init: Tensors, policy: Tensors, etas: Sequence[float], workers: int = 1
) -> None:
    """Emit LITI, (1 − η) θ_init + η θ (Section 3.3), in one pass, with result k for `etas[k]`. η =
    0 and 1 give the endpoints bit for bit, and η in (1, 2] extrapolates. `workers` is as in
    `streaming.merge_into`.

    Raises:
        ValueError: an η is out of range, names or shapes differ, or a weight is NaN or Inf.
    """
    check_etas(etas)
    sources = [init, policy]
    check_sources(sources)
    names = list(init)
    coefficients = [[1.0, eta] for eta in etas]
    scratch = new_scratch(sources)

    def interpolate_tensor(number: int) -> None:
        combine_into(emit, sources, names[number], coefficients, scratch, is_checked=False)

    with one_thread():
        share_out(interpolate_tensor, len(names), workers)
