"""The DAG as a user meets it: Snakemake on the smoke configuration in a copy of the project."""

import json
import os

import pandas as pd
import pytest
import torch
import yaml
from project import SMOKE, copy_finished, copy_project, planned, snakemake
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from warpflow.merging.recipes import compose

pytestmark = pytest.mark.workflow

FIGURES = (
    "fronts",
    "eta_sweep",
    "lambda_sweep",
    "geometry",
    "training_curves",
    "diversity",
    "envelopes",
)


def test_everything_is_made(finished):
    results = finished / "results"
    tables = results / "collect_evaluations/main"
    names = {path.name for path in tables.iterdir()}
    assert names >= {"evaluations.csv", "trajectories.csv", "geometry.csv", "completions.csv"}
    figures = {path.name for path in (results / "figures/main").iterdir()}
    for figure in FIGURES:
        assert {f"{figure}.svg", f"{figure}.png"} <= figures
    assert not {"averages.svg", "averages.png"} & figures, "they would have nothing to draw"
    summary = (results / "write_summary/main.html").read_text()
    assert "Points to take" in summary and "too few" in summary
    report = (results / "report/main.html").read_text()
    assert "fronts.svg" in report
    verdicts = pd.read_csv(results / "compare_fronts/main/verdicts.csv").set_index("claim")
    assert verdicts.verdict["2"] == "undecided", "of 8 prompts nothing is said"
    assert verdicts.estimate["2"] != 0
    optimum = pd.read_csv(tables / "optimum.csv")
    assert set(optimum.kind[optimum.reliable]) == {"optimum", "best_of_n"}
    assert "verdicts.html" in report
    metrics = json.loads((tables / "metrics/warp.iteration2.json").read_text())
    assert metrics["eta"] == 1
    assert metrics["kl_exact"] > 0


def test_checkpoints_are_hugging_face_folders(finished):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = finished / "results/merge_policies/warp/replicate1/iteration2/checkpoint"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.model_type == "gemma"
    assert model.config.vocab_size == len(tokenizer)
    assert (folder / "model.safetensors").stat().st_mode & 0o044  # readable by colleagues


def test_points_of_the_front_are_recipes_and_the_next_start_is_written(finished, tmp_path):
    folder = copy_finished(finished, tmp_path / "copy")
    results = folder / "results"
    asked = "results/interpolate_policy/warp/replicate1/iteration2/sft/eta0.5/checkpoint.dvc"
    assert not (folder / asked).exists()  # evaluation composes it; whoever wants a folder asks
    snakemake(folder, asked, *SMOKE)
    ends = [
        results / "train_sft/checkpoint",
        results / "merge_policies/warp/replicate1/iteration2/checkpoint",
    ]
    point = results / "interpolate_policy/warp/replicate1/iteration2/sft/eta0.5/checkpoint"
    assert not list(point.glob("*.safetensors"))
    init, merged = (load_file(end / "model.safetensors") for end in ends)
    for name, tensor in compose(point, ends).items():
        torch.testing.assert_close(tensor, (init[name] + merged[name]) / 2, atol=1e-6, rtol=0)
    start = results / "interpolate_policy/warp/replicate1/iteration1/sft/eta0.5/checkpoint"
    assert (start / "model.safetensors").is_file()


def test_finished_run_has_nothing_to_do(finished):
    assert "Nothing to be done" in snakemake(finished, *SMOKE)


def test_content_decides_not_clocks(finished):
    for path in sorted(finished.rglob("*")):
        if path.is_file() and not path.is_symlink() and ".git" not in path.parts:
            os.utime(path, (1.6e9 + hash(str(path)) % 10**8,) * 2)
    assert planned(finished, *SMOKE) == {}


def test_new_eta_runs_only_its_jobs(finished, overlay):
    jobs = planned(finished, *overlay(interpolate_policy={"etas": [0.5, 1, 0.25]}))
    assert jobs.pop("evaluate_front") == 4  # warp × 2, lerp, one run anchored to SFT
    assert set(jobs) == {
        "collect_evaluations",
        "compare_fronts",
        "write_tables",
        "write_summary",
    } | {f"plot_{name}" for name in FIGURES}


def test_beta_reruns_rl_and_what_follows(finished, overlay):
    jobs = planned(finished, *overlay(train_policy={"beta": 0.2}))
    assert "train_sft" not in jobs
    assert "train_reward_model" not in jobs
    assert jobs["train_policy"] == 4  # not the SFT-anchored run, whose β is its own


