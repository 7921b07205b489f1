"""The run's tables: one row per thing measured, one column per quantity."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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

METRICS = ("eta", "reward", "gold", "kl_exact", "length", "unfinished", "self_similarity")


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
    results: str, entries: Mapping[Any, str], keys: Sequence[str], name: str
) -> pd.DataFrame:
    """One CSV of many checkpoints under one another, with `keys` in front.

    Args:
        entries: the values of `keys` → the result whose checkpoint holds file `name`.
    """
    parts = []
    for values, result in entries.items():
        part = pd.read_csv(Path(results, result, "checkpoint", name))
        for position, (key, value) in enumerate(zip(keys, values, strict=True)):
            part.insert(position, key, value)
        parts.append(part)
    filled = [part for part in parts if len(part)]  # M = 1 has no pairs, and so no geometry
    return pd.concat(filled or parts, ignore_index=True)


def metrics_documents(evaluations: pd.DataFrame) -> dict[str, dict[str, float]]:
    """The headline of each experiment and iteration for `dvc metrics`: the point of its front
    with the largest η up to 1 (the merged policy itself, usually). The fronts are in
    evaluations.csv, for `dvc plots`."""
    points = evaluations[(evaluations.stage == "interpolate_policy") & (evaluations.eta <= 1)]
    documents = {}
    for (experiment, iteration), front in points.groupby(["experiment", "iteration"], sort=False):
        row = front.sort_values("eta").iloc[-1]
        values = {name: row[name] for name in METRICS if pd.notna(row.get(name))}
        documents[f"{experiment}.iteration{iteration}"] = {
            name: float(f"{value:.6g}") for name, value in values.items()
        }
    return documents
