"""Names of gold rewards, which are columns of the tables: `gold` for a single one, `gold.NAME` for
each where there are several."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

GOLD = "gold"
GOLD_RESULT = "train_gold_reward_model"
HELD_OUT = "held_out_preferences"


def gold_columns(columns: Iterable[Hashable]) -> list[str]:
    """Return the columns of gold rewards, in order, without those of their standard errors."""
    return [
        column
        for column in map(str, columns)
        if column == GOLD or (column.startswith(f"{GOLD}.") and not column.endswith("_se"))
    ]


def golds_by_column(given: Any) -> dict[str, Any]:
    """Map the columns of `evaluate_policy.gold` to what the config says about each."""
    named = {GOLD: given}
    if isinstance(given, Mapping) and HELD_OUT not in given and not is_endpoint(given):
        named = {f"{GOLD}.{name}": source for name, source in given.items()}
    return {column: source for column, source in named.items() if source is not None}


def gold_sources(given: Any) -> dict[str, str]:
    """Map the columns of `evaluate_policy.gold` to what scores them: package.module:function, the
    path or hub name of a reward model, GOLD_RESULT, which is trained here, or JSON with the url and
    version of an endpoint."""
    return {
        column: source_text(source) if isinstance(source, Mapping) else source
        for column, source in golds_by_column(given).items()
    }


def source_text(source: Mapping[str, Any]) -> str:
    if not is_endpoint(source):
        return GOLD_RESULT
    told = {key: source[key] for key in ("url", "version") if source.get(key) is not None}
    return json.dumps(told, sort_keys=True)


def held_out_shares(given: Any) -> list[float]:
    """Return the shares of the preferences on which golds are trained."""
    if not isinstance(given, Mapping):
        return []
    if HELD_OUT in given:
        return [given[HELD_OUT]]
    return [share for source in given.values() for share in held_out_shares(source)]


def is_endpoint(source: Any) -> bool:
    """Whether a source is an endpoint, as the config has it or as JSON."""
    return "url" in source if isinstance(source, Mapping) else str(source).startswith("{")


def is_function(source: str) -> bool:
    """Whether a source is a function, and not an endpoint or the path or hub name of a reward
    model."""
    return ":" in source and not is_endpoint(source)
