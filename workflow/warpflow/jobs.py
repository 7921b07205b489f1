"""Run a rule's command once per content, and hand its result to DVC.

    python -m warpflow.jobs run --makes PATH --inputs FILE... [--unkeyed ARGS] -- COMMAND...
    python -m warpflow.jobs track PROVENANCE POINTER

Snakemake decides what runs, DVC keeps the bytes, Git keeps the small text that joins them. A
heavy result is a folder with

    checkpoint/ (or data/)   the bytes; in the DVC cache, not declared to Snakemake
    provenance.json          what went in, and how it was made: the rule's declared output
    checkpoint.dvc           what came out (content hash): made by the rule `track`, the only
                             caller of DVC, and what later rules take as input

`run` works on any node: it takes no lock and never calls DVC. Its key is the content of the
inputs and the command without paths; where the DVC cache already holds the result of the key,
nothing is computed and the result comes back from the cache. In COMMAND, PATH stands for what
is to be made and a pointer X.dvc for the folder X.
"""

from __future__ import annotations

import argparse
import configparser
import fcntl
import hashlib
import importlib.metadata
import itertools
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

PACKAGES = ("torch", "transformers", "accelerate", "safetensors", "tokenizers", "numpy", "pandas")


# --- contents ----------------------------------------------------------------------------------


def file_md5(path: Path) -> str:
    """MD5 of a file, the hash that DVC names contents by."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def folder_listing(folder: Path) -> list[dict[str, str]]:
    """Each file of a folder with its MD5, as DVC lists a folder."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    rows = [{"md5": file_md5(p), "relpath": p.relative_to(folder).as_posix()} for p in files]
    return sorted(rows, key=lambda row: row["relpath"])


def listing_md5(listing: list[dict[str, str]]) -> str:
    """DVC's hash of a folder."""
    return hashlib.md5(json.dumps(listing, sort_keys=True).encode()).hexdigest() + ".dir"


def read_pointer(pointer: Path) -> dict[str, Any]:
    """The single `outs` entry of a .dvc file: md5, size, nfiles, path."""
    return yaml.safe_load(pointer.read_text())["outs"][0]


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write aside and rename: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.tmp{os.getpid()}")
    aside.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(aside, path)


# --- the DVC cache -----------------------------------------------------------------------------


def tracking_problem() -> str | None:
    """Why results are not tracked here, or None where they are."""
    if not Path(".dvc/config").is_file():
        return "there is no DVC repository here (run `git init` and `dvc init`)"
    if not Path(".git").exists():
        return "this is no Git repository (run `git init`)"
    return None if shutil.which("dvc") else "the command `dvc` is not on the PATH"


def cache_folder() -> Path:
    """DVC's cache, as .dvc/config and .dvc/config.local say."""
    settings = configparser.RawConfigParser(strict=False)
    settings.read([".dvc/config", ".dvc/config.local"])
    return Path(".dvc", settings.get("cache", "dir", fallback="cache"))


def cached_object(md5: str) -> Path:
    return cache_folder() / "files" / "md5" / md5[:2] / md5[2:]


def cached_run(key: str) -> Path:
    """Folder of DVC's run cache for a key; `dvc push --run-cache` shares it."""
    return cache_folder() / "runs" / key[:2] / key


def remembered_runs(key: str) -> list[dict[str, Any]]:
    """What the run cache holds for a key, without what a kill left half-written."""
    paths = [path for path in cached_run(key).glob("*") if ".tmp" not in path.name]
    return [json.loads(path.read_text()) for path in sorted(paths)]


def find_result(key: str) -> dict[str, Any] | None:
    """The `outs` entry of an earlier run of this key whose every byte is in the local cache."""
    for entry in remembered_runs(key):
        out = entry["outs"][0]
        if cached_object(out["md5"]).is_file() and all(
            cached_object(row["md5"]).is_file() for row in cached_listing(out["md5"])
        ):
            return out
    return None


def cached_listing(md5: str) -> list[dict[str, str]]:
    """The files of a folder in the cache; none for a single file."""
    return json.loads(cached_object(md5).read_text()) if md5.endswith(".dir") else []


def remember_run(record: dict[str, Any], out: dict[str, Any]) -> None:
    """Enter a result in the run cache under its key, in DVC's format."""
    entry = {
        "cmd": shlex.join(record["command"]),
        "deps": [{"path": p, "hash": "md5", "md5": m} for p, m in record["inputs"].items()],
        "params": {"provenance": {k: record[k] for k in ("environment", "seconds")}},
        "outs": [out],
    }
    path = cached_run(record["key"]) / out["md5"].removesuffix(".dir")
    write_atomically(path, json.dumps(entry, indent=1))


