"""What would fail late in a run, or go wrong silently, is reported before any job, by key."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from project import copy_project, snakemake
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from warpflow.data.prepare import PrepareArguments, prepare_data
from warpflow.pipeline.architectures import architecture_problems, config_class
from warpflow.pipeline.config import ConfigError, check_config, check_config_files
from warpflow.pipeline.config_files import read_config, repeated_keys

CONFIG = Path(__file__).parents[2] / "config"
MODEL_TYPES = ("gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "llama", "mistral", "qwen2")
MODEL_TYPES += ("qwen3", "falcon", "bloom", "opt", "phi", "olmo2", "cohere", "granite", "mixtral")


@pytest.fixture
def config():
    return yaml.safe_load((CONFIG / "config.yaml").read_text(encoding="utf-8"))


def message(config) -> str:
    with pytest.raises(ConfigError) as error:
        check_config(config)
    assert "nothing was started" in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"figures": {"palette": "virids"}}, ["figures.palette: got 'virids'", "viridis"]),
        (
            {"policy": {"architecture": {"model_type": "gema2"}}},
            ["policy.architecture.model_type: got 'gema2'", "gemma2"],
        ),
        # An encoder is a model type too, and no policy.
        ({"policy": {"architecture": {"model_type": "vit"}}}, ["model_type: got 'vit'"]),
        (
            {"policy": {"architecture": {"num_attention_heads": 4, "num_key_value_heads": 3}}},
            ["num_attention_heads = 4 is no multiple of num_key_value_heads = 3"],
        ),
        (
            {"policy": {"architecture": {"num_attention_heads": 0}}},
            ["num_attention_heads: got 0, expected at least 1"],
        ),
        (
            {"policy": {"architecture": {"hiden_size": 8}}},
            ["policy.architecture.hiden_size: unknown key; did you mean hidden_size?"],
        ),
        ({"evaluate_policy": {"prompts": 401}}, ["evaluate_policy.prompts: got 401", "400"]),
        ({"estimate_optimum": {"prompts": 401}}, ["estimate_optimum.prompts: got 401"]),
        ({"train_policy": {"evaluate_prompts": 401}}, ["train_policy.evaluate_prompts: got 401"]),
        (
            {"experiments": {"lerp": {"train_policy": {"evaluate_prompts": 500}}}},
            ["lerp: train_policy.evaluate_prompts: got 500"],
        ),
        (
            {
                "compare_answers": {
                    "c": {
                        "contestants": {"a": {"policy": "sft"}, "b": {"policy": "warp/2/1"}},
                        "judges": {"r": {"reward_model": "own"}},
                        "prompts": 401,
                    }
                }
            },
            ["compare_answers.c.prompts: got 401"],
        ),
        ({"generate_data": {"preference_pairs": 500}}, ["train_reward_model.held_out: got 500"]),
        # Half of them to each reward model, and 500 of each half for its accuracy.
        (
            {
                "generate_data": {"preference_pairs": 1000},
                "evaluate_policy": {"gold": {"held_out_preferences": 0.5}},
            },
            ["held_out: got 500 in each share", "held_out_preferences", "1000", "of which 0.5"],
        ),
        (
            {"evaluate_policy": {"gold": {n: {"held_out_preferences": 0.3} for n in "ab"}}},
            ["evaluate_policy.gold: got 2 golds with held_out_preferences, expected at most one"],
        ),
        (
            {"evaluate_policy": {"gold": {"mine": "my_gold:score"}}},
            ["evaluate_policy.gold.mine: no module my_gold"],
        ),
        ({"evaluate_policy": {"gold": {"held_out_preferences": 1}}}, ["less than 1"]),
        (
            {"policy": {"path": "fetch_policy"}},
            ["fetch_policy.requirements: missing, since policy.path is fetch_policy"],
        ),
        (
            {
                "policy": {"path": "fetch_policy"},
                "fetch_policy": {"requirements": "no.lock", "file": "a/model.safetensors"},
            },
            ["no.lock is not a file", "got a/model.safetensors, expected a file in GGUF"],
        ),
    ],
)
def test_said_by_key(config, changes, parts):
    merge(config, changes)
    text = message(config)
    for part in parts:
        assert part in text


def merge(config, changes) -> None:
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(config.get(key), dict):
            merge(config[key], value)
        else:
            config[key] = value


def test_what_is_right_is_not_objected_to(config):
    config["figures"]["palette"] = "viridis"
    config["generate_data"]["preference_pairs"] = 501
    check_config(config)
    config["rewards"] = {"warpflow.data.toy_reviews:gold_score": 1.0}
    config["generate_data"]["preference_pairs"] = 2  # no reward model is trained
    check_config(config)


def test_a_gold_reward_model_of_two_labels_is_named_by_its_column(config, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    config["evaluate_policy"]["gold"] = {"theirs": str(tmp_path)}
    assert f"- evaluate_policy.gold.theirs: {tmp_path} has 2 labels" in message(config)
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {"0": "score"}}))
    check_config(config)


def test_gold_of_held_out_preferences_needs_pairs_where_training_needs_none(config):
    config["rewards"] = {"warpflow.data.toy_reviews:gold_score": 1.0}
    config["evaluate_policy"]["gold"] = {"held_out_preferences": 0.1}
    config["generate_data"]["preference_pairs"] = 4999  # a tenth is not more than 500
    assert "train_reward_model.held_out" in message(config)
    config["generate_data"]["preference_pairs"] = 5001
    check_config(config)


def test_a_missing_file_is_named_with_the_columns_that_it_is_to_have(config):
    given = {"prompts_path": "nowhere.csv", "prompts_column": "text", "eval_prompts": 400}
    config |= {"data": "prepare_data", "prepare_data": given}
    text = message(config)
    assert "prepare_data.prompts_path: nowhere.csv is not a file" in text
    assert "with the columns text" in text


def test_a_width_that_the_heads_do_not_divide():
    """Gemma has a width of its heads in its config; GPT-2 has not, whatever its names are."""
    assert not list(architecture_problems({"model_type": "gemma", "hidden_size": 98}))
    (problem,) = architecture_problems({"model_type": "gpt2", "n_embd": 98, "n_head": 4})
    assert "hidden_size = 98 is no multiple of num_attention_heads = 4" in problem
    # Eight heads for keys are Mistral's default.
    (problem,) = architecture_problems(
        {"model_type": "mistral", "hidden_size": 96, "num_attention_heads": 4}
    )
    assert "num_attention_heads = 4 is no multiple of num_key_value_heads = 8" in problem


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_defaults_of_transformers_are_right(model_type):
    """What its files say, read and not run, is what its classes have."""
    assert not list(architecture_problems({"model_type": model_type}))
    defaults, aliases = config_class(model_type)
    made = AutoConfig.for_model(model_type)
    for name in ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim"):
        stated = defaults.get(aliases.get(name, name))
        if stated is not None:
            assert getattr(made, name) == stated, name


def test_all_causal_model_types_are_known():
    for model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        assert not list(architecture_problems({"model_type": model_type})), model_type


def test_the_checks_are_cheap_and_need_no_model_code():
    """Snakemake reads the rules in every job."""
    code = (
        "import sys, time\n"
        "from warpflow.pipeline.architectures import architecture_problems\n"
        "begun = time.perf_counter()\n"
        "list(architecture_problems({'model_type': 'llama', 'hidden_size': 32}))\n"
        "seconds = time.perf_counter() - begun\n"
        "assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules)\n"
        "print(seconds)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1, "about 0.05 s on an idle machine"


def files_config(config, folder: Path, **changes):
    config["data"] = "prepare_data"
    config["prepare_data"] = {
        "prompts_path": str(folder / "prompts.jsonl"),
        "prompts_column": "prompt",
        "eval_prompts": 400,
        "vocab_size": 300,
        **changes,
    }
    (folder / "prompts.jsonl").write_text('{"prompt": "a"}\n', encoding="utf-8")
    return config


def test_pairs_of_a_file_are_counted(config, tmp_path):
    pairs, labels = tmp_path / "pairs.jsonl", tmp_path / "labels.csv"
    pairs.write_text('{"chosen": "a", "rejected": "b"}\n' * 20, encoding="utf-8")
    labels.write_text("text,label\n" + "a,1\nb,0\n" * 20, encoding="utf-8")
    by_pair = {"preferences_chosen": "chosen", "preferences_rejected": "rejected"}
    by_label = {"preferences_text": "text", "preferences_label": "label"}
    config["train_sft"]["steps"] = 0
    config["policy"]["path"] = str(tmp_path)
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    for path, columns in ((pairs, by_pair), (labels, by_label)):
        given = {"preferences_path": str(path), "max_text_tokens": 9, **columns}
        files_config(config, tmp_path, **given)
        config["train_reward_model"]["held_out"] = 20
        assert "held_out: got 20, but there are only 20 preference pairs" in message(config)
        config["train_reward_model"]["held_out"] = 19
        check_config(config)


def test_no_limit_of_texts_where_none_is_read(config, tmp_path, make_tokenizer):
    config["policy"]["path"] = str(tmp_path)
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    config["train_sft"]["steps"] = 0
    config["rewards"] = {"warpflow.data.toy_reviews:gold_score": 1.0}
    check_config(files_config(config, tmp_path))
    texts = {"sft_path": str(tmp_path / "prompts.jsonl"), "sft_completion": "prompt"}
    assert "prepare_data.max_text_tokens" in message(files_config(config, tmp_path, **texts))
    # And the job that reads the files wants none either.
    make_tokenizer().save_pretrained(tmp_path / "tokenizer")
    rows = "".join(json.dumps({"prompt": f"w{n}"}) + "\n" for n in range(4))
    (tmp_path / "prompts.jsonl").write_text(rows, encoding="utf-8")
    arguments = {
        "prompts_path": str(tmp_path / "prompts.jsonl"),
        "prompts_column": "prompt",
        "eval_prompts": 2,
        "seed": 0,
        "max_prompt_tokens": 4,
        "tokenizer_path": str(tmp_path / "tokenizer"),
    }
    prepare_data(PrepareArguments(**arguments), tmp_path / "out")
    with pytest.raises(ValueError, match="needs max_text_tokens"):
        PrepareArguments(**arguments, **texts)


def test_pairs_that_cannot_be_used_are_counted_by_prepare_data(tmp_path, make_tokenizer):
    """Blank and long texts are dropped; too few are left before anything is trained."""
    make_tokenizer().save_pretrained(tmp_path / "tokenizer")
    rows = [{"chosen": "w1 w2", "rejected": "w3"}] * 3 + [{"chosen": "w1", "rejected": " "}] * 3
    path = tmp_path / "pairs.jsonl"
    lines = [{**row, "prompt": f"w{n}"} for n, row in enumerate(rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")
    settings = {
        "preferences_path": str(path),
        "preferences_chosen": "chosen",
        "preferences_rejected": "rejected",
        "prompts_path": str(path),
        "prompts_column": "prompt",
        "eval_prompts": 2,
        "max_text_tokens": 9,
        "seed": 0,
        "max_prompt_tokens": 4,
        "tokenizer_path": str(tmp_path / "tokenizer"),
    }
    prepare_data(PrepareArguments(**settings, held_out_pairs=2), tmp_path / "out")
    with pytest.raises(ValueError, match=r"pairs.jsonl: 3 pairs can be used.*held_out is 3"):
        prepare_data(PrepareArguments(**settings, held_out_pairs=3), tmp_path / "out")


def test_a_section_that_stands_twice(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "train_policy:\n  beta: 0.2\nmembers: 2\ntrain_policy:\n  mu: 0.1\n  mu: 0.2\n"
        "base: &base {a: 1}\nlist:\n- {<<: *base, <<: *base}\n",
        encoding="utf-8",
    )
    assert list(repeated_keys(path)) == [
        f"- {path}, line 4: train_policy stands in line 1 already, which would be dropped: write "
        "it once",
        f"- {path}, line 6: train_policy.mu stands in line 5 already, which would be dropped: "
        "write it once",
    ]
    with pytest.raises(ConfigError, match="nothing was started"):
        check_config_files([path])
    with pytest.raises(ValueError, match="line 4: train_policy"):
        read_config([path])
    check_config_files(CONFIG.glob("*.yaml"))


@pytest.mark.workflow
def test_snakemake_says_it_before_any_job(tmp_path):
    folder = copy_project(tmp_path / "twice")
    (folder / "mine.yaml").write_text("members: 2\nmembers: 3\n", encoding="utf-8")
    begun = time.perf_counter()
    output = snakemake(folder, "--configfile", "mine.yaml", succeeds=False)
    assert "mine.yaml, line 2: members stands in line 1 already" in output
    assert not (folder / "results").exists()
    assert time.perf_counter() - begun < 60
