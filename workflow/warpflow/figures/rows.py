"""The rows of the tables that figures draw: fronts, single policies, distinct runs, SFT."""

from collections.abc import Iterator, Sequence

import pandas as pd


def liti_fronts(evaluations: pd.DataFrame) -> pd.DataFrame:
    """Return the interpolations in groups (experiment, iteration, towards) with two or more η."""
    rows = evaluations[evaluations["stage"] == "interpolate_policy"]
    groups = rows.groupby(["experiment", "iteration", "towards"], dropna=False)
    return rows[groups["eta"].transform("nunique") > 1]


def single_policies(evaluations: pd.DataFrame) -> pd.DataFrame:
    """Return rows that no front or λ sweep draws: trained members and interpolations at a single η.

    A policy that several experiments share is kept once, for the first of them.
    """
    in_front = evaluations["policy"].isin(liti_fronts(evaluations)["policy"])
    # The merge of one member at η = 1 is that member again, under another path.
    repeats = (evaluations["stage"] == "interpolate_policy") & (
        (evaluations["members"] == 1) & (evaluations["eta"] == 1)
    )
    swept = evaluations["merge_weight"].notna() & (evaluations["stage"] == "interpolate_policy")
    return evaluations[~in_front & ~repeats & ~swept].drop_duplicates("policy")


def split_by(table: pd.DataFrame, *columns: str) -> Iterator[tuple[tuple, pd.DataFrame]]:
    """Yield (values of the columns, rows) of each group, in the table's order. An empty value
    counts."""
    for values, rows in table.groupby(list(columns), sort=False, dropna=False):
        yield tuple(values) if isinstance(values, tuple) else (values,), rows


def drop_shared(table: pd.DataFrame, group: Sequence[str], parts: Sequence[str]) -> pd.DataFrame:
    """Leave out groups whose parts are all known from an earlier experiment.

    Experiments that differ only after training use the same runs, so their rows are equal. They are
    compared to six digits, because the last digits of a pair's geometry may depend on how many
    members there are.
    """
    seen: set[str] = set()
    kept = []
    for _, rows in split_by(table, "experiment", *group):
        contents = {
            part.drop(columns="experiment").to_csv(index=False, float_format="%.6g")
            for _, part in split_by(rows, *parts)
        }
        if not contents <= seen:
            kept.append(rows)
        seen |= contents
    return pd.concat(kept) if kept else table


def distinct_runs(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a per-step table with each run once, under the first experiment that uses
    it. Of a trajectory only the policy's rows are taken, not those of its averages."""
    if "weights" in table:
        table = table[table["weights"] == "policy"].drop(columns="weights")
    return drop_shared(table, ["replicate", "iteration", "member"], ["member"])


def sft_row(evaluations: pd.DataFrame, trajectories: pd.DataFrame) -> pd.Series | None:
    """Return the SFT policy: η = 0 of an interpolation towards it, else step 0 of iteration 1."""
    rows = evaluations[(evaluations["towards"] == "sft") & (evaluations["eta"] == 0)]
    if rows.empty:
        rows = trajectories[(trajectories["iteration"] == 1) & (trajectories["step"] == 0)]
    return None if rows.empty else rows.iloc[0]


def has_values(table: pd.DataFrame, column: str) -> bool:
    return bool(table[column].notna().any())