def is_unchanged(folder: Path, out: dict[str, Any]) -> bool:
    """Whether a folder holds what `out` names. A file that is the very cache object is not read."""
    if not folder.is_dir():
        return False
    if cached_object(out["md5"]).is_file():
        listing = cached_listing(out["md5"])
        if {row["relpath"] for row in listing} == {
            p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()
        }:
            return all(_same_file(folder / row["relpath"], row["md5"]) for row in listing)
        return False
    return listing_md5(folder_listing(folder)) == out["md5"]


def _same_file(path: Path, md5: str) -> bool:
    cached = cached_object(md5)
    return (cached.exists() and path.samefile(cached)) or file_md5(path) == md5


def require_unchanged(pointer: Path) -> None:
    """Stop with a message unless the folder beside a pointer holds what the pointer names."""
    folder, out = pointer.with_suffix(""), read_pointer(pointer)
    if is_unchanged(folder, out):
        return
    if not folder.is_dir():
        sys.exit(
            f"{folder}/ is missing: run `dvc pull {pointer}`, or delete {pointer} to remake it"
        )
    sys.exit(
        f"{folder}/ was changed by hand: it holds {listing_md5(folder_listing(folder))}, but "
        f"{pointer} names {out['md5']}. To undo the change: `dvc checkout --force {pointer}`; "
        "to keep it, copy the folder elsewhere first"
    )


# --- run ---------------------------------------------------------------------------------------


def make_record(made: Path, inputs: Sequence[str], command: Sequence[str]) -> dict[str, Any]:
    """What goes into a result: command, contents of the inputs, and the key of both.

    Paths of results are replaced by their contents in the key, so that the same work under
    another name is the same key.
    """
    contents = {
        path: read_pointer(Path(path))["md5"] if path.endswith(".dvc") else file_md5(Path(path))
        for path in inputs
    }
    keyed = [made.name if arg == str(made) else contents.get(arg, arg) for arg in command]
    code = {path: md5 for path, md5 in contents.items() if path.endswith(".py")}
    rest = sorted(md5 for path, md5 in contents.items() if path not in code)
    key = hashlib.sha256(json.dumps([keyed, code, rest], sort_keys=True).encode()).hexdigest()
    return {"key": key, "command": list(command), "inputs": contents}


def environment() -> dict[str, Any]:
    """Where a result was made: versions, device, threads and the Git commit."""
    versions = {package: importlib.metadata.version(package) for package in PACKAGES}
    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    status = ["git", "status", "--porcelain", "--untracked-files=no"]
    dirty = subprocess.run(status, capture_output=True, text=True, check=False)
    return {
        "python": platform.python_version(),
        "packages": versions,
        "machine": platform.machine(),
        "gpu": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "git_commit": git.stdout.strip() or None,
        "git_modified": bool(dirty.stdout.strip()),
    }


def run(made: Path, inputs: Sequence[str], command: Sequence[str], unkeyed: str) -> None:
    """Make `made` (a folder, or one small file) unless it is at hand already; write provenance."""
    record = make_record(made, inputs, command)
    provenance = made.parent / "provenance.json"
    found = find_result(record["key"])
    if found is None and not is_sealed(made, record["key"]):
        started = time.time()
        make(made, inputs, [*command, *shlex.split(unkeyed)])
        details = {"environment": environment(), "seconds": round(time.time() - started, 1)}
        if made.is_dir():
            write_atomically(seal_path(made), json.dumps([*seal(made, record["key"]), details]))
        elif tracking_problem() is None:
            remember_run(record | details, store_file(made))
    else:
        if found is not None and is_file_result(made):
            write_atomically(made, cached_object(found["md5"]).read_bytes())
        details = remembered_details(made, record["key"]) | {"restored": True}
        print(f"{made}: already made from the same inputs, not computed again")
    parameters = command_parameters(command)
    document = record | {"parameters": parameters} | details
    write_atomically(provenance, json.dumps(document, indent=1, sort_keys=True) + "\n")


def is_file_result(made: Path) -> bool:
    """Small results are one text file, kept in Git; heavy ones a folder, kept by DVC."""
    return bool(made.suffix)


def make(made: Path, inputs: Sequence[str], command: Sequence[str]) -> None:
    """Run the command into a temporary path beside `made`, then rename: all of it or nothing."""
    pointers = [path for path in inputs if path.endswith(".dvc")]
    for pointer in pointers:
        require_unchanged(Path(pointer))
    for left_over in made.parent.glob(f"{made.name}.tmp*"):
        remove(left_over)
    aside = made.with_name(f"{made.name}.tmp{os.getpid()}")
    aside.parent.mkdir(parents=True, exist_ok=True)
    replaced = {str(made): str(aside)} | {p: p.removesuffix(".dvc") for p in pointers}
    result = subprocess.run([replaced.get(arg, arg) for arg in command], check=False)
    if result.returncode:
        remove(aside)
        sys.exit(result.returncode)
    if not aside.exists():
        sys.exit(f"{command}: exit status 0, but nothing was written to {aside}")
    remove(made)
    aside.rename(made)


