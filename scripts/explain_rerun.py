"""Say why jobs are due, and what they cost: which setting, input or function differs.

    python scripts/explain_rerun.py
    python scripts/explain_rerun.py --configfile config/mine.yaml -- results/mine/report/main.html

Nothing is run and no file is changed. Results that are due only for a change of the code that
cannot change them need not be computed again: see scripts/accept_results.py. Next in reading order:
warpflow.pipeline.reruns.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from warpflow.pipeline.reruns import add_arguments, due_jobs, explain, waiting


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    due, config = due_jobs(add_arguments(parser).parse_args(argv))
    if not due:
        print("Nothing is due.")
        return
    cost_of = known_costs(config)
    total, unknown = 0.0, 0
    for parts, waits_for in waiting(due):
        happens, why = explain(parts, waits_for)
        cost = 0.0 if happens == "is looked up" else cost_of(parts.result)
        total, unknown = total + (cost or 0.0), unknown + (cost is None)
        print(f"{parts.result}: {happens}; {in_words(cost)}")
        print("\n".join(f"    {line}" for line in why))
    print(
        f"All of them, one after the other: {in_words(total)} at most"
        + (f", and {unknown} of which it is not known" if unknown else "")
    )
    small = Counter(job.rule for job in due if not job.is_heavy)
    if small:
        listed = ", ".join(f"{number} {rule}" for rule, number in sorted(small.items()))
        print(f"Beside them, seconds each: {listed}")


def known_costs(config: Mapping[str, Any]) -> Callable[[str], float | None]:
    """Return a function that gives the seconds of a result by its name, as `make plan` knows them,
    or None."""
    from warpflow.estimates import costs  # imports torch for seconds, and is needed only here
    from warpflow.experiments import fronts, make_plan

    plan, results = make_plan(config), Path(config["results"])
    jobs = {job.result: job for group in plan.groups for job in costs.jobs_of(config, plan, group)}
    known = {job: found for job in jobs.values() if (found := costs.measured(results, job))}
    grouped = fronts(plan, config["evaluate_policy"]["points_per_job"])
    front_of = {result: front for front, found in grouped.items() for result in found}

    def cost_of(result: str) -> float | None:
        rule, _, policy = result.partition("/")
        if rule != "evaluate_policy":
            return costs.seconds_of(jobs[result], known, None) if result in jobs else None
        whole = cost_of(f"evaluate_front/{front_of[policy]}")
        return None if whole is None else whole / len(grouped[front_of[policy]])

    return cost_of


def in_words(seconds: float | None) -> str:
    """Write a time for readers: 45 s, 12 min, 3.1 h."""
    if seconds is None:
        return "it is not known how long it takes"
    if seconds < 90:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


if __name__ == "__main__":
    main()
