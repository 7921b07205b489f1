"""Which results experiments need, and which of them they share."""

import time
from typing import Any

import pytest

from warpflow.experiments import (
    UNTOLD,
    Plan,
    Weights,
    carried_from,
    eta_text,
    evaluations,
    fronts,
    make_plan,
    points_of,
    policy_settings,
    recipe_parents,
    resolve_experiments,
    run_rewards,
    trained_rewards,
    uses_reward_model,
    weights_of,
)
from warpflow.settings.train_policy import TrainPolicy


def config(**experiments: Any) -> dict[str, Any]:
    """A base of two iterations and two members with the given experiments."""
    return {
        "iterations": 2,
        "members": 2,
        "rewards": {"reward_model": 1.0},
        "member_rewards": [],
        "train_policy": {"steps": 10, "anchor": "ema", "beta": 0.1, "mu": 0.01},
        "merge_policies": {
            "method": "slerp",
            "granularity": "layer",
            "vectors": "task_vectors",
            "weight": None,
            "dtype": None,
        },
        "interpolate_policy": {
            "etas": [0, 0.5, 1],
            "towards": "sft",
            "next_eta": 0.3,
            "write": "recipes",
        },
        "experiments": experiments,
    }


def results(plan: Plan) -> set[str]:
    return {*plan.policies.values(), *plan.merged.values(), *plan.points.values()}


def test_iterations_follow_one_another() -> None:
    plan = make_plan(config())
    assert plan.init["warp", 1, 1] == "train_sft"
    assert plan.init["warp", 1, 2] == "interpolate_policy/warp/replicate1/iteration1/init/eta0.3"
    assert plan.init["warp", 1, 2] == plan.points["warp", 1, 1, "init", "0.3"]
    assert plan.policies["warp", 1, 2, 1] == "train_policy/warp/replicate1/iteration2/member1"
    assert plan.merged["warp", 1, 2] == "merge_policies/warp/replicate1/iteration2"
    assert ("warp", 1, 2, "init", "0.3") not in plan.points, (
        "nothing starts from the last iteration"
    )
    assert len(results(plan)) == 4 + 2 + 2 * 3 + 1


def test_next_init_is_towards_the_own_init_not_towards_sft() -> None:
    base = config() | {"iterations": 3}
    base["interpolate_policy"] = {
        "etas": [0.3, 1],
        "towards": "sft",
        "next_eta": 0.3,
        "write": "recipes",
    }
    plan = make_plan(base)
    # From SFT both are one result; later the front (towards SFT) and the next start differ.
    assert plan.points["warp", 1, 1, "init", "0.3"] == plan.points["warp", 1, 1, "sft", "0.3"]
    assert plan.points["warp", 1, 2, "init", "0.3"] != plan.points["warp", 1, 2, "sft", "0.3"]
    assert plan.init["warp", 1, 3] == "interpolate_policy/warp/replicate1/iteration2/init/eta0.3"


def test_lerp_shares_the_first_policies_and_nothing_after_them() -> None:
    plan = make_plan(config(lerp={"merge_policies": {"method": "lerp"}}))
    for member in (0, 1):
        assert plan.policies["lerp", 1, 1, member] == plan.policies["warp", 1, 1, member]
        assert (
            plan.policies["lerp", 1, 2, member]
            == f"train_policy/lerp/replicate1/iteration2/member{member}"
        )
    assert plan.merged["lerp", 1, 1] == "merge_policies/lerp/replicate1/iteration1"
    assert plan.init["lerp", 1, 2] == "interpolate_policy/lerp/replicate1/iteration1/init/eta0.3"


def test_one_run_shares_member_0_and_its_merge_does_not_depend_on_the_method() -> None:
    plan = make_plan(
        config(
            one_run={"members": 1},
            one_run_lerp={"members": 1, "merge_policies": {"method": "lerp"}},
        )
    )
    assert plan.policies["one_run", 1, 1, 0] == plan.policies["warp", 1, 1, 0]
    assert plan.merged["one_run", 1, 1] != plan.merged["warp", 1, 1]
    assert plan.merged["one_run_lerp", 1, 2] == plan.merged["one_run", 1, 2]


