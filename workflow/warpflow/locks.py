"""Locks between processes of one machine: files that are held, and free when their holder dies."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def only_one(path: Path, does: str) -> Iterator[None]:
    """Hold a lock file that no other process holds; its folder is made as needed.

    Args:
        does: what the other one does, for the message: "another job makes this result".

    Raises:
        RuntimeError: another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(
                f"{path.parent} is in use: {does} (one left over by a killed snakemake?); wait for "
                "it or end it"
            ) from None
        yield
