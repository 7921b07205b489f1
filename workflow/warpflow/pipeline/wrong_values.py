"""Say what is wrong with the values of a config, in terms of its keys."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from warpflow.settings.base import SchemaOfSections, described
from warpflow.settings.config import LEFT_OUT, Config

ADAPTER = TypeAdapter(Config)
OTHER_TYPE_ERRORS = ("literal_error", "finite_number")  # beside those that end with _type
LIMITS = {
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "greater_than": "more than {gt}",
    "less_than": "less than {lt}",
    "too_short": "at least {min_length} of them",
    "too_long": "at most {max_length} of them",
    "string_pattern_mismatch": "text like {pattern}",
    "value_error": "{error}",
}


def missing_keys(given: Mapping[str, Any], defaults: Any, prefix: str = "") -> Iterator[str]:
    """Yield the keys that the default config has and the given one lacks."""
    for name in set(described(type(defaults))) - set(LEFT_OUT):
        default = getattr(defaults, name)
        if name not in given:
            yield f"- {prefix}{name}: missing; see config/README.md"
        elif is_dataclass(default) and isinstance(given[name], Mapping):
            yield from missing_keys(given[name], default, f"{prefix}{name}.")


def wrong_values(config: Mapping[str, Any]) -> list[str]:
    """Return what the models of the sections object to, in terms of the config's keys."""
    try:
        ADAPTER.validate_python(config)
        return []
    except ValidationError as error:
        found = [(config_path(e["loc"], config), e) for e in error.errors(include_url=False)]
    # Where a setting may have two types, pydantic tries both. It has one of them if there is
    # another error about what is below it or about its range.
    explained = {
        path[:length]
        for path, error in found
        for length in range(len(path) + (not is_type_error(error)))
    }
    return list(
        dict.fromkeys(
            describe(path, error)
            for path, error in found
            if not (is_type_error(error) and path in explained)
        )
    )


def config_path(location: Sequence[str | int], config: Any) -> tuple[str | int, ...]:
    """Return where an error is, in keys of the config. pydantic also names the types that it
    tried."""
    path: list[str | int] = []
    for part in location:
        if part in config if isinstance(config, Mapping) else isinstance(part, int):
            path.append(part)
            config = config[part]
    return tuple(path)


def is_type_error(error: Mapping[str, Any]) -> bool:
    return error["type"].endswith("_type") or error["type"] in OTHER_TYPE_ERRORS


def describe(path: Sequence[str | int], error: Mapping[str, Any]) -> str:
    """Return one line about an error of pydantic."""
    key, kind, value = ".".join(map(str, path)), error["type"], error["input"]
    if kind in ("missing", "missing_argument"):
        return f"- {key}.{error['loc'][-1]}: missing; see config/README.md"
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        known = [name for node in schemas_at(path[:-1]) for name in node.get("properties", {})]
        return f"- {key}: unknown key{closest(str(path[-1]), known)}"
    if error["loc"][-1] == "[key]" and kind == "value_error":
        return f"- {key}: {error['ctx']['error']}"
    hint = ""
    if isinstance(value, str) and is_number(value):
        hint = f"; YAML reads {value} as text: write it as {float(value):.1e}"
    return f"- {key}: got {value!r}, expected {expectation(path, error)}{hint}"


def closest(name: str, known: list[str]) -> str:
    """Return a suggestion for a misspelt key."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known keys: {', '.join(sorted(known))}"


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def expectation(path: Sequence[str | int], error: Mapping[str, Any]) -> str:
    """Return what the setting must be."""
    if is_type_error(error):
        return " or ".join(map(expected_type, schemas_at(path)))
    limits = {
        key: f"{value:g}" if isinstance(value, float) else value
        for key, value in error.get("ctx", {}).items()
    }
    return LIMITS.get(error["type"], error["msg"]).format(**limits)


def expected_type(node: Mapping[str, Any]) -> str:
    if "enum" in node:
        return "one of " + ", ".join(map(str, node["enum"]))
    return str(node.get("const", node.get("type", "a value")))


@functools.cache
def json_schema() -> dict[str, Any]:
    """Return the models as JSON Schema, as in config/schema.yaml."""
    return ADAPTER.json_schema(schema_generator=SchemaOfSections)


def schemas_at(path: Sequence[str | int]) -> list[dict[str, Any]]:
    """Return the alternatives that the JSON Schema has for a key of the config."""
    nodes = alternatives(json_schema())
    for part in path:
        nodes = [option for node in nodes for option in alternatives(child(node, part))]
    return nodes


def child(node: Mapping[str, Any], part: str | int) -> dict[str, Any]:
    """Return the JSON Schema of a key or of an entry of a list, or an empty one where it has
    none."""
    if isinstance(part, int):
        return node.get("items", {})
    named = [*node.get("patternProperties", {}).values(), node.get("additionalProperties")]
    found = node.get("properties", {}).get(part, named[0])
    return found if isinstance(found, dict) else {}


def alternatives(node: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the types that a setting may have, with references followed."""
    if "$ref" in node:
        return alternatives(json_schema()["$defs"][node["$ref"].rpartition("/")[2]])
    if "anyOf" in node:
        return [leaf for option in node["anyOf"] for leaf in alternatives(option)]
    return [node] if node else []
