"""Bad configurations get one clear message, before any job and without touching a file."""

import copy
import importlib.util
import json
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml
from snakemake.utils import update_config
from transformers.utils import import_utils

from warpflow.experiments import resolve_experiments
from warpflow.pipeline.architectures import architectures_of_vllm, kernels_versions
from warpflow.pipeline.config import ConfigError, check_config

CONFIG = Path(__file__).parents[2] / "config"


@pytest.fixture
def config():
    return yaml.safe_load((CONFIG / "config.yaml").read_text())


def message(config) -> str:
    with pytest.raises(ConfigError) as error:
        check_config(config)
    return str(error.value)


def test_shipped_config_is_valid(config):
    check_config(config)


@pytest.mark.parametrize(
    "names",
    [
        "smoke.yaml",
        "movie_sentences.yaml",
        "ablations.yaml",
        "full.yaml",
        "smollm2.yaml",
        "ablations.yaml smollm2.yaml smollm2_full.yaml",
        "ablations.yaml smollm2.yaml smollm2_noise.yaml",
        "ablations.yaml smollm2.yaml smollm2_anchor.yaml",
        "smollm2_chat.yaml",
    ],
)
def test_shipped_overlays_are_valid(config, names, tmp_path, monkeypatch):
    monkeypatch.setattr("warpflow.pipeline.config.reads_gguf", lambda: True)
    for name in names.split():  # as Snakemake lays one file over another
        update_config(config, yaml.safe_load((CONFIG / name).read_text()))
    if config["data"] == "prepare_data":
        table = tmp_path / "rows.jsonl"
        row = {"text": "a b c d e f", "label": 1, "output": "c"}
        rows = [row | {"instruction": f"question {number}"} for number in range(600)]
        table.write_text("".join(json.dumps(row) + "\n" for row in rows))
        section = config["prepare_data"]
        section |= {key: str(table) for key in section if key.endswith("_path")}
    for comparison in config["compare_answers"].values():  # on the files of other models
        for contestant in comparison["contestants"].values():
            contestant |= {"answers": str(table)} if "answers" in contestant else {}
        comparison["prompts"] = 1
    check_config(config)


