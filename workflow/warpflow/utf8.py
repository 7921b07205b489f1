"""Make UTF-8 Python's encoding, whatever the locale of the machine is."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def restart_in_utf8() -> None:
    """Start this Snakemake again in Python's UTF-8 mode, where the locale has another encoding.

    Snakemake hands values of the config to its jobs on command lines, which Python writes in the
    locale's encoding: Latin-1 has no character for most of them. The mode is fixed when Python
    starts. Jobs inherit it by PYTHONUTF8, and nothing has been started before this call.

    Raises:
        ValueError: Snakemake runs inside another program, which cannot be started again.
    """
    if sys.getfilesystemencoding() == "utf-8":
        return
    if "snakemake" not in Path(sys.argv[0]).parts[-2:]:  # .../bin/snakemake, snakemake/__main__.py
        raise ValueError(
            f"the locale's encoding is {sys.getfilesystemencoding()}, and texts here are UTF-8: "
            "set PYTHONUTF8=1 before Python starts, or a locale such as LC_ALL=C.UTF-8"
        )
    os.environ["PYTHONUTF8"] = "1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
