"""Every script, called as a function, one after another as the rules call them."""

import json
from collections.abc import Mapping
from pathlib import Path

import collect_evaluations
import evaluate_front
import generate_data
import interpolate_policy
import merge_policies
import pandas as pd
import pytest
import score_trajectories
import torch
import train_policy
import train_reward_model
import train_sft
import write_config_docs
import write_tables
from safetensors.torch import load_file
from test_endpoints import served
from transformers import AutoModelForCausalLM

from warpflow.data.files import read_rows
from warpflow.gold_names import gold_sources
from warpflow.lm.models import load_reward_model
from warpflow.reward_terms import gold_calls

pytestmark = pytest.mark.slow  # the scripts train, sample and evaluate

TINY = {
    "model_type": "gemma",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}
GOLD = "warpflow.data.toy_reviews:gold_score"
NO_RETRIES = json.dumps({"rewards.mine": {"retries": 0}})
MODEL = '{"reward_model": 1.0}'


def flags(**settings) -> list[str]:
    return [
        word
        for key, value in settings.items()
        for word in (f"--{key}", *map(str, value if isinstance(value, list) else [value]))
    ]


def supervised(**settings) -> list[str]:
    base = {"steps": 3, "batch_size": 4, "learning_rate": 1e-3, "warmup_steps": 1}
    return flags(**base, weight_decay=0.0, **settings)


SAMPLING = {"max_prompt_tokens": 16, "max_new_tokens": 6, "temperature": 0.9}
REINFORCE = {
    "steps": 3,
    "batch_size": 4,
    "samples_per_prompt": 2,
    "learning_rate": 1e-3,
    "warmup_steps": 1,
    "max_grad_norm": 1.0,
    "beta": 0.1,
    "mu": 0.5,
    "anchor": "ema",
    "baseline": "rloo",
    "length_penalty": 0.0,
    "reset_every": 2,
    "gradient_checkpointing": False,
    "compute_dtype": "float32",
    "save_every": 1,
    "log_every": 1,
    "evaluate_every": 2,
    "evaluate_prompts": 4,
}


def make_inputs(folder: Path) -> Path:
    """data/, sft/ and reward_model/ of the tiny run, made by the scripts."""
    sizes = {"sft_examples": 40, "preference_pairs": 20, "preference_noise_scale": 2.0}
    generate_data.main(
        flags(out=folder / "data", seed=0, train_prompts=20, eval_prompts=8, **sizes)
    )
    data, sft, reward = folder / "data", folder / "sft", folder / "reward_model"
    train_sft.main(supervised(data=data, out=sft, seed=0, architecture=json.dumps(TINY)))
    train_reward_model.main(supervised(data=data, sft=sft, out=reward, seed=0, held_out=8))
    return folder


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """The inputs and two members trained from them."""
    folder = make_inputs(tmp_path_factory.mktemp("results"))
    for member in (0, 1):
        run_train_policy(folder, member, folder / f"train_policy/member{member}/checkpoint")
    return folder


def run_train_policy(folder: Path, member: int, out: Path, **changes) -> None:
    paths = {name: folder / name for name in ("sft", "reward_model", "data")}
    settings = {
        **SAMPLING,
        **REINFORCE,
        "rewards": MODEL,
        "seed": 0,
        "replicate": 1,
        "iteration": 1,
        **changes,
    }
    tables = out.parent / "tables"
    train_policy.main(
        flags(init=folder / "sft", member=member, out=out, tables=tables, **paths, **settings)
    )


def run_score(folder: Path, runs: list[Path], out: Path, **changes) -> dict:
    paths = {name: folder / name for name in ("sft", "reward_model", "data")}
    given = {"gold": GOLD, "rewards": MODEL, "max_prompt_tokens": 16, **changes}
    words = ["--runs", *map(str, runs), "--members", *map(str, range(len(runs)))]
    score_trajectories.main(words + flags(out=out, **paths, **given))
    return json.loads(out.read_text())


def run_evaluate(
    folder: Path, policy: Path | None = None, out: Path | None = None, **changes
) -> dict:
    paths = {name: folder / name for name in ("sft", "reward_model", "data")}
    sizes = {"prompts": 8, "samples_per_prompt": 2, "batch_size": 4, "completions": 3}
    given = {**paths, **sizes, **SAMPLING, "gold": GOLD, "rewards": MODEL, **changes}
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        given |= {"policy": policy, "out": out}
    given = {name: value for name, value in given.items() if value is not None}
    evaluate_front.main(flags(seed=0, **given))
    return json.loads(out.read_text()) if out else {}