@pytest.mark.parametrize(
    ("path", "value", "parts"),
    [
        (("train_policy", "bta"), 0.1, ["train_policy.bta", "unknown key", "did you mean beta?"]),
        (("mambers",), 2, ["mambers", "unknown key", "members"]),
        (("train_policy", "beta"), "high", ["train_policy.beta", "'high'", "number"]),
        (("train_policy", "learning_rate"), "1e-4", ["learning_rate", "write it as 1.0e-04"]),
        (("members",), 0, ["members", "got 0", "at least 1"]),
        (("interpolate_policy", "etas"), [0.5, 2.5], ["etas.1", "2.5", "at most 2"]),
        (("interpolate_policy", "etas"), [], ["etas", "at least 1"]),
        (("train_policy", "anchor"), "emma", ["anchor", "'emma'", "one of ema, init, sft"]),
        (("train_policy", "mu"), 1.5, ["mu", "1.5", "at most 1"]),
        (("train_policy", "batch_size"), 15, ["batch_size", "15", "samples_per_prompt"]),
        (("train_policy", "samples_per_prompt"), 1, ["samples_per_prompt", "rloo"]),
        (("train_policy", "anchor_memory"), "bfloat16", ["anchor_memory", "compute_dtype"]),
        (("train_policy", "weight_decay"), 0.1, ["weight_decay: got 0.1, but optimizer adam"]),
        (
            ("train_policy", "attn_implementation"),
            "flash_attention_2",
            ["flash_attention_2 computes only in bfloat16, got compute_dtype float32"],
        ),
        (("train_policy", "kl_estimator"), "k4", ["got 'k4', expected one of k1, exact, k2, k3"]),
        (("train_policy", "reset_optimizer"), True, ["anchor ema is never reset"]),
        (("train_policy", "anchor_every"), 0, ["anchor_every: got 0, expected at least 1"]),
        (
            ("experiments", "one"),
            {"train_policy": {"anchor": "hard_reset", "anchor_every": 5}},
            ["one: train_policy.anchor_every: got 5, but anchor hard_reset is not moved by mu"],
        ),
        (
            ("member_rewards",),
            [{"reward_model": 1.0}],
            ["- member_rewards: got 1 entries, expected one for each of members = 4"],
        ),
        (
            ("experiments", "one"),
            {"rewards": {"reward_model": 0}},
            ["- one: rewards: every weight is 0"],
        ),
        (
            ("experiments", "one"),
            {"members": 2, "member_rewards": [{}, {"reward_model": 0}]},
            ["- one: member_rewards.1: every weight is 0"],
        ),
        (
            ("experiments", "one"),
            {"rewards": {"my_rewards:short": 1}},
            ["- one: rewards.my_rewards:short: no module my_rewards"],
        ),
        (
            ("experiments", "one"),
            {"rewards": {"length": 1}},
            ["- one: rewards.length: unknown key", "package.module:function"],
        ),
        (
            ("experiments", "one"),
            {"train_policy": {"carry_optimizer": True, "lora_rank": 4}},
            ["one: train_policy.carry_optimizer", "(lora_rank = 4)"],
        ),
        (("train_policy", "optimizer"), "sgd", ["got 'sgd', expected one of adam, adamw"]),
        (("merge_policies", "weight"), 0.3, ["weight", "two policies", "members = 4"]),
        (("merge_policies", "density"), 0.3, ["density", "0.3", "slerp keeps all weights"]),
        (("merge_policies", "density"), 0, ["density", "more than 0"]),
        (("policy", "max_new_tokens"), 500, ["max_new_tokens", "max_position_embeddings = 128"]),
        (("policy", "path"), "./nowhere", ["policy.path", "config.json", "./nowhere"]),
        (("rewards", "length"), 1, ["rewards.length", "unknown key", "package.module:function"]),
        (("rewards", "reward_model"), 0, ["rewards", "every weight is 0"]),
        (("rewards", "my_rewards:short"), 1, ["rewards.my_rewards:short", "my_rewards.py"]),
        (
            ("evaluate_policy", "gold"),
            "warpflow.data.toy_reviews:gld",
            ["gold", "has no function gld"],
        ),
        (("experiments", "lerp"), {"merge_policies": {"methd": "lerp"}}, ["lerp", "methd"]),
        (("experiments", "warp"), {}, ["warp"]),
        (("experiments", "one"), {"policies_of": ["warp", "wrap"]}, ["one.policies_of", "wrap"]),
        (
            ("experiments", "one"),
            {"policies_of": ["warp", "one_run"]},
            ["got one_run in place 2", "at least 2 members", "warp"],
        ),
        (("experiments", "one"), {"match_compute": "time"}, ["match_compute", "one of steps"]),
        (("ablations", "main"), {}, ["ablations", "main"]),
        (
            ("ablations", "anchor"),
            {"lerp": {"members": 5}},
            ["ablations.anchor.lerp", "differs", "in main"],
        ),
        (("results",), ".elsewhere", ["results", ".elsewhere", "expected a folder below"]),
        (("merge_policies", "method"), "slrp", ["got 'slrp', expected one of slerp, lerp"]),
        (("members",), True, ["members: got True, expected integer"]),
        (("policy", "path"), 3, ["policy.path: got 3, expected string or null"]),
        (("merge_policies", "dtype"), "fp8", ["expected one of float32, bfloat16, float16"]),
        (("train_policy", "steps"), "many", ["got 'many', expected integer or array"]),
        (("train_policy", "steps"), 0, ["train_policy.steps: got 0, expected at least 1"]),
        (("train_policy", "steps"), [9, 0], ["train_policy.steps.1: got 0, expected at least 1"]),
        (("estimate_optimum", "betas"), "never", ["got 'never', expected auto or array"]),
        (("interpolate_policy", "etas"), [0, 0], ["etas: got [0, 0], expected no value twice"]),
        (("train_policy",), None, ["train_policy: got None, expected object"]),
        (("policy", "architecture"), {"hidden_size": 8}, ["architecture", "model_type"]),
    ],
)
def test_bad_value_is_named_with_a_remedy(config, path, value, parts):
    section = config
    for key in path[:-1]:
        section = section.setdefault(key, {})
    section[path[-1]] = value
    text = message(config)
    assert "nothing was started" in text
    for part in parts:
        assert part in text


