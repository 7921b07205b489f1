"""Write verdicts, comparisons, evaluations and a few completions as HTML tables for the report.

The CSV tables come from warpflow.fronts.tables and warpflow.fronts.claims, which are next to read.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from warpflow.gold_names import GOLD, gold_columns

STYLE = """<style>
body { font: 13px sans-serif }
td, th { padding: 2px 8px; text-align: left }
tr:nth-child(even) { background: #f3f3f3 }
td[class] { font-weight: bold }
td[class^=held], td[class=above] { color: #00693e }
td[class^=did], td[class=below] { color: #b2182b }
</style>
"""
# The cells of a verdict. Their class is its words.
COLOURED = re.compile("<td>(held|did not hold|above|below)(?=</td>)")
COLUMNS = ["experiment", "replicate", "stage", "iteration", "member", "towards", "eta", "reward"]
COLUMNS += ["reward_se", GOLD, "kl_exact", "kl_exact_se", "kl", "kl_se", "length"]
COLUMNS += ["unfinished", "entropy", "distinct_1", "distinct_2", "distinct_3"]
COLUMNS += ["distinct_completions", "self_similarity"]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--tables", required=True, help="folder of evaluations.csv, completions.csv"
    )
    parser.add_argument(
        "--comparisons", help="folder of verdicts.csv, comparisons.csv, where they were made"
    )
    parser.add_argument("--out", required=True, help="folder to write the HTML files to")
    arguments = parser.parse_args(argv)
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    tables = {
        "evaluations": shown(pd.read_csv(Path(arguments.tables, "evaluations.csv"))),
        "completions": pd.read_csv(Path(arguments.tables, "completions.csv")),
    }
    if arguments.comparisons:
        for name in ("verdicts", "comparisons"):
            tables[name] = pd.read_csv(Path(arguments.comparisons, f"{name}.csv"))
    for name, table in tables.items():
        table = table.dropna(axis="columns", how="all")
        html = table.to_html(index=False, na_rep="", float_format="{:.3f}".format, border=0)
        html = COLOURED.sub(r'<td class="\1">\1', html)
        (out / f"{name}.html").write_text(
            f"<meta charset='utf-8'>{STYLE}{html}\n", encoding="utf-8"
        )


def shown(evaluations: pd.DataFrame) -> pd.DataFrame:
    """Return the columns to show, with those of all gold rewards in their place."""
    golds = [name for gold in gold_columns(evaluations) for name in (gold, f"{gold}_se")]
    place = COLUMNS.index(GOLD)
    return evaluations[[*COLUMNS[:place], *golds, *COLUMNS[place + 1 :]]]


if __name__ == "__main__":
    main()
