"""Which results an experiment needs, and what they are called.

An experiment is a named set of differences from the base settings. Stages that two experiments
have in common are one result, computed once: a result is named after the first experiment that
needs it. Two stages are the same if their settings and their inputs are.

A result's name is its folder below the results folder, e.g.
``train_policy/warp/iteration1/member0``; rules build all their paths from it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SFT = "train_sft"
BASE = "warp"

# The parts of the config that an experiment may change.
VARIABLE = ("iterations", "members", "train_policy", "merge_policies", "interpolate_policy")


@dataclass(frozen=True)
class Experiment:
    """The settings of one experiment after its differences were applied to the base."""

    name: str
    iterations: int
    members: int
    train_policy: dict[str, Any]
    merge_policies: dict[str, Any]
    interpolate_policy: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """Names of results. Keys start with the experiment; iterations count from 1, members from 0.

    Attributes:
        experiments: by name, the base experiment first.
        init: (experiment, i) → the checkpoint that iteration i starts from.
        policies: (experiment, i, m). merged: (experiment, i).
        points: (experiment, i, towards, η as in `eta_text`): LITI points; towards sft or init.
    """

    experiments: dict[str, Experiment]
    init: dict[tuple[str, int], str]
    policies: dict[tuple[str, int, int], str]
    merged: dict[tuple[str, int], str]
    points: dict[tuple[str, int, str, str], str]


def eta_text(eta: float) -> str:
    """η as it stands in paths: 0.3, 1, never 1.0 and 1 side by side; to six digits."""
    return f"{eta:.6f}".rstrip("0").rstrip(".")


def resolve_experiments(config: Mapping[str, Any]) -> dict[str, Experiment]:
    """Every experiment of the config with the base settings filled in, the base first. One that
    is null is left out: so a config laid over another drops what it does not want."""
    differences: dict[str, Any] = {BASE: {}} | config["experiments"]
    experiments = {}
    for name, difference in differences.items():
        if difference is None:
            continue
        settings = {part: copy.deepcopy(config[part]) for part in VARIABLE}
        for part, value in difference.items():
            settings[part] = settings[part] | value if isinstance(value, dict) else value
        experiments[name] = Experiment(name, **settings)
    return experiments


def make_plan(config: Mapping[str, Any]) -> Plan:
    """Name every result that the config's experiments need (no files are touched)."""
    plan = Plan(resolve_experiments(config), {}, {}, {}, {})
    first: dict[str, str] = {}

    def shared(identity: list[Any], name: str) -> str:
        """The name under which this very result is made: the first that asked for it."""
        return first.setdefault(json.dumps(identity, sort_keys=True), name)

    last = max(e.iterations for e in plan.experiments.values())
    for i in range(1, last + 1):
        for e in (e for e in plan.experiments.values() if e.iterations >= i):
            start = SFT
            if i > 1:
                next_eta = eta_text(e.interpolate_policy["next_eta"])
                start = plan.points[e.name, i - 1, "init", next_eta]
            plan.init[e.name, i] = start
            settings = policy_settings(e, i)
            for m in range(e.members):
                plan.policies[e.name, i, m] = shared(
                    ["train_policy", start, i, m, settings],
                    f"train_policy/{e.name}/iteration{i}/member{m}",
                )
            policies = [plan.policies[e.name, i, m] for m in range(e.members)]
            method: Any = e.merge_policies
            if e.members == 1:  # a single policy is not changed but in its dtype
                method = method["dtype"]
            merged = shared(
                ["merge_policies", start, policies, method], f"merge_policies/{e.name}/iteration{i}"
            )
            plan.merged[e.name, i] = merged
            for towards, eta in points_of(e, i):
                end = SFT if towards == "sft" else start
                plan.points[e.name, i, towards, eta] = shared(
                    ["interpolate_policy", end, merged, eta],
                    f"interpolate_policy/{e.name}/iteration{i}/{towards}/eta{eta}",
                )
    return plan


def policy_settings(experiment: Experiment, iteration: int) -> dict[str, Any]:
    """`train_policy` of one iteration; the last entry of a list of `steps` holds from then on."""
    settings = dict(experiment.train_policy)
    if isinstance(settings["steps"], list):
        settings["steps"] = settings["steps"][min(iteration, len(settings["steps"])) - 1]
    return settings


def points_of(experiment: Experiment, iteration: int) -> list[tuple[str, str]]:
    """(towards, η) of one iteration: the front towards SFT, and the next iteration's start."""
    etas = experiment.interpolate_policy["etas"]
    points = [("sft", eta_text(eta)) for eta in etas]
    if iteration < experiment.iterations:
        points.append(("init", eta_text(experiment.interpolate_policy["next_eta"])))
    return points


def recipe_parents(plan: Plan, result: str) -> list[str]:
    """The two results that a result is composed of while it is loaded, where it is a recipe.

    With ``interpolate_policy.write: recipes`` every LITI point is one but those that an iteration
    starts from, which training, merging and interpolation read as weights.
    """
    if result in plan.init.values():
        return []
    for (experiment, i, towards, _), point in plan.points.items():
        if point == result:
            if plan.experiments[experiment].interpolate_policy["write"] == "weights":
                return []
            end = SFT if towards == "sft" else plan.init[experiment, i]
            return [end, plan.merged[experiment, i]]
    return []


def evaluations(plan: Plan) -> list[dict[str, Any]]:
    """What is evaluated: one row per use of a policy in an experiment.

    The columns identify the row in `evaluations.csv`; `policy` names the result, which several
    experiments may share.
    """
    rows = []
    for e in plan.experiments.values():
        common = {
            "experiment": e.name,
            "anchor": e.train_policy["anchor"],
            "beta": e.train_policy["beta"],
            "mu": e.train_policy["mu"],
            "members": e.members,
            "merge_method": e.merge_policies["method"],
            "merge_weight": e.merge_policies["weight"],
        }
        for i in range(1, e.iterations + 1):
            for m in range(e.members):
                row = {"stage": "train_policy", "iteration": i, "member": m}
                rows.append(common | row | {"policy": plan.policies[e.name, i, m]})
            for towards, eta in points_of(e, i):
                if (
                    towards == "init"
                    and plan.points.get((e.name, i, "sft", eta))
                    == (plan.points[e.name, i, towards, eta])
                ):
                    continue  # iteration 1 starts from SFT: the point is on the front already
                row = {"stage": "interpolate_policy", "iteration": i, "towards": towards}
                row |= {"eta": float(eta), "policy": plan.points[e.name, i, towards, eta]}
                rows.append(common | row)
    return rows
