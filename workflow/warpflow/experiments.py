"""Which results an experiment needs, and what they are called.

An experiment is a named set of differences from the base settings. Stages that two experiments have
in common are one result, which is computed once. A result is named after the first experiment that
needs it. Two stages are the same if their settings and their inputs are.

Experiments come in groups, each with tables and figures of its own: `main` (section `experiments`
of the config) and one for each entry of section `ablations`. The base experiment is in all of them.
Replicates repeat RL, merge and LITI of every experiment with other seeds; they share data, SFT
policy and reward model.

A result's name is its folder below the results folder, e.g.
``train_policy/warp/replicate1/iteration1/member0``. Rules build all their paths from it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from warpflow.eta_names import eta_text
from warpflow.reward_terms import reward_terms, reward_weights

SFT = "train_sft"
BASE = "warp"
MAIN = "main"  # the group of section `experiments`

# An experiment may change these parts of the config.
VARIABLE = (
    *("iterations", "members", "rewards", "member_rewards"),
    *("train_policy", "merge_policies", "interpolate_policy"),
)
# The names of results depend on these keys only.
PLANNED = (*VARIABLE, "replicates", "experiments", "ablations")


@dataclass(frozen=True)
class Experiment:
    """The settings of one experiment after its differences were applied to the base.

    Attributes:
        rewards: the weight of each term in training. member_rewards: what each member changes of
            them; empty where members are alike.
        policies_of: the experiments whose policies it merges; it then trains none.
    """

    name: str
    iterations: int
    members: int
    rewards: dict[str, float]
    member_rewards: list[dict[str, float]]
    train_policy: dict[str, Any]
    merge_policies: dict[str, Any]
    interpolate_policy: dict[str, Any]
    policies_of: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Names of results. Keys start with the experiment and the replicate. Replicates and iterations
    count from 1, members from 0.

    Attributes:
        experiments: the experiments by name, with the base experiment first.
        groups: the experiments of each group, with the base experiment first.
        init: the checkpoint from which iteration i starts, by (experiment, r, i).
        policies: by (experiment, r, i, m). merged: by (experiment, r, i).
        points: the LITI points by (experiment, r, i, towards, η as in `eta_text`), with towards sft
            or init.
    """

    experiments: dict[str, Experiment]
    groups: dict[str, list[str]]
    init: dict[tuple[str, int, int], str]
    policies: dict[tuple[str, int, int, int], str]
    merged: dict[tuple[str, int, int], str]
    points: dict[tuple[str, int, int, str, str], str]


