"""The command line that `scripts/plot_*.py` share: read tables, draw one figure, save it."""

import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from warpflow.cli import parse_arguments
from warpflow.figures.style import FigureStyle, fixed_settings
from warpflow.fronts.tables import KEYS, mean_of_replicates
from warpflow.settings.base import section

# The columns that the figures use. A table may have more.
TABLE_COLUMNS = {
    "envelopes": (
        "training_changes",
        "arm",
        "kl",
        "reward",
        "low",
        "high",
        "beta",
        "betas",
        "interval_over",
    ),
    "evaluations": (
        *KEYS,
        "reward",
        "reward_se",
        "kl_exact",
        "kl_exact_se",
    ),
    "trajectories": (
        "experiment",
        "replicate",
        "iteration",
        "member",
        "step",
        "weights",
        "reward",
        "reward_se",
        "kl_exact",
        "kl_exact_se",
    ),
    "training": (
        "experiment",
        "replicate",
        "iteration",
        "member",
        "step",
        "reward",
        "kl_to_anchor",
    ),
    "geometry": (
        "experiment",
        "replicate",
        "iteration",
        "group",
        "member_a",
        "member_b",
        "cosine_task_vectors",
        "cosine_weights",
        "norm_a",
        "norm_b",
    ),
    "side_by_side": (
        "a",
        "b",
        "judge",
        "n",
        "win_rate",
        "tie_rate",
        "score",
        "score_low",
        "score_high",
        "length_a",
        "length_b",
        "failed",
    ),
    "benchmarks": (
        "task",
        "metric",
        "filter",
        "value",
        "value_se",
        "experiment",
        "iteration",
        "eta",
        "kl_exact",
        "kl_exact_se",
    ),
    "optimum": ("kind", "kl", "reward", "reliable"),
}


def read_tables(folder: Path, names: Sequence[str]) -> list[pd.DataFrame]:
    """Read folder/NAME.csv for each name, and take the means of the replicates of evaluations.

    Raises ValueError if a file or a column that the figures use is missing.
    """
    missing = [f"{name}.csv" for name in names if not (folder / f"{name}.csv").is_file()]
    if missing:
        raise ValueError(
            f"--tables {folder}: {', '.join(missing)} not found there; run `snakemake` to compute "
            f"the tables, or `dvc pull` to fetch them"
        )
    tables = {name: read_table(folder / f"{name}.csv", TABLE_COLUMNS[name]) for name in names}
    if "evaluations" in tables:
        tables["evaluations"] = mean_of_replicates(tables["evaluations"])
    return list(tables.values())


def read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read one CSV. Text columns without any value stay empty columns."""
    try:
        table = pd.read_csv(path)
    except pd.errors.EmptyDataError as error:
        raise ValueError(
            f"{path}: expected a header line, got an empty file; delete it and run `snakemake`"
        ) from error
    absent = [column for column in columns if column not in table.columns]
    if absent:
        raise ValueError(
            f"{path}: expected the columns {', '.join(absent)}, got only "
            f"{', '.join(table.columns)}; run `snakemake` to make the table anew"
        )
    return table


@section
class Folders:
    """The folders of the tables and of the figure."""

    tables: Path
    """The folder with the CSV tables."""
    out: Path
    """The folder for the PNG and the SVG."""


def draw_figure(
    name: str,
    tables: Sequence[str],
    plot: Callable[..., Figure],
    description: str | None,
    argv: Sequence[str] | None,
    optional: Sequence[str] = (),
) -> None:
    """Parse the flags, call `plot(*tables, style)` and save the figure under `name`. Tables that
    are `optional` are passed as keywords by their names, where they exist."""
    folders, style = parse_arguments(description, argv, Folders, FigureStyle)
    found = [table for table in optional if (folders.tables / f"{table}.csv").is_file()]
    more = dict(zip(found, read_tables(folders.tables, found), strict=True))
    figure = plot(*read_tables(folders.tables, tables), style, **more)
    save_figure(figure, folders.out, name)


@fixed_settings
def save_figure(figure: Figure, folder: Path, name: str) -> tuple[Path, Path]:
    """Write folder/name.png and folder/name.svg. Equal figures give equal bytes.

    The files are replaced by rename, because an existing one may be a read-only link into DVC's
    cache.
    """
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
    for kind, entries in metadata.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=figure.dpi, metadata=entries)
        unfinished = folder / f".{name}.{kind}.tmp"
        unfinished.write_bytes(buffer.getvalue())
        os.replace(unfinished, folder / f"{name}.{kind}")
    return folder / f"{name}.png", folder / f"{name}.svg"
