"""The state of a training run on disk, from which a stopped run goes on bit for bit.

There is a file for each process that has a shard, else one file. A small file names the step of the
last whole state. It is replaced by rename, so that a reader finds that state or none. Random
numbers and the order of prompts depend only on the step (`warpflow.training.reinforce`), so they
need no saving.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

import torch

from warpflow.locks import only_one
from warpflow.training.distributed import (
    is_sharded,
    like,
    local,
    process_count,
    process_index,
    wait_for_all,
)
from warpflow.training.reinforce import Run

LAST = "last.json"
STOPPED = 75  # exit status of a run that saved itself and wants to be started again (EX_TEMPFAIL)


def locked(folder: Path) -> AbstractContextManager[None]:
    """Hold a state folder for one process.

    Raises:
        RuntimeError: another process trains this run.
    """
    return only_one(folder / "lock", "another process trains this run")


def save_state(
    folder: Path, run: Run, fingerprint: Mapping[str, Any], tables: Mapping[str, list[Any]]
) -> None:
    """Write the whole state to new files, make them durable, and replace the last state. Every
    process calls this.

    Args:
        fingerprint: the settings and inputs of the run, which are compared on loading.
        tables: the rows gathered so far, by table.
    """
    writers = process_count() if is_sharded(run.policy) else 1
    if process_index() < writers:
        state = {
            "fingerprint": dict(fingerprint),
            "step": run.step,
            "policy": local(trained_parameters(run)),
            "anchor": local(run.anchor.weights),
            "averages": {name: local(a.weights) for name, a in run.averages.items()},
            "optimizer": [
                {name: local([value])[0] for name, value in run.optimizer.state[parameter].items()}
                for parameter in trained_parameters(run)
            ],
            "tables": dict(tables),
        }
        write_durably(state_path(folder, run.step, process_index()), lambda f: torch.save(state, f))
    wait_for_all()
    if process_index() == 0:
        last = json.dumps({"step": run.step, "writers": writers}).encode()
        write_durably(folder / f"{LAST}.tmp", lambda file: file.write(last))
        os.replace(folder / f"{LAST}.tmp", folder / LAST)
        for path in folder.glob("step*.pt"):
            if not path.name.startswith(f"step{run.step}."):
                path.unlink()


def load_state(
    folder: Path, run: Run, fingerprint: Mapping[str, Any]
) -> dict[str, list[Any]] | None:
    """Load policy, anchor and optimiser into `run`, and return the tables. Return None where
    nothing was saved.

    Raises:
        ValueError: the state has other settings or inputs, or another number of shards. The message
            names what differs.
    """
    if not (folder / LAST).is_file():
        return None
    last = json.loads((folder / LAST).read_text(encoding="utf-8"))
    writers = process_count() if is_sharded(run.policy) else 1
    if last["writers"] != writers:
        raise ValueError(
            f"{folder} holds a state in {last['writers']} shards, expected {writers}: start as "
            f"many processes, or delete {folder} to start anew"
        )
    path = state_path(folder, last["step"], process_index() if writers > 1 else 0)
    state = torch.load(path, map_location="cpu", weights_only=True)
    differences = describe_differences(state["fingerprint"], fingerprint)
    if differences:
        raise ValueError(
            f"{path} is the state of another run: {differences}. Restore these settings to go on "
            f"with it, or delete {folder} to start anew"
        )
    with torch.no_grad():
        for saved, tensors in (
            (state["policy"], local(trained_parameters(run))),
            (state["anchor"], local(run.anchor.weights)),
            *((state["averages"][name], local(a.weights)) for name, a in run.averages.items()),
        ):
            for tensor, value in zip(tensors, saved, strict=True):
                tensor.copy_(value)
    for anchor in (run.anchor, *run.averages.values()):
        anchor.refresh()
    for parameter, values in zip(trained_parameters(run), state["optimizer"], strict=True):
        run.optimizer.state[parameter] = {
            # The 8-bit optimisers count their steps in a plain number, not in a tensor.
            name: like(value.to(parameter.device), parameter) if torch.is_tensor(value) else value
            for name, value in values.items()
        }
    run.step = state["step"]
    return state["tables"]


def trained_parameters(run: Run) -> list[torch.Tensor]:
    """Return the parameters that are trained: all of them, or those of LoRA."""
    return [tensor for group in run.optimizer.param_groups for tensor in group["params"]]


def state_path(folder: Path, step: int, process: int) -> Path:
    return folder / f"step{step}.process{process}.pt"


def write_durably(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file, and return when it is on the disk."""
    with open(path, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def describe_differences(saved: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """Name each key that differs, with both values. The text is empty where none does."""
    keys = sorted(set(saved) | set(given))
    return ", ".join(
        f"{key} is {given.get(key)!r}, there {saved.get(key)!r}"
        for key in keys
        if saved.get(key) != given.get(key)
    )


@contextmanager
def noting_termination() -> Iterator[list[int]]:
    """Note SIGTERM (a time limit, a preemption) instead of dying of it. The list that this gives is
    no longer empty once the signal came. Look at it between steps."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, before)