def experiment_groups(config: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the differences by group and experiment. What is null is left out, so that a config
    that is laid over another drops what it does not want."""
    groups = {MAIN: config["experiments"]} | config.get("ablations", {})
    return {
        group: {name: given for name, given in experiments.items() if given is not None}
        for group, experiments in groups.items()
        if experiments is not None
    }


def resolve_experiments(config: Mapping[str, Any]) -> dict[str, Experiment]:
    """Return every experiment of all groups with the base settings filled in, the base first."""
    base = {part: config[part] for part in VARIABLE}
    differences: dict[str, dict[str, Any]] = {BASE: {}}
    for experiments in experiment_groups(config).values():
        differences |= experiments
    return {name: resolve_experiment(name, base, given) for name, given in differences.items()}


def resolve_experiment(name: str, base: Mapping[str, Any], given: Mapping[str, Any]) -> Experiment:
    """Return the base settings with an experiment's differences laid over them.

    `match_compute` gives a single run the compute of all runs of the base experiment. ``steps``
    gives it M·ΣT_i steps, and ``batch_size`` ΣT_i steps with M times the completions each.
    `policies_of` takes the policies of iteration 1 of other experiments, member m from the m-th.
    """
    settings = {part: copy.deepcopy(base[part]) for part in VARIABLE}
    others = tuple(given.get("policies_of", ()))
    if others:
        settings |= {"iterations": 1, "members": len(others), "member_rewards": []}
    if "match_compute" in given:
        whole = Experiment(BASE, **settings)
        steps = sum(policy_settings(whole, i)["steps"] for i in range(1, whole.iterations + 1))
        matched = settings["train_policy"]
        if given["match_compute"] == "steps":
            matched["steps"] = steps * whole.members
        else:
            matched |= {"steps": steps, "batch_size": matched["batch_size"] * whole.members}
        settings |= {"iterations": 1, "members": 1, "member_rewards": []}
    for part in VARIABLE:
        if part in given:
            value = given[part]
            settings[part] = settings[part] | value if isinstance(value, dict) else value
    return Experiment(name, **settings, policies_of=others)


def make_plan(config: Mapping[str, Any]) -> Plan:
    """Name every result that the config's experiments need. No file is touched."""
    groups = {group: [BASE, *names] for group, names in experiment_groups(config).items()}
    plan = Plan(resolve_experiments(config), groups, {}, {}, {}, {})
    first: dict[str, str] = {}

    def shared(identity: list[Any], name: str) -> str:
        """Return the name under which this result is made, the first that asked for it."""
        return first.setdefault(json.dumps(identity, sort_keys=True), name)

    # Experiments that merge the policies of others come after them.
    ordered = sorted(plan.experiments.values(), key=lambda e: bool(e.policies_of))
    last = max(e.iterations for e in ordered)
    for r in range(1, config.get("replicates", 1) + 1):
        for i in range(1, last + 1):
            for e in (e for e in ordered if e.iterations >= i):
                plan_iteration(plan, e, r, i, shared)
    return plan


def plan_iteration(
    plan: Plan, e: Experiment, r: int, i: int, shared: Callable[[list[Any], str], str]
) -> None:
    """Enter one iteration of an experiment into the plan: its init, runs, merge and LITI points."""
    start, where = SFT, f"{e.name}/replicate{r}/iteration{i}"
    if i > 1:
        start = plan.points[e.name, r, i - 1, "init", eta_text(e.interpolate_policy["next_eta"])]
    plan.init[e.name, r, i] = start
    settings = policy_settings(e, i)
    for m in range(e.members):
        identity = ["train_policy", start, r, i, m, settings, reward_terms(run_rewards(e, m))]
        identity.append(carried_from(plan, e.name, r, i, m))
        plan.policies[e.name, r, i, m] = (
            plan.policies[e.policies_of[m], r, i, m]
            if e.policies_of
            else shared(identity, f"train_policy/{where}/member{m}")
        )
    policies = [plan.policies[e.name, r, i, m] for m in range(e.members)]
    method: Any = e.merge_policies
    if e.members == 1:  # a single policy changes only in its dtype
        method = method["dtype"]
    merged = shared(["merge_policies", start, policies, method], f"merge_policies/{where}")
    plan.merged[e.name, r, i] = merged
    for towards, eta in points_of(e, i):
        end = SFT if towards == "sft" else start
        plan.points[e.name, r, i, towards, eta] = shared(
            ["interpolate_policy", end, merged, eta],
            f"interpolate_policy/{where}/{towards}/eta{eta}",
        )


# These settings of train_policy are newer than results of users. With these values a run is what it
# was before them. So its command does not name them, and it keeps its key.
UNTOLD: dict[str, Any] = {
    "anchor_every": 1,
    "attn_implementation": None,
    "carry_optimizer": False,
    "importance_cap": 2.0,
    "kl_estimator": "k1",
    "optimizer": "adam",
    "reset_optimizer": False,
    "sampler": "own",
    "sampling_gap_limit": None,
    "use_kernels": False,
    "weight_decay": 0.0,
}


def carried_from(plan: Plan, experiment: str, r: int, i: int, m: int) -> str | None:
    """Return the run whose optimiser a run goes on with, that of its member one iteration before,
    or None where it has a fresh one."""
    carries = plan.experiments[experiment].train_policy.get("carry_optimizer")
    return plan.policies[experiment, r, i - 1, m] if carries and i > 1 else None


def policy_settings(experiment: Experiment, iteration: int) -> dict[str, Any]:
    """Return `train_policy` of one iteration. The last entry of a list of `steps` holds for all
    later ones. Settings that are as in `UNTOLD` are left out."""
    settings = {
        name: value
        for name, value in experiment.train_policy.items()
        if name not in UNTOLD or value != UNTOLD[name]
    }
    if isinstance(settings["steps"], list):
        settings["steps"] = settings["steps"][min(iteration, len(settings["steps"])) - 1]
    return settings


def run_rewards(experiment: Experiment, member: int) -> dict[str, Any]:
    """Return the terms of the reward that a member is trained on, as the config has them: weights
    or endpoints by name. Terms of weight 0 are left out."""
    given = experiment.rewards
    for changes in experiment.member_rewards[member : member + 1]:
        given = given | changes
    return {name: given[name] for name in reward_weights(given)}


def trained_rewards(experiment: Experiment) -> list[dict[str, Any]]:
    """Return `run_rewards` of each RL run of an iteration, or none where it trains no policies."""
    if experiment.policies_of:
        return []
    return [run_rewards(experiment, member) for member in range(experiment.members)]


def uses_reward_model(config: Mapping[str, Any]) -> bool:
    """Whether the reward model has a weight in measurements or in any RL run."""
    experiments = resolve_experiments(config).values()
    used = [config["rewards"], *(r for e in experiments for r in trained_rewards(e))]
    return any("reward_model" in reward_weights(rewards) for rewards in used)


def points_of(experiment: Experiment, iteration: int) -> list[tuple[str, str]]:
    """Return (towards, η) of one iteration's points: its front, and the next iteration's start."""
    settings = experiment.interpolate_policy
    points = [(settings["towards"], eta_text(eta)) for eta in settings["etas"]]
    if iteration < experiment.iterations:
        points.append(("init", eta_text(settings["next_eta"])))
    return list(dict.fromkeys(points))


def recipe_parents(plan: Plan, result: str) -> list[str]:
    """Return the two results of which a recipe is composed while it is loaded, else nothing.

    With ``interpolate_policy.write: recipes`` every LITI point is a recipe, except those that an
    iteration starts from, which training, merging and interpolation read as weights.
    """
    where = point_of(plan, result)
    return [] if where is None or result in plan.init.values() else ends_of(plan, where)


def point_of(plan: Plan, result: str) -> tuple[str, int, int, str, str] | None:
    """Return the key of `Plan.points` of a result. It is None where it is no LITI point, or its
    experiment writes the weights of all its points."""
    where = next((key for key, point in plan.points.items() if point == result), None)
    if where is None or plan.experiments[where[0]].interpolate_policy["write"] == "weights":
        return None
    return where


def ends_of(plan: Plan, where: tuple[str, int, int, str, str]) -> list[str]:
    """Return the results at η = 0 and η = 1 of a LITI point, given by its key in `Plan.points`."""
    e, r, i, towards, _ = where
    return [SFT if towards == "sft" else plan.init[e, r, i], plan.merged[e, r, i]]


@dataclass(frozen=True)
class Weights:
    """Where the weights of a result are. They are those of `policy`. Where there is an `init`, they
    are composed: (1 − η) times the init's plus η times the policy's."""

    policy: str
    init: str | None = None
    eta: str | None = None


def weights_of(plan: Plan, result: str) -> Weights:
    """Return where the weights of a result are. η = 0 of a front is the init, η = 1 the merge, and
    the merge of one policy is that policy, each bit for bit. So each is evaluated once, however
    many fronts it is on. A point that an iteration starts from is composed too, so that its
    evaluation does not wait for its weights to be written."""
    where = point_of(plan, result)
    if where is None:
        return Weights(result)
    e, r, i, _, eta = where
    init, policy = ends_of(plan, where)
    dtype = plan.experiments[e].merge_policies["dtype"]
    if dtype in (None, "float32") and float(eta) == 0:  # else ends are rounded, the init not
        return Weights(init)
    if dtype in (None, "float32") and plan.experiments[e].members == 1:
        policy = plan.policies[e, r, i, 0]
    return Weights(policy) if float(eta) == 1 else Weights(policy, init, eta)


def fronts(plan: Plan, points_per_job: int | None = None) -> dict[str, list[str]]:
    """Return what each job evaluates, by its name: the policies and the LITI points of an
    iteration, e.g. warp/replicate1/iteration1. The SFT policy, where all fronts start, is
    train_sft.

    Args:
        points_per_job: the largest number of points of a job, whose names then end with /part0,
            /part1 …. None puts all into one.
    """
    evaluated = {row["policy"] for group in plan.groups for row in evaluations(plan, group)}
    found = {SFT: [SFT]}
    for result in sorted(evaluated):
        found.setdefault("/".join(result.split("/")[1:4]), []).append(result)
    if points_per_job is None:
        return found
    return {
        f"{name}/part{start // points_per_job}": results[start : start + points_per_job]
        for name, results in found.items()
        for start in range(0, len(results), points_per_job)
    }


def trajectories(plan: Plan, group: str) -> list[str]:
    """Return the scored RL trajectories that a group uses, one result for the members of an
    iteration, e.g. score_trajectories/warp/replicate1/iteration1."""
    used = {result for (name, *_), result in plan.policies.items() if name in plan.groups[group]}
    return sorted({trajectory_of(result)[0] for result in used})


def trajectory_of(policy: str) -> tuple[str, int]:
    """Return where the trajectory of an RL run is scored, and the member's number there."""
    folder, _, member = policy.rpartition("/member")
    return folder.replace("train_policy", "score_trajectories", 1), int(member)


def members_of(plan: Plan, trajectories: str) -> dict[int, str]:
    """Return the RL runs whose trajectories a result of `trajectories` scores, by member number."""
    runs = {trajectory_of(result): result for result in plan.policies.values()}
    found = {member: run for (folder, member), run in runs.items() if folder == trajectories}
    return dict(sorted(found.items()))


def evaluations(plan: Plan, group: str) -> list[dict[str, Any]]:
    """Return what is evaluated for a group, with one row per use of a policy in an experiment.

    The columns identify the row in `evaluations.csv`. `policy` names the result, which several
    experiments may share.
    """
    replicates = sorted({r for _, r, _ in plan.init})
    experiments = [plan.experiments[name] for name in plan.groups[group]]
    return [row for e in experiments for r in replicates for row in experiment_rows(plan, e, r)]


# `training_changes` leaves out these settings of train_policy. They have their own columns, or the
# policy does not depend on them.
UNLISTED = (
    *("anchor", "beta", "save_every", "log_every"),
    *("evaluate_every", "evaluate_prompts", "evaluate_weights"),
)


def training_changes(e: Experiment, base: Experiment) -> str:
    """Return as text the settings of train_policy, beside anchor and β, and the rewards in which an
    experiment differs from the base one ("batch_size 32, mu 0.06"). It is empty where there are
    none."""
    changed = [
        (name, value)
        for name, value in e.train_policy.items()
        if name not in UNLISTED and value != base.train_policy[name]
    ]
    if trained_rewards(e) and e.rewards != base.rewards:
        changed.append(("rewards", e.rewards))
    if trained_rewards(e) and e.member_rewards != base.member_rewards and e.members > 1:
        changed.append(("member_rewards", e.member_rewards))
    return ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in changed
    )


