"""What a group of experiments measured, as draws of a bootstrap over prompts (`bootstrap`).

Every mean is taken with the same weights of the prompts, so all policies are compared on the same
prompts in each draw. Replicates are not averaged here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from warpflow.experiments import trajectory_of
from warpflow.fronts.bootstrap import Array, half_of, interval, means_over_prompts, resample
from warpflow.fronts.curves import Curve
from warpflow.fronts.tables import read_evaluation, read_trajectory
from warpflow.gold_names import gold_columns

Values = Mapping[str, Array]  # quantity → [P], a value of each prompt

MIN_PROMPTS = 10  # with fewer, a bootstrap is too narrow to decide anything

# These columns stay the same over the replicates of one use of a policy.
USE = ["experiment", "stage", "iteration", "member", "towards", "eta"]


@dataclass(frozen=True)
class Measurements:
    """Tables of a group, and the values of every prompt behind them.

    Attributes:
        evaluations: rows as in evaluations.csv.
        policies: maps a result to the values of its prompts: `reward`, `kl_exact` and gold rewards
            by column.
        runs: maps the result of an RL run to steps, and a step to the values of the first prompts.
        geometry: rows as in geometry.csv. training: rows as in training.csv.
        weights: [B + 1, P], the weights of the prompts. Row 0 is the sample itself.
    """

    evaluations: pd.DataFrame
    policies: Mapping[str, Values]
    runs: Mapping[str, Mapping[int, Values]]
    geometry: pd.DataFrame
    training: pd.DataFrame
    weights: Array
    cache: dict[tuple[object, ...], Array] = field(default_factory=dict)

    @property
    def prompts(self) -> int:
        return self.weights.shape[1]

    @property
    def replicates(self) -> int:
        return int(self.evaluations["replicate"].nunique())

    @property
    def base(self) -> str:
        """The base experiment, which is first in every group."""
        return str(self.evaluations["experiment"].iloc[0])

    @property
    def experiments(self) -> list[str]:
        return list(dict.fromkeys(self.evaluations["experiment"]))

    @property
    def has_enough_prompts(self) -> bool:
        return self.prompts >= MIN_PROMPTS

    @property
    def golds(self) -> list[str]:
        """The columns of the gold rewards that every policy has."""
        first, *others = self.policies.values()
        return [name for name in gold_columns(first) if all(name in values for values in others)]

    # ----------------------------------------------------------------------------- rows

    def rows(self, **columns: object) -> pd.DataFrame:
        """Return the rows of `evaluations` with these values, one per use and replicate."""
        found = self.evaluations
        for name, value in columns.items():
            found = found[found[name] == value]
        return found

    def settings(self, experiment: str) -> pd.Series:
        """Return a row of the experiment, with its anchor, β, μ, members, merge method and
        weight."""
        return self.rows(experiment=experiment).iloc[0]

    def iterations(self, experiment: str) -> list[int]:
        return sorted(int(i) for i in self.rows(experiment=experiment)["iteration"].unique())

    def of_replicates(self, rows: pd.DataFrame) -> tuple[str, ...]:
        """Return the results of one use, in the order of replicates."""
        return tuple(rows.sort_values("replicate")["policy"])

    def members(self, experiment: str, iteration: int) -> list[tuple[str, ...]]:
        """Return the RL runs of an iteration by member, each with its replicates."""
        rows = self.rows(experiment=experiment, stage="train_policy", iteration=iteration)
        return [self.of_replicates(part) for _, part in rows.groupby("member", sort=True)]

    def point(self, experiment: str, iteration: int, eta: float) -> tuple[str, ...] | None:
        """Return the policy at an η of the iteration's front."""
        rows = self.front_rows(experiment, iteration)
        rows = rows[rows["eta"] == eta]
        return self.of_replicates(rows) if len(rows) else None

    def front_rows(self, experiment: str, iteration: int) -> pd.DataFrame:
        """Return the rows of the LITI front, with η from 0 to 1. It is the front towards SFT or,
        where that has fewer η, towards the iteration's initialisation."""
        rows = self.rows(experiment=experiment, stage="interpolate_policy", iteration=iteration)
        rows = rows[rows["eta"].between(0, 1)]
        counts = {end: rows.loc[rows["towards"] == end, "eta"].nunique() for end in ("sft", "init")}
        return rows[rows["towards"] == max(counts, key=lambda end: counts[end])]

    def kl_to_anchor(self, experiment: str) -> float:
        """Return the mean KL to the anchor, in nats per sequence, over the second half of an
        experiment's first runs, which are those of member 0 of iteration 1 in all replicates."""
        rows = self.training
        for name, value in {"experiment": experiment, "iteration": 1, "member": 0}.items():
            rows = rows[rows[name] == value]
        return float(rows.loc[rows["step"] > rows["step"].max() / 2, "kl_to_anchor"].mean())

    # ---------------------------------------------------------------------------- draws

    def interval(self, draws: Array, confidence: float) -> tuple[float, float, float]:
        """Return (estimate, low, high) of the mean over replicates of draws [B + 1, R]."""
        return interval(draws, confidence, self.prompts)

    @property
    def interval_over(self) -> str:
        """What the intervals are over, in words for the tables."""
        if self.replicates == 1:
            return "prompts of this one run"
        freedom = self.replicates - 1
        return f"prompts and {self.replicates} runs (t, {freedom} df for the runs)"

    def on_half(self, half: int) -> Measurements:
        """Return the same measurements on every other prompt, from prompt 0 or 1 on."""
        return replace(self, weights=half_of(self.weights, half), cache={})

    def mean(self, policies: Sequence[str], quantity: str) -> Array:
        """Return draws [B + 1, R] of the mean of a quantity of one policy, for each replicate."""
        key = ("policy", quantity, *policies)
        if key not in self.cache:
            values = np.stack([self.policies[policy][quantity] for policy in policies])
            self.cache[key] = means_over_prompts(self.weights, values)
        return self.cache[key]

    def front(self, experiment: str, iteration: int, quantity: str = "reward") -> Curve | None:
        """Return the LITI front in the order of η, or None without a point.

        η = 0 towards SFT is SFT itself, so a front of several η that lacks it takes the base's
        point.
        """
        rows = self.front_rows(experiment, iteration)
        points = [self.of_replicates(part) for _, part in rows.groupby("eta", sort=True)]
        if not points:
            return None
        if len(points) > 1 and (rows["towards"] == "sft").all() and rows["eta"].min() > 0:
            sft = self.point(self.base, 1, 0.0)
            points = [sft, *points] if sft else points
        kl, value = (
            np.stack([self.mean(point, name) for point in points], -1)
            for name in ("kl_exact", quantity)
        )
        return Curve(kl, value)

    def trajectory(self, run: Sequence[str]) -> Curve:
        """Return the reward of an RL run with its replicates, at the steps that all of them
        measured."""
        key = ("run", *run)
        steps = sorted(set.intersection(*(set(self.runs[policy]) for policy in run)))
        for name in ("kl_exact", "reward"):
            if (*key, name) not in self.cache:
                self.cache[*key, name] = np.stack(
                    [
                        means_over_prompts(
                            self.weights, np.stack([self.runs[p][step][name] for p in run])
                        )
                        for step in steps
                    ],
                    -1,
                )
        return Curve(self.cache[*key, "kl_exact"], self.cache[*key, "reward"])

    def last_step(self, run: Sequence[str]) -> int:
        return max(self.runs[run[0]])

    def sft_reward(self) -> Array:
        """Return draws [B + 1, R] of SFT's reward: η = 0 of a front towards it, else step 0 of a
        run."""
        rows = self.evaluations
        zero = rows[(rows["towards"] == "sft") & (rows["eta"] == 0)]
        if len(zero):
            first = zero.iloc[0]
            same = (zero["experiment"] == first["experiment"]) & (
                zero["iteration"] == first["iteration"]
            )
            return self.mean(self.of_replicates(zero[same]), "reward")
        return self.trajectory(self.members(self.base, 1)[0]).value[..., 0]