def test_experiments_without_a_difference_need_nothing_more() -> None:
    assert results(make_plan(config(same={}, again={"members": 2}))) == results(make_plan(config()))


@pytest.mark.parametrize(
    "difference",
    [{"beta": 0.2}, {"mu": 0.02}, {"anchor": "sft"}, {"steps": 11}],
    ids=lambda difference: next(iter(difference)),
)
def test_other_training_settings_share_nothing(difference: dict[str, Any]) -> None:
    plan = make_plan(config(other={"train_policy": difference}))
    mine = {name for key, name in plan.policies.items() if key[0] == "other"}
    assert mine == {
        f"train_policy/other/replicate1/iteration{i}/member{m}" for i in (1, 2) for m in (0, 1)
    }
    assert not results(make_plan(config())) & {
        *mine,
        *(name for key, name in plan.merged.items() if key[0] == "other"),
        *(name for key, name in plan.points.items() if key[0] == "other"),
    }


@pytest.mark.parametrize(
    "difference",
    [{"weight": 0.3}, {"granularity": "tensor"}, {"vectors": "full_weights"}, {"method": "lerp"}],
    ids=lambda difference: next(iter(difference)),
)
def test_other_merge_settings_share_the_policies_only(difference: dict[str, Any]) -> None:
    plan = make_plan(config(other={"iterations": 1, "merge_policies": difference}))
    assert plan.policies["other", 1, 1, 1] == plan.policies["warp", 1, 1, 1]
    assert plan.merged["other", 1, 1] != plan.merged["warp", 1, 1]
    assert plan.points["other", 1, 1, "sft", "1"] != plan.points["warp", 1, 1, "sft", "1"]


def test_more_etas_add_points_only() -> None:
    base, wider = config(), config()
    wider["interpolate_policy"] = wider["interpolate_policy"] | {"etas": [0, 0.5, 0.8, 1]}
    added = results(make_plan(wider)) - results(make_plan(base))
    assert added == {f"interpolate_policy/warp/replicate1/iteration{i}/sft/eta0.8" for i in (1, 2)}


def test_one_more_iteration_keeps_the_earlier_ones() -> None:
    longer = make_plan(config() | {"iterations": 3})
    assert results(make_plan(config())) < results(longer)


def test_another_next_eta_changes_what_follows_only() -> None:
    plan = make_plan(config(fast={"interpolate_policy": {"next_eta": 0.5}}))
    assert plan.merged["fast", 1, 1] == plan.merged["warp", 1, 1]
    assert plan.init["fast", 1, 2] == plan.points["warp", 1, 1, "sft", "0.5"]
    assert plan.policies["fast", 1, 2, 0] == "train_policy/fast/replicate1/iteration2/member0"


def test_steps_per_iteration() -> None:
    experiment = resolve_experiments(
        config(listed={"iterations": 5, "train_policy": {"steps": [9, 7, 5]}})
    )["listed"]
    steps = [policy_settings(experiment, i)["steps"] for i in range(1, 6)]
    assert steps == [9, 7, 5, 5, 5]
    assert experiment.train_policy["steps"] == [9, 7, 5], "settings are not changed in place"


def test_a_list_of_steps_shares_with_the_same_number() -> None:
    plan = make_plan(config(listed={"train_policy": {"steps": [10, 7]}}))
    assert plan.policies["listed", 1, 1, 0] == plan.policies["warp", 1, 1, 0]
    assert plan.policies["listed", 1, 2, 0] != plan.policies["warp", 1, 2, 0]


def test_differences_are_laid_over_the_base_without_changing_it() -> None:
    base = config(other={"train_policy": {"beta": 0.5}, "members": 3})
    before = repr(base)
    experiments = resolve_experiments(base)
    assert list(experiments) == ["warp", "other"]
    assert experiments["other"].train_policy == base["train_policy"] | {"beta": 0.5}
    assert (experiments["other"].members, experiments["warp"].members) == (3, 2)
    assert repr(base) == before


