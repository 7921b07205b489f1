"""Content decides what runs again, and not file times.

Snakemake compares checksums only for inputs that are newer than the output, and Git and DVC leave
arbitrary times behind. So every rule has a parameter that says with which contents of its inputs
its output was made (rules/start.smk). As long as the contents are those that Snakemake recorded,
the parameter is the recorded one. Once they are not, it says what differs, and Snakemake runs the
rule because a parameter changed. A dry run changes no file's time, and files of others may be
read-only.
"""

from __future__ import annotations

import ast
import base64
import json
from functools import cached_property
from pathlib import Path
from typing import Any

from warpflow.pipeline.contents import checksum
from warpflow.pipeline.model_contents import model_content
from warpflow.pipeline.point_jobs import listed_files

METADATA = Path(".snakemake/metadata")
FORMAT = 6  # the format of Snakemake's records, from which parameters are read
FIRST = "made first"
PREFIX = "inputs: "


class Records:
    """Snakemake's records of outputs: a folder of JSON files, read when first needed."""

    def __init__(self, folder: Path = METADATA, results: Path = Path("results")) -> None:
        self.folder = folder
        self.results = results
        self.checksums: dict[str, str] = {}

    def of(self, output: str) -> dict[str, Any]:
        """Return the record of an output. It is empty where there is none or a kill cut it short,
        as for Snakemake."""
        try:
            return json.loads(self.path(output).read_bytes())
        except (FileNotFoundError, ValueError):
            return {}

    def path(self, output: str) -> Path:
        """Return the file of a record. Snakemake names it by its output in base64, in folders where
        that is long."""
        name = base64.urlsafe_b64encode(output.encode()).decode()
        *folders, last = [name[i : i + 254] for i in range(0, len(name), 254)]
        return Path(self.folder, *(f"@{folder}" for folder in folders), last)

    @cached_property
    def problem(self) -> str | None:
        """Say why these records cannot be read. It is said once, and nothing is guessed."""
        for path in self.folder.rglob("*"):
            if path.is_file():
                try:
                    version = json.loads(path.read_bytes()).get("record_format_version", FORMAT)
                except ValueError:
                    continue  # a kill cut it short
                if version > FORMAT:
                    return (
                        f"{path} has record format {version}, this project reads up to {FORMAT}: "
                        "a newer Snakemake wrote it. Install the Snakemake of requirements.lock, "
                        "or a newer version of this project"
                    )
                return None
        return None

    def inputs_of(self, output: str) -> str:
        """Return the parameter for an output: the recorded one while the contents of its inputs are
        the recorded ones, else what differs."""
        record = self.of(output)
        recorded = next((p for p in map(as_text, record.get("params") or []) if p), None)
        differs = [f"{path} {old[7:15]} → {new[7:15]}" for path, (old, new) in self.changed(record)]
        differs += self.altered(Path(output))
        differs += other_models(Path(output))
        return PREFIX + ", ".join(differs) if differs else recorded or PREFIX + FIRST

    def altered(self, output: Path) -> list[str]:
        """Return the files that an output lists as made beside it (`point_jobs.listed_files`) and
        that have changed since."""
        return [
            f"{path} was {'altered' if Path(path).is_file() else 'removed'}"
            for path, made in listed_files(output, self.results)
            if self.checksum(path) != made
        ]

    def changed(self, record: dict[str, Any]) -> list[tuple[str, tuple[str, str]]]:
        """Return the inputs of a record whose content has changed, with both checksums. Missing
        inputs are left to Snakemake."""
        found = []
        for path, old in sorted((record.get("input_checksums") or {}).items()):
            new = self.checksum(path)
            if new is not None and new != old:
                found.append((path, (old, new)))
        return found

    def checksum(self, path: str) -> str | None:
        """Return the checksum of a file's content, as Snakemake writes it. Each file is read
        once."""
        if path not in self.checksums:
            if not Path(path).is_file():
                return None
            self.checksums[path] = checksum(Path(path))
        return self.checksums[path]


def other_models(output: Path) -> list[str]:
    """Return the user's models that a job read, as its provenance.json says, and that were
    overwritten since."""
    file = output.with_name("provenance.json")
    if output.suffix != ".json" or not file.is_file():
        return []
    read = json.loads(file.read_bytes()).get("models", {})
    now = {model: model_content(model) for model in read}
    return [
        f"{model} {read[model][:8]} → {content[:8]}"
        for model, content in now.items()
        if content is not None and content != read[model]
    ]


def as_text(parameter: str) -> str | None:
    """Return a recorded parameter (a repr) as text, where it comes from `Records.inputs_of`."""
    try:
        value = ast.literal_eval(parameter)
    except (ValueError, SyntaxError):
        return None
    return value if isinstance(value, str) and value.startswith(PREFIX) else None


def results_without_records(results: str, records: Records) -> str | None:
    """Say what to do where results are there and Snakemake has no record of them. It would take
    them as they are, whatever has changed since."""
    made = sorted(Path(results).rglob("provenance.json"))
    made = [path for path in made if path.parent.name not in ("checkpoint", "data", "tables")]
    if not made or any(records.path(str(path)).is_file() for path in made):
        return None
    return (
        f"{results} holds {len(made)} results ({made[0]} and others), but {records.folder} has no "
        "record of them, so that Snakemake cannot know what they were made from. Bring the records "
        f"back (`git checkout -- {records.folder}`; they are kept in Git), or start Snakemake "
        "without --persistence-backend, which keeps records elsewhere. Without records, let every "
        f"result be looked up again: `find {results} -name provenance.json -delete`, then the same "
        "command; what DVC's cache holds is not computed again"
    )
