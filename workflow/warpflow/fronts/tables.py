"""The tables of a run, with one row per measured thing and one column per quantity."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from warpflow.gold_names import gold_columns

KEYS = [
    "experiment",
    "replicate",
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

BENCHMARK_KEYS = ["task", "metric", "filter", "value", "value_se", "n"]
BENCHMARK_METRICS = ["kl_exact", "kl_exact_se", "reward", "reward_se"]

METRICS = ("eta", "reward", "kl_exact", "length", "unfinished", "self_similarity")


def read_evaluation(results: str, policy: str) -> dict[str, Any]:
    """Return `evaluation.json` of one policy, with its metrics and completions."""
    return json.loads(
        Path(results, "evaluate_policy", policy, "evaluation.json").read_text(encoding="utf-8")
    )


def evaluations_table(results: str, rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Return evaluations.csv: the identifying columns (`plan.evaluations`) and the metrics of each
    row."""
    table = pd.DataFrame([row | read_evaluation(results, row["policy"])["metrics"] for row in rows])
    table = table.reindex(columns=KEYS + [c for c in table.columns if c not in KEYS])
    return table.astype(dict.fromkeys(("replicate", "iteration", "member", "members"), "Int64"))


def mean_of_replicates(evaluations: pd.DataFrame) -> pd.DataFrame:
    """Return one row for all replicates of a policy, with the means of its metrics and the first
    `policy`.

    The error √(mean se² + s²/R) has a part of the prompts, which more replicates on the same
    prompts do not reduce, and a part of the replicates, with s their standard deviation. It is
    conservative, since s has some of the prompts' noise too.
    """
    replicates = evaluations["replicate"].nunique()
    if replicates < 2:
        return evaluations
    keys = [key for key in KEYS if key not in ("replicate", "policy")]
    rows = evaluations.groupby(keys, dropna=False, sort=False)
    first = rows[["replicate", "policy"]].first()
    metrics = evaluations.select_dtypes("number").columns.difference([*keys, "replicate"])
    mean = rows[list(metrics)].mean()
    for error in [column for column in metrics if column.endswith("_se")]:
        spread = rows[error.removesuffix("_se")].var() / rows.size()
        mean[error] = (rows[error].agg(lambda e: (e**2).mean()) + spread) ** 0.5
    return first.join(mean).reset_index().reindex(columns=evaluations.columns)


def completions_table(results: str, rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Return completions.csv: the stored completions of every evaluated policy, each policy
    once."""
    policies = dict.fromkeys(row["policy"] for row in rows)
    return pd.DataFrame(
        [
            {"policy": policy, **completion}
            for policy in policies
            for completion in read_evaluation(results, policy)["completions"]
        ]
    )


def read_trajectory(results: str, folder: str, member: int, kind: str) -> list[dict[str, Any]]:
    """Return the rows of an RL run in the trajectories.json of its iteration.

    Args:
        folder, member: where the run is scored (`experiments.trajectory_of`).
        kind: ``trajectories`` for the means of each point, or ``prompts`` for the values of every
            prompt.
    """
    rows = json.loads(Path(results, folder, "trajectories.json").read_text(encoding="utf-8"))[kind]
    return [
        {key: value for key, value in row.items() if key != "member"}
        for row in rows
        if row["member"] == member
    ]


def trajectories_table(
    results: str, entries: Mapping[Any, tuple[str, int]], keys: Sequence[str]
) -> pd.DataFrame:
    """Return trajectories.csv: the points of all RL runs, one run below the other, with `keys` in
    front.

    Args:
        entries: maps the values of `keys` to where the run is scored (`experiments.trajectory_of`).
    """
    parts = {
        values: pd.DataFrame(read_trajectory(results, folder, member, "trajectories"))
        for values, (folder, member) in entries.items()
    }
    return stacked(parts, keys)


def stacked_table(
    results: str, entries: Mapping[Any, str], keys: Sequence[str], name: str
) -> pd.DataFrame:
    """Return one CSV of many results, one below the other, with `keys` in front.

    Args:
        entries: maps the values of `keys` to the result in whose folder file `name` is.
    """
    return stacked(
        {values: pd.read_csv(Path(results, result, name)) for values, result in entries.items()},
        keys,
    )


def stacked(parts: Mapping[Any, pd.DataFrame], keys: Sequence[str]) -> pd.DataFrame:
    """Stack tables, each with its values of `keys` in front."""
    for values, part in parts.items():
        for position, (key, value) in enumerate(zip(keys, values, strict=True)):
            part.insert(position, key, value)
    # A single policy has no pairs, and so its table of angles is empty.
    filled = [part for part in parts.values() if len(part)]
    return pd.concat(filled or list(parts.values()), ignore_index=True)


def metrics_documents(evaluations: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Return the main numbers of each experiment and iteration for `dvc metrics`. They are those of
    the point of its front with the largest η up to 1 (usually the merged policy itself), averaged
    over replicates. The fronts are in evaluations.csv, for `dvc plots`."""
    points = evaluations[(evaluations.stage == "interpolate_policy") & (evaluations.eta <= 1)]
    documents = {}
    metrics = [*METRICS[:2], *gold_columns(points), *METRICS[2:]]
    for (experiment, iteration), front in points.groupby(["experiment", "iteration"], sort=False):
        row = front[front.eta == front.eta.max()].reindex(columns=metrics).mean()
        values = row.dropna().to_dict()
        documents[f"{experiment}.iteration{iteration}"] = {
            name: float(f"{value:.6g}") for name, value in values.items()
        }
    return documents


def benchmarks_table(results: str, points: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return benchmarks.csv: what each point scored, with its KL and reward."""
    rows = []
    for point in points:
        file = Path(results, "benchmark_policy", point["policy"], "benchmarks.json")
        metrics = read_evaluation(results, point["policy"])["metrics"]
        beside = {name: metrics[name] for name in BENCHMARK_METRICS}
        rows += [
            {**row, **point, **beside}
            for row in json.loads(file.read_text(encoding="utf-8"))["rows"]
        ]
    return pd.DataFrame(
        rows,
        columns=[*BENCHMARK_KEYS, "experiment", "iteration", "eta", *BENCHMARK_METRICS, "policy"],
    )
