"""The content of a given model as one hash, which is in the key of every job that reads it.

A policy that is overwritten under its name is another policy. A folder is named by the contents of
the files that `from_pretrained` may read, whatever their times are. A model or dataset on the hub
is named by its commit in the cache of Hugging Face. Weights are large, so the hash of a file is
remembered until its size or times change. This only saves reading a file again, and no key depends
on it.
"""

from __future__ import annotations

import json
import time
from fnmatch import fnmatchcase
from pathlib import Path

from warpflow.data.hub import cached_commit, is_hub, parse_hub
from warpflow.pipeline.code_files import digest
from warpflow.pipeline.contents import file_sha256, write_atomically
from warpflow.pipeline.given_models import hub_snapshot

REMEMBERED = Path(".snakemake/model_files.json")  # path → [what `state` says, SHA-256]
READ = (
    *("*.safetensors", "*.bin", "*.json", "*.jinja", "*.py"),
    *("*.model", "*.txt", "*.tiktoken", "additional_chat_templates/*.jinja"),
)
NOT_READ = ("training_args.bin", "trainer_state.json", "README*", "*requirements.txt")
SETTLED = 2_000_000_000  # ns; a younger file may change again within one tick of its clock


def model_content(path: str) -> str | None:
    """Return the content of a model that is given by folder, by file or by its name on the hub, or
    of a dataset (``hub:org/name``). Return None for a name that is not in the cache yet."""
    if is_hub(path):
        return cached_commit(parse_hub(path))
    given = Path(path)
    if given.is_dir():
        return digest(file_hashes(given))
    if given.is_file():
        return digest(hashes([given]))
    snapshot = hub_snapshot(path)
    return snapshot.name if snapshot else None


def file_hashes(folder: Path) -> dict[str, str]:
    """Return the files of a folder that may be read, each with the hash of its content."""
    files = {
        name: path
        for path in sorted([*folder.glob("*"), *folder.glob("additional_chat_templates/*")])
        if path.is_file() and is_read(name := path.relative_to(folder).as_posix())
    }
    return dict(zip(files, hashes(list(files.values())), strict=True))


def is_read(name: str) -> bool:
    """Whether loading the folder may read this file."""
    matches = [any(fnmatchcase(name, p) for p in patterns) for patterns in (READ, NOT_READ)]
    return matches == [True, False]


def hashes(files: list[Path]) -> list[str]:
    """Return the SHA-256 of each file. Only files that differ from what is remembered are read."""
    known = json.loads(REMEMBERED.read_bytes()) if REMEMBERED.is_file() else {}
    settled = time.time_ns() - SETTLED
    found, kept = [], {}
    for file in files:
        path, now = str(file.resolve()), state(file)
        before, value = known.get(path, (None, None))
        if before != now:
            value = file_sha256(file)
            if max(now[1:]) < settled:
                kept[path] = [now, value]
        found.append(value)
    if kept:
        write_atomically(REMEMBERED, json.dumps(known | kept).encode())
    return found


def state(file: Path) -> list[int]:
    """Return what changes with a file's content: its size and times, among them that of its entry,
    which nobody can set back."""
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
