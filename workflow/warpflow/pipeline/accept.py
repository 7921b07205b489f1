"""Declare results good after an upgrade of the code, without computing them again.

A result's key holds what the code does. Where somebody knows that a change of the code cannot
change a result (a faster way to the same numbers, an error message), the result is given the key of
the new code. Its provenance records who did so, when and why, and so does DVC's run cache, which
clones pull.
"""

from __future__ import annotations

import getpass
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from warpflow.pipeline.contents import read_pointer, write_atomically
from warpflow.pipeline.dvc_cache import KEPT, remember_run, tracking_problem
from warpflow.pipeline.gpus import output
from warpflow.pipeline.jobs import (
    is_small,
    keep_definitions,
    seal_path,
    write_seal,
)
from warpflow.pipeline.reruns import Parts, differences


def refusal(parts: Parts, waits_for: Sequence[str]) -> str | None:
    """Say why a result cannot be accepted. Return None where only the code has changed."""
    if not parts.provenance.is_file():
        return f"{parts.result}: has not been made: there is no {parts.provenance}"
    missing = [path for path in parts.makes if not is_there(path)]
    if missing:
        return (
            f"{parts.result}: {missing[0]} is missing: bring it back (`dvc checkout`, `dvc pull`) "
            "or let it be computed"
        )
    if waits_for:
        return (
            f"{parts.result}: its input {waits_for[0]} is due itself: accept that too, or let it "
            "be computed first"
        )
    found = differences(
        json.loads(parts.provenance.read_text(encoding="utf-8")), parts.record(), parts.results
    )
    other = [*found.settings, *found.inputs]
    if other:
        return f"{parts.result}: not only code differs, so that it must be computed: " + "; ".join(
            other
        )
    return None


def is_there(made: Path) -> bool:
    """Whether a result is in place. It is a small file, or a folder's pointer."""
    return made.is_file() if is_small(made) else made.with_name(f"{made.name}.dvc").is_file()


def accept(parts: Parts, reason: str, author: str, date: str) -> dict[str, Any]:
    """Give a result the key of today's code and settings, and return the entry that says so.

    Args:
        reason: why the change of the code does not change the result.
        date: in ISO format.
    """
    old, new = json.loads(parts.provenance.read_text(encoding="utf-8")), parts.record()
    entry = {
        "old_key": old["key"],
        "new_key": new["key"],
        "old_code": old["code"]["hash"],
        "reason": reason,
        "author": author,
        "date": date,
    }
    kept = {name: old[name] for name in (*KEPT, "sha256") if name in old}
    record = new | kept | {"accepted": [*old.get("accepted", []), entry]}
    keep_definitions(record, parts.results)
    remember(parts, record)
    write_atomically(
        parts.provenance, (json.dumps(record, indent=1, sort_keys=True) + "\n").encode()
    )
    return entry


def author() -> str:
    """Return the name of the person who accepts, as Git knows it, else the user's name."""
    name, email = output("git", "config", "user.name"), output("git", "config", "user.email")
    return f"{name} <{email}>" if name and email else name or getpass.getuser()


def remember(parts: Parts, record: Mapping[str, Any]) -> None:
    """Enter a result under its new key in DVC's run cache, or in the seal of an untracked
    result."""
    for made in parts.makes:
        if not is_small(made) and seal_path(made).is_file():
            write_seal(made, record["key"], {name: record[name] for name in KEPT})
        if tracking_problem(made.parent):
            continue
        if is_small(made):
            remember_run(dict(record), text=made.read_text(encoding="utf-8"))
        else:
            remember_run(dict(record), read_pointer(made.with_name(f"{made.name}.dvc")))