def evaluation_of(results: Path, result: Path) -> Path:
    return results / "evaluate_policy" / result.relative_to(results) / "evaluation.json"


def test_sft_writes_a_policy_and_its_curve(results):
    assert len(pd.read_csv(results / "sft/training.csv")) == 3
    assert AutoModelForCausalLM.from_pretrained(results / "sft").dtype == torch.float32


def test_sft_of_zero_steps_stores_the_given_policy(results, tmp_path):
    arguments = flags(data=results / "data", out=tmp_path / "sft", seed=0, policy=results / "sft")
    train_sft.main(
        arguments
        + flags(steps=0, batch_size=1, learning_rate=1e-3, warmup_steps=0, weight_decay=0.0)
    )
    before, after = (
        load_file(p / "model.safetensors") for p in (results / "sft", tmp_path / "sft")
    )
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_sft_warns_of_a_policy_stored_in_half_precision(results, tmp_path, caplog):
    model = AutoModelForCausalLM.from_pretrained(results / "sft", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    for path in (results / "sft").glob("token*"):
        (tmp_path / "half" / path.name).write_bytes(path.read_bytes())
    train_sft.main(
        flags(data=results / "data", out=tmp_path / "sft", seed=0, policy=tmp_path / "half")
        + flags(steps=0, batch_size=1, learning_rate=1e-3, warmup_steps=0, weight_decay=0.0)
    )
    assert "stored in torch.bfloat16" in caplog.text
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "sft").dtype == torch.float32


def test_reward_model_has_one_label_and_its_unit(results):
    model = load_reward_model(results / "reward_model")
    assert model.config.num_labels == 1
    assert model.config.reward_std > 0
    accuracy = json.loads((results / "reward_model/metrics.json").read_text())["held_out_accuracy"]
    assert 0 <= accuracy <= 1


def test_reward_model_needs_pairs_to_train_on(results, tmp_path):
    with pytest.raises(ValueError, match="held_out is 20: nothing is left"):
        train_reward_model.main(
            supervised(
                data=results / "data", sft=results / "sft", out=tmp_path, seed=0, held_out=20
            )
        )


def test_given_reward_model_is_stored_as_it_is(results, tmp_path):
    given, stored = results / "reward_model", tmp_path / "stored"
    train_reward_model.main(
        supervised(
            data=results / "data", sft=results / "sft", out=stored, seed=0, held_out=2, path=given
        )
    )
    before, after = (load_file(p / "model.safetensors") for p in (given, stored))
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_train_policy_logs_steps_and_keeps_completions(results, tmp_path):
    folder = results / "train_policy/member0/tables"
    assert pd.read_csv(folder / "training.csv").step.tolist() == [1, 2, 3]
    kept = pd.read_json(folder / "completions.jsonl", lines=True)
    assert kept.step.tolist() == [step for step in (0, 2, 3) for _ in range(4)]
    scored = run_score(results, [folder], tmp_path / "trajectories.json")
    trajectory = pd.DataFrame(scored["trajectories"])
    assert trajectory.step.tolist() == [0, 2, 3]
    assert trajectory.kl_exact[0] == 0  # step 0 is the SFT policy
    assert trajectory.gold.notna().all()
    assert trajectory[["entropy", "distinct_2"]].gt(0).all(axis=None)
    for row, means in zip(scored["prompts"], scored["trajectories"], strict=True):
        for quantity in ("reward", "kl_exact", "gold"):
            mean = sum(row[quantity]) / 4
            assert mean == pytest.approx(means[quantity], rel=1e-4, abs=1e-6)


def test_a_kept_completion_scores_as_it_did_when_it_was_sampled(results, tmp_path):
    """SFT's completions at step 0, scored later, are those of an evaluation of SFT itself."""
    runs = [results / "train_policy/member0/tables"]
    scored = run_score(results, runs, tmp_path / "trajectories.json")
    sizes = {"prompts": 4, "samples_per_prompt": 1}
    at_once = run_evaluate(results, results / "sft", tmp_path / "at_once.json", **sizes)
    first = scored["prompts"][0]
    assert first["step"] == 0
    for quantity in ("reward", "gold", "kl", "kl_exact", "length"):
        assert first[quantity] == pytest.approx(at_once["prompts"][quantity], rel=1e-5, abs=1e-6)


