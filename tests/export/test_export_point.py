"""A point of a front becomes a folder that plain transformers loads, with its card, and is pushed
to a hub that is this machine's own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import export_point
import pytest
import torch
import yaml
from exported_run import MERGED, POINT, ROOT
from huggingface_hub import ModelCard
from receiving_hub import receiving_hub
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from warpflow.merging.checkpoints import read_tensors
from warpflow.merging.chunks import interpolate

pytest_plugins = ["export_fixtures"]
pytestmark = pytest.mark.usefixtures("in_project")
TOKEN = "hf_secretsecretsecret"


def export(run: Path, out: Path, *words: str, point: str = "warp/1/0.5") -> None:
    export_point.main([point, "--out", str(out), "--configfile", str(run / "overlay.yaml"), *words])


def test_the_folder_is_the_point_and_loads_in_plain_transformers(run, tmp_path):
    out = tmp_path / "point"
    export(run, out)
    ends = [read_tensors(run / "results" / name / "checkpoint") for name in ("train_sft", MERGED)]
    expected = interpolate(ends[0], ends[1], 0.5)
    found = load_file(out / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    model, tokenizer = (f.from_pretrained(out) for f in (AutoModelForCausalLM, AutoTokenizer))
    inputs = tokenizer("w1 w2", return_tensors="pt")
    answer = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert answer.shape[1] > inputs["input_ids"].shape[1]


def test_another_dtype_is_that_of_weights_and_config_and_its_loss_is_said(run, tmp_path, capsys):
    out = tmp_path / "point"
    export(run, out, "--dtype", "bfloat16")
    assert {t.dtype for t in load_file(out / "model.safetensors").values()} == {torch.bfloat16}
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.bfloat16
    assert "Rounding to torch.bfloat16 moves the weights" in capsys.readouterr().out
    assert "rounding to it moves them by" in (out / "README.md").read_text()


def test_the_card_says_what_where_and_how(run, tmp_path):
    out = tmp_path / "point"
    export(run, out, "--base_model", "org/base", "--license", "apache-2.0")
    card = ModelCard.load(out / "README.md")
    assert {"merge", "warp"} <= set(card.data.tags)
    assert card.data.base_model == "org/base"
    assert card.data.to_dict()["base_model_relation"] == "merge"
    assert card.data.license == "apache-2.0"
    text = card.content
    assert "| reward | 0.5 ± 0.1 | 0 ± 0.1 |" in text
    assert "| 0.5 | 0.5 ± 0.1 | 0.25 ± 0.01 | **this one** |" in text
    assert "![" in text and (out / "front.png").read_bytes().startswith(b"\x89PNG")
    assert "beta: 0.3" in text and "anchor: ema" in text
    assert "python scripts/export_point.py warp/1/0.5" in text
    assert 'tokenizer("w1 w2", return_tensors="pt")' in text
    assert str(ROOT) not in text


def test_merges_are_named_in_the_terms_of_mergekit(run, tmp_path):
    out = tmp_path / "point"
    export(run, out)
    first, last = yaml.safe_load_all((out / "mergekit_config.yml").read_text())
    assert (first["name"], first["merge_method"]) == (MERGED, "nuslerp")
    assert first["base_model"] == "train_sft"
    assert [model["parameters"]["weight"] for model in first["models"]] == [0.5, 0.5]
    assert (last["name"], last["merge_method"]) == (POINT, "linear")
    assert [model["model"] for model in last["models"]] == ["train_sft", MERGED]
    recorded = json.loads((out / "provenance.json").read_text())
    assert recorded["merges"] == [first, last]
    assert recorded["parents"].keys() == {"init", "policy"}


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ("warp/1/0.7", r"no policy 'warp/1/0.7'.*warp/1/0, warp/1/0.5, warp/1/1"),
        ("mine/1/0.5", r"no policy 'mine/1/0.5'.*experiments: warp"),
    ],
)
def test_a_point_that_does_not_exist_lists_those_that_do(run, tmp_path, point, message):
    with pytest.raises(SystemExit, match=message):
        export(run, tmp_path / "point", point=point)
    assert not (tmp_path / "point").exists()


def test_what_was_not_evaluated_or_is_not_here_is_named(run, tmp_path):
    member = "train_policy/warp/replicate1/iteration1/member0"
    with pytest.raises(SystemExit, match=r"was not evaluated: .*member0/evaluation\.json"):
        export(run, tmp_path / "point", point=member)
    file = run / "results/evaluate_policy" / member / "evaluation.json"
    file.parent.mkdir(parents=True)
    document = (run / "results/evaluate_policy" / POINT / "evaluation.json").read_text()
    file.write_text(document)
    with pytest.raises(SystemExit, match=r"member0/checkpoint is not on this machine.*dvc pull"):
        export(run, tmp_path / "point", point=member)


def push(run: Path, out: Path, endpoint: str, *words: str, token: str | None = TOKEN):
    """Push in a separate process, because huggingface_hub reads its environment on import."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(out.parent / "hf")}
    environment |= {"PYTHONPATH": str(ROOT / "workflow"), "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"HF_TOKEN": token} if token else {}
    command = [sys.executable, "scripts/export_point.py", "warp/1/0.5", "--out", str(out)]
    command += ["--configfile", str(run / "overlay.yaml"), "--push", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_a_push_makes_a_private_repository_of_the_folder(run, tmp_path):
    out = tmp_path / "point"
    with receiving_hub() as hub:
        pushed = push(run, out, hub.endpoint, "org/name")
        assert pushed.returncode == 0, pushed.stderr
        repository = hub.repositories["org/name"]
        assert repository["asked"].get("private") or repository["asked"]["visibility"] == "private"
        files = {path.name: path.read_bytes() for path in out.iterdir()}
        assert repository["files"] == files
        assert hub.tokens - {""} == {f"Bearer {TOKEN}"}  # what needs none is asked without
        assert not [name for name, content in files.items() if TOKEN.encode() in content]
        assert 'name = "org/name"' in files["README.md"].decode()
        # It is there now: a second push overwrites nothing and writes nothing.
        again = push(run, tmp_path / "again", hub.endpoint, "org/name")
        assert again.returncode == 1
        assert "org/name: this repository is there already" in again.stderr
        assert not (tmp_path / "again").exists()


@pytest.mark.slow
def test_a_push_without_token_or_with_a_wrong_name_does_no_work(run, tmp_path):
    out = tmp_path / "point"
    with receiving_hub() as hub:
        without = push(run, out, hub.endpoint, "org/name", token=None)
        assert "there is no token. Run `hf auth login`" in without.stderr
        wrong = push(run, out, hub.endpoint, "name")
        assert "expected ORG/NAME" in wrong.stderr
        assert hub.repositories == {}
    assert without.returncode == wrong.returncode == 1
    assert not out.exists()


@pytest.mark.slow
def test_a_hub_that_refuses_is_said_and_the_folder_stays(run, tmp_path):
    out = tmp_path / "point"
    with receiving_hub() as hub:
        hub.refuses = True
        refused = push(run, out, hub.endpoint, "org/name", "--public")
    assert refused.returncode == 1
    assert "may not write" in refused.stderr and f"the model is in {out}" in refused.stderr
    assert (out / "README.md").is_file()
