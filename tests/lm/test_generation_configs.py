"""Generation configs as models of the hub have them: kept, whatever transformers says of them."""

import json
from pathlib import Path

import train_sft
from conftest import MakeModel, MakeTokenizer
from test_scripts import make_inputs, supervised

from warpflow.lm import models

INVALID = {"do_sample": False, "temperature": 0.7, "top_p": 0.9}  # as models of the hub have it


def test_an_invalid_generation_config_does_not_stop_the_save_of_a_trained_policy(
    tmp_path: Path,
) -> None:
    """transformers refuses to save it once a token in it has changed, as the one that pads does
    in training. What it says stays as it is."""
    inputs = make_inputs(tmp_path)
    policy, out = inputs / "sft", tmp_path / "trained"
    given = json.loads((policy / "generation_config.json").read_text()) | INVALID
    (policy / "generation_config.json").write_text(json.dumps(given | {"pad_token_id": None}))
    train_sft.main(supervised(data=inputs / "data", out=out, seed=0, policy=policy))
    saved = json.loads((out / "generation_config.json").read_text())
    assert {key: saved[key] for key in INVALID} == INVALID
    trained = models.load_policy(out)
    trained.generation_config.eos_token_id = [2, 3]
    models.save_checkpoint(trained, models.load_tokenizer(out), tmp_path / "again")
    saved = json.loads((tmp_path / "again/generation_config.json").read_text())
    assert {key: saved[key] for key in INVALID} == INVALID
    assert saved["eos_token_id"] == [2, 3]


def test_a_valid_generation_config_is_saved_as_transformers_saves_it(
    make_model: MakeModel, make_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    model = make_model("qwen3")
    model.generation_config.update(do_sample=True, temperature=0.6, top_k=20)
    model.save_pretrained(tmp_path / "theirs")
    models.save_checkpoint(model, make_tokenizer(), tmp_path / "ours")
    texts = [(tmp_path / n / "generation_config.json").read_bytes() for n in ("theirs", "ours")]
    assert texts[0] == texts[1]
