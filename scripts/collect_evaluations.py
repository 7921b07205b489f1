"""Gather what the jobs of a group of experiments measured into tidy tables.

It writes evaluations.csv (a row per use of a policy in an experiment), trajectories.csv and
training.csv (rows of the RL runs), geometry.csv (angles between task vectors by layer),
completions.csv (samples to read), metrics/ (the main numbers for `dvc metrics`), and a copy of
optimum.csv. Next in reading order: warpflow.fronts.tables.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from warpflow.experiments import evaluations as list_evaluations
from warpflow.experiments import make_plan, trajectory_of
from warpflow.fronts.tables import (
    completions_table,
    evaluations_table,
    metrics_documents,
    stacked_table,
    trajectories_table,
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", required=True, help="results folder")
    parser.add_argument("--config", required=True, help="JSON: the base settings and experiments")
    parser.add_argument("--group", required=True, help="main, or an entry of ablations")
    parser.add_argument("--optimum", help="optimum.csv, the optimal front")
    parser.add_argument("--out", required=True, help="folder to write")
    arguments = parser.parse_args(argv)
    plan, out = make_plan(json.loads(arguments.config)), Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    rows = list_evaluations(plan, arguments.group)
    evaluations = evaluations_table(arguments.results, rows)
    iterations = ["experiment", "replicate", "iteration"]
    names = plan.groups[arguments.group]
    policies, merged = (
        {key: result for key, result in entries.items() if key[0] in names}
        for entries in (plan.policies, plan.merged)
    )
    tables = {
        "evaluations": evaluations,
        "trajectories": trajectories_table(
            arguments.results,
            {key: trajectory_of(run) for key, run in policies.items()},
            [*iterations, "member"],
        ),
        "training": stacked_table(
            arguments.results, policies, [*iterations, "member"], "tables/training.csv"
        ),
        "geometry": stacked_table(arguments.results, merged, iterations, "checkpoint/geometry.csv"),
        "completions": completions_table(arguments.results, rows),
    }
    if arguments.optimum:
        (out / "optimum.csv").write_bytes(Path(arguments.optimum).read_bytes())
    for name, table in tables.items():
        table.to_csv(out / f"{name}.csv", index=False)
    (out / "metrics").mkdir(exist_ok=True)
    for name, values in metrics_documents(evaluations).items():
        (out / "metrics" / f"{name}.json").write_text(
            json.dumps(values, indent=1) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
