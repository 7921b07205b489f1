"""The run's tables: one row per thing measured, one column per quantity."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

KEYS = [
    "experiment",
    "stage",
    "iteration",
    "member",
    "towards",
    "eta",
    "anchor",
    "beta",
    "mu",
    "members",
    "merge_method",
    "merge_weight",
    "policy",
]


def read_evaluation(results: str, policy: str) -> dict[str, Any]:
    """`evaluation.json` of one policy: its metrics and completions."""
    return json.loads(Path(results, "evaluate_policy", policy, "evaluation.json").read_text())


def evaluations_table(results: str, rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """evaluations.csv: the identifying columns (`plan.evaluations`) and the metrics of each."""
    table = pd.DataFrame([row | read_evaluation(results, row["policy"])["metrics"] for row in rows])
    table = table.reindex(columns=KEYS + [c for c in table.columns if c not in KEYS])
    return table.astype({"iteration": "Int64", "member": "Int64", "members": "Int64"})


def completions_table(results: str, rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """completions.csv: the stored completions of every evaluated policy, each policy once."""
    policies = dict.fromkeys(row["policy"] for row in rows)
    return pd.DataFrame(
        [
            {"policy": policy, **completion}
            for policy in policies
            for completion in read_evaluation(results, policy)["completions"]
        ]
    )


def stacked_table(
    results: str, entries: Sequence[Sequence[Any]], keys: Sequence[str], name: str
) -> pd.DataFrame:
    """One CSV of many checkpoints under one another, with `keys` in front.

    Args:
        entries: the values of `keys` and, last, the result whose checkpoint holds file `name`.
    """
    parts = []
    for *values, result in entries:
        part = pd.read_csv(Path(results, result, "checkpoint", name))
        for position, (key, value) in enumerate(zip(keys, values, strict=True)):
            part.insert(position, key, value)
        parts.append(part)
    filled = [part for part in parts if len(part)]  # M = 1 has no pairs, and so no geometry
    return pd.concat(filled or parts, ignore_index=True)


def metrics_document(evaluations: pd.DataFrame) -> dict[str, Any]:
    """metrics.json for `dvc metrics`: reward, KL and gold of every front, by experiment,
    iteration and η."""
    document: dict[str, Any] = {}
    points = evaluations[evaluations.stage == "interpolate_policy"]
    for row in points.to_dict("records"):
        front = document.setdefault(str(row["experiment"]), {}).setdefault(
            f"iteration{row['iteration']}", {}
        )
        values = {name: row[name] for name in ("reward", "kl_exact", "gold") if pd.notna(row[name])}
        front[f"{row['towards']}_eta{row['eta']:g}"] = {k: round(v, 4) for k, v in values.items()}
    return document
