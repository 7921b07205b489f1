"""Show where a run is: jobs made and left, hours to go, and the fronts so far.

    python scripts/show_status.py --configfile config/mine.yaml

Nothing is run or changed, so it may be called while the run goes on, on any machine that sees the
results folder. A job counts as made where its provenance.json exists, and `snakemake -n` says
whether it is up to date. The hours to go are those of scripts/plan_run.py, which says more. Next in
reading order: warpflow.estimates.costs.seconds_of.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from warpflow.estimates.costs import Job, is_made, jobs_of, measured, seconds_of
from warpflow.experiments import MAIN, Plan, evaluations, make_plan
from warpflow.fronts.tables import read_evaluation
from warpflow.gold_names import gold_columns
from warpflow.pipeline.config import check_config
from warpflow.pipeline.config_files import DEFAULTS, read_config

BAR = 30  # characters
KEYS = ["experiment", "replicate", "iteration", "eta"]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configfile", nargs="*", default=[], help="laid over config/config.yaml")
    parser.add_argument("--group", default=MAIN, help="of experiments (config/ablations.yaml)")
    arguments = parser.parse_args(argv)
    config = read_config((*DEFAULTS, *arguments.configfile))
    check_config(config, files=False)
    plan = make_plan(config)
    if arguments.group not in plan.groups:
        parser.error(f"--group {arguments.group}: expected one of {', '.join(plan.groups)}")
    print("\n".join(status_lines(config, plan, arguments.group)))


def status_lines(config: Mapping[str, Any], plan: Plan, group: str) -> Iterator[str]:
    """Yield the status for readers, line by line."""
    results = Path(config["results"])
    jobs = jobs_of(config, plan, group)
    made = {job for job in jobs if is_made(results, job)}
    share = round(BAR * len(made) / len(jobs))
    yield f"group {group} of {results}"
    yield f"[{'#' * share}{'.' * (BAR - share)}] {len(made)} of {len(jobs)} jobs made"
    yield time_to_go([job for job in jobs if job not in made], jobs, results)
    yield ""
    for rule in dict.fromkeys(job.rule for job in jobs):
        own = [job for job in jobs if job.rule == rule]
        yield f"{rule:24}{sum(job in made for job in own):>5} of {len(own)}"
    yield ""
    yield from front_lines(fronts_so_far(plan, group, config["results"]))
    page = results / "write_summary" / f"{group}.html"
    if page.is_file():
        yield f"The summary of the last finished run: {page}"


def time_to_go(left: Sequence[Job], jobs: Sequence[Job], results: Path) -> str:
    """Say how long the jobs that are left take, by those that are made."""
    known = {job: found for job in jobs if (found := measured(results, job))}
    seconds = [seconds_of(job, known, None) for job in left]
    told = [value for value in seconds if value is not None]
    unknown = len(seconds) - len(told)
    if not left:
        return "nothing is left"
    total = f"about {sum(told) / 3600:.2f} h to go, one job after the other"
    return total + (f", and {unknown} jobs of kinds that none was made of yet" if unknown else "")


def fronts_so_far(plan: Plan, group: str, results: str) -> pd.DataFrame:
    """Return a row for each LITI point of the group that is evaluated already."""
    rows = []
    for row in evaluations(plan, group):
        file = Path(results, "evaluate_policy", row["policy"], "evaluation.json")
        if row["stage"] == "interpolate_policy" and file.is_file():
            rows.append(row | read_evaluation(results, row["policy"])["metrics"])
    return pd.DataFrame(rows)


def front_lines(points: pd.DataFrame) -> Iterator[str]:
    """Yield the fronts as a table of text."""
    if points.empty:
        yield "No point of a front is evaluated yet."
        return
    columns = [*KEYS, "reward", *gold_columns(points), "kl_exact", "length"]
    table = points[columns].sort_values(KEYS).dropna(axis="columns", how="all")
    yield "The fronts so far (KL to SFT in nats):"
    yield table.to_string(index=False, float_format="{:.4g}".format)


if __name__ == "__main__":
    main()