def test_train_policy_is_deterministic_and_members_differ(results, tmp_path):
    tracked = {"report_to": "tensorboard", "trackers": tmp_path / "logs", "run": "warp/member0"}
    run_train_policy(results, 0, tmp_path / "again", **tracked)
    member0, member1 = (results / f"train_policy/member{m}/checkpoint" for m in (0, 1))
    for path in sorted((member0.parent / "tables").iterdir()):
        assert path.read_bytes() == (tmp_path / "tables" / path.name).read_bytes(), path.name
    for path in sorted(member0.iterdir()):
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name
    weights = "model.safetensors"
    assert (member0 / weights).read_bytes() != (member1 / weights).read_bytes()
    assert list((tmp_path / "logs/tensorboard/warp/member0").glob("events.out.tfevents*"))


def test_train_policy_refuses_a_long_prompt(results, tmp_path):
    with pytest.raises(ValueError, match=r"max_prompt_tokens.*train_prompts|train_prompts.*tokens"):
        run_train_policy(results, 0, tmp_path / "out", max_prompt_tokens=3)
    assert not (tmp_path / "out").exists()


def test_merge_interpolate_evaluate_collect(results, tmp_path):
    policies = [results / f"train_policy/member{m}/checkpoint" for m in (0, 1)]
    merged = tmp_path / "merge_policies/warp/replicate1/iteration1/checkpoint"
    point = tmp_path / "interpolate_policy/warp/replicate1/iteration1/sft/eta0.5/checkpoint"
    merge_policies.main(
        ["--policies", *map(str, policies), *flags(init=results / "sft", out=merged)]
    )
    interpolate_policy.main(flags(init=results / "sft", policy=merged, eta=0.5, out=point))
    geometry = pd.read_csv(merged / "geometry.csv")
    assert {"layer 0", "model.embed_tokens.weight"} <= set(geometry.group)
    for member, policy in enumerate(policies):
        target = tmp_path / f"train_policy/warp/replicate1/iteration1/member{member}"
        target.mkdir(parents=True)
        for name in ("checkpoint", "tables"):
            (target / name).symlink_to(policy.with_name(name))
        run_evaluate(results, policy, evaluation_of(tmp_path, target))
    scored = tmp_path / "score_trajectories/warp/replicate1/iteration1/trajectories.json"
    scored.parent.mkdir(parents=True)
    run_score(results, [policy.with_name("tables") for policy in policies], scored)
    document = run_evaluate(results, point, evaluation_of(tmp_path, point.parent))
    assert document["metrics"]["kl_exact"] > 0
    assert len(document["completions"]) == 3
    assert len(document["prompts"]["reward"]) == document["metrics"]["n_prompts"]
    config = {
        "iterations": 1,
        "members": 2,
        "rewards": {"reward_model": 1.0},
        "member_rewards": [],
        "train_policy": REINFORCE,
        "merge_policies": {"method": "slerp", "vectors": "task_vectors", "weight": None},
        "interpolate_policy": {
            "etas": [0.5],
            "towards": "sft",
            "next_eta": 0.5,
            "write": "recipes",
        },
        "experiments": {},
    }
    tables = tmp_path / "tables"
    collect_evaluations.main(
        flags(results=tmp_path, out=tables, group="main", config=json.dumps(config))
    )
    evaluations = pd.read_csv(tables / "evaluations.csv")
    assert evaluations.stage.tolist() == ["train_policy", "train_policy", "interpolate_policy"]
    assert evaluations.reward[2] == document["metrics"]["reward"]
    assert len(pd.read_csv(tables / "trajectories.csv")) == 6
    metrics = json.loads((tables / "metrics/warp.iteration1.json").read_text())
    assert metrics["eta"] == 0.5
    assert metrics["reward"] == pytest.approx(document["metrics"]["reward"], rel=1e-5)
    pd.DataFrame({"claim": ["1", "2"], "verdict": ["held", "undecided"]}).to_csv(
        tables / "verdicts.csv"
    )
    pd.DataFrame({"experiment": ["a"], "result": ["below"]}).to_csv(tables / "comparisons.csv")
    write_tables.main(flags(tables=tables, comparisons=tables, out=tmp_path / "figures"))
    assert '<td class="held">held</td>' in (tmp_path / "figures/verdicts.html").read_text()
    assert '<td class="below">below</td>' in (tmp_path / "figures/comparisons.html").read_text()
    assert "review of the" in (tmp_path / "figures/completions.html").read_text()


