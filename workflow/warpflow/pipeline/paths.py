"""Paths of the user's own that a config names; ``~`` and ``$VARIABLES`` in them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

# Keys of a section that hold a path, beside those of prepare_data that end with _path.
KEYS = {
    "policy": ["path"],
    "train_reward_model": ["path"],
    "benchmark_policy": ["task_folder"],
}


def sections_with_paths(config: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Where a config may name a path of the user's: the key in words, the mapping that has it, and
    the key in there. A config that is not checked yet may be of any shape."""
    for section in KEYS:
        for key in KEYS[section]:
            yield from entry(section, config.get(section), key)
    files: Any = config.get("prepare_data")
    for key in keys(files):
        if key.endswith("_path"):
            yield from entry("prepare_data", files, key)
    comparisons: Any = config.get("compare_answers")
    for name in keys(comparisons):
        for kind in ("contestants", "judges"):
            given: Any = comparisons[name].get(kind) if keys(comparisons[name]) else None
            for who in keys(given):
                where = f"compare_answers.{name}.{kind}.{who}"
                for key in ("path", "answers", "reward_model"):
                    yield from entry(where, given[who], key)
                chat = given[who].get("chat") if keys(given[who]) else None
                yield from entry(f"{where}.chat", chat, "template")


def keys(section: Any) -> list[str]:
    """The keys of a mapping; none of anything else."""
    return [key for key in section if isinstance(key, str)] if isinstance(section, dict) else []


def entry(where: str, section: Any, key: str) -> Iterator[tuple[str, dict[str, Any], str]]:
    if key in keys(section) and isinstance(section[key], str):
        yield f"{where}.{key}", section, key


def expand_paths(config: Mapping[str, Any]) -> None:
    """Replace ``~``, ``$NAME`` and ``${NAME}`` in the paths of a config, in place. A variable that
    is not set stays as it is written."""
    for _, section, key in sections_with_paths(config):
        section[key] = os.path.expandvars(os.path.expanduser(section[key]))


def path_problems(config: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the paths of an expanded config, as text."""
    for key, section, name in sections_with_paths(config):
        path = section[name]
        if unset := re.search(r"\$(\w+|\{\w+\})", path):
            yield (
                f"- {key}: got {path!r}, but the environment has no variable {unset[0]}: set it, "
                "or write the path out"
            )
        elif path.startswith("~"):
            yield f"- {key}: got {path!r}, but there is no such user: write the path out"
        elif set(path) & set("{}\n"):
            yield (
                f"- {key}: got {path!r}, expected a path without braces and line breaks, which "
                "Snakemake would take for its own: rename the file or folder"
            )
