"""Section `compare_answers` of the config: who answers, who judges, and which policies names
mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from warpflow.eta_names import eta_text
from warpflow.experiments import SFT, Plan
from warpflow.settings.compare_answers import Comparison
from warpflow.side_by_side.answers import match_answers, read_answers

OWN_REWARD_MODEL = "train_reward_model"


def read_comparisons(config: Mapping[str, Any]) -> dict[str, Comparison]:
    """Return the comparisons of a config. One that is null is left out."""
    given = config["compare_answers"]
    return {name: Comparison(**section) for name, section in given.items() if section is not None}


def policy_result(plan: Plan, name: str) -> str:
    """Return the result that a policy's name means. The name is a result, or
    ``experiment/iteration/η`` for a point of a LITI front in replicate 1 (warp/2/0.5).

    Raises:
        ValueError: the run has no such policy.
    """
    known = {SFT, *plan.policies.values(), *plan.merged.values(), *plan.points.values()}
    if name in known:
        return name
    experiment, *rest = name.split("/")
    if len(rest) == 2 and experiment in plan.experiments:
        front = plan.experiments[experiment].interpolate_policy["towards"]
        points = {
            f"{i}/{eta}": result
            for (e, r, i, towards, eta), result in plan.points.items()
            if (e, r, towards) == (experiment, 1, front)
        }
        short = f"{rest[0]}/{eta_text(float(rest[1]))}" if is_number(rest[1]) else ""
        if short in points:
            return points[short]
        raise ValueError(
            f"the run has no policy {name!r}; expected one of "
            + ", ".join(f"{experiment}/{point}" for point in points)
        )
    raise ValueError(
        f"the run has no policy {name!r}: expected experiment/iteration/η, say "
        f"{next(iter(plan.experiments))}/1/1, or the name of a result, say "
        f"{next(iter(plan.merged.values()))} (experiments: {', '.join(plan.experiments)})"
    )


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def check_comparison(where: str, comparison: Comparison, plan: Plan) -> Iterator[str]:
    """Yield the problems of one comparison, as far as files and the plan show them."""
    for name, given in comparison.contestants.items():
        if "policy" in given:
            try:
                policy_result(plan, given["policy"])
            except ValueError as error:
                yield f"- {where}.contestants.{name}: {error}"
    thresholds = list(comparison.thresholds)
    if thresholds != sorted(thresholds):
        numbers = ", ".join(f"{threshold:g}" for threshold in thresholds)
        yield f"- {where}.thresholds: got [{numbers}], expected numbers that rise"
    missing = [path for path in comparison.stored.values() if not Path(path).is_file()]
    yield from (f"- {where}.contestants: {path} is not a file" for path in missing)
    if not missing:
        yield from check_stored(where, comparison)
    for name, judge in comparison.judges.items():
        chat: Any = judge.get("chat", {})
        template = chat.get("template")
        if template and not Path(template).is_file():
            yield f"- {where}.judges.{name}.chat.template: {template} is not a file"


def check_stored(where: str, comparison: Comparison) -> Iterator[str]:
    """Yield why the files of stored answers cannot be read or do not answer the same prompts."""
    try:
        sets = {path: read_answers(path) for path in comparison.stored.values()}
        if sets:
            match_answers(sets, comparison.prompts)
    except ValueError as error:
        yield f"- {where}: {error}"
