"""Settings as a command line."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any


def flags(settings: Mapping[str, Any]) -> str:
    """Write settings as a command line: {"beta": 0.1, "etas": [0, 1]} → --beta 0.1 --etas 0 1. Null
    settings are left out.

    Keys are sorted by name. A config that is laid over another one may bring them in any order, and
    the same settings must be the same job.
    """
    return shlex.join(
        text
        for key, value in sorted(settings.items())
        if value is not None
        for text in (f"--{key}", *map(str, value if isinstance(value, list) else [value]))
    )
