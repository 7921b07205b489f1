"""Read rows from the files of `warpflow.data.files`, from Parquet files, and from datasets of the
Hugging Face hub (`warpflow.data.hub`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from warpflow.data import files
from warpflow.data.files import Row
from warpflow.data.hub import INSTALL, dataset_folder, is_hub, parse_hub

PARQUET = ".parquet"
FORMATS = (*files.FORMATS, PARQUET)


def iterate_rows(path: str) -> Iterator[Row]:
    """Yield the rows of a file or of a dataset of the hub.

    Raises:
        FileNotFoundError, ValueError: as in `files.iterate_rows`, for Parquet too.
        OSError: a dataset of the hub is not available.
        ValueError: the dataset has no such split or config. The message lists those that it has.
        ModuleNotFoundError: the package that reads Parquet and the hub is missing. The message says
            how to install it.
    """
    if is_hub(path):
        return hub_rows(path)
    if Path(path).suffix == PARQUET:
        return parquet_rows(Path(path))
    if not path.removesuffix(".gz").endswith((".jsonl", ".json", ".csv")):
        raise ValueError(f"{path}: unknown extension; expected one of {', '.join(FORMATS)}")
    return files.iterate_rows(path)


def read_rows(path: str) -> list[Row]:
    """Return all rows, read by `iterate_rows`. Raises ValueError where there are none."""
    rows = list(iterate_rows(path))
    if not rows:
        raise ValueError(f"{path}: the dataset is empty; expected at least one row")
    return rows


def parquet_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a Parquet file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; correct the path in the config")
    with needed(str(path)):
        import pyarrow
        from pyarrow.parquet import ParquetFile
    try:
        with ParquetFile(path) as file:
            yield from arrow_rows(file.iter_batches())
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path}: not a whole Parquet file ({error}); copy it again") from error


def hub_rows(path: str) -> Iterator[Row]:
    """Yield the rows of a split of a dataset of the hub. No code that comes with a dataset is
    run."""
    with needed(path):
        import datasets
    dataset = parse_hub(path)
    folder = dataset_folder(path)
    datasets.disable_progress_bars()
    try:
        split = datasets.load_dataset(str(folder), dataset.config, split=dataset.split)
    except (ValueError, OSError) as error:
        # The error lists the splits or configs that there are.
        raise ValueError(
            f"{path}: {error} Name one that is there, as hub:{dataset.name}?split=…&config=…"
        ) from error
    yield from arrow_rows(
        batch for table in split.with_format("arrow").iter(1000) for batch in table.to_batches()
    )


@contextmanager
def needed(path: str) -> Iterator[None]:
    """Say how to install a package whose import fails inside the context.

    Args:
        path: what is to be read with it, for the message.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{path}: {error}; {INSTALL}") from error


def arrow_rows(batches: Iterable[Any]) -> Iterator[Row]:
    """Yield the rows of Arrow's record batches in the types of JSON. Columns with bytes in them,
    such as images, are left out."""
    for batch in batches:
        names = [field.name for field in batch.schema if not holds_bytes(field.type)]
        for row in batch.select(names).to_pylist():
            yield {name: as_json(cell) for name, cell in row.items()}


def holds_bytes(kind: Any) -> bool:
    """Whether cells of an Arrow type are bytes or contain bytes."""
    from pyarrow import types

    is_bytes = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary)
    return any(test(kind) for test in is_bytes) or any(
        holds_bytes(kind.field(index).type) for index in range(kind.num_fields)
    )


def as_json(cell: Any) -> Any:
    """Return a cell of Arrow in the types of JSON. Arrow gives every object of a list the same
    fields, and None to those that it lacks. These are left out, because a template could take them
    for something that was said."""
    if isinstance(cell, list | tuple):
        return [as_json(value) for value in cell]
    if isinstance(cell, dict):
        return {key: as_json(value) for key, value in cell.items() if value is not None}
    if isinstance(cell, datetime | date | time):
        return cell.isoformat()
    return str(cell) if isinstance(cell, Decimal | timedelta) else cell
