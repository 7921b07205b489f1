"""Command lines of the scripts: dataclasses of arguments in, an instance of each out."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Any

from transformers import HfArgumentParser
from transformers.utils import logging as transformers_logging


def parse_arguments(description: str | None, argv: Sequence[str] | None, *classes: type) -> Any:
    """Parse `argv` (default: the process's) into one instance of each dataclass.

    Fields become flags of the same spelling (`--learning_rate`); those without a default are
    required. An unknown flag is an error.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    transformers_logging.disable_progress_bar()
    parser = HfArgumentParser(
        classes,  # type: ignore[arg-type]
        description=description,
    )
    return parser.parse_args_into_dataclasses(args=list(sys.argv[1:] if argv is None else argv))
