"""Section `compare_answers` of the config: who answers, who judges, which policy a name means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warpflow.eta_names import eta_text
from warpflow.experiments import SFT, Plan
from warpflow.side_by_side.answers import match_answers, read_answers

OWN_REWARD_MODEL = "train_reward_model"


@dataclass(frozen=True)
class Comparison:
    """One comparison; defaults stand in config/schema.yaml too, for whoever reads config/README.md.

    Attributes:
        contestants: by name, each a `policy` of the run, a `path` of a checkpoint or a file of
            stored `answers`.
        judges: by name, each a `function`, a `reward_model` or a `chat` endpoint.
    """

    contestants: dict[str, dict[str, str]]
    judges: dict[str, dict[str, Any]]
    prompts: int | None = None
    pairs: str = "all"
    thresholds: tuple[float, ...] = (0.1, 0.5, 1.0)
    confidence: float = 0.95
    max_prompt_tokens: int | None = None
    max_new_tokens: int | None = None
    temperature: float | None = None

    @property
    def stored(self) -> dict[str, str]:
        """Files of stored answers, by contestant. The first one's instructions are the prompts."""
        return {name: c["answers"] for name, c in self.contestants.items() if "answers" in c}

    @property
    def sampled(self) -> dict[str, str]:
        """Policies that answer here, by contestant: of the run, or a checkpoint's path."""
        return {
            name: next(iter(c.values()))
            for name, c in self.contestants.items()
            if "answers" not in c
        }


def read_comparisons(config: Mapping[str, Any]) -> dict[str, Comparison]:
    """The comparisons of a config; one that is null is left out."""
    given = config["compare_answers"]
    return {name: Comparison(**section) for name, section in given.items() if section is not None}


def policy_result(plan: Plan, name: str) -> str:
    """The result that a policy's name means: itself, or ``experiment/iteration/η`` for a point of
    a LITI front in replicate 1 (warp/2/0.5).

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
    """Problems of one comparison, as far as files and the plan tell."""
    for name, given in comparison.contestants.items():
        if "policy" in given:
            try:
                policy_result(plan, given["policy"])
            except ValueError as error:
                yield f"- {where}.contestants.{name}: {error}"
    thresholds = list(comparison.thresholds)
    if thresholds != sorted(thresholds):
        yield f"- {where}.thresholds: got {thresholds}, expected numbers that rise"
    missing = [path for path in comparison.stored.values() if not Path(path).is_file()]
    yield from (f"- {where}.contestants: {path} is not a file" for path in missing)
    if not missing:
        yield from check_stored(where, comparison)
    for name, judge in comparison.judges.items():
        template = judge.get("chat", {}).get("template")
        if template and not Path(template).is_file():
            yield f"- {where}.judges.{name}.chat.template: {template} is not a file"


def check_stored(where: str, comparison: Comparison) -> Iterator[str]:
    """Whether the files of stored answers can be read and answer the same prompts."""
    try:
        sets = {path: read_answers(path) for path in comparison.stored.values()}
        if sets:
            match_answers(sets, comparison.prompts)
    except ValueError as error:
        yield f"- {where}: {error}"