def test_null_experiments_are_dropped() -> None:
    plan = make_plan(config(gone=None, lerp={"merge_policies": {"method": "lerp"}}))
    assert list(plan.experiments) == ["warp", "lerp"]
    assert not any("gone" in name for name in results(plan))
    assert {row["experiment"] for row in evaluations(plan, "main")} == {"warp", "lerp"}


@pytest.mark.parametrize(("eta", "text"), [(1, "1"), (1.0, "1"), (0.3, "0.3"), (0, "0"), (2, "2")])
def test_eta_has_one_spelling(eta: float, text: str) -> None:
    assert eta_text(eta) == text


def test_the_papers_size_plans_fast_with_each_name_made_once() -> None:
    experiments = {f"beta{k}": {"train_policy": {"beta": k / 100}} for k in range(20)}
    large = config(**experiments) | {"iterations": 5, "members": 5}
    large["interpolate_policy"] = {
        "etas": [k / 10 for k in range(21)],
        "towards": "sft",
        "next_eta": 0.3,
        "write": "recipes",
    }
    started = time.perf_counter()
    plan = make_plan(large)
    rows = evaluations(plan, "main")
    assert time.perf_counter() - started < 1
    # β = 0.1 is the base once more; every other experiment trains its own 25 policies.
    assert len(set(plan.policies.values())) == 20 * 25
    assert len(rows) > 21 * 5 * (5 + 21)


COLUMNS = {
    "experiment",
    "replicate",
    "anchor",
    "beta",
    "mu",
    "training_changes",
    "members",
    "merge_method",
    "merge_weight",
    "stage",
    "iteration",
    "policy",
}


def test_evaluations_name_every_policy_and_point_once_per_experiment() -> None:
    base = config(
        one_run={"members": 1, "iterations": 1},
        half={"iterations": 1, "merge_policies": {"method": "lerp", "weight": 0.5}},
        sft={"train_policy": {"anchor": "sft", "beta": 0.01}},
    )
    plan = make_plan(base)
    rows = evaluations(plan, "main")
    keys = [
        (
            r["experiment"],
            r["stage"],
            r["iteration"],
            r.get("member"),
            r.get("towards"),
            r.get("eta"),
        )
        for r in rows
    ]
    assert len(set(keys)) == len(keys)
    for row in rows:
        extra = {"member"} if row["stage"] == "train_policy" else {"towards", "eta"}
        assert set(row) == COLUMNS | extra
        assert row["policy"] in results(plan)
    for experiment in plan.experiments.values():
        mine = [row for row in rows if row["experiment"] == experiment.name]
        expected = sum(
            experiment.members + len(points_of(experiment, i))
            for i in range(1, experiment.iterations + 1)
        )
        assert len(mine) == expected
        assert {row["anchor"] for row in mine} == {experiment.train_policy["anchor"]}
    half = next(row for row in rows if row["experiment"] == "half")
    assert (half["merge_method"], half["merge_weight"], half["beta"]) == ("lerp", 0.5, 0.1)


def test_changes_of_training_leave_out_what_has_a_column_and_what_changes_no_policy() -> None:
    base = config(
        other={"train_policy": {"anchor": "sft", "beta": 0.01, "mu": 2e9, "steps": 20}},
        same={"train_policy": {"beta": 0.3, "log_every": 1}},
    )
    base["train_policy"]["log_every"] = 5
    rows = evaluations(make_plan(base), "main")
    changes = {row["experiment"]: row["training_changes"] for row in rows}
    assert changes == {"warp": "", "other": "steps 20, mu 2e+09", "same": ""}


def test_a_merge_of_full_weights_has_a_name_of_its_own() -> None:
    full = {"iterations": 1, "merge_policies": {"vectors": "full_weights"}}
    rows = evaluations(make_plan(config(full=full)), "main")
    names = {row["experiment"]: row["merge_method"] for row in rows}
    assert names == {"warp": "slerp", "full": "slerp_of_full_weights"}


def test_a_next_start_that_is_on_the_front_is_evaluated_once() -> None:
    base = config()
    base["interpolate_policy"] = {
        "etas": [0.3, 1],
        "towards": "sft",
        "next_eta": 0.3,
        "write": "recipes",
    }
    towards = [row["towards"] for row in evaluations(make_plan(base), "main") if "towards" in row]
    assert towards == ["sft"] * 4