def remove(path: Path) -> None:
    """Remove a file or folder if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def command_parameters(command: Sequence[str]) -> dict[str, str]:
    """The command's ``--flag value`` pairs, to read."""
    return {
        flag.removeprefix("--"): value
        for flag, value in itertools.pairwise(command)
        if flag.startswith("--") and not value.startswith("--")
    }


def remembered_details(made: Path, key: str) -> dict[str, Any]:
    """Environment and seconds of the run that made the result of a key: from the run cache or,
    where the result is not tracked yet, from its seal."""
    for entry in remembered_runs(key):
        return entry["params"]["provenance"]
    return json.loads(seal_path(made).read_text())[2]


def store_file(path: Path) -> dict[str, Any]:
    """Put one small result file into the DVC cache (an atomic copy; no lock is needed)."""
    md5 = file_md5(path)
    if not cached_object(md5).exists():
        write_atomically(cached_object(md5), path.read_bytes())
        cached_object(md5).chmod(0o444)
    return {"path": path.name, "hash": "md5", "md5": md5, "size": path.stat().st_size}


# A seal says: the bytes in this folder are what the run of this key left there, untracked as yet.
# The file holds the seal, and the environment and seconds of that run.


def seal_path(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.seal")


def seal(folder: Path, key: str) -> list[Any]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return [key, [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in files]]


def is_sealed(folder: Path, key: str) -> bool:
    path = seal_path(folder)
    if not (path.is_file() and folder.is_dir()):
        return False
    return json.loads(path.read_text())[:2] == seal(folder, key)


# --- track -------------------------------------------------------------------------------------


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """DVC's commands do not run side by side in one repository: queue instead of failing."""
    with open(".dvc/tmp/warpflow.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def dvc(*arguments: str) -> None:
    """Call DVC, one call at a time; its exit status is ours."""
    Path(".dvc/tmp").mkdir(exist_ok=True)
    with one_at_a_time():
        subprocess.run(["dvc", *arguments, "--quiet"], check=True)


def track(provenance: Path, pointer: Path) -> None:
    """Give a finished result to DVC, or take it from DVC's cache where it was made before."""
    folder, record = pointer.with_suffix(""), json.loads(provenance.read_text())
    problem = tracking_problem()
    found = None if problem else find_result(record["key"])
    if is_sealed(folder, record["key"]):
        if problem:
            write_pointer(pointer, untracked_out(folder))
        else:
            dvc("add", str(folder))
            remember_run(record, read_pointer(pointer))
    elif found is not None:
        if not pointer.exists() or read_pointer(pointer)["md5"] != found["md5"]:
            write_pointer(pointer, {**found, "path": folder.name})
        if not is_unchanged(folder, found):
            dvc("checkout", "--force", str(pointer))
    else:
        sys.exit(
            f"the result of {provenance} is neither in {folder}/ nor in the DVC cache: "
            f"delete {provenance} to compute it again"
        )
    if not problem:  # without a cache the seal is all that tells the result from an edited one
        seal_path(folder).unlink(missing_ok=True)
    pointer.touch()


def untracked_out(folder: Path) -> dict[str, Any]:
    """The `outs` entry that DVC would write, where there is no DVC repository."""
    listing = folder_listing(folder)
    size = sum((folder / row["relpath"]).stat().st_size for row in listing)
    return {
        "md5": listing_md5(listing),
        "size": size,
        "nfiles": len(listing),
        "hash": "md5",
        "path": folder.name,
    }


def write_pointer(pointer: Path, out: dict[str, Any]) -> None:
    write_atomically(pointer, yaml.safe_dump({"outs": [out]}, sort_keys=False))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = parser.add_subparsers(dest="action", required=True)
    runner = actions.add_parser("run", help="make a result, in a job")
    runner.add_argument("--makes", type=Path, required=True, help="folder or file to make")
    runner.add_argument("--inputs", nargs="+", default=[], help="declared inputs of the rule")
    runner.add_argument("--unkeyed", default="", help="arguments that do not change the result")
    tracker = actions.add_parser("track", help="give a result to DVC, in the main process")
    tracker.add_argument("provenance", type=Path)
    tracker.add_argument("pointer", type=Path)
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = []
    if "--" in arguments:
        cut = arguments.index("--")
        arguments, command = arguments[:cut], arguments[cut + 1 :]
    parsed = parser.parse_args(arguments)
    if parsed.action == "run":
        run(parsed.makes, parsed.inputs, command, parsed.unkeyed)
    else:
        track(parsed.provenance, parsed.pointer)


if __name__ == "__main__":
    main()
