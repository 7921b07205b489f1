"""Write config/README.md from config/schema.yaml and the defaults in config/config.yaml.

`--check` writes nothing and fails where the file is not what it would write.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

CONFIG = Path(__file__).parents[1] / "config"

HEAD = """# Configuration

`config/config.yaml` holds the default of every key. Lay your own file over it and name only what
differs: `snakemake --cores all --configfile config/mine.yaml`. Unknown keys, wrong types and values
out of range are errors before any job starts. A changed key re-runs what it changes.

Written by `make docs` from `config/schema.yaml`; edit that.

| key | default | meaning |
|---|---|---|
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="compare only")
    arguments = parser.parse_args(argv)
    schema, defaults = (
        yaml.safe_load((CONFIG / name).read_text()) for name in ("schema.yaml", "config.yaml")
    )
    text = HEAD + "".join(f"{line}\n" for line in rows(schema["properties"], defaults))
    target = CONFIG / "README.md"
    if not arguments.check:
        target.write_text(text)
    elif not target.is_file() or target.read_text() != text:
        sys.exit("config/README.md does not follow config/schema.yaml: run `make docs`")


def rows(properties: Mapping[str, Any], defaults: Any, prefix: str = "") -> Iterator[str]:
    """A table row per key, sections before their keys."""
    for name, schema in properties.items():
        default = defaults.get(name) if isinstance(defaults, dict) else None
        description = schema.get("description", "").replace("|", "\\|")
        inner = schema.get("properties")
        named = schema.get("additionalProperties")  # of experiments: keys below any name
        named = named.get("properties", {}) if isinstance(named, dict) else {}
        shown = "" if inner or named or name == "ablations" else f"`{yaml_inline(default)}`"
        key = f"**{prefix}{name}**" if inner else f"`{prefix}{name}`"
        yield f"| {key} | {shown} | {description} |"
        if inner:
            yield from rows(inner, default, f"{prefix}{name}.")
        for key in named:
            if key not in properties:
                default = (
                    f"`{yaml_inline(named[key]['default'])}`" if "default" in named[key] else ""
                )
                yield f"| `{prefix}{name}.NAME.{key}` | {default} | {named[key]['description']} |"


def yaml_inline(value: Any) -> str:
    """A value as YAML on one line."""
    dumped = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False)
    return dumped.strip().removesuffix("\n...").strip()


if __name__ == "__main__":
    main()
