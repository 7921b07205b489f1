"""What a run takes, known before it runs: counts as the DAG's, work that scales, the run's own
times once there are some."""

import json
from collections import Counter
from pathlib import Path

import pytest
import yaml
from plan_run import describe, hours, main
from project import ROOT, SMOKE, copy_files, planned
from snakemake.utils import update_config
from transformers import AutoModelForCausalLM

from warpflow.estimates.costs import (
    Job,
    Measured,
    Sampling,
    count_parameters,
    jobs_of,
    measured,
    policy_config,
    seconds_of,
)
from warpflow.experiments import MAIN, make_plan
from warpflow.pipeline.config import check_config


@pytest.fixture(autouse=True)
def in_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def load(*names: str) -> dict:
    config: dict = {}
    for name in ("config", *names):
        update_config(config, yaml.safe_load((ROOT / f"config/{name}.yaml").read_text()))
    return config


def smoke_jobs(**changes: object) -> list[Job]:
    config = load("smoke")
    update_config(config, changes)
    return jobs_of(config, make_plan(config), MAIN)


@pytest.mark.workflow
def test_jobs_are_those_of_the_dag(tmp_path: Path) -> None:
    counted = Counter(job.rule for job in smoke_jobs())
    shown = planned(copy_files(tmp_path / "project"), *SMOKE)
    assert counted == {rule: shown[rule] for rule in counted}
    assert len(counted) == 9


def test_gemma_7b_has_its_published_size_and_nothing_of_the_users_is_opened() -> None:
    config = load("paper")
    check_config(config, files=False)  # names of models and files that nobody has
    assert count_parameters(AutoModelForCausalLM, policy_config(config)) == 8_537_680_896


def test_the_papers_run_has_its_jobs_and_checkpoints() -> None:
    config = load("paper")
    jobs = jobs_of(config, make_plan(config), MAIN)
    counted = Counter(job.rule for job in jobs)
    assert counted["train_policy"] == 2 * 5
    assert counted["merge_policies"] == 5
    weights = [job for job in jobs if job.checkpoint]
    # SFT, reward model, policies, merges, and the starts of iterations; other points are recipes.
    assert len(weights) == 1 + 1 + 10 + 5 + 4


def compared(**settings: object) -> dict:
    chat = {"chat": {"base_url": "http://127.0.0.1:1/v1", "model": "m"}}
    policies = {"one": {"policy": "warp/1/1"}, "two": {"path": "elsewhere"}}
    comparison = {"contestants": policies, "judges": {"chat": chat}} | settings
    return load("ablations", "smoke") | {"compare_answers": {"mine": comparison}}


def test_comparisons_and_benchmarks_of_the_config_are_planned() -> None:
    config = compared(prompts=5)
    points = {"tasks": ["any"], "experiments": ["warp"], "iterations": None, "etas": [0.5, 1]}
    config["benchmark_policy"] = points
    plan = make_plan(config)
    jobs = jobs_of(config, plan, MAIN)
    without = load("ablations", "smoke")
    more = {job.result for job in jobs} - {
        job.result for job in jobs_of(without, make_plan(without), MAIN)
    }
    assert {name.split("/")[0] for name in more} == {
        *("answer_prompts", "judge_answers", "benchmark_policy", "interpolate_policy")
    }
    assert {f"answer_prompts/mine/{name}" for name in ("one", "two")} < more
    assert "judge_answers/mine/chat" in more
    # Whoever reads a folder has its recipe written: warp/1/1, and the two points of benchmarks.
    assert len(more) == 2 + 1 + 2 + len([n for n in more if n.startswith("interpolate_policy")])
    assert not more & {job.result for job in jobs_of(config, plan, "anchor")}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "2 requests for each of {held_out} prompts, {both} in all"),
        ({"prompts": 5}, "2 requests for each of 5 prompts, 10 in all"),
        ({"prompts": 10**6}, "2 requests for each of {held_out} prompts, {both} in all"),
        (
            {"contestants": {name: {"answers": f"{name}.json"} for name in "abc"}},
            "6 requests for each stored instruction",
        ),
        (
            {"contestants": {n: {"answers": f"{n}.json"} for n in "abc"}, "pairs": "first"},
            "4 requests for each stored instruction",
        ),
    ],
)
def test_what_a_chat_judge_would_be_asked_is_said(settings: dict, expected: str) -> None:
    config = compared(**settings)
    held_out = config["generate_data"]["eval_prompts"]
    lines = describe(config, make_plan(config), MAIN, None)
    assert lines[-1] == "chat judge mine/chat: " + expected.format(
        held_out=held_out, both=2 * held_out
    )


