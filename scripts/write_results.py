"""Renew the tables in docs/results.md from the results of the runs that it shows.

A table is between `<!-- FILE.csv: column, column … -->` and `<!-- end -->`. A condition on a column
may follow the columns, as in `; quantity == 'reward'`. The prose is left as it is.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

BLOCK = re.compile(
    r"(<!-- (\S+\.csv): ([^;\n]*?)(?:; ([^\n]*?))? -->\n).*?(<!-- end -->)", re.DOTALL
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("page", type=Path, help="Markdown file with such tables")
    parser.add_argument("--root", type=Path, default=Path(), help="folder that FILE starts from")
    arguments = parser.parse_args(argv)
    text = arguments.page.read_text(encoding="utf-8")
    arguments.page.write_text(
        BLOCK.sub(lambda found: renew(found, arguments.root), text), encoding="utf-8"
    )


def renew(found: re.Match[str], root: Path) -> str:
    """Return the block with the table that its first line asks for."""
    start, file, names, condition, end = found.groups()
    path = root / file
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not there; make the run that the page shows, or dvc pull")
    table = pd.read_csv(path)
    if condition:
        table = table.query(condition)
    columns = [name.strip() for name in names.split(",")]
    absent = [name for name in columns if name not in table]
    if absent:
        present = ", ".join(table.columns)
        raise ValueError(f"{path} has no column {', '.join(absent)}; it has {present}")
    return f"{start}{to_markdown(table[columns])}{end}"


def to_markdown(table: pd.DataFrame) -> str:
    """Write a table in Markdown, with numbers to three digits or to the unit, and nothing where one
    is missing."""
    rows = [list(map(str, table.columns)), ["---"] * table.shape[1]]
    rows += [[cell(value) for value in row] for row in table.itertuples(index=False)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def cell(value: object) -> str:
    if isinstance(value, float):
        return "" if pd.isna(value) else f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value).replace("|", "\\|").replace("\n", "<br>")


if __name__ == "__main__":
    main()
