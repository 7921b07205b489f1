"""Measure the CPU seconds that scripts take to start and end, with and without garbage collection.

    python benchmarks/start_up.py [--rounds 5] [SCRIPT ...]

Each script is started with `--help`, in turn as jobs start it and in a way in which
`warpflow.quick_start` changes nothing. It prints the median of each, and their ratio.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from collections.abc import Sequence
from statistics import median

SCRIPTS = ("train_policy", "evaluate_front", "train_sft", "merge_policies", "score_trajectories")
# The script is then not the main file of the process.
UNCHANGED = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0])['main']()"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scripts", nargs="*", default=SCRIPTS, help="names in scripts/")
    parser.add_argument("--rounds", type=int, default=5, help="starts of each, in turn")
    given = parser.parse_args(argv)
    print(f"{'script':<22}{'before (s)':>12}{'now (s)':>10}{'now / before':>14}")
    for name in given.scripts:
        script = [f"scripts/{name}.py", "--help"]
        before, now = [], []
        for _ in range(given.rounds):
            before.append(cpu_seconds([sys.executable, "-c", UNCHANGED, *script]))
            now.append(cpu_seconds([sys.executable, *script]))
        ratio = median(now) / median(before)
        print(f"{name:<22}{median(before):>12.2f}{median(now):>10.2f}{ratio:>14.2f}")


def cpu_seconds(command: Sequence[str]) -> float:
    """Return the user and system time of a process, its end included."""
    start = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    end = resource.getrusage(resource.RUSAGE_CHILDREN)
    return end.ru_utime - start.ru_utime + end.ru_stime - start.ru_stime


if __name__ == "__main__":
    main()
