"""The user's own models: what they are is said before any job, and their content is in the keys."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import convert_model
import pytest
import yaml
from conftest import MakeModel, MakeTokenizer
from huggingface_hub import constants
from test_plain_models import as_fp8, with_adapter
from test_plain_models import wrapper as model_that_sees

from warpflow.lm.models import load_policy
from warpflow.pipeline import model_contents
from warpflow.pipeline.config import ConfigError, check_config
from warpflow.pipeline.freshness import Records
from warpflow.pipeline.given_models import given_models
from warpflow.pipeline.jobs import main as jobs
from warpflow.pipeline.jobs import make_record
from warpflow.pipeline.model_contents import model_content
from warpflow.pipeline.reruns import differences

CONFIG = Path(__file__).parents[2] / "config"
LLAMA = {"model_type": "llama", "vocab_size": 20, "max_position_embeddings": 256}


@pytest.fixture
def config():
    return yaml.safe_load((CONFIG / "config.yaml").read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Nothing is remembered in the project, and the hub's cache is empty."""
    monkeypatch.setattr(model_contents, "REMEMBERED", tmp_path / "remembered.json")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def message(config) -> str:
    with pytest.raises(ConfigError) as error:
        check_config(config)
    assert "nothing was started" in str(error.value)
    return str(error.value)


def folder_with(folder: Path, config: dict | None = LLAMA, **files: str | dict) -> Path:
    """Return a model folder that has only files. "__" in their names stands for a point."""
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return folder


ADAPTER = {"base_model_name_or_path": "owner/base"}
LORA = {"adapter_config__json": ADAPTER, "adapter_model__safetensors": ""}
LOST = {"adapter_config__json": {"base_model_name_or_path": "/trainer/base"}}
INNER = {"text_config": {"model_type": "gemma3_text"}}


def quantised(method: str) -> dict:
    return LLAMA | {"quantization_config": {"quant_method": method}}


POLICIES = {
    "LoRA": (None, LORA, ["is an adapter for owner/base", "convert_model.py --model"]),
    "LoRA, config beside": (LLAMA, LORA, ["is an adapter for owner/base", "convert_model.py"]),
    "LoRA, base is lost": (None, LORA | LOST, ["That model is not at /trainer/base here"]),
    "stray adapter_config.json": (
        LLAMA,
        {"adapter_config__json": ADAPTER},
        ["no adapter_model.safetensors", "move adapter_config.json to another place"],
    ),
    "fp8": (quantised("fp8"), {}, ["is quantised (fp8)", "convert_model.py --model"]),
    "mxfp4": (quantised("mxfp4"), {}, ["is quantised (mxfp4)", "convert_model.py --model"]),
    "bitsandbytes": (quantised("bitsandbytes"), {}, ["(bitsandbytes)", "pip install bitsandbytes"]),
    "bitsandbytes, older": (
        LLAMA | {"quantization_config": {"load_in_4bit": True}},
        {},
        ["is quantised (bitsandbytes)"],
    ),
    "GPTQ": (quantised("gptq"), {}, ["is quantised (gptq)", "before it was quantised"]),
    "AWQ": (quantised("awq"), {}, ["is quantised (awq)", "before it was quantised"]),
    "GPTQ, file beside": (LLAMA, {"quantize_config__json": {}}, ["is quantised (gptq)"]),
    "ModelOpt, file beside": (LLAMA, {"hf_quant_config__json": {}}, ["is quantised (modelopt)"]),
    "Gemma 3": (
        {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], **INNER},
        {},
        ["is Gemma3ForConditionalGeneration", "a language model among other parts", "--out given-"],
    ),
    "Qwen-VL": (
        {"model_type": "qwen2_5_vl", "text_config": {"model_type": "qwen2_5_vl_text"}},
        {},
        ["a language model among other parts", "convert_model.py --model"],
    ),
    "no language model of its own": (
        {"model_type": "blip", "text_config": {"model_type": "blip_text_model"}},
        {},
        ["transformers has no blip_text_model of its own"],
    ),
    "no language model": ({"model_type": "vit"}, {}, ["type 'vit'", "causal language model"]),
    "code of its own": (
        {"model_type": "mine", "auto_map": {"AutoConfig": "a.B"}},
        {},
        ["Python code comes with the model (auto_map"],
    ),
    "broken config": (None, {"config__json": "{"}, ["config.json: not valid JSON"]),
    "no config": (None, {}, ["no config.json in"]),
}


@pytest.mark.parametrize("case", POLICIES)
def test_a_policy_that_is_not_plain_is_said_by_key_before_any_job(config, tmp_path, case):
    given, files, parts = POLICIES[case]
    config["policy"]["path"] = str(folder_with(tmp_path / "given", given, **files))
    text = message(config)
    assert text.count("- policy.path: ") == 1
    for part in parts:
        assert part in text


