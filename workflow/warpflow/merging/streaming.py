"""Merging (stage 2) and LITI (stage 3) of checkpoints of any size, a chunk of weights at a time.

Both are θ_init + Σ c_m (θ_m − θ_init), or c_0 θ_init + … where full weights are merged. A merge
reads each group of tensors twice: once for the Gram matrix of its task vectors, which gives the
coefficients c, once to apply them; LITI has c_1 = η and reads once for all its η. Sources are
name → tensor, usually views of mapped files (`checkpoints.read_tensors`); results leave in chunks
through `emit`, so that nothing of a tensor's size is ever allocated. Groups are shared out to
processes, not threads (docs/log.md): each runs in its core's cache at the speed of memory, and
reading, arithmetic and writing of several overlap.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from warpflow.merging.methods import (
    METHODS,
    VECTORS,
    geometry_rows,
    layer_groups,
    merge_coefficients,
)
from warpflow.merging.workers import share_out

CHUNK = 1 << 16  # elements; M + 1 fp32 rows of it fit a core's second-level cache
AVERAGED = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
DTYPES = ("float32", "bfloat16", "float16")  # that a result may be given

Tensors = Mapping[str, Tensor]
# emit(k, name, start, piece): elements start, start + 1 … of tensor `name` of result k, 1-D, in
# fp32 or in a source's dtype; valid until the next call only.
Emit = Callable[[int, str, int, Tensor], None]


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
        Rows of `averaging.geometry_rows`, for each group.

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
    scratch = torch.empty(len(sources), CHUNK)

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


def interpolate_into(
    emit: Emit, init: Tensors, policy: Tensors, etas: Sequence[float], workers: int = 1
) -> None:
    """LITI: (1 − η) θ_init + η θ (Section 3.3), result k for `etas[k]`, in one pass. η = 0 and 1
    return the endpoints bit for bit; η in (1, 2] extrapolates. `workers` as in `merge_into`.

    Raises:
        ValueError: η out of range, names or shapes that differ, NaN or Inf.
    """
    check_etas(etas)
    sources = [init, policy]
    check_sources(sources)
    groups = list(layer_groups(init).values())
    coefficients = [[1.0, eta] for eta in etas]
    scratch = torch.empty(2, CHUNK)

    def interpolate_group(number: int) -> None:
        for name in groups[number]:
            combine_into(emit, sources, name, coefficients, scratch, is_checked=False)

    with one_thread():
        share_out(interpolate_group, len(groups), workers)


def gram_matrix(sources: Sequence[Tensors], names: Sequence[str], scratch: Tensor) -> Tensor:
    """[M + 1, M + 1] float64 inner products of θ_init, δ_1 … δ_M over the tensors `names`.

    Differences are taken in fp32 (never in bf16, where small task vectors vanish), products summed
    in fp32 within a chunk and in fp64 over chunks.
    """
    gram = torch.zeros(len(sources), len(sources), dtype=torch.float64)
    for name in names:
        flat = [source[name].reshape(-1) for source in sources]
        for start in range(0, flat[0].numel(), CHUNK):
            rows = task_vectors(flat, start, scratch)
            gram += rows @ rows.T
    if not gram.isfinite().all():
        for name in names:
            require_finite(sources, name)
        raise ValueError(f"inner products overflow in {names[0]} …: weights beyond 1e19?")
    return gram


def task_vectors(flat: Sequence[Tensor], start: int, scratch: Tensor) -> Tensor:
    """[M + 1, n] fp32 view of `scratch`: θ_init and δ_1 … δ_M, from element `start` on."""
    stop = min(start + CHUNK, flat[0].numel())
    rows = scratch[:, : stop - start]
    rows[0].copy_(flat[0][start:stop])
    for row, policy in zip(rows[1:], flat[1:], strict=True):
        row.copy_(policy[start:stop]).sub_(rows[0])
    return rows


def combine_into(
    emit: Emit,
    sources: Sequence[Tensors],
    name: str,
    coefficients: Sequence[Sequence[float]],
    scratch: Tensor,
    is_checked: bool = True,
) -> None:
    """c_0 θ_init + Σ c_m δ_m of one tensor in fp32, result k with `coefficients[k]`, [K][M + 1].

    A source that has all the weight (M = 1, λ or η = 0 or 1) is passed on bit for bit.
    """
    flat = [source[name].reshape(-1) for source in sources]
    if not flat[0].is_floating_point():
        for k in range(len(coefficients)):
            emit(k, name, 0, flat[0])
        return
    alone = [only_source(row) for row in coefficients]
    out = torch.empty(min(CHUNK, flat[0].numel()))
    for start in range(0, flat[0].numel(), CHUNK):
        rows = task_vectors(flat, start, scratch)
        if not is_checked and not math.isfinite(rows[1:].sum()):
            require_finite(sources, name)
        for k, row in enumerate(coefficients):
            piece = out[: rows.shape[1]]
            index = alone[k]
            if index is not None:
                piece = flat[index][start : start + CHUNK]
            else:
                torch.mul(rows[0], row[0], out=piece)
                for delta, coefficient in zip(rows[1:], row[1:], strict=True):
                    piece.add_(delta, alpha=coefficient)
            emit(k, name, start, piece)


def only_source(coefficients: Sequence[float]) -> int | None:
    """Which source the combination is: 0 θ_init, m the m-th policy; None: a mixture."""
    init, *others = coefficients
    if init != 1:
        return None
    if not any(others):
        return 0
    is_one = sorted(others) == [0.0] * (len(others) - 1) + [1.0]
    return 1 + others.index(1.0) if is_one else None


@contextmanager
def one_thread() -> Iterator[None]:
    """torch with one thread: on chunks of this size more of them only wait for one another, and
    sums would depend on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# --- results in memory -------------------------------------------------------------------------