def test_colour_only_plots(finished, overlay):
    jobs = planned(finished, *overlay(figures={"palette": "Set2"}))
    assert jobs
    assert all(rule.startswith("plot_") or rule == "write_summary" for rule in jobs)


def test_editing_code_reruns_what_imports_it(finished, tmp_path):
    copy = copy_finished(finished, tmp_path / "edited")
    script = copy / "scripts/merge_policies.py"
    script.write_text(script.read_text() + "\nSPARE = 1\n")
    jobs = planned(copy, *SMOKE)
    assert "train_sft" not in jobs
    assert jobs["merge_policies"] == 5


def test_answers_are_compared_where_the_config_asks(finished, tmp_path, overlay):
    """A policy of the run against stored answers, by a function and a chat judge that breaks down
    once. The second call asks only for the rest, and an edited function judges again by itself."""
    from test_chat_judge import Endpoint

    folder = copy_finished(finished, tmp_path / "compared")
    prompts = (folder / "results/generate_data/data/eval_prompts.jsonl").read_text().splitlines()
    for output in ("good", "bad"):
        rows = [{"instruction": json.loads(p)["prompt"], "output": output} for p in prompts[:12]]
        (folder / f"{output}.json").write_text(json.dumps(rows))
    function = folder / "my_judges.py"
    function.write_text("def brief(completions, **_): return [-len(c) for c in completions]\n")
    endpoint = Endpoint()
    endpoint.reply = lambda _: (400, {}) if len(endpoint.asked) == 3 else "Verdict: first better"
    contestants = {
        "a_policy": {"policy": "warp/2/1"},
        "bad": {"answers": "bad.json"},
        "good": {"answers": "good.json"},
    }
    chat = {"base_url": endpoint.url, "model": "stub", "requests": 1, "retries": 0}
    judges = {"brief": {"function": "my_judges:brief"}, "served": {"chat": chat}}
    section = {"contestants": contestants, "judges": judges, "pairs": "first"}
    configs = overlay(compare_answers={"mine": section})
    assert {"answer_prompts", "judge_answers", "plot_side_by_side"} <= set(
        planned(folder, *configs)
    )

    replying = endpoint.reply
    endpoint.reply = lambda _: (503, {}) if len(endpoint.asked) > 20 else replying(_)
    output = snakemake(folder, "compare_answers", *configs, succeeds=False)
    assert "of 48 questions unanswered, first: HTTP 503" in output
    endpoint.reply, asked = replying, len(endpoint.asked)
    snakemake(folder, "compare_answers", *configs)
    assert len(endpoint.asked) - asked == 48 - 20 + 1, "what was refused is asked again"
    table = pd.read_csv(folder / "results/grade_answers/mine/side_by_side.csv")
    assert table[["a", "b"]].to_numpy().tolist() == [["a_policy", "bad"], ["a_policy", "good"]] * 2
    assert (table.n == 12).all()
    assert table.score[2:].tolist() == [0, 0], "it always prefers the first"
    assert (folder / "results/figures/mine/side_by_side.png").is_file()
    function.write_text(function.read_text().replace("-len", "len"))
    jobs = planned(folder, "--nocolor", "compare_answers", *configs)
    assert jobs == {"judge_answers": 1, "grade_answers": 1, "plot_side_by_side": 1} | {
        name: 1 for name in jobs if name == "compare_answers"
    }
    endpoint.server.shutdown()


def test_large_plan_is_fast(finished, overlay):
    jobs = planned(finished, *overlay(iterations=5, members=5))
    assert jobs["train_policy"] == 25 - 2  # the first two members of iteration 1 are made


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"train_policy": {"bta": 1}}, ["train_policy.bta", "did you mean beta?"]),
        ({"interpolate_policy": {"etas": [3]}}, ["interpolate_policy.etas.0", "at most 2"]),
        ({"members": 0}, ["members", "at least 1"]),
        ({"data": "prepare_data"}, ["prepare_data.sft_path", "missing"]),
    ],
)
def test_bad_config_starts_and_touches_nothing(tmp_path, overlay, change, parts):
    folder = copy_project(tmp_path / "bad")
    before = sorted(p.relative_to(folder) for p in folder.rglob("*") if ".git" not in p.parts)
    output = snakemake(folder, *overlay(**change), succeeds=False)
    for part in parts:
        assert part in output
    assert not (folder / "results").exists()
    after = {p.relative_to(folder) for p in folder.rglob("*") if ".git" not in p.parts}
    # Snakemake makes its own folder and log; __pycache__ comes with importing the library.
    assert not [
        p
        for p in after - set(before)
        if p.parts[0] != ".snakemake" and "__pycache__" not in p.parts
    ]