def test_a_package_that_is_not_installed_is_named_before_any_job(config, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    config["report_to"] = []
    config["train_policy"]["optimizer"] = "adam_8bit"
    text = message(config)
    assert "train_policy.optimizer: got adam_8bit, which needs the package bitsandbytes" in text
    assert "pip install --no-deps bitsandbytes==" in text
    assert "or set it to adam" in text
    check_config(config, files=False)  # an estimate needs no such package
    flash = {"attn_implementation": "flash_attention_2", "compute_dtype": "bfloat16"}
    config["train_policy"] |= {"optimizer": "adam"} | flash
    assert "flash_attention_2, which needs the package flash_attn, and that" in message(config)


@pytest.mark.parametrize(
    ("version", "found"),
    [(None, "that is not installed"), ("0.17.2", "0.17.2 is installed"), ("0.19.1", "0.19.1 is")],
)
def test_kernels_of_a_version_that_transformers_does_not_take_are_named(
    config, monkeypatch, version, found
):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: version if name == "kernels" else find(name)
    )
    monkeypatch.setattr("importlib.metadata.version", lambda name: version)
    monkeypatch.setattr("warpflow.pipeline.config.kernels_versions", lambda: ("0.18.2", "0.19.0"))
    config["experiments"]["one"] = {"train_policy": {"use_kernels": True}}
    text = message(config)
    assert (
        "- one: train_policy.use_kernels: got true, which needs the package kernels, 0.18.2 or "
        f"later, below 0.19.0, and {found}"
    ) in text
    assert "`pip install kernels==0.18.2`, or set it to false" in text
    monkeypatch.setattr("warpflow.pipeline.config.kernels_versions", lambda: None)
    if version is None:
        assert "kernels, and that is not installed: `pip install kernels`, or" in message(config)
    else:
        check_config(config)  # nothing is known of what transformers takes
    version = "0.18.10"
    monkeypatch.setattr("warpflow.pipeline.config.kernels_versions", lambda: ("0.18.2", "0.19.0"))
    check_config(config)


def test_the_extra_has_the_version_of_kernels_that_transformers_asks_for():
    """The files of transformers are read and not run, so they must have the expected form."""
    versions = (import_utils.KERNELS_MIN_VERSION, import_utils.KERNELS_MAX_VERSION)
    assert kernels_versions() == versions
    project = tomllib.loads((CONFIG.parent / "pyproject.toml").read_text())["project"]
    assert project["optional-dependencies"]["kernels"] == [f"kernels=={versions[0]}"]


def test_the_exact_kl_wants_the_anchor_on_the_device(config):
    config["train_policy"] |= {"kl_estimator": "exact", "anchor_memory": "host"}
    assert "kl_estimator: exact needs the anchor's output layer" in message(config)
    config["train_policy"]["anchor_memory"] = "device"
    check_config(config)


def test_ties_is_for_task_vectors(config):
    config["merge_policies"]["method"] = "ties"
    check_config(config)
    config["merge_policies"]["vectors"] = "full_weights"
    assert "merge_policies.vectors: got full_weights, but method ties trims" in message(config)


def test_missing_key_is_named(config):
    del config["train_policy"]["beta"]
    assert "train_policy.beta: missing" in message(config)


