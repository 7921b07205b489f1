"""Measure what tracking costs: a checkpoint handed to DVC, a run with nothing to do, hashing.

    python benchmarks/tracking.py --work /tmp/tracking --checkpoints 300 --hash_mb 2048

It prints a Markdown table, and works in copies of the project below --work, which must not exist.
For the run with many checkpoints the scripts that make and evaluate an interpolation are replaced
by stubs, so that only the work of Snakemake, the wrapper and DVC is left. All else is as in a run.
Next in reading order: warpflow.pipeline.jobs, warpflow.pipeline.freshness.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import yaml

from warpflow.pipeline.contents import file_md5

ROOT = Path(__file__).parents[1]
SMOKE = ("--config", "results=results", "--configfile", "config/smoke.yaml")
WRITE = """\
import os, pathlib, sys
out = pathlib.Path(sys.argv[1])
out.mkdir()
with open(out / "model.safetensors", "wb") as file:
    for _ in range(int(sys.argv[2])):
        file.write(os.urandom(2**20))
"""
INTERPOLATE = """\
import shutil, sys
from pathlib import Path
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
shutil.copytree(flags["--policy"], flags["--out"])
Path(flags["--out"], "eta.txt").write_text(flags["--eta"])
"""
EVALUATE = """\
import json, sys, zlib
from pathlib import Path
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
for out in (point["out"] for point in json.loads(flags["--points"])):
    value = zlib.crc32(out.encode()) / 2**32
    metrics = {"n_prompts": 8, "unfinished": 0.0, "distinct_2": 1.0, "self_similarity": value}
    for name in ("reward", "gold", "kl", "kl_exact", "length"):
        metrics |= {name: value, f"{name}_se": 0.01}
    row = {"prompt": "p", "completion": "c", "reward": 0.5, "gold": 0.5, "finished": True}
    prompts = {name: [value] * 8 for name in ("reward", "gold", "kl", "kl_exact", "length")}
    document = {"metrics": metrics, "completions": [row], "prompts": prompts}
    Path(out).write_text(json.dumps(document))
"""
CHECK = """\
import pathlib, sys
from warpflow.pipeline.dvc_cache import require_unchanged
require_unchanged(pathlib.Path(sys.argv[1]))
"""
Row = tuple[str, str, str]


def execute(folder: Path, *command: str) -> tuple[float, int, str]:
    """Run a command in a copy of the project. Return its seconds, the bytes that it read, and what
    it printed."""
    library = {**os.environ, "PYTHONPATH": str(folder / "workflow")}
    started, before = time.perf_counter(), bytes_read()
    result = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env=library, encoding="utf-8"
    )
    if result.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{result.stdout}{result.stderr}")
    seconds = time.perf_counter() - started
    return seconds, bytes_read() - before, result.stdout + result.stderr


def bytes_read() -> int:
    """Return the bytes that this process and its finished children read from the system (Linux)."""
    io = Path("/proc/self/io")
    return int(io.read_text(encoding="utf-8").split()[1]) if io.is_file() else 0


def copy_project(target: Path) -> Path:
    """Copy the project's files, without results, as a fresh Git repository."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(
        listing, cwd=ROOT, capture_output=True, text=True, check=True, encoding="utf-8"
    ).stdout
    for name in names.splitlines():
        if name.startswith(("results/", ".snakemake/", "dvc.lock")) or not (ROOT / name).is_file():
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target / name)
    for arguments in (("init", "-q"), ("add", "-A"), ("commit", "-qm", "start")):
        author = ("-c", "user.name=benchmark", "-c", "user.email=benchmark@example.org")
        execute(target, "git", *author, *arguments)
    return target


def track_one(folder: Path, megabytes: int, number: int) -> tuple[float, list[int]]:
    """Make and track a checkpoint of one file. Return the seconds of `track`, and the bytes read by
    the job that makes it, by `track`, and by the check of a job that takes it as input."""
    (folder / "write.py").write_text(WRITE, encoding="utf-8")
    result = f"results/train_sft/{megabytes}_{number}"
    made, pointer = f"{result}/checkpoint", f"{result}/checkpoint.dvc"
    jobs = ("python", "-m", "warpflow.pipeline.jobs")
    making = f"--makes {made} --log write.log --inputs write.py -- python write.py {made}".split()
    # The number gives each its own key, or the second would come from the cache.
    _, by_run, _ = execute(folder, *jobs, "run", *making, str(megabytes), str(number))
    tracking = ("track", f"{result}/provenance.json", pointer)
    seconds, by_track, _ = execute(folder, *jobs, *tracking)
    _, by_check, _ = execute(folder, "python", "-c", CHECK, pointer)
    return seconds, [by_run, by_track, by_check]