def test_a_policy_is_evaluated_once_however_many_fronts_it_is_on() -> None:
    base = config(single={"iterations": 1, "members": 1, "train_policy": {"beta": 1.0}})
    base["interpolate_policy"] = base["interpolate_policy"] | {"etas": [0, 0.3, 0.5, 1]}
    plan = make_plan(base)
    for e in ("warp", "single"):
        assert weights_of(plan, plan.points[e, 1, 1, "sft", "0"]) == Weights("train_sft")
    merged = plan.merged["warp", 1, 2]
    assert weights_of(plan, plan.points["warp", 1, 2, "sft", "1"]) == Weights(merged)
    start = plan.init["warp", 1, 2]  # is written, for iteration 2, but not to be evaluated
    assert weights_of(plan, start) == Weights(plan.merged["warp", 1, 1], "train_sft", "0.3")
    half = Weights(merged, "train_sft", "0.5")
    assert weights_of(plan, plan.points["warp", 1, 2, "sft", "0.5"]) == half
    alone = plan.policies["single", 1, 1, 0]
    assert weights_of(plan, plan.points["single", 1, 1, "sft", "1"]) == Weights(alone)
    assert weights_of(plan, plan.points["single", 1, 1, "sft", "0.5"]).policy == alone
    rounded = base | {"merge_policies": base["merge_policies"] | {"dtype": "bfloat16"}}
    plan = make_plan(rounded)
    end = weights_of(plan, plan.points["single", 1, 1, "sft", "0"])
    assert end == Weights(plan.merged["single", 1, 1], "train_sft", "0")


def test_a_front_is_what_an_iteration_evaluates() -> None:
    plan = make_plan(config(lerp={"iterations": 1, "merge_policies": {"method": "lerp"}}))
    whole = fronts(plan)
    evaluated = {row["policy"] for row in evaluations(plan, "main")}
    assert whole["train_sft"] == ["train_sft"]
    assert sorted(r for front in whole.values() for r in front) == sorted(evaluated | {"train_sft"})
    assert {r.split("/")[3] for r in whole["warp/replicate1/iteration2"]} == {"iteration2"}
    # The policies that lerp merges are warp's: they are evaluated with warp's.
    assert all(
        r.startswith("interpolate_policy/lerp/") for r in whole["lerp/replicate1/iteration1"]
    )
    parts = fronts(plan, points_per_job=2)
    assert {len(results) for results in parts.values()} <= {1, 2}
    assert [r for front in parts.values() for r in front] == [
        r for front in whole.values() for r in front
    ]


def test_points_are_recipes_of_their_ends_but_for_what_an_iteration_starts_from() -> None:
    base = config(written={"interpolate_policy": {"etas": [0.7], "write": "weights"}})
    base["interpolate_policy"] = base["interpolate_policy"] | {"etas": [0.3, 1]}
    plan = make_plan(base)
    front = "interpolate_policy/warp/replicate1/iteration2/sft/eta1"
    assert recipe_parents(plan, front) == ["train_sft", "merge_policies/warp/replicate1/iteration2"]
    # Iteration 2 starts from SFT's point of the front at 0.3, which is the init's too.
    assert plan.init["warp", 1, 2] == "interpolate_policy/warp/replicate1/iteration1/sft/eta0.3"
    for result in (
        plan.init["warp", 1, 2],
        plan.merged["warp", 1, 1],
        plan.policies["warp", 1, 1, 0],
        plan.points["written", 1, 1, "sft", "0.7"],
        "train_sft",
    ):
        assert recipe_parents(plan, result) == [], result


def test_replicates_share_nothing_but_sft() -> None:
    plan = make_plan(config(lerp={"merge_policies": {"method": "lerp"}}) | {"replicates": 3})
    assert plan.init["warp", 3, 1] == "train_sft"
    assert plan.policies["lerp", 3, 1, 0] == "train_policy/warp/replicate3/iteration1/member0"
    names = [
        {
            name
            for key, name in {**plan.policies, **plan.merged, **plan.points}.items()
            if key[1] == r
        }
        for r in (1, 2, 3)
    ]
    assert not names[0] & names[1]
    assert len(names[0]) == len(names[1]) == len(names[2])
    assert [row["replicate"] for row in evaluations(plan, "main")].count(2) == len(
        evaluations(make_plan(config(lerp={"merge_policies": {"method": "lerp"}})), "main")
    )