def test_sft_evaluates_to_zero_kl(results, tmp_path):
    document = run_evaluate(results, results / "sft", tmp_path / "evaluation.json")
    assert document["metrics"]["kl"] == document["metrics"]["kl_exact"] == 0


def test_an_endpoint_rewards_training_and_evaluation(results, tmp_path):
    """Both use the same contract. How it is called is no part of the run."""

    def words(body):
        return 200, {"scores": [float(len(text.split())) for text in body["completions"]]}

    with served(words) as stub:
        rewards = {"rewards": json.dumps({"mine": {"url": stub.address, "weight": 2.0}})}
        calls = {"endpoints": json.dumps({"rewards.mine": {"batch_size": 3}})}
        run_train_policy(results, 0, tmp_path / "policy", **rewards, **calls)
        asked = len(stub.bodies)
        assert max(len(body["prompts"]) for body in stub.bodies) == 3
        document = run_evaluate(results, results / "sft", tmp_path / "e.json", **rewards, **calls)
    assert len(stub.bodies) > asked
    training = pd.read_csv(tmp_path / "tables/training.csv")
    assert (training.reward % 1).isin([0, 0.5, 0.25, 0.75]).all() and training.reward.max() > 0
    for row in document["completions"]:
        assert row["reward"] == 2 * len(row["completion"].split())
    with pytest.raises(ConnectionError, match=r"mine at .* did not answer"):
        run_train_policy(results, 0, tmp_path / "other", **rewards, endpoints=NO_RETRIES)
    assert not (tmp_path / "other").exists()


def test_functions_reward_without_a_reward_model_and_are_weighted_beside_it(results, tmp_path):
    """The reward is gold's own function, so reward and gold are equal."""
    document = run_evaluate(
        results, results / "sft", tmp_path / "a.json", rewards=json.dumps({GOLD: 2.0})
    )["metrics"]
    assert document["reward"] == pytest.approx(2 * document["gold"])
    model = run_evaluate(results, results / "sft", tmp_path / "b.json")["metrics"]
    both = run_evaluate(
        results,
        results / "sft",
        tmp_path / "c.json",
        rewards=json.dumps({GOLD: -1.0, "reward_model": 0.5}),
    )["metrics"]
    assert both["reward"] == pytest.approx(0.5 * model["reward"] - model["gold"], rel=1e-5)
    assert both["reward.reward_model"] == pytest.approx(model["reward"])
    assert both[f"reward.{GOLD}_se"] == pytest.approx(model["gold_se"])
    assert not [name for name in model if name.startswith("reward.")]
    only_gold = json.dumps({GOLD: 1.0})
    run_train_policy(results, 0, tmp_path / "trained", rewards=only_gold)
    out = tmp_path / "trajectories.json"
    scored = run_score(results, [tmp_path / "tables"], out, rewards=only_gold)["trajectories"]
    assert [row["reward"] for row in scored] == [row["gold"] for row in scored]


def test_several_golds_are_a_function_and_a_model_and_each_has_a_column(results, tmp_path):
    """One gold is the reward model itself, so gold and reward are equal."""
    golds = ["--gold", GOLD, str(results / "reward_model"), "--gold_names", "gold.f", "gold.m"]
    paths = {name: results / name for name in ("sft", "reward_model", "data")}
    sizes = {"prompts": 4, "samples_per_prompt": 1, "batch_size": 4, "completions": 2}
    out = tmp_path / "evaluation.json"
    settings = flags(policy=results / "sft", out=out, seed=0, rewards=MODEL, **paths, **sizes)
    evaluate_front.main([*golds, *settings, *flags(**SAMPLING)])
    document = json.loads(out.read_text())
    alone = run_evaluate(results, results / "sft", tmp_path / "one.json", **sizes)
    metrics = document["metrics"]
    assert metrics["gold.m"] == metrics["reward"]
    assert metrics["gold.m_se"] == metrics["reward_se"]
    assert metrics["gold.f"] == alone["metrics"]["gold"]
    assert "gold" not in metrics
    assert document["prompts"]["gold.f"] == alone["prompts"]["gold"]
    assert {"gold.f", "gold.m"} <= document["completions"][0].keys()


