"""DVC's cache as jobs see it: reading needs no lock and no call of DVC.

Heavy results get into the cache only by `dvc add` (rule `track`). The run cache, a folder of small
files that `dvc push --run-cache` shares, remembers which result each key gave.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from configobj import ConfigObj
from filelock import FileLock
from platformdirs import site_config_dir, user_config_dir

from warpflow.pipeline.contents import (
    Out,
    file_md5,
    folder_files,
    folder_listing,
    folder_out,
    listing_md5,
    read_pointer,
    write_atomically,
)

# The run cache remembers these facts about how a result was made.
KEPT = ("environment", "seconds", "accepted")
INSTEAD = "to track them and keep their bytes elsewhere, move DVC's cache (docs/your_machine.md)"


def tracking_problem(path: str | Path = ".") -> str | None:
    """Say why results at a path are not tracked here, or return None where they are."""
    if not Path(".dvc/config").is_file():
        return "there is no DVC repository here (run `git init` and `dvc init`)"
    if not Path(".git").exists():
        return "this is no Git repository (run `git init`)"
    if not shutil.which("dvc"):
        return "the command `dvc` is not on the PATH"
    return outside_problem(path)


def outside_problem(path: str | Path) -> str | None:
    """Say why DVC cannot track a path, or return None where it can. DVC tracks only what lies in
    the repository, and follows no symbolic link of a folder."""
    project, real = Path.cwd().resolve(), Path(path).resolve()
    if not Path(os.path.abspath(path)).is_relative_to(Path.cwd()):
        return f"{path} lies outside this folder, and DVC tracks only what is inside; {INSTEAD}"
    if real != project / os.path.relpath(path):
        return f"{path} is {real} by a symbolic link, which DVC does not follow; {INSTEAD}"
    return None


def remove_broken_lock(pause: float = 0.5) -> None:
    """Remove DVC's list of read and write locks where it is not JSON. A SIGKILL while DVC writes it
    leaves half of it, or an empty file, and every later call of DVC fails. Another DVC may be
    writing it just now, so it is read twice."""
    path = Path(".dvc/tmp/rwlock")
    for attempt in range(2):
        try:
            json.loads(path.read_text(encoding="utf-8"))
            return
        except FileNotFoundError:
            return
        except json.JSONDecodeError:
            if attempt == 0:
                time.sleep(pause)
    path.unlink(missing_ok=True)


def cache_folder() -> Path:
    """Return DVC's cache, as DVC's system, user, project and local configuration say, in this
    order."""
    return _cache_folder(Path.cwd())


@cache
def _cache_folder(project: Path) -> Path:
    """Return the folder of DVC's cache as DVC finds it. The last file that names one decides, `~`
    is the user's home, and other paths start at the folder of the file that names them."""
    system = os.environ.get("DVC_SYSTEM_CONFIG_DIR") or site_config_dir("dvc", "iterative")
    user = os.environ.get("DVC_GLOBAL_CONFIG_DIR") or user_config_dir("dvc", "iterative")
    repository = project / ".dvc"
    found = repository / "cache"
    for file in (
        Path(system, "config"),
        Path(user, "config"),
        repository / "config",
        repository / "config.local",
    ):
        settings = ConfigObj(str(file), encoding="utf-8") if file.is_file() else {}
        named = settings.get("cache", {}).get("dir")
        if named:
            found = Path(os.path.abspath(file.parent / Path(named).expanduser()))
    return found


def cached_object(md5: str) -> Path:
    return cache_folder() / "files" / "md5" / md5[:2] / md5[2:]


def cached_listing(md5: str) -> list[dict[str, str]]:
    """Return the files of a folder in the cache."""
    return json.loads(cached_object(md5).read_text(encoding="utf-8"))


def is_cached(out: Out) -> bool:
    """Whether the local cache has every byte of a folder."""
    return cached_object(out["md5"]).is_file() and all(
        cached_object(row["md5"]).is_file() for row in cached_listing(out["md5"])
    )


# --- the run cache -----------------------------------------------------------------------------


