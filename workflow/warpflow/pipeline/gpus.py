"""The GPUs of this machine, and which job holds them. Snakemake counts them, but assigns none."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from filelock import FileLock, lock_descriptor


@dataclass(frozen=True)
class Gpu:
    """A device as nvidia-smi lists it."""

    uuid: str
    name: str


def visible_gpus() -> list[Gpu]:
    """Return the GPUs that this process may use, in nvidia-smi's order."""
    listing = output("nvidia-smi", "--query-gpu=index,uuid,name", "--format=csv,noheader")
    rows = [line.split(", ") for line in listing.splitlines() if line.count(", ") == 2]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    allowed = None if visible is None else visible.split(",")
    return [
        Gpu(uuid, name)
        for index, uuid, name in rows
        if allowed is None or {index, uuid} & set(allowed)
    ]


def output(*command: str) -> str:
    """Return what a command prints, or nothing where it fails or is not installed."""
    if not shutil.which(command[0]):
        return ""
    return subprocess.run(
        command, capture_output=True, text=True, check=False, encoding="utf-8"
    ).stdout.strip()


@contextmanager
def held_gpus(count: int) -> Iterator[tuple[dict[str, str], list[int]]]:
    """Hold `count` GPUs that no other job of this user holds on this machine; wait for them.

    Nothing is held where `count` is 0, and under SLURM where the job has exactly the devices that
    it needs. In a larger allocation, which several jobs share, they are held as on any machine. A
    device is held by the lock on a file. A process that inherits the file holds the lock too, so
    that a training run whose wrapper was killed keeps its device until it ends.

    Yields:
        Environment variables for the command, and the files that it must inherit.

    Raises:
        ValueError: the job asks for more GPUs than there are.
    """
    uuids = [gpu.uuid for gpu in visible_gpus()]
    if not count or ("SLURM_JOB_ID" in os.environ and len(uuids) <= count):
        yield {}, []
        return
    if count > len(uuids):
        raise ValueError(
            f"the job asks for {count} GPUs, but {len(uuids)} are visible: lower resource gpu"
        )
    with ExitStack() as stack:
        while len(taken := take(count, uuids)) < count:
            time.sleep(0.5)
        files = [stack.enter_context(file) for file in taken.values()]
        yield {"CUDA_VISIBLE_DEVICES": ",".join(taken)}, [file.fileno() for file in files]


def take(count: int, uuids: list[str]) -> dict[str, IO[str]]:
    """Lock `count` free devices or none, because two jobs that each held half of what they need
    would wait for ever. Return the locked file of each."""
    folder = Path(tempfile.gettempdir(), f"warpflow-gpus-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    taken: dict[str, IO[str]] = {}
    with FileLock(folder / "taking", fallback_to_soft=False):
        for uuid in uuids:
            if len(taken) == count:
                break
            # A FileLock would not do: the command inherits the open file, and with it the lock.
            file: IO[str] = open(folder / uuid, "w", encoding="utf-8")  # noqa: SIM115 - kept open: it is the lock
            if lock_descriptor(file.fileno(), blocking=False):
                taken[uuid] = file
            else:
                file.close()
        if len(taken) < count:
            for file in taken.values():
                file.close()
            taken = {}
    return taken
