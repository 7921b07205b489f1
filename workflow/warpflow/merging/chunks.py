"""Linear combinations of checkpoints, a chunk of weights at a time, for merging and LITI.

Sources map names to tensors, usually views of mapped files (`checkpoints.read_tensors`). Results
leave in chunks through `emit`, so that nothing of a tensor's size is ever allocated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

CHUNK = 1 << 16  # elements; M + 1 fp32 rows fit a core's second-level cache
AVERAGED = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
DTYPES = ("float32", "bfloat16", "float16")  # the types that a result may have

Tensors = Mapping[str, Tensor]
# emit(k, name, start, piece) takes elements start, start + 1 … of tensor `name` of result k, 1-D,
# in fp32 or in a source's dtype. The piece is valid only until the next call.
Emit = Callable[[int, str, int, Tensor], None]


def new_scratch(sources: Sequence[Tensors]) -> Tensor:
    """Return [M + 1, CHUNK] fp32, with room for a chunk of every source."""
    return torch.empty(len(sources), CHUNK)


def chunk_starts(elements: int) -> range:
    """Return the first element of each chunk of a tensor."""
    return range(0, elements, CHUNK)


def task_vectors(flat: Sequence[Tensor], start: int, scratch: Tensor) -> Tensor:
    """Return θ_init and δ_1 … δ_M from element `start` on, as an [M + 1, n] fp32 view of
    `scratch`."""
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
    """Emit c_0 θ_init + Σ c_m δ_m of one tensor in fp32, result k with `coefficients[k]`, [K][M +
    1].

    A source that has all the weight (M = 1, λ or η = 0 or 1) is passed on bit for bit.
    """
    flat = [source[name].reshape(-1) for source in sources]
    if not flat[0].is_floating_point():
        for k in range(len(coefficients)):
            emit(k, name, 0, flat[0])
        return
    alone = [only_source(row) for row in coefficients]
    out = torch.empty(min(CHUNK, flat[0].numel()))
    for start in chunk_starts(flat[0].numel()):
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
    """Return which single source the combination is, 0 for θ_init and m for the m-th policy, or
    None for a mixture."""
    init, *others = coefficients
    if init != 1:
        return None
    if not any(others):
        return 0
    is_one = sorted(others) == [0.0] * (len(others) - 1) + [1.0]
    return 1 + others.index(1.0) if is_one else None


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch with one thread. On chunks of this size more threads only wait for one another, and
    sums would depend on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# --- results in memory -------------------------------------------------------------------------


def interpolate(
    init: Tensors, policy: Tensors, eta: float, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Return (1 − η) θ_init + η θ in memory, bit for bit as `liti.interpolate_into` writes it."""
    check_etas([eta])
    sources = [init, policy]
    emit, results = collector(sources, 1, dtype)
    scratch = new_scratch(sources)
    with one_thread():
        for name in init:
            combine_into(emit, sources, name, [[1.0, eta]], scratch, is_checked=False)
    return results[0]


def to_dtype(name: str | None) -> torch.dtype | None:
    """Return torch.float32 for ``float32``. None stays None."""
    return None if name is None else getattr(torch, name)


def output_dtypes(sources: Sequence[Tensors], dtype: torch.dtype | None) -> dict[str, torch.dtype]:
    """Return the dtype of each tensor of the result: `dtype`, or the widest of its sources. In the
    dtype of a bf16 initialisation, fp32 policies would lose their small task vectors. Integers keep
    their dtype."""
    dtypes = {}
    for name, tensor in sources[0].items():
        widest = tensor.dtype
        for source in sources[1:]:
            widest = torch.promote_types(widest, source[name].dtype)
        dtypes[name] = (dtype or widest) if tensor.is_floating_point() else tensor.dtype
    return dtypes


def collector(
    sources: Sequence[Tensors], count: int, dtype: torch.dtype | None = None
) -> tuple[Emit, list[dict[str, Tensor]]]:
    """Return an `emit` that fills `count` results in memory, and these results."""
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
                f"{tied_hint(missing, extra)}"
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


def tied_hint(missing: Sequence[str], extra: Sequence[str]) -> str:
    """Return words for the message that say why only a head may be missing on one side."""
    if not {*missing, *extra} <= {"lm_head.weight", "embed_out.weight"}:
        return ""
    return (
        ": one of them has a head of its own, that of the other is tied to its embedding; expected "
        "all tied or none. Untied weights of a tied model are written by "
        "model.config.tie_word_embeddings = False before model.save_pretrained"
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
    """Say where a tensor comes from: its file, or the policy's number (−1 is the
    initialisation)."""
    files = getattr(source, "files", {})
    return files.get(name) or (f"policy {index}" if index >= 0 else "the initialisation")