def tracking_rows(folder: Path, megabytes: int, repeats: int) -> list[Row]:
    """Return rows on the seconds of `track`, and on what is read of a large checkpoint on the
    way."""
    tracked = [track_one(folder, megabytes, number) for number in range(repeats)]
    seconds = min(seconds for seconds, _ in tracked)
    rows = [(f"track a checkpoint of {megabytes} MB", f"{seconds:.2f} s", f"best of {repeats}")]
    if megabytes >= 100:  # else Python's own files are most of it
        reads = [f"{count / (megabytes * 2**20):.2f}" for count in tracked[0][1]]
        name = f"{megabytes} MB read by job + track + next job's check"
        rows.append((name, f"{' + '.join(reads)} × its size", ""))
    return rows


def hashing_row(folder: Path, megabytes: int) -> Row:
    """Return the row on the MD5 of one large file, from the page cache."""
    (path,) = folder.glob(f"results/train_sft/{megabytes}_0/checkpoint/model.safetensors")
    started = time.perf_counter()
    file_md5(path)
    speed = megabytes / (time.perf_counter() - started)
    return (f"MD5 of {megabytes} MB", f"{speed:.0f} MB/s", f"{megabytes / speed:.1f} s")


def no_op_row(folder: Path, name: str, overlay: Sequence[str]) -> Row:
    """Return the row on `snakemake --cores all` when all is made."""
    seconds = []
    for _ in range(3):
        taken, _, output = execute(folder, "snakemake", "--cores", "all", *SMOKE, *overlay)
        if "Nothing to be done" not in output:
            sys.exit(f"expected nothing to do:\n{output}")
        seconds.append(taken)
    count = len(list((folder / "results").rglob("checkpoint.dvc")))
    return (f"nothing to do, {name}: {count} checkpoints", f"{min(seconds):.2f} s", "best of 3")


def stubbed(folder: Path, checkpoints: int) -> tuple[str, ...]:
    """Write stub scripts, and a config with an η for each third of the checkpoints (three
    merges)."""
    (folder / "scripts/interpolate_policy.py").write_text(INTERPOLATE, encoding="utf-8")
    (folder / "scripts/evaluate_front.py").write_text(EVALUATE, encoding="utf-8")
    etas = [round(0.001 * (number + 1), 3) for number in range(checkpoints // 3)]
    points = {"etas": etas, "write": "weights"}
    (folder / "many.yaml").write_text(
        yaml.safe_dump({"interpolate_policy": points}), encoding="utf-8"
    )
    return ("many.yaml",)


def machine() -> str:
    """Return the processor, its cores and the Python that ran this."""
    information = Path("/proc/cpuinfo")
    text = information.read_text(encoding="utf-8") if information.is_file() else ""
    names = re.findall(r"model name\s*: (.*)", text)
    name = names[0] if names else platform.machine()
    return f"{name}, {os.cpu_count()} cores, Python {platform.python_version()}"


def print_row(row: Row) -> None:
    print(f"| {' | '.join(row)} |", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder to make and work in")
    parser.add_argument("--sizes_mb", type=int, nargs="*", default=[1, 500])
    parser.add_argument("--hash_mb", type=int, default=2048, help="0: leave it out")
    parser.add_argument("--checkpoints", type=int, default=300, help="0: leave it out")
    arguments = parser.parse_args(argv)
    arguments.work.mkdir(parents=True)
    print(f"{machine()}\n")
    print_row(("what", "measured", "note"))
    print_row(("---", "---", "---"))
    sized = copy_project(arguments.work.absolute() / "sized")
    for megabytes in arguments.sizes_mb:
        for row in tracking_rows(sized, megabytes, repeats=3):
            print_row(row)
    if arguments.hash_mb:
        for row in tracking_rows(sized, arguments.hash_mb, repeats=1):
            print_row(row)
        print_row(hashing_row(sized, arguments.hash_mb))
    shutil.rmtree(sized)
    run = copy_project(arguments.work.absolute() / "run")
    execute(run, "snakemake", "--cores", "all", *SMOKE)
    print_row(no_op_row(run, "smoke run", ()))
    if arguments.checkpoints:
        overlay = stubbed(run, arguments.checkpoints)
        taken, _, _ = execute(run, "snakemake", "--cores", "all", *SMOKE, *overlay)
        print_row(no_op_row(run, f"stubs, made in {taken:.0f} s", overlay))


if __name__ == "__main__":
    main()
