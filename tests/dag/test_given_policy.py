"""A policy of the user's, overwritten in place: what reads it is due; and ``~`` in its path."""

import json
from pathlib import Path

import pytest
from conftest import MakeModel, MakeTokenizer
from project import copy_project, planned, snakemake

pytestmark = pytest.mark.workflow
TARGET = "results/train_sft/checkpoint.dvc"


def test_a_policy_that_is_overwritten_in_place_is_another_policy(
    make_model: MakeModel, make_tokenizer: MakeTokenizer, tmp_path: Path, monkeypatch, overlay
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    policy, folder = tmp_path / "policy", copy_project(tmp_path / "project")
    make_tokenizer().save_pretrained(policy)
    make_model("gemma", seed=0).save_pretrained(policy)
    settings = (*overlay(policy={"path": "~/policy"}, train_sft={"steps": 0}), "--", TARGET)

    def run() -> dict:
        snakemake(folder, *settings)
        assert planned(folder, *settings) == {}
        return json.loads((folder / "results/train_sft/provenance.json").read_text())

    first = run()
    assert list(first["models"]) == [str(policy)]
    before = (folder / "results/train_sft/checkpoint/model.safetensors").read_bytes()
    make_model("gemma", seed=1).save_pretrained(policy)
    assert planned(folder, *settings) == {"train_sft": 1}
    assert run()["key"] != first["key"]
    assert (folder / "results/train_sft/checkpoint/model.safetensors").read_bytes() != before
    make_model("gemma", seed=0).save_pretrained(policy)
    assert run()["key"] == first["key"]
    log = (folder / "results/logs/train_sft.log").read_text()
    assert "already made from the same inputs, not computed again" in log
    assert (folder / "results/train_sft/checkpoint/model.safetensors").read_bytes() == before