@pytest.mark.parametrize("case", ["LoRA", "fp8"])
def test_all_models_of_others_are_looked_at(config, tmp_path, case):
    given, files, (what, *_) = POLICIES[case]
    path = str(folder_with(tmp_path / "given", given, **files))
    config["train_reward_model"]["path"] = path
    text = message(config)
    assert f"- train_reward_model.path: {path} {what}" in text
    assert "--reward_model" in text
    config["train_reward_model"]["path"] = None
    config["evaluate_policy"]["gold"] = {"theirs": path, "words": "my_rewards:words"}
    text = message(config)
    assert f"- evaluate_policy.gold.theirs: {path} {what}" in text
    config["evaluate_policy"]["gold"] = None
    contestants = {"a": {"path": path}, "b": {"policy": "train_sft"}}
    judges = {"r": {"reward_model": path}}
    config["compare_answers"] = {"c": {"contestants": contestants, "judges": judges}}
    text = message(config)
    assert f"- compare_answers.c.contestants.a.path: {path} {what}" in text
    assert f"- compare_answers.c.judges.r.reward_model: {path} {what}" in text


def test_a_hub_name_in_the_cache_is_looked_at_too(config, tmp_path):
    config["policy"]["path"] = "owner/name"
    check_config(config)
    in_cache(tmp_path, "abc", quantised("gptq"))
    assert "- policy.path: owner/name is quantised (gptq)" in message(config)


def in_cache(tmp_path: Path, commit: str, given: dict = LLAMA) -> None:
    """The model owner/name, as a download leaves it."""
    repository = tmp_path / "hub/models--owner--name"
    folder_with(repository / "snapshots" / commit, given)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs/main").write_text(commit, encoding="utf-8")


@pytest.mark.parametrize(
    ("given", "is_reward"),
    [
        (LLAMA, False),
        ({"model_type": "gemma3", "id2label": {"0": "a"}, **INNER}, True),
        ({"model_type": "bert", "id2label": {"0": "a"}}, True),
    ],
)
def test_plain_models_are_not_objected_to(config, tmp_path, given, is_reward):
    """A classifier inside a model that sees is read as it is."""
    section = "train_reward_model" if is_reward else "policy"
    config[section]["path"] = str(folder_with(tmp_path / "given", given))
    check_config(config)


def test_a_file_is_not_taken_for_a_folder(tmp_path, config):
    (tmp_path / "policy.gguf").write_bytes(b"GGUF")
    config["policy"]["path"] = str(tmp_path / "policy.gguf")
    (model,) = given_models(config)
    assert model.folder is None
    assert model_content(model.path)


def test_models_that_the_run_makes_are_not_given(config):
    config["policy"]["path"] = "fetch_policy"
    config["evaluate_policy"]["gold"] = {"held_out_preferences": 0.5}
    assert given_models(config) == []
    config["evaluate_policy"]["gold"] = "owner/name"
    assert [(m.key, m.is_reward) for m in given_models(config)] == [("evaluate_policy.gold", True)]


@pytest.mark.slow
def test_the_command_of_each_message_writes_a_plain_folder(
    config, make_model: MakeModel, make_tokenizer: MakeTokenizer, tmp_path, monkeypatch
):
    """The command is taken from the message, for folders with odd names."""
    monkeypatch.chdir(tmp_path)
    odd = tmp_path / "my models"
    for name in ("lora", "fp8", "sees"):
        (odd / name).mkdir(parents=True)
    with_adapter(make_model(), odd / "lora", task_type="CAUSAL_LM")
    make_model().save_pretrained(odd / "fp8")
    as_fp8(odd / "fp8")
    model_that_sees("gemma3").save_pretrained(odd / "sees")
    for name in ("lora", "fp8", "sees"):
        make_tokenizer().save_pretrained(odd / name)
        config["policy"]["path"] = str(odd / name)
        text = message(config)
        (command,) = re.findall(r"`(.*?)`, and set policy.path to", text)
        python, script, *words = shlex.split(command)
        assert (python, script) == ("python", "scripts/convert_model.py")
        convert_model.main(words)
        config["policy"]["path"] = text.partition("set policy.path to ")[2].split()[0].rstrip(".")
        check_config(config)
        load_policy(config["policy"]["path"])


