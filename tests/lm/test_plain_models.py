"""Models that are more than their weights, written as plain ones: the same models."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import convert_model
import pytest
import torch
from conftest import MakeModel, MakeTokenizer
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from test_rewards import classifier
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from warpflow.lm.models import load_policy, load_reward_model, save_checkpoint
from warpflow.lm.reward_models import require_readable, sequence_scores

IDS = torch.tensor([[1, 5, 9, 7, 12, 4], [1, 6, 6, 8, 19, 3]])
TEXT = {
    **{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 20},
    **{"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0},
    **{"bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.4},
}
VISION = {
    **{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "image_size": 28},
    **{"num_attention_heads": 2, "patch_size": 14},
}


def convert(folder: Path, out: Path, *more: str) -> Path:
    convert_model.main(["--model", str(folder), "--out", str(out), *more])
    return out


def with_adapter(model: PreTrainedModel, folder: Path, **how: object) -> torch.nn.Module:
    """Write a LoRA folder for a model, which is saved beside it, and return the model with the
    adapter."""
    base = folder.with_name(f"{folder.name}-base")
    model.save_pretrained(base)
    model.config._name_or_path = model.name_or_path = str(base)
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "up_proj"], **how))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    tuned.save_pretrained(folder)
    return tuned.eval()


@pytest.mark.parametrize("tokenizer_in", ["adapter", "base"])
@pytest.mark.parametrize("has_config", [False, True])
def test_an_adapter_is_merged(
    has_config: bool,
    tokenizer_in: str,
    make_model: MakeModel,
    make_tokenizer: MakeTokenizer,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "lora"
    tuned = with_adapter(make_model(), folder, task_type="CAUSAL_LM")
    make_tokenizer().save_pretrained(folder if tokenizer_in == "adapter" else f"{folder}-base")
    if has_config:  # as trainers leave it
        text = (tmp_path / "lora-base/config.json").read_text()
        (folder / "config.json").write_text(text)
    policy = load_policy(convert(folder, tmp_path / "plain"))
    with torch.no_grad():
        torch.testing.assert_close(policy(IDS).logits, tuned(IDS).logits)
        base = load_policy(tmp_path / "lora-base")
        assert not torch.allclose(policy(IDS).logits, base(IDS).logits, atol=0.01)
    assert not list((tmp_path / "plain").glob("adapter*"))
    assert (tmp_path / "plain/tokenizer.json").is_file()


def test_an_adapter_of_a_reward_model_is_merged(
    make_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    model, folder = classifier(), tmp_path / "lora"
    model.config.pad_token_id = 0
    tuned = with_adapter(model, folder, task_type="SEQ_CLS")
    make_tokenizer().save_pretrained(folder)
    plain = load_reward_model(convert(folder, tmp_path / "plain", "--reward_model"))
    with torch.no_grad():
        torch.testing.assert_close(plain(IDS).logits, tuned(IDS).logits)


def as_fp8(folder: Path) -> dict[str, torch.Tensor]:
    """Make a folder's matrices 8-bit floats with a scale, as DeepSeek's are; their values."""
    stored, meant = {}, {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        stored[name] = meant[name] = tensor
        if name.endswith("_proj.weight"):
            scale = tensor.abs().amax() / 448
            stored[name] = (tensor / scale).to(torch.float8_e4m3fn)
            stored[name.replace("weight", "weight_scale_inv")] = scale.reshape(1, 1)
            meant[name] = stored[name].float() * scale
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    blocks = {"activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    config["quantization_config"] = {"quant_method": "fp8", **blocks}
    (folder / "config.json").write_text(json.dumps(config))
    return meant


def test_eight_bit_floats_become_what_they_stand_for(
    make_model: MakeModel, save: Callable[..., Path], tmp_path: Path
) -> None:
    folder = save(make_model(), "fp8")
    meant = as_fp8(folder)
    with pytest.raises(ValueError, match=r"is quantised \(fp8\).*docs/your_models.md"):
        load_policy(folder)
    plain = convert(folder, tmp_path / "plain")
    found = load_file(plain / "model.safetensors")
    assert found.keys() == meant.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in meant.items())
    load_policy(plain)


FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def test_four_bit_floats_become_what_they_stand_for(
    make_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    """gpt-oss has two numbers in a byte, the lower half first, and a power of two for each 32 of
    them."""
    sizes = TEXT | {"hidden_size": 32, "intermediate_size": 32, "num_local_experts": 2}
    config = AutoConfig.for_model("gpt_oss", **sizes, num_experts_per_tok=1)
    model, folder = AutoModelForCausalLM.from_config(config), tmp_path / "mxfp4"
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    tensors, meant = load_file(folder / "model.safetensors"), {}
    for name in [n for n in tensors if n.endswith(("gate_up_proj", "down_proj"))]:
        experts, width, rows = tensors.pop(name).shape
        codes = torch.randint(0, 16, (experts, rows, width // 32, 32))
        powers = torch.randint(-3, 3, (experts, rows, width // 32))
        tensors[f"{name}_blocks"] = (codes[..., ::2] + 16 * codes[..., 1::2]).to(torch.uint8)
        tensors[f"{name}_scales"] = (powers + 127).to(torch.uint8)
        numbers = FP4[codes % 8] * (1 - 2 * (codes // 8)) * 2.0 ** powers[..., None]
        meant[name] = numbers.flatten(2).transpose(1, 2)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    stored = json.loads((folder / "config.json").read_text())
    stored["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (folder / "config.json").write_text(json.dumps(stored))
    found = load_file(convert(folder, tmp_path / "plain") / "model.safetensors")
    assert len(meant) == 4
    for name, tensor in meant.items():
        assert torch.equal(found[name], tensor), name
    load_policy(tmp_path / "plain")


# The text's config has these beside TEXT. Positions of Qwen's have three parts.
WRAPPERS: dict[str, dict[str, object]] = {
    **{"gemma3": {}, "llama4": {}, "llava": {}, "mistral3": {}},
    "qwen2_vl": {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}},
    "qwen2_5_vl": {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}},
    "qwen3_vl": {"rope_scaling": {"rope_type": "default", "mrope_section": [2, 1, 1]}},
}


def wrapper(model_type: str, kind: type = AutoModelForImageTextToText, **more: object):
    """A tiny model that sees."""
    default = AutoConfig.for_model(model_type)
    parts = {
        f"{name}_config": {**sizes, "model_type": getattr(default, f"{name}_config").model_type}
        for name, sizes in (("text", TEXT | WRAPPERS[model_type]), ("vision", VISION))
    }
    config = AutoConfig.for_model(model_type, **parts, **more)
    return kind.from_config(config, dtype=torch.float32).eval()


@pytest.mark.parametrize("model_type", WRAPPERS)
def test_the_language_model_of_one_that_sees(
    model_type: str, make_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    model = wrapper(model_type)
    model.generation_config.eos_token_id = [2, 3]
    model.save_pretrained(tmp_path / "sees")
    make_tokenizer().save_pretrained(tmp_path / "sees")
    policy = load_policy(convert(tmp_path / "sees", tmp_path / "plain"))
    assert policy.config.get_text_config() is policy.config
    assert policy.generation_config is not None
    assert policy.generation_config.eos_token_id == [2, 3]
    with torch.no_grad():
        torch.testing.assert_close(policy(IDS).logits, model(input_ids=IDS).logits)
    theirs = {tensor.numpy().tobytes() for tensor in model.state_dict().values()}
    assert all(tensor.numpy().tobytes() in theirs for tensor in policy.state_dict().values())


def test_a_plain_folder_stays_what_it_is_and_nothing_is_overwritten(
    make_model: MakeModel, save: Callable[..., Path], tmp_path: Path
) -> None:
    folder = save(make_model("gemma").bfloat16(), "A")
    plain = convert(folder, tmp_path / "plain")
    assert (plain / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    with pytest.raises(SystemExit, match="plain is there already"):
        convert(folder, plain)


def test_a_classifier_inside_a_model_that_sees_scores_as_it_does_alone(
    make_tokenizer: MakeTokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Gemma 3 of 4B and more: the pad token and the context are those of the inner config."""
    kind = AutoModelForSequenceClassification
    wrapper("gemma3", kind, num_labels=1).save_pretrained(tmp_path / "given")
    model = load_reward_model(tmp_path / "given")
    model.config.get_text_config().pad_token_id = None
    save_checkpoint(model, make_tokenizer(), tmp_path / "stored")
    stored = load_reward_model(tmp_path / "stored")
    rows = [[1, 5, 9], [1, 6, 6, 8, 19, 3], [1, 4]]
    with torch.no_grad(), caplog.at_level(logging.WARNING):
        scores = sequence_scores(stored, rows)
        alone = torch.cat([sequence_scores(stored, [row]) for row in rows])
    torch.testing.assert_close(scores, alone)
    assert stored.config.get_text_config().pad_token_id == 0
    stored.config.get_text_config().max_position_embeddings = 5
    with pytest.raises(ValueError, match="a text of 6 tokens, but the reward model reads at most"):
        require_readable(stored, rows)