def gold_flags(addresses: Mapping[str, str], **calls: float) -> dict[str, object]:
    """Golds of endpoints, as the rules write them."""
    given = {name: {"url": address, **calls} for name, address in addresses.items()}
    sources = gold_sources(given)
    endpoints = json.dumps(gold_calls(given))
    return {"gold": list(sources.values()), "gold_names": list(sources), "endpoints": endpoints}


def test_golds_are_served_elsewhere_and_each_has_a_column(results, tmp_path):
    """Two endpoints, of which one is the length of the text, in evaluations, along runs, and in the
    estimate of the optimum."""

    def lengths(body):
        return 200, {"scores": [len(text) for text in body["completions"]]}

    def halves(body):
        return 200, {"scores": [0.5 for _ in body["completions"]]}

    with served(lengths) as long, served(halves) as half:
        gold = gold_flags({"long": long.address, "half": half.address}, batch_size=3)
        document = run_evaluate(results, results / "sft", tmp_path / "evaluation.json", **gold)
        assert long.bodies[0]["completions"] == [], "it is asked before anything is computed"
        assert {len(body["completions"]) for body in long.bodies[1:]} == {3, 1}
        asked = [text for body in long.bodies for text in body["completions"]]
        metrics = document["metrics"]
        assert metrics["gold.long"] == pytest.approx(sum(map(len, asked)) / len(asked))
        assert metrics["gold.half"] == 0.5 and metrics["gold.half_se"] == 0
        assert "gold" not in metrics
        assert [row["gold.long"] for row in document["completions"]] == [
            len(row["completion"]) for row in document["completions"]
        ]
        run_train_policy(results, 0, tmp_path / "trained")
        out = tmp_path / "trajectories.json"
        rows = run_score(results, [tmp_path / "tables"], out, **gold)["trajectories"]
        assert rows and all(row["gold.half"] == 0.5 for row in rows)


def test_a_gold_that_is_down_stops_before_any_sample_and_one_without_a_score_at_it(
    results, tmp_path
):
    """What is measured is a number for every completion: None would compare points by different
    completions."""

    def silent(body):
        return 200, {"scores": [None for _ in body["completions"]]}

    with served(silent) as stub:
        gold = gold_flags({"judge": stub.address}, retries=0)
        out = tmp_path / "none.json"
        with pytest.raises(SystemExit, match=r"gold\.judge returned None for prompt .*a number"):
            run_evaluate(results, results / "sft", out, **gold)
    asked = len(stub.bodies)
    assert asked == 2
    with pytest.raises(ConnectionError, match=r"gold\.judge at .* did not answer, in 1 attempts"):
        run_evaluate(results, results / "sft", out, **gold)
    assert len(stub.bodies) == asked and not out.exists()


def test_without_gold_its_column_is_there_and_empty(results, tmp_path):
    document = run_evaluate(results, results / "sft", tmp_path / "none.json", gold=None)
    assert all(row["gold"] is None for row in document["completions"])
    assert document["metrics"]["gold"] is None and document["prompts"]["gold"] is None


def test_the_gold_reward_model_is_another_one_of_the_other_share(results, tmp_path, monkeypatch):
    """Neither of the two sees a pair of the other's."""
    seen: dict[str, list[str]] = {}
    encode = train_reward_model.encode_example
    for name, gold in (("proxy", False), ("gold", True)):
        texts = seen[name] = []

        def remember(tokenizer, prompt, completion, texts=texts):
            texts.append(json.dumps([prompt, completion]))
            return encode(tokenizer, prompt, completion)

        monkeypatch.setattr(train_reward_model, "encode_example", remember)
        given = {"data": results / "data", "sft": results / "sft", "out": tmp_path / name}
        train_reward_model.main(
            supervised(**given, seed=0, held_out=2, gold_share=0.5, **({"gold": gold}))
        )
    pairs = read_rows(results / "data/preferences.jsonl")
    assert seen["proxy"] and seen["gold"]
    assert len(seen["proxy"]) + len(seen["gold"]) == 2 * len(pairs)
    assert not set(seen["proxy"]) & set(seen["gold"])
    proxy, gold = (load_file(tmp_path / n / "model.safetensors") for n in ("proxy", "gold"))
    assert not torch.equal(proxy["score.weight"], gold["score.weight"])


def test_a_share_too_small_for_a_gold_reward_model_is_named(results, tmp_path):
    given = {"data": results / "data", "sft": results / "sft", "out": tmp_path / "out"}
    with pytest.raises(ValueError, match=r"share of 0.5 \(held_out_preferences of gold\).*is 19"):
        train_reward_model.main(supervised(**given, seed=0, held_out=19, gold_share=0.5, gold=True))


