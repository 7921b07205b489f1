"""Show what made a result: the tree of provenance.json files behind it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from warpflow.pipeline.contents import read_pointer


@dataclass(frozen=True)
class Source:
    """One result in the tree: what it is, a line about it, and what it was made from."""

    path: Path
    summary: str
    inputs: tuple[Path, ...]


def find_source(path: Path, project: Path) -> Source:
    """Return the result that a path belongs to.

    Args:
        path: a result's folder or anything in it (checkpoint/, checkpoint.dvc, evaluation.json …),
            a table of collect_evaluations/, or a figure.
        project: the project's root, from which recorded paths start.

    Raises:
        ValueError: nothing says how the path was made.
    """
    for folder in (path, *path.parents):
        # A merged checkpoint has its own provenance inside, without a job's key.
        file = folder / "provenance.json"
        if file.is_file() and "key" in json.loads(file.read_text(encoding="utf-8")):
            return job_source(folder, project)
        if folder.parent.name == "collect_evaluations":
            return table_source(folder)
        if folder == project:
            break
    figure = figure_source(path, project)
    if figure is None:
        raise ValueError(
            f"{path}: no provenance.json beside or above it, no table and no figure of dvc.lock; "
            "expected a path below the results folder, made by snakemake"
        )
    return figure


def job_source(folder: Path, project: Path) -> Source:
    """Return the source of a result that a job made."""
    record = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    inputs = {project / path: md5 for path, md5 in record["inputs"].items()}
    pointers = tuple(path for path in inputs if path.suffix == ".dvc")
    return Source(folder, describe(record, inputs), pointers)


def describe(record: dict[str, Any], inputs: dict[Path, str]) -> str:
    """Return the line about a job: key, script, time, versions, commit, and inputs changed
    since."""
    made_in = record["environment"]
    script = next((arg for arg in record["command"] if arg.endswith(".py")), record["command"][0])
    parts = [
        f"key {record['key'][:10]}",
        script,
        f"{record['seconds']} s on {', '.join(made_in['device'])}, {made_in['threads']} thread(s)",
        f"torch {made_in['packages']['torch']}",
        f"code {record['code']['hash'][:10]}",
    ]
    if made_in["git_commit"]:
        modified = " + changes" if made_in["git_modified"] else ""
        parts.append(f"commit {made_in['git_commit'][:10]}{modified}")
    for entry in record.get("accepted", []):
        parts.append(
            f"ACCEPTED by {entry['author']} on {entry['date']} for another code: {entry['reason']} "
            f"(key {entry['old_key'][:10]} → {entry['new_key'][:10]})"
        )
    changed = [str(path) for path, md5 in inputs.items() if is_changed(path, md5)]
    if changed:
        parts.append(f"CHANGED SINCE: {', '.join(changed)}")
    return "; ".join(parts)


def is_changed(path: Path, md5: str) -> bool:
    """Whether a pointer no longer names the content that went in."""
    return path.suffix == ".dvc" and (not path.is_file() or read_pointer(path)["md5"] != md5)


def table_source(folder: Path) -> Source:
    """Return the source of the tables of a group of experiments, made from their evaluations."""
    policies = dict.fromkeys(pd.read_csv(folder / "evaluations.csv")["policy"])
    evaluations = tuple(folder.parents[1] / "evaluate_policy" / policy for policy in policies)
    return Source(folder, f"tables of {len(evaluations)} evaluated policies", evaluations)


def figure_source(path: Path, project: Path) -> Source | None:
    """Return the source of a figure, a stage of dvc.lock with the path among its outputs."""
    if not (project / "dvc.lock").is_file():
        return None
    for name, stage in yaml.safe_load((project / "dvc.lock").read_text(encoding="utf-8"))[
        "stages"
    ].items():
        if any(project / out["path"] == path for out in stage["outs"]):
            tables = [project / dep["path"] for dep in stage["deps"] if dep["path"].endswith("csv")]
            folders = dict.fromkeys(table.parent for table in tables)
            return Source(path, f"stage {name} of dvc.yaml", tuple(folders))
    return None


def provenance_tree(path: Path, project: Path) -> Iterator[str]:
    """Yield the lines of the tree. A result that is drawn above is only named again."""
    yield from _branch(find_source(path, project), project, "", "", set())


def _branch(
    source: Source, project: Path, lead: str, indent: str, seen: set[Path]
) -> Iterator[str]:
    # Results outside the project are named in full.
    path = source.path
    name = path.relative_to(project) if path.is_relative_to(project) else path
    if source.path in seen:
        yield f"{lead}{name}  (above)"
        return
    seen.add(source.path)
    yield f"{lead}{name}  [{source.summary}]"
    for number, path in enumerate(source.inputs, start=1):
        is_last = number == len(source.inputs)
        yield from _branch(
            find_source(path, project),
            project,
            indent + ("└── " if is_last else "├── "),
            indent + ("    " if is_last else "│   "),
            seen,
        )