def cached_run(key: str) -> Path:
    """Return the folder of DVC's run cache for a key."""
    return cache_folder() / "runs" / key[:2] / key


def remembered_runs(key: str) -> list[dict[str, Any]]:
    """Return what the run cache holds for a key, without what a kill left half-written."""
    paths = [path for path in cached_run(key).glob("*") if ".tmp" not in path.name]
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(paths)]


def remember_run(record: dict[str, Any], out: Out | None = None, text: str | None = None) -> None:
    """Enter a result under its key, in DVC's format. It is a folder's `out`, or a small file's
    text, which needs no object in the cache."""
    details = {name: record[name] for name in KEPT if name in record}
    entry = {
        "cmd": shlex.join(record["command"]),
        "deps": [{"path": p, "hash": "md5", "md5": m} for p, m in record["inputs"].items()],
        "params": {"provenance": details | ({} if text is None else {"text": text})},
        "outs": [] if out is None else [out],
    }
    name = "text" if out is None else out["md5"].removesuffix(".dir")
    write_atomically(cached_run(record["key"]) / name, json.dumps(entry, indent=1).encode())


def find_folder(key: str, name: str) -> Out | None:
    """Return the folder of that name that an earlier run of this key gave, if the local cache has
    all of it."""
    outs = [out for entry in remembered_runs(key) for out in entry["outs"]]
    return next((out for out in outs if out["path"] == name and is_cached(out)), None)


def find_text(key: str) -> str | None:
    """Return the small file that an earlier run of this key gave."""
    details = [entry["params"]["provenance"] for entry in remembered_runs(key)]
    return next((detail["text"] for detail in details if "text" in detail), None)


# --- the workspace -----------------------------------------------------------------------------


def is_unchanged(folder: Path, out: Out) -> bool:
    """Whether a folder holds what `out` names. A file that is a link to the cache object is not
    read again."""
    if not folder.is_dir():
        return False
    if not cached_object(out["md5"]).is_file():
        return listing_md5(folder_listing(folder)) == out["md5"]
    listing = cached_listing(out["md5"])
    return sorted(row["relpath"] for row in listing) == folder_files(folder) and all(
        _same_file(folder / row["relpath"], row["md5"]) for row in listing
    )


def _same_file(path: Path, md5: str) -> bool:
    cached = cached_object(md5)
    return (cached.exists() and path.samefile(cached)) or file_md5(path) == md5


def require_unchanged(pointer: Path) -> None:
    """Stop with a message unless the folder beside a pointer holds what the pointer names."""
    folder, out = pointer.with_suffix(""), read_pointer(pointer)
    if is_unchanged(folder, out):
        return
    if not folder.is_dir():
        get = "checkout" if is_cached(out) else "pull"
        sys.exit(
            f"{folder}/ is missing: run `dvc {get} {pointer}`; or delete {pointer} and "
            f"{folder.parent}/provenance.json and run snakemake to make it again"
        )
    sys.exit(
        f"{folder}/ holds {folder_out(folder)['md5']}, but {pointer} names {out['md5']}: it was "
        f"changed by hand, or belongs to another commit. `dvc checkout --force {pointer}` takes "
        "what the pointer names; to keep the change, copy the folder elsewhere first"
    )


# --- calling DVC -------------------------------------------------------------------------------


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Wait for one's turn, because DVC's commands fail if two run in one repository at once."""
    Path(".dvc/tmp").mkdir(exist_ok=True)
    with FileLock(".dvc/tmp/warpflow.lock", fallback_to_soft=False):
        yield


def dvc(*arguments: str) -> None:
    """Call DVC, one call at a time, waiting for whoever else holds its lock.

    Where DVC fails, for example on a full disk, stop with its message. The workspace is as it was.
    """
    command = ["dvc", "--wait-for-lock", *arguments]
    with one_at_a_time():
        result = subprocess.run(
            command, capture_output=True, text=True, check=False, encoding="utf-8"
        )
    if result.returncode:
        sys.exit(f"{shlex.join(command)}: {result.stderr.strip() or result.stdout.strip()}")