def method_name(method: str, vectors: str, **_: object) -> str:
    """Return the name of a merge in tables and figures. SLERP of full weights is not the paper's
    SLERP."""
    return method if vectors == "task_vectors" else f"{method}_of_{vectors}"


def experiment_rows(plan: Plan, e: Experiment, r: int) -> Iterator[dict[str, Any]]:
    """Yield `evaluations` of one replicate of an experiment: its policies and LITI points."""
    common = {
        "experiment": e.name,
        "replicate": r,
        "anchor": e.train_policy["anchor"],
        "beta": e.train_policy["beta"],
        "mu": e.train_policy["mu"],
        "training_changes": training_changes(e, plan.experiments[BASE]),
        "members": e.members,
        "merge_method": method_name(**e.merge_policies),
        "merge_weight": e.merge_policies["weight"],
    }
    for i in range(1, e.iterations + 1):
        for m in range(e.members):
            row = {"stage": "train_policy", "iteration": i, "member": m}
            yield common | row | {"policy": plan.policies[e.name, r, i, m]}
        for towards, eta in points_of(e, i):
            point = plan.points[e.name, r, i, towards, eta]
            if towards == "init" and plan.points.get((e.name, r, i, "sft", eta)) == point:
                continue  # iteration 1 starts from SFT, so the point is on the front already
            row = {"stage": "interpolate_policy", "iteration": i, "towards": towards}
            yield common | row | {"eta": float(eta), "policy": point}