def test_the_check_needs_no_model_code(tmp_path):
    """Snakemake reads the rules in every job."""
    folder = folder_with(tmp_path / "given")
    code = (
        "import sys, yaml\n"
        "from warpflow.pipeline.config import check_config\n"
        f"config = yaml.safe_load(open({str(CONFIG / 'config.yaml')!r}))\n"
        f"config['policy']['path'] = {str(folder)!r}\n"
        "check_config(config)\n"
        "assert not {'torch', 'transformers', 'peft'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- content ------------------------------------------------------------------------------------


def test_content_is_that_of_the_files_and_nothing_else(tmp_path):
    folder = folder_with(tmp_path / "a", model__safetensors="weights", README__md="a")
    first = model_content(str(folder))
    assert model_content(str(folder_with(tmp_path / "b", model__safetensors="weights"))) == first
    os.utime(folder / "model.safetensors", (1, 1))
    (folder / "README.md").write_text("another text")
    (folder / "training_args.bin").write_text("a")
    (folder / ".git").mkdir()
    assert model_content(str(folder)) == first
    (folder / "model.safetensors").write_text("Weights")
    changed = model_content(str(folder))
    assert changed != first
    (folder / "tokenizer_config.json").write_text("{}")
    assert model_content(str(folder)) not in (first, changed)


def test_files_are_read_once_and_again_when_they_changed(tmp_path, monkeypatch):
    """Also where somebody sets size and time as they were."""
    folder = folder_with(tmp_path / "a", model__safetensors="weights")
    reads = []
    hash_of = model_contents.file_sha256
    monkeypatch.setattr(model_contents, "file_sha256", lambda f: reads.append(f.name) or hash_of(f))
    monkeypatch.setattr(model_contents, "SETTLED", -1)
    first = model_content(str(folder))
    assert model_content(str(folder)) == first
    assert sorted(reads) == ["config.json", "model.safetensors"]
    before = (folder / "model.safetensors").stat()
    (folder / "model.safetensors").write_text("Weights")
    os.utime(folder / "model.safetensors", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert model_content(str(folder)) != first
    assert reads[2:] == ["model.safetensors"]


def test_a_file_that_has_just_changed_is_not_remembered(tmp_path):
    folder = folder_with(tmp_path / "a", model__safetensors="weights")
    first = model_content(str(folder))
    assert not (tmp_path / "remembered.json").exists()
    (folder / "model.safetensors").write_text("Weights")
    assert model_content(str(folder)) != first


def test_a_hub_name_is_its_commit(tmp_path):
    assert model_content("owner/name") is None
    in_cache(tmp_path, "abc")
    assert model_content("owner/name") == "abc"


def command(tmp_path: Path, model: str) -> list[str]:
    """A job whose script reads a model; a hub name it finds as commit "abc"."""
    script = (
        "import pathlib, sys\n"
        "out, model = map(pathlib.Path, sys.argv[2::2])\n"
        "hub = pathlib.Path('hub/models--owner--name')\n"
        "if not model.is_dir():\n"
        "    (hub / 'refs').mkdir(parents=True)\n"
        "    (hub / 'refs/main').write_text('abc')\n"
        "out.mkdir()\n"
        "(out / 'made.txt').write_text(str(model.is_dir()))\n"
    )
    (tmp_path / "job.py").write_text(script)
    return ["python", "job.py", "--out", "results/a/checkpoint", "--policy", model]


def run(tmp_path: Path, model: str) -> dict:
    wrapper = ["run", "--makes", "results/a/checkpoint", "--log", "job.log", "--models", model]
    jobs([*wrapper, "--", *command(tmp_path, model)])
    return json.loads((tmp_path / "results/a/provenance.json").read_text())


def test_a_policy_that_is_overwritten_makes_its_jobs_due(tmp_path, monkeypatch):
    """It is overwritten under the same name, as training does, and then put back, which is
    known."""
    monkeypatch.chdir(tmp_path)
    folder_with(Path("policy"), model__safetensors="weights")
    record = run(tmp_path, "policy")
    due = Records(tmp_path / "metadata").inputs_of
    target = "results/a/provenance.json"
    assert due(target) == "inputs: made first"
    folder_with(Path("policy"), model__safetensors="Weights")
    assert due(target).startswith("inputs: policy ")
    again = run(tmp_path, "policy")
    assert again["key"] != record["key"]
    assert due(target) == "inputs: made first"
    folder_with(Path("other"), model__safetensors="weights")
    other = command(tmp_path, "other")
    there = make_record([Path("results/a/checkpoint")], [], other, models=["other"])
    assert there["key"] == record["key"]  # the same model under another name


def test_a_model_of_the_hub_is_known_by_its_commit_once_it_was_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record = run(tmp_path, "owner/name")
    assert record["models"] == {"owner/name": "abc"}
    due = Records(tmp_path / "metadata").inputs_of
    assert due("results/a/provenance.json") == "inputs: made first"
    modified = Path("results/a/checkpoint/made.txt").stat().st_mtime_ns
    assert run(tmp_path, "owner/name")["key"] == record["key"]
    assert Path("results/a/checkpoint/made.txt").stat().st_mtime_ns == modified
    in_cache(tmp_path, "def")
    assert "owner/name abc → def" in due("results/a/provenance.json")


def test_explain_rerun_names_the_model_and_not_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def record(model: str) -> dict:
        return make_record([Path("a")], [], command(tmp_path, model), models=[model])

    folder_with(Path("policy"), model__safetensors="weights")
    folder_with(Path("renamed"), model__safetensors="weights")
    old = record("policy")
    assert differences(old, record("renamed"), tmp_path).lines == []
    folder_with(Path("policy"), model__safetensors="Weights")
    found = differences(old, record("policy"), tmp_path)
    (line,) = found.lines
    assert found.inputs == [line]
    assert line.startswith("input policy: ")
