"""Compare the fronts of a group of experiments, with intervals, and judge the paper's claims.

Writes verdicts.csv (six observations and two lemmas: held, did not hold, undecided, one run, not
measured), comparisons.csv (each experiment against the base one, at matched KL and by hypervolume),
envelopes.csv (the best of each anchor's β at each KL) and shares.csv (each policy's KL and reward,
and its gain as a share of the optimum's at its KL).
Next in reading order: warpflow.fronts.measurements, then warpflow.fronts.claims.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from warpflow.fronts.claims import verdicts_table
from warpflow.fronts.differences import comparisons_table, shares_table
from warpflow.fronts.envelopes import envelopes_table
from warpflow.fronts.measurements import read_measurements


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", required=True, help="results folder")
    parser.add_argument(
        "--tables",
        required=True,
        help="folder of evaluations.csv, geometry.csv, training.csv, optimum.csv",
    )
    parser.add_argument("--resamples", type=int, required=True, help="of the prompts")
    parser.add_argument("--confidence", type=float, required=True, help="level of the intervals")
    parser.add_argument("--seed", type=int, required=True, help="of the resamples")
    parser.add_argument("--out", required=True, help="folder to write")
    given = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    measured = read_measurements(given.results, given.tables, given.resamples, given.seed)
    optimum = pd.read_csv(Path(given.tables, "optimum.csv"))
    tables = {
        "verdicts": verdicts_table(measured, given.confidence),
        "comparisons": comparisons_table(measured, given.confidence),
        "envelopes": envelopes_table(measured, given.confidence),
        "shares": shares_table(measured, optimum, given.confidence, given.seed),
    }
    Path(given.out).mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.to_csv(Path(given.out, f"{name}.csv"), index=False, float_format="%.6g")
    for row in tables["verdicts"].to_dict("records"):
        logging.info("%-20s %-14s %s", row["claim"], row["verdict"], row["compared"])


if __name__ == "__main__":
    main()
