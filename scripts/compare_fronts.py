"""Compare the fronts of a group of experiments, with intervals, and judge the paper's claims.

It writes verdicts.csv (six observations and two lemmas: held, did not hold, undecided, one run, not
measured), comparisons.csv (each experiment against the base one, at matched KL and by hypervolume),
envelopes.csv (the best of each anchor's β at each KL) and shares.csv (each policy's KL and reward,
and its gain as a share of the optimum's at its KL). Next in reading order:
warpflow.fronts.measurements, then warpflow.fronts.claims.
"""

from __future__ import annotations

import warpflow.quick_start  # noqa: F401  # first: see there

import logging
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from warpflow.cli import parse_arguments
from warpflow.fronts.claims import verdicts_table
from warpflow.fronts.differences import comparisons_table, shares_table
from warpflow.fronts.envelopes import envelopes_table
from warpflow.fronts.measurements import read_measurements
from warpflow.settings.base import section
from warpflow.settings.compare_fronts import CompareFronts


@section
class Arguments:
    """Arguments of the command line beside the settings."""

    results: str
    """The results folder."""
    tables: str
    """The folder of evaluations.csv, geometry.csv and optimum.csv."""
    out: str
    """The folder to write."""
    seed: int
    """The seed of the resamples."""


def main(argv: Sequence[str] | None = None) -> None:
    given, settings = parse_arguments(__doc__, argv, Arguments, CompareFronts)
    measured = read_measurements(given.results, given.tables, settings.resamples, given.seed)
    optimum = pd.read_csv(Path(given.tables, "optimum.csv"))
    tables = {
        "verdicts": verdicts_table(measured, settings.confidence),
        "comparisons": comparisons_table(measured, settings.confidence),
        "envelopes": envelopes_table(measured, settings.confidence),
        "shares": shares_table(measured, optimum, settings.confidence, given.seed),
    }
    Path(given.out).mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.to_csv(Path(given.out, f"{name}.csv"), index=False, float_format="%.6g")
    for row in tables["verdicts"].to_dict("records"):
        logging.info("%-20s %-14s %s", row["claim"], row["verdict"], row["compared"])


if __name__ == "__main__":
    main()
