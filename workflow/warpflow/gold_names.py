"""Names of gold rewards, which are columns of the tables: `gold` for a single one, `gold.NAME` for
each where there are several."""

from __future__ import annotations

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


def gold_sources(given: Any) -> dict[str, str]:
    """Map the columns of `evaluate_policy.gold` to what scores them: package.module:function, the
    path or hub name of a reward model, or GOLD_RESULT, which is trained here."""
    is_named = isinstance(given, Mapping) and HELD_OUT not in given
    named = {f"{GOLD}.{name}": source for name, source in given.items()} if is_named else {}
    if given is not None and not is_named:
        named = {GOLD: given}
    return {
        column: GOLD_RESULT if isinstance(source, Mapping) else source
        for column, source in named.items()
        if source is not None
    }


def held_out_shares(given: Any) -> list[float]:
    """Return the shares of the preferences on which golds are trained."""
    if not isinstance(given, Mapping):
        return []
    if HELD_OUT in given:
        return [given[HELD_OUT]]
    return [share for source in given.values() for share in held_out_shares(source)]


def is_function(source: str) -> bool:
    """Whether a source is a function and not the path or hub name of a reward model."""
    return ":" in source