def read_measurements(results: str, tables: str, resamples: int, seed: int) -> Measurements:
    """Read the tables of a group in folder `tables`, and what the jobs below `results` measured.

    Raises:
        ValueError: policies were not evaluated on the same prompts, or a use of a policy lacks
            replicates.
    """
    evaluations = pd.read_csv(Path(tables, "evaluations.csv"))
    geometry, training = (pd.read_csv(Path(tables, f"{n}.csv")) for n in ("geometry", "training"))
    names = list(dict.fromkeys(evaluations["policy"]))
    policies = {name: read_values(results, name) for name in names}
    runs = {
        name: read_run(results, name)
        for name in dict.fromkeys(evaluations.loc[evaluations["stage"] == "train_policy", "policy"])
    }
    return make_measurements(evaluations, policies, runs, geometry, training, resamples, seed)


def make_measurements(
    evaluations: pd.DataFrame,
    policies: Mapping[str, Values],
    runs: Mapping[str, Mapping[int, Values]],
    geometry: pd.DataFrame,
    training: pd.DataFrame,
    resamples: int,
    seed: int,
) -> Measurements:
    """Return `Measurements` with fresh resamples. Raises as `read_measurements` does."""
    counts = {len(values["reward"]) for values in policies.values()}
    if len(counts) > 1:
        raise ValueError(
            f"policies were evaluated on {' and '.join(map(str, sorted(counts)))} prompts, "
            "expected the same for all: evaluate them with one config"
        )
    replicates = evaluations["replicate"].nunique()
    for use, rows in evaluations.groupby(USE, dropna=False, sort=False):
        if len(rows) != replicates:
            raise ValueError(
                f"evaluations.csv: {use} has {len(rows)} replicates, expected {replicates}: make "
                "the table anew with `snakemake`"
            )
    weights = resample(counts.pop(), resamples, seed)
    return Measurements(evaluations, policies, runs, geometry, training, weights)


def read_values(results: str, policy: str) -> Values:
    """Return the values of every prompt from a policy's evaluation.json."""
    values = read_evaluation(results, policy)["prompts"]
    return {
        name: np.array(values[name], dtype=float)
        for name in ("reward", "kl_exact", *gold_columns(values))
        if values[name] is not None
    }


def read_run(results: str, policy: str) -> Mapping[int, Values]:
    """Return the values of the first prompts along an RL run, by step."""
    return {
        int(row["step"]): {
            name: np.array(row[name], dtype=float) for name in ("reward", "kl_exact")
        }
        for row in read_trajectory(results, *trajectory_of(policy), "prompts")
        if row["weights"] == "policy"
    }
