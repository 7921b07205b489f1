"""Config files as text: keys that YAML would drop silently, and what paths mean."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from snakemake.utils import update_config

from warpflow.gold_names import is_endpoint

LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# The Snakefile reads these files before those of --configfile.
DEFAULTS = ("config/config.yaml", "config/ablations.yaml")
MERGE = "<<"  # YAML's key for "and all of that mapping", which may come twice
# Keys of paths, beside those that end with _path. A hub name has nothing that would be replaced.
PATHS = (
    *("results", "path", "task_folder", "answers", "template", "reward_model"),
    *("requirements", "gold"),
)


def read_config(paths: Iterable[str | Path]) -> dict[str, Any]:
    """Return the config of some files, each laid over those before it, as Snakemake does it.

    Raises:
        ValueError: a file has a key twice.
    """
    config: dict[str, Any] = {}
    for path in paths:
        if problems := list(repeated_keys(path)):
            raise ValueError("\n".join(problems))
        update_config(config, yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {})
    return expand_paths(config)


def expand_paths(config: Any, key: str = "") -> Any:
    """Replace `~` and variables of the environment ($SCRATCH, ${SCRATCH}) in the paths of a config.
    What is not known stays as it is, and `pipeline.config.check_paths` names it."""
    if key == "gold" and is_endpoint(config):
        return config  # its address is replaced when it is called
    if isinstance(config, Mapping):
        # Each gold reward has its own name.
        keys = {name: "gold" if key == "gold" else str(name) for name in config}
        return {name: expand_paths(value, keys[name]) for name, value in config.items()}
    if not isinstance(config, str) or not (key in PATHS or key.endswith("_path")):
        return config
    path = os.path.expandvars(os.path.expanduser(config))
    # Snakemake takes a//b and a/b for two files.
    return os.path.normpath(path) if key == "results" and path else path


def repeated_keys(path: str | Path) -> Iterator[str]:
    """Yield the keys that one mapping of a file has twice. YAML keeps only the last one."""
    text = Path(path).read_text(encoding="utf-8-sig")
    yield from (f"- {path}, {problem}" for problem in _repeated(yaml.compose(text, LOADER)))


def _repeated(node: yaml.Node | None, prefix: str = "") -> Iterator[str]:
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _repeated(item, prefix)
    if not isinstance(node, yaml.MappingNode):
        return
    first: dict[str, int] = {}
    for key, value in node.value:
        name, line = f"{prefix}{key.value}", key.start_mark.line + 1
        if key.value in first and key.value != MERGE:
            yield (
                f"line {line}: {name} stands in line {first[key.value]} already, which would be "
                "dropped: write it once"
            )
        first.setdefault(key.value, line)
        yield from _repeated(value, f"{name}.")
