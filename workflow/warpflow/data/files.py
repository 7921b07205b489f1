"""Files of rows: JSON lines, JSON lists and CSV, plain or gzipped."""

import csv
import difflib
import gzip
import json
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

Row = dict[str, Any]

FORMATS = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz")


def _open_text(path: Path, errors: str = "strict") -> IO[str]:
    """Open a plain or gzipped file as text. utf-8-sig skips the mark that Excel writes."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", errors=errors, newline="")
    return open(path, encoding="utf-8-sig", errors=errors, newline="")


def _line_that_is_not_utf8(path: Path) -> int:
    """Return the number, from 1, of the first line with bytes that are not UTF-8."""
    with _open_text(path, errors="surrogateescape") as handle:
        return next(n for n, line in enumerate(handle, 1) if broken_character(line) is not None)


def _parse_jsonl(handle: IO[str], path: Path) -> Iterator[Row]:
    for number, line in enumerate(handle, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: not valid JSON ({error})") from error
        yield _require_object(row, f"{path}, line {number}")


def _parse_json(handle: IO[str], path: Path) -> Iterator[Row]:
    text = handle.read()
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path}: expected a JSON list of objects, got {type(rows).__name__}")
    for number, row in enumerate(rows, start=1):
        yield _require_object(row, f"{path}, row {number}")


def _require_object(row: Any, place: str) -> Row:
    if not isinstance(row, dict):
        raise ValueError(f"{place}: expected a JSON object, got {type(row).__name__}")
    return row


def _parse_csv(handle: IO[str], path: Path) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)  # 131,072 by default, also for unread cells
    reader = csv.DictReader(handle, strict=True)
    try:
        _require_different(reader.fieldnames or (), path)
        for row in reader:
            # DictReader marks extra fields by a None key and missing ones by None values.
            if None in row or None in row.values():
                raise ValueError(
                    f"{path}, line {reader.line_num}: expected {len(reader.fieldnames or ())} "
                    "fields as in the header; is a comma or quote missing?"
                )
            yield row
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: not valid CSV ({error})") from error


def _require_different(columns: Sequence[str], path: Path) -> None:
    """Raise ValueError for a name that two columns have, because the last would hide the others.
    Several columns may have no name, as spreadsheets write them."""
    for column in columns:
        if column and list(columns).count(column) > 1:
            raise ValueError(
                f"{path}, line 1: two columns are named {column!r}; give one another name"
            )


def iterate_rows(path: str | Path) -> Iterator[Row]:
    """Yield the rows of a .jsonl, .json (a list of objects) or .csv file, each also with .gz.

    Raises FileNotFoundError, or ValueError for an unknown extension or a broken line, whose number
    it gives (from 1).
    """
    path = Path(path)
    name = path.name.removesuffix(".gz")
    parsers = {".jsonl": _parse_jsonl, ".json": _parse_json, ".csv": _parse_csv}
    parser = parsers.get(Path(name).suffix)
    if parser is None:
        raise ValueError(f"{path}: unknown extension; expected one of {', '.join(FORMATS)}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; correct the path in the config")
    try:
        with _open_text(path) as handle:
            yield from parser(handle, path)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}, line {_line_that_is_not_utf8(path)}: not UTF-8 text ({error.reason}); save "
            "the file as UTF-8"
        ) from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: broken gzip file ({error}); copy it again") from error


def read_rows(path: str | Path) -> list[Row]:
    """Return all rows of a file, read by `iterate_rows`. Raises ValueError where there are none."""
    rows = list(iterate_rows(path))
    if not rows:
        raise ValueError(f"{path}: the dataset is empty; expected at least one row")
    return rows


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as UTF-8 JSON lines with sorted keys; folders are made as needed.

    Half a character (`require_whole`) in a column that nobody reads is written as its JSON escape,
    which looks like Python's. It reads back as it was.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as handle:
        for row in rows:
            handle.write(json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n")


def require_columns(
    rows: Sequence[Row], columns: Sequence[str], path: str | Path, key: str
) -> None:
    """Raise ValueError unless every row has every column. `key` is the config key that names
    them."""
    for number, row in enumerate(rows, start=1):
        for column in columns:
            if column in row:
                continue
            close = difflib.get_close_matches(column, list(row), n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(
                f"{path}, row {number}: no column {column!r}, which the config key {key} names. "
                f"Columns present: {', '.join(map(str, row)) or 'none'}.{hint}"
            )


def broken_character(text: str) -> str | None:
    """Return the first lone surrogate in a text. It is half of a character beyond U+FFFF, such as
    an emoji. JSON can write it (``"\\ud83d"``) and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return text[error.start]
    return None


def texts_of(cell: Any) -> Iterator[str]:
    """Yield the texts in a cell: the cell itself, or the contents of its messages."""
    if isinstance(cell, str):
        yield cell
    elif isinstance(cell, list | dict):
        for value in cell.values() if isinstance(cell, dict) else cell:
            yield from texts_of(value)


def require_whole(text: str, place: str) -> None:
    """Raise ValueError for a text that no tokenizer can read because it holds half a character.

    Args:
        place: file, row and field, for the message.
    """
    broken = broken_character(text)
    if broken is not None:
        at = text.index(broken)
        raise ValueError(
            f"{place} holds half a character, {broken!a} (a lone surrogate: an emoji that was cut, "
            f"for example), after {text[max(0, at - 30) : at]!a}: write the whole character or "
            "leave it out"
        )


def read_texts(rows: Sequence[Row], column: str, path: str | Path, key: str) -> list[str]:
    """Return the strings of one column. Raises ValueError where a cell is missing or no text."""
    require_columns(rows, [column], path, key)
    for number, row in enumerate(rows, start=1):
        if not isinstance(row[column], str):
            raise ValueError(
                f"{path}, row {number}: column {column!r} ({key}) must be text, got "
                f"{row[column]!r:.80}"
            )
        require_whole(row[column], f"{path}, row {number}: column {column!r} ({key})")
    return [row[column] for row in rows]


def read_label(value: Any, place: str) -> bool:
    """Return True for 1, "1" or true, and False for 0, "0" or false. CSV gives strings."""
    if str(value).lower() in ("1", "true", "1.0"):
        return True
    if str(value).lower() in ("0", "false", "0.0"):
        return False
    raise ValueError(f"{place} must be 1 (preferred) or 0 (not), got {value!r}")
