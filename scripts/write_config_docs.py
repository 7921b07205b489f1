"""Write config.yaml, schema.yaml and README.md of config/ from workflow/warpflow/settings.

The `experiments` of config.yaml are data and stay as they are in that file. `--check` writes
nothing and fails where a file differs from what would be written.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import yaml

from warpflow.pipeline.wrong_values import alternatives, json_schema
from warpflow.settings.base import described
from warpflow.settings.config import LEFT_OUT, Config

CONFIG = Path(__file__).parents[1] / "config"
UNBROKEN = "\N{NO-BREAK SPACE}"  # a comment is not wrapped here
WIDTH, COMMENTS = 100, 28  # of a line, and the first column of a comment beside a key

CONFIG_HEAD = """config/README.md describes every key. `make config-docs` writes this file from
workflow/warpflow/settings and keeps its experiments. For runs of your own, lay a file over it."""

SCHEMA_HEAD = """# JSON Schema of the config, for editors. `make config-docs` writes this file from
# workflow/warpflow/settings; edit that.
"""

README_HEAD = """# Configuration

`config/config.yaml` holds the default of every key. Lay your own file over it and name only what
differs: `snakemake --cores all --configfile config/mine.yaml`. Unknown keys, wrong types and values
out of range are errors before any job starts. A changed key re-runs what it changes.

`make config-docs` writes this file from `workflow/warpflow/settings`; edit that.

| key | default | meaning |
|---|---|---|
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="compare only")
    arguments = parser.parse_args(argv)
    kept = yaml.safe_load((CONFIG / "config.yaml").read_text(encoding="utf-8"))["experiments"]
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"} | one_line(json_schema())
    texts = {
        "config.yaml": "\n".join(config_lines(Config(experiments=kept), kept)) + "\n",
        "schema.yaml": SCHEMA_HEAD + dump(schema, width=WIDTH),
        "README.md": README_HEAD + "".join(f"{line}\n" for line in rows(schema, Config())),
    }
    changed = [
        name
        for name, text in texts.items()
        if not (CONFIG / name).is_file() or (CONFIG / name).read_text(encoding="utf-8") != text
    ]
    if arguments.check and changed:
        sys.exit(
            f"config/{', config/'.join(changed)}: not what workflow/warpflow/settings says. "
            "Edit the settings there, then run `make config-docs`"
        )
    for name in changed:
        (CONFIG / name).write_text(texts[name], encoding="utf-8")


# --- config.yaml -------------------------------------------------------------------------------


def config_lines(config: Config, experiments: Mapping[str, Any]) -> Iterator[str]:
    """Yield the default config: sections in order, each key with the first sentence about it."""
    yield from comment_block(f"{Config.__doc__} {CONFIG_HEAD}")
    was_section = True
    for name, text in described(Config).items():
        value = getattr(config, name)
        if name in LEFT_OUT and not is_dataclass(value):
            continue
        is_section = is_dataclass(value) or isinstance(value, dict)
        if is_section or was_section:
            yield ""
        was_section = is_section
        if isinstance(value, dict):
            yield from comment_block(text)
            yield from mapping_lines(name, experiments if name == "experiments" else value)
        elif name in LEFT_OUT:
            yield from with_comment(f"{name}: {{}}", str(type(value).__doc__))
        elif is_dataclass(value):
            yield from with_comment(f"{name}:", str(type(value).__doc__))
            yield from section_lines(value)
        else:
            yield from with_comment(f"{name}: {yaml_inline(value)}", text)


def section_lines(section: Any) -> Iterator[str]:
    """Yield the keys of a section."""
    for name, text in described(type(section)).items():
        value = getattr(section, name)
        if isinstance(value, dict):
            yield from with_comment(f"  {name}:", text)
            yield from (f"    {key}: {yaml_inline(inner)}" for key, inner in value.items())
        else:
            yield from with_comment(f"  {name}: {yaml_inline(value)}", text)


def mapping_lines(name: str, values: Mapping[str, Any]) -> Iterator[str]:
    """Yield keys of the user's own choice, each with its value on one line, or below it."""
    yield f"{name}:" if values else f"{name}: {{}}"
    for key, value in values.items():
        line = f"  {key}: {yaml_inline(value)}"
        if len(line) <= WIDTH:
            yield line
        else:
            yield f"  {key}:"
            yield from textwrap.wrap(
                yaml_inline(value),
                WIDTH,
                initial_indent="    ",
                subsequent_indent="     ",
                break_on_hyphens=False,
            )


def with_comment(entry: str, description: str) -> Iterator[str]:
    """Yield a line with a comment after it, which continues below where it is long."""
    start = max(COMMENTS, len(entry) + 2)
    first, *rest = textwrap.wrap(summary(description), WIDTH - start - 2, break_on_hyphens=False)
    yield f"{entry:{start}}# {first}".replace(UNBROKEN, " ")
    yield from (f"{'':{start}}# {line}".replace(UNBROKEN, " ") for line in rest)


def summary(description: str) -> str:
    """Return the first sentence, and the paper's value where there is one."""
    text = " ".join(description.split())
    first = re.split(r"\.(?:\s|$)", text, maxsplit=1)[0]
    paper = re.search(r"Paper([^:]*: .*)\.$", text)
    if not paper or "Paper" in first:
        return first
    return first + f" (paper{paper[1]})".replace(" ", UNBROKEN).replace(UNBROKEN, " ", 1)


def comment_block(text: str) -> Iterator[str]:
    yield from (
        f"# {line}" for line in textwrap.wrap(" ".join(text.split()), 98, break_on_hyphens=False)
    )


# --- README.md and schema.yaml -----------------------------------------------------------------


def rows(schema: Mapping[str, Any], defaults: Any, prefix: str = "") -> Iterator[str]:
    """Yield a table row per key, with sections before their keys."""
    for name, node in schema["properties"].items():
        default = getattr(defaults, name)
        options = [one_line(option) for option in alternatives(node)]
        text = (node.get("description") or options[0].get("description", "")).replace("|", "\\|")
        if is_dataclass(default):
            yield f"| **{prefix}{name}** |  | {text} |"
            yield from rows(options[0], default, f"{prefix}{name}.")
            continue
        shown = "" if default == {} else f"`{yaml_inline(default)}`"
        yield f"| `{prefix}{name}` | {shown} | {text} |"
        for key, inner in named_properties(options[0]).items():
            if "description" in inner:
                default = f"`{yaml_inline(inner['default'])}`" if "default" in inner else ""
                yield f"| `{prefix}{name}.NAME.{key}` | {default} | {inner['description']} |"


def named_properties(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys below any name of a mapping whose keys are names of the user's choice."""
    below = [*node.get("patternProperties", {}).values(), node.get("additionalProperties")][0]
    options = alternatives(below) if isinstance(below, dict) else []
    return one_line(next((o["properties"] for o in options if "properties" in o), {}))


def one_line(node: Any) -> Any:
    """Return a part of a JSON Schema with its descriptions on one line each."""
    if isinstance(node, dict):
        return {
            key: " ".join(inner.split())
            if key == "description" and isinstance(inner, str)
            else one_line(inner)
            for key, inner in node.items()
        }
    return [one_line(inner) for inner in node] if isinstance(node, list) else node


def dump(value: Any, **options: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, **options)


def yaml_inline(value: Any) -> str:
    """Return a value as YAML on one line."""
    dumped = dump(value, default_flow_style=True, width=10_000)
    return dumped.strip().removesuffix("\n...").strip()


if __name__ == "__main__":
    main()
