"""The command lines of the scripts: they turn flags into instances of models.

A model is a class with the decorator `warpflow.settings.base.section`. It is a section of the
config, or what a script takes beside it.
"""

from __future__ import annotations

from warpflow.quick_start import keep_imports

import argparse
import io
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ArgsKwargs

from warpflow.settings.base import described


def parse_arguments(description: str | None, argv: Sequence[str] | None, *models: type) -> Any:
    """Parse `argv`, by default that of the process, into one instance of each model.

    Fields become flags of the same spelling (`--learning_rate`). Those without a default are
    required. A list is written as ``--betas 0.1 0.3``, a mapping as JSON. A flag that is left out
    takes the field's default. An unknown flag is an error, and so is a value out of range.
    """
    keep_imports()
    write_utf8()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    hide_progress_bars()
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for model in models:
        add_flags(parser, model)
    texts = vars(parser.parse_args(argv))
    try:
        parsed = tuple(build(model, texts) for model in models)
    except ValueError as error:
        parser.error(str(error))
    return parsed


def add_flags(parser: argparse.ArgumentParser, model: Any) -> None:
    """Add a flag for each field. `argparse.SUPPRESS` leaves out what is not given."""
    help_of = described(model)
    for name, field in model.__pydantic_fields__.items():
        schema = TypeAdapter(field.rebuild_annotation()).json_schema()
        schema |= field.json_schema_extra or {}  # pydantic takes these off the annotation
        options = schema.get("anyOf", [schema])
        kinds = {option.get("type") for option in options}
        names = [str(value) for option in options for value in option.get("enum", [])]
        default = (
            ""
            if field.is_required()
            else f" Default: {show(field.get_default(call_default_factory=True))}"
        )
        is_truth = kinds == {"boolean"}
        parser.add_argument(
            f"--{name}",
            nargs="+" if "array" in kinds else "?" if is_truth else None,
            const="true" if is_truth else None,
            default=argparse.SUPPRESS,
            required=field.is_required(),
            metavar="|".join(names) or None,
            help=(help_of[name] + default).replace("%", "%%"),
        )


def show(default: Any) -> str:
    return json.dumps(default, ensure_ascii=False, default=str)


def build(model: Any, texts: Mapping[str, Any]) -> Any:
    """Make an instance of the model from the texts of its flags. Raises ValueError where one is
    wrong."""
    values = {}
    for name, field in model.__pydantic_fields__.items():
        if name in texts:
            try:
                values[name] = read_value(TypeAdapter(field.rebuild_annotation()), texts[name])
            except ValidationError as error:
                raise ValueError(f"argument --{name}: {summary(error)}") from None
    try:
        return model(**values)
    except ValidationError as error:
        raise ValueError(summary(error)) from None


def read_value(adapter: TypeAdapter[Any], text: str | list[str]) -> Any:
    """Return the value that the text of a flag, or the texts of a list's entries, stand for."""
    others: list[Any] = []
    if isinstance(text, list) and len(text) == 1:
        others = text  # for a setting that is a list or one value
    elif isinstance(text, str) and text.startswith("{"):
        others = [json.loads(text)]
    try:
        return adapter.validate_python(text, strict=False)
    except ValidationError:
        for other in others:
            return adapter.validate_python(other, strict=False)
        raise


def summary(error: ValidationError) -> str:
    """Return the errors of pydantic on one line. The error of a model's own check keeps its
    words."""
    lines = []
    for found in error.errors(include_url=False):
        text = found["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        is_own = found["type"] == "value_error" and isinstance(found["input"], ArgsKwargs | dict)
        lines.append(text if is_own else f"got {found['input']!r}, expected {text}")
    return "; ".join(lines)


def write_utf8() -> None:
    """Make this process print UTF-8 whatever the locale is, as its log is UTF-8. A Latin-1 locale
    could not write most characters, and the job would fail because of its own message."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def hide_progress_bars() -> None:
    """Hide the progress bars of transformers, which would fill the log of a job. Not every script
    loads transformers."""
    if "transformers" in sys.modules:
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