def test_a_setting_of_two_types_is_one_problem(config):
    config["train_policy"]["steps"] = [9, 0]
    assert message(config).count("\n") == 1


def test_all_problems_are_reported_at_once(config):
    config["members"] = 0
    config["train_policy"]["bta"] = 1
    text = message(config)
    assert "members" in text
    assert "bta" in text


def files_config(config, path):
    config["data"] = "prepare_data"
    config["prepare_data"] = {
        "sft_path": str(path),
        "sft_completion": "text",
        "preferences_path": str(path),
        "preferences_text": "text",
        "preferences_label": "label",
        "prompts_path": str(path),
        "prompts_column": "text",
        "eval_prompts": 400,
        "vocab_size": 300,
        "max_text_tokens": 50,
    }
    return config


def test_missing_file(config, tmp_path):
    text = message(files_config(config, tmp_path / "absent.jsonl"))
    assert "prepare_data.sft_path" in text
    assert "absent.jsonl is not a file" in text


def test_empty_dataset(config, tmp_path):
    path = tmp_path / "empty.jsonl"
    path.write_text("")
    text = message(files_config(config, path))
    assert "the dataset is empty" in text
    assert "empty.jsonl" in text


def test_absent_column(config, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"texts": "a", "label": 1}\n')
    text = message(files_config(config, path))
    assert "prepare_data.sft_completion" in text
    assert "'text'" in text
    assert "texts" in text


def test_preferences_need_one_form(config, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "label": 1}\n')
    config = files_config(config, path)
    config["prepare_data"]["preferences_label"] = None
    assert "preferences_chosen" in message(config)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"max_position_embeddings": 32}, "= 64 exceed the context of {} (max_position_emb"),
        ({"n_positions": 32}, "= 64 exceed the context of {}"),
    ],
)
def test_a_users_policy_must_hold_prompt_and_completion(config, tmp_path, given, text):
    (tmp_path / "config.json").write_text(json.dumps(given))
    config["policy"]["path"] = str(tmp_path)
    assert text.format(tmp_path) in message(config)
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 64}')
    check_config(config)


