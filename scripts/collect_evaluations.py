"""Gather what the jobs measured into one tidy table each.

Writes evaluations.csv (a row per use of a policy in an experiment), trajectories.csv and
training.csv (rows of the RL runs), geometry.csv (angles between task vectors by layer),
completions.csv (samples to read) and metrics.json (the numbers for `dvc metrics`).
Next in reading order: warpflow.tables.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from warpflow.tables import completions_table, evaluations_table, metrics_document, stacked_table


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", required=True, help="results folder")
    parser.add_argument("--plan", required=True, help="JSON: evaluations, policies, merges")
    parser.add_argument("--out", required=True, help="folder to write")
    arguments = parser.parse_args(argv)
    plan, out = json.loads(arguments.plan), Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    evaluations = evaluations_table(arguments.results, plan["evaluations"])
    runs = ["experiment", "iteration", "member"]
    tables = {
        "evaluations": evaluations,
        "trajectories": stacked_table(arguments.results, plan["policies"], runs, "trajectory.csv"),
        "training": stacked_table(arguments.results, plan["policies"], runs, "training.csv"),
        "geometry": stacked_table(arguments.results, plan["merges"], runs[:2], "geometry.csv"),
        "completions": completions_table(arguments.results, plan["evaluations"]),
    }
    for name, table in tables.items():
        table.to_csv(out / f"{name}.csv", index=False)
    metrics = metrics_document(evaluations)
    (out / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")


if __name__ == "__main__":
    main()
