"""Which points of the LITI fronts capability benchmarks run on."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from warpflow.eta_names import eta_text
from warpflow.evaluation.lm_eval import HINT
from warpflow.experiments import Plan


def benchmark_points(plan: Plan, section: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each policy of section `benchmark_policy`, in replicate 1.

    Raises:
        ValueError: the run has no such experiment, iteration or η.
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
    """Yield the problems of section `benchmark_policy`, where it names tasks."""
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
