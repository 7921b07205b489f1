"""Content decides what runs again, not clocks.

Snakemake compares checksums only for inputs that are newer than the output, and Git and DVC leave
any times behind. So at start-up every input whose content is not the recorded one is made newer:
from then on the times tell Snakemake to look, and the contents decide.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

METADATA = Path(".snakemake/metadata")


def recorded_checksums(metadata: Path = METADATA) -> list[tuple[str, str]]:
    """(input, checksum) of every input that Snakemake recorded for any output."""
    pairs: list[tuple[str, str]] = []
    for path in metadata.rglob("*"):
        if not path.is_file():
            continue
        try:
            record = json.loads(path.read_text())
        except ValueError:
            continue  # cut short by a kill; Snakemake ignores such a record too
        pairs += (record.get("input_checksums") or {}).items()
    return pairs


def touch_changed_inputs(metadata: Path = METADATA) -> list[str]:
    """Make every input newer whose content is not the recorded one; returns their paths."""
    checksums: dict[str, str] = {}
    changed: set[str] = set()
    for path, recorded in recorded_checksums(metadata):
        if path not in checksums and os.path.isfile(path):
            with open(path, "rb") as file:
                checksums[path] = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        if checksums.get(path, recorded) != recorded:
            changed.add(path)
    for path in sorted(changed):
        os.utime(path)
    return sorted(changed)
