"""Gather the benchmarks of the chosen points into one table, with their KL and reward.

Next in reading order: warpflow.fronts.tables.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from warpflow.fronts.tables import benchmarks_table


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", required=True, help="results folder")
    parser.add_argument("--points", required=True, help="JSON: a row for each policy")
    parser.add_argument("--out", required=True, help="CSV file to write")
    arguments = parser.parse_args(argv)
    table = benchmarks_table(arguments.results, json.loads(arguments.points))
    Path(arguments.out).parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(arguments.out, index=False)


if __name__ == "__main__":
    main()