def test_a_model_folder_needs_a_config_that_can_be_read(config, tmp_path, monkeypatch):
    """`mine/policy` might be a hub name, but the folder is there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine/policy").mkdir(parents=True)
    config["policy"]["path"] = "mine/policy"
    assert "policy.path: no config.json in mine/policy" in message(config)
    (tmp_path / "mine/policy/config.json").write_text("{")
    assert "mine/policy/config.json: not valid JSON" in message(config)


@pytest.mark.parametrize("given", [{}, {"id2label": {"0": "a", "1": "b", "2": "c"}}])
def test_a_users_reward_model_has_one_label(config, tmp_path, given):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"} | given))
    config["train_reward_model"]["path"] = str(tmp_path)
    assert f"train_reward_model.path: {tmp_path} has {3 if given else 2} labels" in message(config)
    (tmp_path / "config.json").write_text('{"id2label": {"0": "LABEL_0"}}')
    check_config(config)


def test_files_of_stages_that_are_left_out_are_not_needed(config, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n')
    config = files_config(config, path)
    for key in ("sft_path", "sft_completion", "preferences_path"):
        del config["prepare_data"][key]
    assert "prepare_data.preferences_path: missing" in message(config)
    config["policy"]["path"], config["train_sft"]["steps"] = "owner/name", 0
    text = message(config)
    assert "sft_path" not in text
    assert "preferences_path" in text
    config["rewards"] |= {"reward_model": 0, "warpflow.data.toy_reviews:gold_score": 1}
    check_config(config)


def test_columns_of_known_formats_need_no_key(config, tmp_path):
    path = tmp_path / "rows.jsonl"
    row = {"prompt": "a", "completion": "b", "chosen": "c", "rejected": "d"}
    path.write_text(f"{json.dumps(row)}\n" * 600)
    config = files_config(config, path)
    for key in list(config["prepare_data"]):
        if key.endswith(("_completion", "_text", "_label", "_column")):
            del config["prepare_data"][key]
    check_config(config)
    config["prepare_data"]["sft_prompt"] = "prompt"
    assert "prepare_data.sft_completion: missing, since sft_prompt is set" in message(config)
    del config["prepare_data"]["sft_prompt"]
    path.write_text('{"question": "a", "best": "b"}\n')
    text = message(config)
    assert f"{path}: its columns are question, best." in text
    assert "Name the columns in these keys" in text


def test_trackers_must_be_installed(config, monkeypatch):
    config["report_to"] = ["tensorboard", "tensorbord"]
    assert "report_to.1: got 'tensorbord', expected one of tensorboard, wandb" in message(config)
    config["report_to"] = ["tensorboard", "mlflow"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name != "mlflow" or None)
    assert "report_to: mlflow is not installed: `pip install mlflow-skinny`" in message(config)
    config["report_to"] = []
    check_config(config)


def test_an_endpoint_is_a_reward(config):
    config["rewards"]["served"] = {"url": "http://localhost:8000/score", "weight": 0.5}
    check_config(config)
    config["rewards"] = {"reward_model": 0, "served": {"url": "$HOST/score", "weight": 0}}
    assert "rewards: every weight is 0" in message(config)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("served", {"weight": 1}, "rewards.served.url: missing"),
        ("served", {"url": "http://a"}, "rewards.served.weight: missing"),
        ("served", {"url": "localhost:8000", "weight": 1}, "rewards.served.url: got 'localhost"),
        ("served", {"url": "http://a", "weight": 1, "wait": 3}, "rewards.served.wait: unknown key"),
        ("served", {"url": "http://a", "weight": 1, "timeout": 0}, "rewards.served.timeout: got 0"),
        ("served", 0.5, "write served: {url: http://…, weight: 0.5} for an endpoint"),
        ("reward_model", {"url": "http://a", "weight": 1}, "an endpoint has another name"),
        ("a:b", {"url": "http://a", "weight": 1}, "an endpoint has another name"),
        ("a b", {"url": "http://a", "weight": 1}, "rewards.a b: unknown key"),
    ],
)
def test_endpoints_that_cannot_be(config, name, value, said):
    config["rewards"][name] = value
    assert said in message(config)


@pytest.mark.parametrize(
    "gold",
    [
        {"url": "http://localhost:8000/score"},
        {"served": {"url": "$HOST/score", "version": "2", "timeout": 9}},
        {
            "f": "warpflow.data.toy_reviews:gold_score",
            "half": {"held_out_preferences": 0.5},
            "served": {"url": "http://a", "api_key_env": "KEY"},
            "off": None,
        },
    ],
)
def test_an_endpoint_is_a_gold(config, gold, monkeypatch):
    monkeypatch.delenv("HOST", raising=False)
    config["evaluate_policy"]["gold"] = gold
    check_config(config)
    # Editors say the same.
    jsonschema.validate(config, yaml.safe_load((CONFIG / "schema.yaml").read_text()))


@pytest.mark.parametrize(
    ("gold", "said"),
    [
        ({"url": "localhost:8000"}, ["- evaluate_policy.gold.url: got 'localhost:8000', expected"]),
        ({"a": {"url": 3}}, ["- evaluate_policy.gold.a.url: got 3, expected string"]),
        (
            {"url": "http://a", "weight": 1},
            ["- evaluate_policy.gold.weight: unknown key; known keys", "url", "version"],
        ),
        ({"a": {"url": "http://a", "retires": 1}}, ["gold.a.retires: unknown key", "mean retries"]),
        ({"a": {"url": "http://a", "timeout": 0}}, ["gold.a.timeout: got 0, expected more than 0"]),
        ({"a": {"adress": "http://a"}}, ["gold.a.adress: unknown key", "gold.a.url: missing"]),
        (
            "http://localhost:8000/score",
            ["gold: got 'http://localhost:8000/score', expected package.module:function, the "],
        ),
        (
            {"a": "http://b"},
            ["gold.a: got 'http://b', expected", "{url: http://…} for an endpoint"],
        ),
        ({"a": 3}, ["- evaluate_policy.gold.a: got 3, expected string"]),
        ({"held_out_preferences": 2}, ["gold.held_out_preferences: got 2, expected less than 1"]),
    ],
)
def test_golds_that_cannot_be(config, gold, said):
    config["evaluate_policy"]["gold"] = gold
    text = message(config)
    assert all(part in text for part in said), text
    assert text.count("\n- ") <= 2, "one line on each thing that is wrong"


def test_datasets_of_the_hub_are_no_files(config, monkeypatch):
    config = files_config(config, "hub:org/name?split=test")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    check_config(config)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "prepare_data.sft_path: hub:org/name?split=test: datasets of the hub" in message(config)
    assert "prompts_path: hub:org/name?of=b: got of=b" in message(
        files_config(config, "hub:org/name?of=b")
    )


@pytest.mark.parametrize("where", [None, "tokenizer_config.json", "chat_template.jinja"])
def test_messages_need_a_chat_template(config, tmp_path, where):
    path, policy = tmp_path / "rows.jsonl", tmp_path / "policy"
    path.write_text('{"text": [{"role": "user", "content": "hi"}], "label": 1}\n')
    policy.mkdir()
    (policy / "config.json").write_text("{}")
    config = files_config(config, path)
    config["rewards"] = {"warpflow.data.toy_reviews:gold_score": 1.0}  # of one pair
    assert "policy.path is null, and a tokenizer trained here has none" in message(config)
    config["policy"]["path"] = str(policy)
    if where is None:
        assert f"prompts_column: column 'text' of {path} holds a list" in message(config)
    else:
        (policy / where).write_text('{"chat_template": "{{ messages }}"}')
        check_config(config)


def test_too_few_samples_for_the_optimum(config):
    config["estimate_optimum"]["samples_per_prompt"] = 60
    text = message(config)
    assert "estimate_optimum.samples_per_prompt: 60 samples" in text
    assert "min_ess = 50" in text


def test_experiments_do_not_change_the_base(config):
    before = copy.deepcopy(config)
    resolve_experiments(config)
    assert config == before


JUDGES = {"gold": {"function": "warpflow.data.toy_reviews:gold_score"}}
TWO = {"one": {"policy": "warp/2/1"}, "two": {"policy": "train_sft"}}


@pytest.mark.parametrize(
    ("section", "parts"),
    [
        ({"contestants": TWO}, ["compare_answers.mine.judges: missing"]),
        ({"contestants": {"one": TWO["one"]}, "judges": JUDGES}, ["contestants", "at least 2"]),
        (
            {"contestants": TWO | {"x": {"policy": "a", "path": "b"}}, "judges": JUDGES},
            ["contestants.x", "1 key only, of policy, path, answers"],
        ),
        (
            {"contestants": TWO | {"x": {"policy": "warp/2/0.4"}}, "judges": JUDGES},
            ["contestants.x: the run has no policy 'warp/2/0.4'; expected one of warp/1/0,"],
        ),
        (
            {"contestants": TWO | {"x": {"answers": "no/such.json"}}, "judges": JUDGES},
            ["no/such.json is not a file"],
        ),
        (
            {"contestants": TWO, "judges": {"x": {"function": "warpflow.data.toy_reviews:silver"}}},
            ["judges.x: ", "toy_reviews.py has no function silver"],
        ),
        (
            {"contestants": TWO, "judges": JUDGES, "thresholds": [0.5, 0.1, 1]},
            ["thresholds: got [0.5, 0.1, 1], expected numbers that rise"],
        ),
        (
            {"contestants": TWO, "judges": {"x": {"chat": {"base_url": "here", "model": "m"}}}},
            ["judges.x.chat.base_url", "got 'here'"],
        ),
    ],
)
def test_comparisons_are_checked_before_any_job(config, section, parts):
    config["compare_answers"] = {"mine": section, "dropped": None}
    text = message(config)
    assert all(part in text for part in parts), text


def test_stored_answers_to_other_prompts_are_an_error_before_any_job(config, tmp_path):
    files = {}
    for name, count in (("one", 3), ("two", 5)):
        rows = [{"instruction": f"q{i}", "output": name} for i in range(count)]
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(rows))
        files[name] = {"answers": str(path)}
    config["compare_answers"] = {"mine": {"contestants": files, "judges": JUDGES, "prompts": 3}}
    check_config(config)
    del config["compare_answers"]["mine"]["prompts"]
    text = message(config)
    assert "two.json do not match those of" in text
    assert "2 are only in" in text and "'q3'" in text


def test_benchmarks_of_points_that_are_not_made_are_an_error(config):
    config["benchmark_policy"] |= {"tasks": ["gsm8k"], "etas": [0, 0.4]}
    assert "warp has no point η = 0.4 in iteration 2" in message(config)


def test_vllm_is_asked_for_before_any_job(config, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    config["report_to"] = []
    config["train_policy"]["sampler"] = "vllm"
    text = message(config)
    assert "train_policy.sampler: got vllm, which needs the package vllm" in text
    assert "`make vllm` makes an environment that has it" in text
    check_config(config, files=False)  # an estimate needs no such package
    config["train_policy"]["sampler"] = "own"
    config["experiments"]["quick"] = {"train_policy": {"sampler": "vllm"}}
    assert "quick: train_policy.sampler: got vllm" in message(config)


@pytest.fixture
def with_vllm(tmp_path, monkeypatch):
    """An installed vLLM of which there is nothing but a registry of two architectures."""
    folder = tmp_path / "vllm/model_executor/models"
    folder.mkdir(parents=True)
    (tmp_path / "vllm/__init__.py").write_text("raise RuntimeError('it was imported')\n")
    (folder / "registry.py").write_text(
        "_TEXT_GENERATION_MODELS = {'GemmaForCausalLM': ('gemma', 'GemmaForCausalLM')}\n"
        "_MULTIMODAL_MODELS = {'Qwen2VL': ('qwen2_vl', 'Qwen2VL')}\n"
        "_EMBEDDING_MODELS = {'LlamaForCausalLM': ('llama', 'LlamaForCausalLM')}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    architectures_of_vllm.cache_clear()
    yield
    architectures_of_vllm.cache_clear()


def test_an_architecture_that_vllm_lacks_is_named_before_any_job(config, with_vllm, tmp_path):
    config["train_policy"]["sampler"] = "vllm"
    config["policy"]["architecture"]["model_type"] = "gemma"
    check_config(config)
    config["policy"]["architecture"]["model_type"] = "llama"
    assert "the installed vLLM has no architecture LlamaForCausalLM" in message(config)
    config["policy"]["path"] = str(tmp_path / "policy")
    (tmp_path / "policy").mkdir()
    given = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (tmp_path / "policy/config.json").write_text(json.dumps(given))
    assert "no architecture LlamaForCausalLM, the policy's: set it to own" in message(config)


def test_vllm_takes_over_whole_weights_at_a_temperature_of_its_own(config, with_vllm):
    config["policy"]["architecture"]["model_type"] = "gemma"
    config["train_policy"] |= {"sampler": "vllm", "lora_rank": 8}
    assert "sampler: got vllm, which takes over whole weights, but lora_rank = 8" in message(config)
    config["train_policy"]["lora_rank"] = None
    config["policy"]["temperature"] = 0.001
    assert "policy.temperature: got 0.001, but vLLM samples at 0.01 or more" in message(config)
