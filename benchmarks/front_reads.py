"""Measure the bytes that evaluating a front reads from disk, with a process for each point or one.

    python benchmarks/front_reads.py --work /tmp/front_reads [--size large] [--points 7]

It writes a random Gemma as θ_sft, as the merge and as the reward model. Then it evaluates points of
the front with scripts/evaluate_front.py on two prompts, so that loading dominates. Before each
process the checkpoints are taken out of the page cache, as if every job had its own node. Bytes are
those that the kernel counts as read from the disk (/proc/PID/io). On a file system in memory
(tmpfs) they are 0, and nothing is measured. Bytes are proportional to the weights, so the last
column scales them to a policy of 7 B weights in fp32 and a reward model of its size. Next in
reading order: scripts/evaluate_front.py, warpflow.merging.points.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from memory import ROOT, SIZES, make_inputs
from safetensors import safe_open

MB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder, on a disk, to be made")
    parser.add_argument("--size", choices=SIZES, default="large")
    parser.add_argument("--points", type=int, default=7)
    given = parser.parse_args()
    given.work.mkdir(parents=True)
    try:
        make_inputs(given.work, dict(SIZES[given.size]))
        shutil.copytree(given.work / "sft", given.work / "merged")
        report(given.work, given.points)
    finally:
        shutil.rmtree(given.work)


def report(work: Path, count: int) -> None:
    etas = [round(0.1 + 0.1 * k, 1) for k in range(count)]
    weights, size = count_weights(work / "sft"), (work / "sft/model.safetensors").stat().st_size
    print(f"{weights / 1e6:.0f} M weights, {size / MB:.0f} MB a checkpoint, {count} points\n")
    print("| | processes | MB read | checkpoints read | wall s | GB at 7 B |")
    print("|---|---|---|---|---|---|")
    for name, groups in (("a job a point", [[eta] for eta in etas]), ("one job", [etas])):
        started, read = time.time(), 0
        for group in groups:
            forget(work)
            read += bytes_read(work, group)
        if not read:
            sys.exit(f"{work}: the kernel counted no bytes; expected a folder on a disk, no tmpfs")
        print(
            f"| {name} | {len(groups)} | {read / MB:.0f} | {read / size:.1f} "
            f"| {time.time() - started:.0f} | {read * 7e9 / weights / 1e9:.0f} |",
            flush=True,
        )


def count_weights(folder: Path) -> int:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118


def forget(work: Path) -> None:
    """Take the checkpoints out of the page cache."""
    os.sync()
    for path in work.rglob("*.safetensors"):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def bytes_read(work: Path, etas: list[float]) -> int:
    """Return the bytes that evaluating these points in one process reads from disk."""
    points = [
        {
            "init": str(work / "sft"),
            "policy": str(work / "merged"),
            "eta": eta,
            "out": str(work / f"{eta}.json"),
        }
        for eta in etas
    ]
    arguments: dict[str, Any] = {
        "sft": work / "sft",
        "data": work / "data",
        "reward_model": work / "reward_model",
        "rewards": json.dumps({"reward_model": 1.0}),
        "points": json.dumps(points),
        "seed": 0,
        "prompts": 2,
        "samples_per_prompt": 1,
        "batch_size": 2,
        "completions": 1,
        "temperature": 0.9,
        "max_prompt_tokens": 16,
        "max_new_tokens": 2,
    }
    words = [word for key, value in arguments.items() for word in (f"--{key}", str(value))]
    # The process itself says at its end what it has read.
    code = (
        "import sys, evaluate_front; evaluate_front.main(sys.argv[1:]); "
        "print(open('/proc/self/io').read())"
    )
    folders = os.pathsep.join(str(ROOT / name) for name in ("workflow", "scripts"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": folders}
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    if done.returncode:
        sys.exit(done.stderr)
    return int(done.stdout.rpartition("read_bytes: ")[2].split()[0])


if __name__ == "__main__":
    main()
