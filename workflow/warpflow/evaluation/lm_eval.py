"""Capability benchmarks of EleutherAI's lm-eval: its tasks and its results.

The paper's Table 2 has one policy. A front trades one value for another, so several η are measured
here (`benchmark_points`).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

HINT = "lm-eval is not installed: pip install -e '.[benchmarks]' (or pip install lm_eval==0.4.13)"


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
    """Return a row for each task and metric of lm-eval's results, e.g. ``{"results": {"gsm8k":
    {"exact_match,strict-match": .6, "exact_match_stderr,…": .01}}}``."""
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
