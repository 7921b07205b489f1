"""Capability benchmarks of EleutherAI's lm-eval, on chosen points of the LITI fronts.

The paper's Table 2 has one policy; a front has a trade, so here several η are measured.
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from warpflow.experiments import Plan, eta_text

HINT = "lm-eval is not installed: pip install -e '.[benchmarks]' (or pip install lm_eval==0.4.13)"


def benchmark_points(plan: Plan, section: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The policies of section `benchmark_policy`: a row each, of replicate 1.

    Raises:
        ValueError: no such experiment, iteration or η in the run.
    """
    rows = []
    for name in section["experiments"]:
        if name not in plan.experiments:
            raise ValueError(
                f"experiments: got {name}, expected some of {', '.join(plan.experiments)}"
            )
        e = plan.experiments[name]
        front = e.interpolate_policy["towards"]
        for i in section["iterations"] or [e.iterations]:
            for eta in section["etas"]:
                result = plan.points.get((name, 1, i, front, eta_text(eta)))
                if result is None:
                    raise ValueError(
                        f"experiment {name} has no point η = {eta} in iteration {i}; it has "
                        f"iterations 1 to {e.iterations} and η {e.interpolate_policy['etas']} "
                        "(interpolate_policy.etas)"
                    )
                rows.append({"experiment": name, "iteration": i, "eta": eta, "policy": result})
    return rows


def check_benchmarks(plan: Plan, section: Mapping[str, Any]) -> Iterator[str]:
    """Problems of section `benchmark_policy`, where it names tasks."""
    if not section["tasks"]:
        return
    if importlib.util.find_spec("lm_eval") is None:
        yield f"- benchmark_policy.tasks: {HINT}"
    folder = section["task_folder"]
    if folder is not None and not Path(folder).is_dir():
        yield f"- benchmark_policy.task_folder: {folder} is not a folder"
    try:
        benchmark_points(plan, section)
    except ValueError as error:
        yield f"- benchmark_policy: {error}"


def require_tasks(names: Sequence[str], known: Sequence[str]) -> None:
    """Raise ValueError for tasks that lm-eval does not know."""
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            raise ValueError(
                f"benchmark_policy.tasks: lm-eval knows no task {name!r}; "
                + (f"did you mean {' or '.join(near)}?" if near else "set task_folder to yours")
            )


def result_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each task and metric of lm-eval's results, e.g.
    ``{"results": {"gsm8k": {"exact_match,strict-match": .6, "exact_match_stderr,…": .01}}}``."""
    rows = []
    for task, values in results["results"].items():
        samples = results.get("n-samples", {}).get(task, {}).get("effective")
        for key, value in values.items():
            metric, comma, kind = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = values.get(f"{metric}_stderr,{kind}")
            rows.append(
                {
                    "task": task,
                    "metric": metric,
                    "filter": kind,
                    "value": value,
                    "value_se": error if isinstance(error, int | float) else None,
                    "n": samples,
                }
            )
    return rows