def test_a_group_evaluates_its_own_experiments_and_the_base() -> None:
    groups = {"anchor": {"sft": {"train_policy": {"anchor": "sft"}}}, "gone": None}
    plan = make_plan(config(lerp={"merge_policies": {"method": "lerp"}}) | {"ablations": groups})
    assert plan.groups == {"main": ["warp", "lerp"], "anchor": ["warp", "sft"]}
    assert {row["experiment"] for row in evaluations(plan, "anchor")} == {"warp", "sft"}


def test_groups_share_what_is_the_same() -> None:
    other = {"merging": {"by_tensor": {"merge_policies": {"granularity": "tensor"}}}}
    plan = make_plan(config() | {"ablations": other})
    assert plan.policies["by_tensor", 1, 1, 0] == plan.policies["warp", 1, 1, 0]


def test_matched_compute_is_that_of_all_runs_of_the_base() -> None:
    base = config(
        steps={"match_compute": "steps"},
        batch={"match_compute": "batch_size", "train_policy": {"anchor": "sft"}},
    )
    base["members"] = 3
    base["train_policy"] = base["train_policy"] | {"steps": [10, 7], "batch_size": 4}
    found = resolve_experiments(base)
    for name in ("steps", "batch"):
        assert (found[name].iterations, found[name].members) == (1, 1)
    assert found["steps"].train_policy["steps"] == 3 * (10 + 7)
    assert found["steps"].train_policy["batch_size"] == 4
    assert found["batch"].train_policy["steps"] == 10 + 7
    assert found["batch"].train_policy["batch_size"] == 3 * 4
    assert found["batch"].train_policy["anchor"] == "sft"


def test_a_merge_of_other_experiments_policies_trains_none() -> None:
    short = {"members": 1, "iterations": 1, "train_policy": {"beta": 0.2}}
    plan = make_plan(config(mixed={"policies_of": ["short", "warp"]}, short=short))
    assert plan.policies["mixed", 1, 1, 0] == plan.policies["short", 1, 1, 0]
    assert plan.policies["mixed", 1, 1, 1] == plan.policies["warp", 1, 1, 1]
    assert not any("train_policy/mixed" in name for name in plan.policies.values())


def test_a_front_towards_the_init_starts_there() -> None:
    plan = make_plan(config(own={"interpolate_policy": {"towards": "init"}}))
    assert ("own", 1, 2, "init", "0.5") in plan.points
    assert plan.merged["own", 1, 2] == plan.merged["warp", 1, 2]
    assert plan.points["own", 1, 2, "init", "0.5"] != plan.points["warp", 1, 2, "sft", "0.5"]
    towards = {
        row.get("towards") for row in evaluations(plan, "main") if row["experiment"] == "own"
    }
    assert towards == {"init", None}


def test_settings_at_the_value_from_before_they_were_there_are_not_told() -> None:
    """Finished results then keep their keys, and what differs is passed on."""
    base, defaults = config(), TrainPolicy()
    assert {name: getattr(defaults, name) for name in UNTOLD} == UNTOLD
    base["train_policy"] |= UNTOLD
    assert not UNTOLD.keys() & policy_settings(resolve_experiments(base)["warp"], 1).keys()
    base["train_policy"]["optimizer"] = "adamw"
    assert policy_settings(resolve_experiments(base)["warp"], 1)["optimizer"] == "adamw"


SHORT, POLITE = "my_rewards:short", "my_rewards:polite"


