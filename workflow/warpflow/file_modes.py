"""Set the modes of files that jobs write."""

from __future__ import annotations

import os
from pathlib import Path


def make_readable(folder: str | Path) -> None:
    """Give every file the mode that the umask asks for. safetensors always writes 0600, which makes
    a shared cache unreadable to colleagues."""
    umask = os.umask(0)
    os.umask(umask)
    for path in Path(folder).rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~umask)
