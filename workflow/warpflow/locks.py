"""Locks between processes of one machine: files that are free again when their holder dies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def only_one(path: Path, does: str) -> Iterator[None]:
    """Hold a lock file that no other process holds. Its folder is made as needed.

    Args:
        does: what the other process does, for the message, as in "another job makes this result".

    Raises:
        RuntimeError: another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A soft lock would outlive a holder that was killed.
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise RuntimeError(
            f"{path.parent} is in use: {does} (one left over by a killed snakemake?); wait for "
            "it or end it"
        ) from None
    try:
        yield
    finally:
        lock.release()
