"""Write the data folder from the user's own files. The flags are the keys of `prepare_data`.

A flag that is left out stands for null in the config.
Next in reading order: warpflow.data.prepare.prepare_data.
"""

from __future__ import annotations

import warpflow.quick_start  # noqa: F401  # first: see there

from collections.abc import Sequence
from pathlib import Path

from warpflow.cli import parse_arguments
from warpflow.data.prepare import PrepareArguments, prepare_data
from warpflow.settings.base import section


@section
class Arguments:
    """Arguments of the command line beside the settings."""

    out: str
    """The data folder to write."""


def main(argv: Sequence[str] | None = None) -> None:
    arguments, settings = parse_arguments(__doc__, argv, Arguments, PrepareArguments)
    for line in prepare_data(settings, Path(arguments.out)):
        print(line)


if __name__ == "__main__":
    main()