def test_work_follows_the_settings() -> None:
    def work(**changes: object) -> float:
        settings = {"evaluate_every": 1000, "evaluate_prompts": 1} | changes
        jobs = smoke_jobs(train_policy=settings)
        return next(job.work for job in jobs if job.rule == "train_policy")

    evaluation = work(steps=20) * 2 - work(steps=40)  # the one before the first step
    assert 0 < evaluation < 0.02 * work(steps=20)
    assert work(steps=20, batch_size=16) > 1.9 * work(steps=20, batch_size=8)
    assert work(samples_per_prompt=4) < work(samples_per_prompt=2)  # prompts are read once
    assert work(gradient_checkpointing=True) > work()


def test_a_time_is_measured_or_scaled_or_follows_from_the_speed() -> None:
    short, long = Job("train_policy/a", 10.0), Job("train_policy/b", 30.0)
    known = {short: Measured(5.0, 100.0)}
    assert seconds_of(short, known, None) == 5.0
    assert seconds_of(long, known, 1.0) == pytest.approx(15.0)
    assert seconds_of(long, {}, 2.0) == 15.0
    assert seconds_of(long, {}, None) is None
    assert seconds_of(Job("merge_policies/a"), {}, 2.0) is None
    merged = {Job("merge_policies/b"): Measured(3.0, 0.0), Job("merge_policies/c"): Measured(5, 0)}
    assert seconds_of(Job("merge_policies/a"), merged, None) == 4.0


def test_sampling_may_have_a_rate_of_its_own() -> None:
    job = Job("train_policy/a", 100.0, sampling=Sampling(tokens=6.0, work=40.0))
    assert seconds_of(job, {}, 10.0) == 10.0
    assert seconds_of(job, {}, 10.0, 2.0) == 6 / 2 + 60 / 10
    assert seconds_of(job, {}, 10.0, 6 / 40 * 10) == pytest.approx(10), "the same rate for both"
    assert seconds_of(job, {job: Measured(5.0, 100.0)}, 10.0, 2.0) == 5.0, "measured is measured"
    assert seconds_of(Job("train_sft", 100.0), {}, 10.0, 2.0) == 10.0


def test_what_is_sampled_follows_the_settings() -> None:
    config = load("smoke")
    jobs = jobs_of(config, make_plan(config), MAIN)
    new = config["policy"]["max_new_tokens"]
    run = config["train_policy"] | {"steps": 20, "evaluate_every": 10}
    expected = new * (20 * run["batch_size"] + 3 * run["evaluate_prompts"])
    trained = smoke_jobs(train_policy={"steps": 20, "evaluate_every": 10})
    tokens = {job.sampling.tokens for job in trained if job.rule == "train_policy"}
    assert tokens == {expected}
    sampling = {job.rule for job in jobs if job.sampling.tokens}
    assert sampling == {"train_policy", "evaluate_front", "estimate_optimum"}
    assert all(0 < job.sampling.work < job.work for job in jobs if job.rule in sampling)


@pytest.mark.parametrize("given", [["0"], ["-5"], ["fast"], ["100"]])
def test_a_sampling_rate_needs_a_sense_and_the_other_rate(
    given: list[str], capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        main(["--sampling-tokens-per-second", *given])
    assert "--sampling-tokens-per-second" in capsys.readouterr().err


def test_hours_say_that_some_are_not_known() -> None:
    one, two = Job("a/1"), Job("b/1")
    assert hours([one, two], {one: 3600.0, two: 7200.0}) == "3.000"
    assert hours([one, two], {one: 3600.0, two: None}) == "1.000+?"
    assert hours([one, two], {one: None, two: None}) == "?"
    assert hours([], {}) == "0.000"


def test_a_result_from_the_cache_says_nothing_of_its_time(tmp_path: Path) -> None:
    job = Job("train_policy/a")
    (tmp_path / "logs/train_policy").mkdir(parents=True)
    (tmp_path / "train_policy/a").mkdir(parents=True)
    made = tmp_path / "train_policy/a/provenance.json"
    assert measured(tmp_path, job) is None
    (tmp_path / "logs/train_policy/a.tsv").write_text("s\tmax_rss\n2.5\t431.2\n")
    made.write_text(json.dumps({"seconds": 2.0}))
    assert measured(tmp_path, job) == Measured(2.5, 431.2)
    made.write_text(json.dumps({"seconds": 2.0, "restored": True}))
    assert measured(tmp_path, job) is None


def test_unknown_groups_are_named(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["--group", "none"])
    assert "expected one of main, anchor" in capsys.readouterr().err


@pytest.mark.workflow
def test_a_finished_run_is_planned_at_what_it_took(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished)
    config = load("smoke") | {"results": "results"}
    plan = make_plan(config)
    jobs = jobs_of(config, plan, MAIN)
    took = sum(found.seconds for job in jobs if (found := measured(Path("results"), job)))
    lines = describe(config, plan, MAIN, None)
    assert f"{len(jobs)} jobs, {len(jobs)} of them measured" in lines[0]
    shown = [line.split() for line in lines[3:12]]
    assert sum(float(words[3]) for words in shown) == pytest.approx(took / 3600, abs=0.004)
    assert {words[4] for words in shown} == {"0.000"}  # to go