def test_a_users_own_policy_reward_model_and_files(tmp_path, make_model, make_tokenizer):
    """An SFT'd Llama with its tokenizer, a GPT-2 reward model with another, JSONL and CSV files:
    nothing is trained but the RL runs."""
    folder = copy_project(tmp_path / "own")
    words = [f"w{i}" for i in range(16)]
    make_model("llama").save_pretrained(folder / "mine/policy")
    make_tokenizer().save_pretrained(folder / "mine/policy")
    make_reward_model(folder / "mine/reward", make_model, make_tokenizer)
    rows = [{"prompt": f"{a} {b}", "answer": f"{b} {a}"} for a in words for b in words]
    (folder / "mine/sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = pd.DataFrame(rows).assign(worse="w0 w0")
    table.to_csv(folder / "mine/preferences.csv", index=False)
    config = {
        "results": "results/mine",
        "policy": {"path": "./mine/policy"},
        "data": "prepare_data",
        "prepare_data": {
            "sft_path": "mine/sft.jsonl",
            "sft_prompt": "prompt",
            "sft_completion": "answer",
            "preferences_path": "mine/preferences.csv",
            "preferences_prompt": "prompt",
            "preferences_chosen": "answer",
            "preferences_rejected": "worse",
            "prompts_path": "mine/preferences.csv",
            "prompts_column": "prompt",
            "eval_prompts": 8,
            "max_text_tokens": 8,
        },
        "train_sft": {"steps": 0},
        "train_reward_model": {"path": "./mine/reward"},
        "evaluate_policy": {"gold": None},
        "iterations": 1,
        "experiments": {"lerp": None, "sft_anchor_beta_0.1": None, "slerp_lambda_0.5": None},
    }
    (folder / "mine.yaml").write_text(yaml.safe_dump(config))
    tables = "results/mine/collect_evaluations/main"
    configs = ("--configfile", "config/smoke.yaml", "mine.yaml")
    snakemake(folder, f"{tables}/evaluations.csv", *configs)
    evaluations = pd.read_csv(folder / tables / "evaluations.csv")
    assert evaluations.reward.notna().all()
    assert evaluations.gold.isna().all()
    assert (evaluations.kl_exact > 0).all()
    given = load_file(folder / "mine/policy/model.safetensors")
    stored = load_file(folder / "results/mine/train_sft/checkpoint/model.safetensors")
    assert all(torch.equal(stored[name], tensor) for name, tensor in given.items())


def test_a_users_messages_and_function_are_enough(tmp_path):
    """A chat policy and a function that checks its answers: no SFT, no preferences, no reward
    model. An edit of the function re-runs what it scores."""
    from test_prompts import write_policy

    folder = copy_project(tmp_path / "own")
    write_policy(folder / "mine/policy", "chatml")
    rows = [
        {"ask": [{"role": "user", "content": f"How was film {n}?"}], "answer": n % 2}
        for n in range(24)
    ]
    (folder / "mine/prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "my_rewards.py").write_text(
        "def odd(completions, prompts, columns, **_):\n"
        "    assert all(prompt[-1]['role'] == 'user' for prompt in prompts)\n"
        "    return [row['answer'] + 1 for row in columns]\n"
    )
    config = {
        "results": "results/mine",
        "policy": {"path": "./mine/policy", "max_prompt_tokens": 60},
        "data": "prepare_data",
        "prepare_data": {
            "prompts_path": "mine/prompts.jsonl",
            "prompts_column": "ask",
            "eval_prompts": 8,
            "max_text_tokens": 8,
        },
        "train_sft": {"steps": 0},
        "rewards": {"reward_model": 0, "my_rewards:odd": 2.0},
        "evaluate_policy": {"gold": None},
        "iterations": 1,
        "experiments": {"lerp": None, "sft_anchor_beta_0.1": None, "slerp_lambda_0.5": None},
    }
    (folder / "mine.yaml").write_text(yaml.safe_dump(config))
    configs = ("--configfile", "config/smoke.yaml", "mine.yaml")
    tables = "results/mine/collect_evaluations/main"
    snakemake(folder, f"{tables}/evaluations.csv", *configs)
    evaluations = pd.read_csv(folder / tables / "evaluations.csv")
    assert evaluations.reward.between(2, 4).all()
    assert not (folder / "results/mine/train_reward_model").exists()
    file = folder / "my_rewards.py"
    file.write_text(file.read_text().replace("+ 1", "+ 1.5"))
    jobs = planned(folder, *configs)
    assert jobs["train_policy"] == 2
    assert jobs["evaluate_front"] == 1  # all of iteration 1; no η is 0, so SFT is not evaluated
    assert not {"prepare_data", "train_sft"} & set(jobs)


def make_reward_model(folder, make_model, make_tokenizer) -> None:
    """A GPT-2 classifier of one label, whose vocabulary is not the policy's."""
    tokenizer = make_tokenizer([f"w{i}" for i in range(16)][::-1])
    base = make_model("gpt2")
    base.config.pad_token_id = tokenizer.pad_token_id
    base.save_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def test_a_group_has_its_own_tables_and_report_and_shares_the_runs(finished, tmp_path):
    folder = copy_finished(finished, tmp_path / "project")
    assert planned(folder, *SMOKE, "--", "length")["train_policy"] == 1
    snakemake(folder, *SMOKE, "--", "length")
    results = folder / "results"
    table = pd.read_csv(results / "collect_evaluations/length/evaluations.csv")
    assert set(table.experiment) == {"warp", "length_penalty", "slerp_with_and_without"}
    main = pd.read_csv(results / "collect_evaluations/main/evaluations.csv")
    ours, theirs = (t[t.experiment == "warp"].set_index("policy")["reward"] for t in (table, main))
    pd.testing.assert_series_equal(ours, theirs)
    assert "fronts.svg" in (results / "report/length.html").read_text()
    assert "Nothing to be done" in snakemake(folder, "-n", *SMOKE), "the default run is as it was"


def test_replicates_repeat_all_but_what_comes_before_rl(finished, overlay):
    jobs = planned(finished, *overlay(replicates=3))
    assert jobs["train_policy"] == 2 * 5  # those of two more replicates
    assert "train_sft" not in jobs


def test_an_optimiser_is_carried_from_member_to_member(tmp_path):
    folder = copy_project(tmp_path / "project")
    carry = {"train_policy": {"carry_optimizer": True}}
    (folder / "mine.yaml").write_text(yaml.safe_dump({"experiments": {"carry": carry}}))
    printed = snakemake(folder, "-n", "-p", *SMOKE, "mine.yaml")
    commands = [line for line in printed.splitlines() if "scripts/train_policy.py" in line]
    made = "--out results/train_policy/carry/replicate1/iteration2/member1/"
    (second,) = [line for line in commands if made in line]
    before = "results/train_policy/carry/replicate1/iteration1/member1/checkpoint.dvc"
    assert f"--optimizer_of {before} " in second
    assert before in second.partition("--inputs")[2].partition("--states")[0]
    assert sum("--optimizer_of" in line for line in commands) == 2
    assert sum("--carry_optimizer True" in line for line in commands) == 4


def test_a_member_with_rewards_of_its_own_is_trained_on_them(tmp_path):
    """Its command has the rewards and their functions, and no reward model. The base's runs have
    none of these."""
    folder = copy_project(tmp_path / "project")
    (folder / "my_rewards.py").write_text("def short(completions, **_):\n    return []\n")
    other = {"reward_model": 0, "my_rewards:short": 0.5}
    soup = {"iterations": 1, "members": 2, "member_rewards": [{}, other]}
    (folder / "mine.yaml").write_text(yaml.safe_dump({"experiments": {"soup": soup}}))
    printed = snakemake(folder, "-n", "-p", *SMOKE, "mine.yaml")
    commands = [line for line in printed.splitlines() if "scripts/train_policy.py" in line]
    (own,) = [line for line in commands if "train_policy/soup/" in line]
    assert "/iteration1/member1/" in own  # member 0 is the base experiment's run
    assert "--functions my_rewards:short --inputs" in own
    assert """--rewards '{"my_rewards:short": 0.5}'""" in own
    assert "reward_model" not in own
    others = [line for line in commands if line != own]
    assert others
    assert all("""--rewards '{"reward_model": 1.0}'""" in line for line in others)
    assert not any("my_rewards" in line for line in others)
