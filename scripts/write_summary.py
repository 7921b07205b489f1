"""Write what a run found on one page: the front, verdicts in words, points to take, and the cost.

The page is one HTML file that needs no network. All that it says comes from the tables of
collect_evaluations and compare_fronts, and from the jobs' benchmark files as far as they are on
disk. Next in reading order: warpflow.figures.summary.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from warpflow.cli import parse_arguments
from warpflow.figures.cli import read_tables
from warpflow.figures.style import FigureStyle
from warpflow.figures.summary import Tables, summary_page
from warpflow.fronts.costs import costs_table
from warpflow.pipeline.contents import write_atomically
from warpflow.settings.base import section

COMPARED = ("verdicts", "comparisons", "shares")


@section
class Arguments:
    """Arguments of the command line beside the settings."""

    results: Path
    """The results folder, whose benchmark files say what the jobs took."""
    tables: Path
    """The folder of evaluations.csv, trajectories.csv, completions.csv and optimum.csv."""
    comparisons: Path
    """The folder of verdicts.csv, comparisons.csv and shares.csv."""
    out: Path
    """The HTML file to write."""
    group: str = "main"
    """The group of experiments."""


def main(argv: Sequence[str] | None = None) -> None:
    given, style = parse_arguments(__doc__, argv, Arguments, FigureStyle)
    try:
        page = summary_page(read_all(given), given.group, style)
    except ValueError as error:
        sys.exit(f"write_summary: {error}")
    write_atomically(given.out, page.encode())
    print(f"{given.out}: {len(page) / 1e6:.1f} MB")


def read_all(given: Arguments) -> Tables:
    """Read the tables of the page.

    Raises:
        ValueError: a table is missing. The message says what makes it.
    """
    names = ["evaluations", "trajectories", "optimum"]
    evaluations, trajectories, optimum = read_tables(given.tables, names)
    missing = [
        str(path)
        for path in (
            given.tables / "completions.csv",
            *(given.comparisons / f"{name}.csv" for name in COMPARED),
        )
        if not path.is_file()
    ]
    if missing:
        raise ValueError(f"{', '.join(missing)} not found; run `snakemake` to make the tables")
    verdicts, comparisons, shares = (
        pd.read_csv(given.comparisons / f"{name}.csv") for name in COMPARED
    )
    return Tables(
        evaluations=evaluations,
        trajectories=trajectories,
        completions=pd.read_csv(given.tables / "completions.csv"),
        optimum=optimum,
        verdicts=verdicts,
        comparisons=comparisons,
        shares=shares,
        costs=costs_table(given.results),
    )


if __name__ == "__main__":
    main()
