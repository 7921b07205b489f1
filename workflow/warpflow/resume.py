"""The state of a training run on disk: stopped at any moment, it goes on bit for bit.

One file, replaced by rename: a reader finds the last whole state or none. Random numbers and the
order of prompts are functions of the step (`warpflow.reinforce`), so they need no saving.
"""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from warpflow.reinforce import Run

STATE = "state.pt"
STOPPED = 75  # exit status of a run that saved itself and wants to be started again (EX_TEMPFAIL)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a state folder for one process.

    Raises:
        RuntimeError: another process trains this run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(
                f"{folder} is in use: another process trains this run (one left over by a killed "
                "snakemake?); wait for it or end it"
            ) from None
        yield


def save_state(
    folder: Path, run: Run, fingerprint: Mapping[str, Any], tables: Mapping[str, list[Any]]
) -> None:
    """Write the whole state aside, make it durable, and put it in the last one's place.

    Args:
        fingerprint: settings and inputs of the run, to be compared on loading.
        tables: rows gathered so far, by table.
    """
    aside = folder / f"{STATE}.tmp"
    state = {
        "fingerprint": dict(fingerprint),
        "step": run.step,
        "policy": run.policy.state_dict(),
        "anchor": run.anchor.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "tables": dict(tables),
    }
    with open(aside, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, folder / STATE)


def load_state(
    folder: Path, run: Run, fingerprint: Mapping[str, Any]
) -> dict[str, list[Any]] | None:
    """Load the state into `run`, policy, anchor and optimiser, and return the tables; None where
    nothing was saved.

    Raises:
        ValueError: the state is of other settings or inputs; names those that differ.
    """
    path = folder / STATE
    if not path.is_file():
        return None
    state = torch.load(path, map_location=run.policy.device, weights_only=True)
    differences = describe_differences(state["fingerprint"], fingerprint)
    if differences:
        raise ValueError(
            f"{path} is the state of another run: {differences}. Restore these settings to go on "
            f"with it, or delete {folder} to start anew"
        )
    run.policy.load_state_dict(state["policy"])
    run.anchor.load_state_dict(state["anchor"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.step = state["step"]
    return state["tables"]


def describe_differences(saved: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """Each key that differs with both values; empty where none does."""
    keys = sorted(set(saved) | set(given))
    return ", ".join(
        f"{key} is {given.get(key)!r}, there {saved.get(key)!r}"
        for key in keys
        if saved.get(key) != given.get(key)
    )


@contextmanager
def noting_termination() -> Iterator[list[int]]:
    """Collect SIGTERM (a time limit, a preemption) instead of dying of it: a list that is not
    empty once the signal came, to be looked at between steps."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, before)