def test_rewards_of_an_experiment_are_laid_over_the_base() -> None:
    """It shares no run with the base; one that gives the base's own rewards shares all."""
    plan = make_plan(
        config(
            other={"rewards": {SHORT: 0.5, "reward_model": 0}},
            same={"rewards": {"reward_model": 1, SHORT: 0}},
        )
    )
    assert run_rewards(plan.experiments["other"], 0) == {SHORT: 0.5}
    assert run_rewards(plan.experiments["warp"], 1) == {"reward_model": 1.0}
    assert plan.policies["other", 1, 1, 0] == "train_policy/other/replicate1/iteration1/member0"
    assert plan.policies["same", 1, 2, 1] == plan.policies["warp", 1, 2, 1]
    changes = {row["experiment"]: row["training_changes"] for row in evaluations(plan, "main")}
    assert changes["warp"] == ""
    assert changes["other"] == f"rewards {{'reward_model': 0, '{SHORT}': 0.5}}"


def test_members_specialise_and_are_merged() -> None:
    """A member that changes nothing is the base's own run; one of iteration 2 starts from the
    merge of the specialists, so it is not."""
    soup = {"member_rewards": [{}, {POLITE: 2.0}]}
    plan = make_plan(config(soup=soup, soup_again=soup))
    assert [run_rewards(plan.experiments["soup"], m) for m in (0, 1)] == [
        {"reward_model": 1.0},
        {"reward_model": 1.0, POLITE: 2.0},
    ]
    assert plan.policies["soup", 1, 1, 0] == plan.policies["warp", 1, 1, 0]
    assert plan.policies["soup", 1, 1, 1] == "train_policy/soup/replicate1/iteration1/member1"
    assert plan.policies["soup", 1, 2, 0] == "train_policy/soup/replicate1/iteration2/member0"
    assert plan.merged["soup", 1, 1] != plan.merged["warp", 1, 1]
    assert plan.merged["soup_again", 1, 2] == plan.merged["soup", 1, 2]


def test_one_run_with_the_compute_of_specialists_has_the_common_rewards() -> None:
    given = config(one={"match_compute": "steps"}, theirs={"policies_of": ["warp", "warp"]})
    found = resolve_experiments(given | {"member_rewards": [{SHORT: 1.0}, {}]})
    assert run_rewards(found["warp"], 0) == {"reward_model": 1.0, SHORT: 1.0}
    assert run_rewards(found["one"], 0) == {"reward_model": 1.0}
    assert trained_rewards(found["theirs"]) == []


def test_the_reward_model_is_used_where_any_run_is_trained_on_it() -> None:
    none = config() | {"rewards": {"reward_model": 0, SHORT: 1.0}}
    assert not uses_reward_model(none)
    assert uses_reward_model(none | {"experiments": {"x": {"rewards": {"reward_model": 1}}}})
    assert uses_reward_model(none | {"member_rewards": [{}, {"reward_model": 1}]})


def test_a_carried_optimiser_is_that_of_the_same_member_one_iteration_before() -> None:
    """It is part of what a run is; the first iteration's runs have a fresh one."""
    carry = {"train_policy": {"carry_optimizer": True}}
    plan = make_plan(config(carry=carry, again=carry | {"iterations": 1}))
    assert carried_from(plan, "carry", 1, 1, 1) is None
    assert carried_from(plan, "carry", 1, 2, 1) == plan.policies["carry", 1, 1, 1]
    assert carried_from(plan, "warp", 1, 2, 1) is None
    assert plan.policies["again", 1, 1, 0] == plan.policies["carry", 1, 1, 0]
    assert plan.policies["carry", 1, 1, 0] != plan.policies["warp", 1, 1, 0]


def test_a_member_may_have_an_endpoint_of_its_own() -> None:
    """How it is called is no part of what the run is, so that it shares the other member's run."""
    served = {"url": "http://judge:1", "weight": 0.5}
    calls = [{"judge": served}, {"judge": served | {"timeout": 9.0}}]
    plan = make_plan(config(**{f"e{i}": {"member_rewards": [{}, c]} for i, c in enumerate(calls)}))
    assert run_rewards(plan.experiments["e1"], 1) == {
        "reward_model": 1.0,
        "judge": served | {"timeout": 9.0},
    }
    assert plan.policies["e1", 1, 1, 1] == plan.policies["e0", 1, 1, 1]
    assert plan.policies["e1", 1, 1, 1] != plan.policies["warp", 1, 1, 1]