def test_several_points_are_evaluated_as_each_alone(results, tmp_path):
    """They share one process and one model. A point that cannot be composed is left out and
    named."""
    ends = {"init": results / "sft", "policy": results / "train_policy/member0/checkpoint"}
    given = [{**ends, "eta": 0.3}, {"policy": ends["policy"]}, {**ends, "eta": 0.8}]
    alone = [
        run_evaluate(results, out=tmp_path / f"alone{number}.json", **point)
        for number, point in enumerate(given)
    ]
    wrong = {"init": results / "sft", "policy": results / "reward_model", "eta": 0.5}
    points = [
        {name: str(value) if isinstance(value, Path) else value for name, value in point.items()}
        | {"out": str(tmp_path / f"together{number}.json")}
        for number, point in enumerate([given[0], wrong, *given[1:]])
    ]
    with pytest.raises(
        SystemExit, match=r"1 of 4 points failed:\n- .*together1.json: .*reward_model"
    ):
        run_evaluate(results, points=json.dumps(points))
    together = [json.loads((tmp_path / f"together{n}.json").read_text()) for n in (0, 2, 3)]
    assert together == alone


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ('[{"policy": "a"}]', "out"),
        ('[{"policy": "a", "out": "b", "eta": 0.5}]', "init and eta: expected both"),
        ('[{"policy": "a", "out": "b", "init": "c", "eta": 3}]', "less than or equal to 2"),
    ],
)
def test_a_point_that_is_not_whole_is_refused(results, points, message):
    with pytest.raises(SystemExit, match=message):
        run_evaluate(results, points=points)


def test_out_of_memory_names_the_batch_size(results, tmp_path, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(evaluate_front, "evaluate", full)
    with pytest.raises(SystemExit, match=r"evaluate_policy\.batch_size"):
        run_evaluate(results, results / "sft", tmp_path / "e.json")


def test_config_docs_are_current():
    write_config_docs.main(["--check"])


@pytest.mark.parametrize("script", [train_policy, train_sft, evaluate_front, merge_policies])
def test_unknown_flag_is_an_error(script, capsys):
    with pytest.raises((SystemExit, ValueError)):
        script.main(["--no_such_flag", "1"])


def test_an_optimiser_is_carried_into_the_next_run(results, tmp_path):
    """A run of 2 steps, and one from its end with its optimiser: the moments of 4 steps. The file
    has the same bytes each time."""
    first = [tmp_path / name / "checkpoint" for name in ("first", "again")]
    for out in first:
        run_train_policy(results, 0, out, steps=2, carry_optimizer=True)
    assert (first[0] / "optimizer.pt").read_bytes() == (first[1] / "optimizer.pt").read_bytes()
    carried, fresh = (tmp_path / name / "checkpoint" for name in ("carried", "fresh"))
    given = {"steps": 2, "iteration": 2, "carry_optimizer": True}
    run_train_policy(results, 0, carried, **given, optimizer_of=first[0])
    run_train_policy(results, 0, fresh, **given)
    counts = [
        {int(state["step"]) for state in torch.load(out / "optimizer.pt")["state"].values()}
        for out in (carried, fresh)
    ]
    assert counts == [{4}, {2}]
    one, other = (load_file(out / "model.safetensors") for out in (carried, fresh))
    assert any(not torch.equal(one[name], other[name]) for name in one)
    without = results / "train_policy/member0/checkpoint"
    assert not (without / "optimizer.pt").exists()
    with pytest.raises(FileNotFoundError, match="kept no optimiser; train it with train_policy"):
        run_train_policy(results, 0, tmp_path / "x/checkpoint", **given, optimizer_of=without)


def test_a_merge_leaves_the_optimisers_of_its_members_behind(results, tmp_path):
    policies = [tmp_path / f"member{m}" / "checkpoint" for m in (0, 1)]
    for member, out in enumerate(policies):
        run_train_policy(results, member, out, steps=1, carry_optimizer=True)
    words = ["--init", str(results / "sft"), "--policies", *map(str, policies)]
    merge_policies.main([*words, "--out", str(tmp_path / "merged")])
    assert not (tmp_path / "merged/optimizer.pt").exists()
    assert (tmp_path / "merged/model.safetensors").is_file()