def output_dtypes(sources: Sequence[Tensors], dtype: torch.dtype | None) -> dict[str, torch.dtype]:
    """Of each tensor of the result: `dtype`, or the widest of its sources (fp32 policies of a bf16
    init would lose their small task vectors in its dtype); integers keep their own."""
    dtypes = {}
    for name, tensor in sources[0].items():
        widest = tensor.dtype
        for source in sources[1:]:
            widest = torch.promote_types(widest, source[name].dtype)
        dtypes[name] = (dtype or widest) if tensor.is_floating_point() else tensor.dtype
    return dtypes


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


def interpolate(
    init: Tensors, policy: Tensors, eta: float, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """`interpolate_into` memory."""
    emit, results = collector([init, policy], 1, dtype)
    interpolate_into(emit, init, policy, [eta])
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


def collector(
    sources: Sequence[Tensors], count: int, dtype: torch.dtype | None = None
) -> tuple[Emit, list[dict[str, Tensor]]]:
    """An `emit` that fills `count` results in memory, and these."""
    check_sources(sources)
    dtypes = output_dtypes(sources, dtype)
    results = [
        {name: torch.empty(t.shape, dtype=dtypes[name]) for name, t in sources[0].items()}
        for _ in range(count)
    ]

    def emit(k: int, name: str, start: int, piece: Tensor) -> None:
        results[k][name].view(-1)[start : start + piece.numel()].copy_(piece)

    return emit, results


# --- checks ------------------------------------------------------------------------------------


def check_sources(sources: Sequence[Tensors]) -> None:
    """Raise ValueError naming the file and tensor in which a source differs from the first."""
    init = sources[0]
    for index, policy in enumerate(sources[1:]):
        missing, extra = sorted(set(init) - set(policy)), sorted(set(policy) - set(init))
        if missing or extra:
            what = getattr(policy, "folder", None) or f"policy {index}"
            raise ValueError(
                f"{what} is not of the initialisation's architecture: {missing=}, {extra=}"
            )
        for name, tensor in init.items():
            where, other = describe(policy, index, name), policy[name]
            if tensor.shape != other.shape:
                raise ValueError(
                    f"{where}: tensor {name} has shape {tuple(other.shape)}, expected "
                    f"{tuple(tensor.shape)} as in the initialisation"
                )
            for dtype in (tensor.dtype, other.dtype):
                if dtype.is_floating_point and dtype not in AVERAGED:
                    raise ValueError(
                        f"{where}: tensor {name} is {dtype}, which cannot be averaged: store the "
                        "checkpoint in float32 or bfloat16"
                    )
            if tensor.is_floating_point() != other.is_floating_point() or (
                not tensor.is_floating_point() and not torch.equal(tensor, other)
            ):
                raise ValueError(
                    f"{where}: integer tensor {name} differs from the initialisation's and cannot "
                    "be averaged"
                )


def check_etas(etas: Sequence[float]) -> None:
    """Raise ValueError where an η is out of range or comes twice."""
    for eta in etas:
        if not 0 <= eta <= 2:
            raise ValueError(f"eta {eta}: expected 0 <= eta <= 2")
        if list(etas).count(eta) > 1:
            raise ValueError(f"eta {eta} comes twice: expected each once")


def require_finite(sources: Sequence[Tensors], name: str) -> None:
    """Raise ValueError naming the file if tensor `name` of a source holds NaN or Inf."""
    for index, source in enumerate(sources):
        for piece in source[name].reshape(-1).split(CHUNK):
            if not piece.isfinite().all():
                raise ValueError(
                    f"{describe(source, index - 1, name)}: tensor {name} holds NaN or Inf: "
                    "the run that wrote it diverged; expected finite weights"
                )


def describe(source: Tensors, index: int, name: str) -> Path | str:
    """Where a tensor comes from: its file, or the policy's number (−1: the initialisation)."""
    files = getattr(source, "files", {})
    return files.get(name) or (f"policy {index}" if index >= 0 else "the initialisation")
