"""What the jobs of a run took, by rule, from the benchmark files that Snakemake writes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd

COLUMNS = ["rule", "jobs", "restored", "hours", "cpu_hours", "largest_gb"]


def costs_table(results: str | Path) -> pd.DataFrame:
    """Return a row for each rule. It has the jobs that ran, the jobs whose result came from the
    cache, hours by the clock with one job after the other, CPU hours, and the largest resident
    memory of a job in GB.

    Args:
        results: the results folder, with the files logs/RULE/….tsv below it. All jobs with such a
            file count, also those of other groups of experiments.

    Raises:
        ValueError: a benchmark file lacks the columns that Snakemake writes. The message names it.
    """
    logs = Path(results, "logs")
    rows = [read_benchmark(path, Path(results)) for path in sorted(logs.rglob("*.tsv"))]
    if not rows:
        return pd.DataFrame(columns=COLUMNS)
    by_rule = pd.DataFrame(rows).groupby("rule", sort=False)
    table = by_rule.agg(
        jobs=("ran", "sum"),
        restored=("restored", "sum"),
        hours=("hours", "sum"),
        cpu_hours=("cpu_hours", "sum"),
        largest_gb=("gb", "max"),
    )
    return table.sort_values("hours", ascending=False, kind="stable").reset_index()[COLUMNS]


def read_benchmark(path: Path, results: Path) -> dict[str, object]:
    """Return what one job took. A job that found its result in the cache took nothing worth a
    number."""
    result = path.relative_to(results / "logs").with_suffix("")
    # A name may contain a dot: sft/eta0.5.tsv is the file of sft/eta0.5.
    made = results / result / "provenance.json"
    restored = made.is_file() and "restored" in json.loads(made.read_text(encoding="utf-8"))
    table = pd.read_csv(path, sep="\t", na_values="-")
    missing = {"s", "cpu_time", "max_rss"} - set(table.columns)
    if missing or table.empty:
        raise ValueError(
            f"{path}: expected a benchmark file of Snakemake with the columns s, cpu_time and "
            f"max_rss, got {', '.join(table.columns) or 'none'}; delete it"
        )
    row = table.iloc[-1]
    took = (row["s"] / 3600, row["cpu_time"] / 3600, row["max_rss"] / 1024)
    hours, cpu_hours, gb = (math.nan, math.nan, math.nan) if restored else took
    return {
        "rule": result.parts[0],
        "ran": not restored,
        "restored": restored,
        "hours": hours,
        "cpu_hours": cpu_hours,
        "gb": gb,
    }
