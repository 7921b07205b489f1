"""GGUF files as policies: what is read, what is refused, with what words."""

import importlib.util
import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from conftest import MakeModel
from transformers import PreTrainedModel

from warpflow import weight_files
from warpflow.lm.models import load_config, load_policy, load_tokenizer, save_checkpoint
from warpflow.pipeline.config import ConfigError, check_config
from warpflow.weight_files import gguf_architecture, gguf_problem, known_architectures

CONFIG = Path(__file__).parents[1] / "config/config.yaml"
TOKENS = ["<unk>", "<s>", "</s>", *"abcdefghijkl", "ab"]  # 16


def header(architecture: str) -> bytes:
    """The smallest GGUF header, after a list of texts and a number, which must be skipped."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    pairs = [
        text("tokens") + struct.pack("<IIQ", 9, 8, 2) + text("one") + text("two"),
        text("size") + struct.pack("<If", 6, 0.5),
        text("general.architecture") + struct.pack("<I", 8) + text(architecture),
    ]
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(pairs)) + b"".join(pairs)


def write_gguf(path: Path, model: PreTrainedModel) -> None:
    """A model of one layer and TOKENS as a GGUF file, as the converters of llama.cpp write it: the
    rows of queries and keys of a head are interleaved, not split in halves."""
    gguf = pytest.importorskip("gguf", reason=weight_files.INSTALL_GGUF)
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3, *[1] * 13])  # 3 is a special token
    writer.add_token_merges(["a b"])
    for name, number in (("unk", 0), ("bos", 1), ("eos", 2), ("pad", 2)):
        getattr(writer, f"add_{name}_token_id")(number)
    weights = model.state_dict()
    names = {
        "token_embd": "model.embed_tokens",
        "output_norm": "model.norm",
        "output": "lm_head",
    } | {
        f"blk.{layer}.{ours}": f"model.layers.{layer}.{theirs}"
        for layer in range(config.num_hidden_layers)
        for ours, theirs in {
            "attn_norm": "input_layernorm",
            "ffn_norm": "post_attention_layernorm",
            "attn_q": "self_attn.q_proj",
            "attn_k": "self_attn.k_proj",
            "attn_v": "self_attn.v_proj",
            "attn_output": "self_attn.o_proj",
            "ffn_gate": "mlp.gate_proj",
            "ffn_up": "mlp.up_proj",
            "ffn_down": "mlp.down_proj",
        }.items()
    }
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for ours, theirs in names.items():
        weight = weights[f"{theirs}.weight"]
        if count := heads.get(ours.rpartition(".")[2]):
            rows, width = weight.shape
            halves = weight.reshape(count, 2, rows // count // 2, width)
            weight = halves.transpose(1, 2).reshape(rows, width)
        writer.add_tensor(f"{ours}.weight", weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_policy_of_a_gguf_file_is_the_model_and_can_be_saved(
    make_model: MakeModel, tmp_path: Path
) -> None:
    """The file holds the weights in fp32, so that nothing is rounded; logits tell whether each
    weight came to its place."""
    model = make_model("llama")
    model.resize_token_embeddings(len(TOKENS))
    file = tmp_path / "tiny.gguf"
    write_gguf(file, model)
    ids = torch.tensor([[1, 5, 9, 12, 3]])
    read = load_policy(file)
    torch.testing.assert_close(read(ids).logits, model(ids).logits)
    tokenizer = load_tokenizer(file)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", *["</s>"] * 2)
    save_checkpoint(read, tokenizer, tmp_path / "folder")
    assert "quantization_config" not in json.loads((tmp_path / "folder/config.json").read_text())
    again = load_policy(tmp_path / "folder")
    assert torch.equal(again(ids).logits, read(ids).logits)
    assert load_tokenizer(tmp_path / "folder")("abc").input_ids == tokenizer("abc").input_ids


def test_the_architecture_stands_in_the_header(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(header("clip"))
    assert gguf_architecture(file) == "clip"
    assert {"llama", "qwen2", "gemma3"} <= known_architectures()


@pytest.mark.parametrize("name", ["qwen2moe", "qwen3moe", "gpt-oss", "t5encoder", "llama"])
def test_architectures_that_gguf_and_transformers_write_differently_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", with_gguf(True))
    (tmp_path / "model.gguf").write_bytes(header(name))
    assert gguf_problem(tmp_path / "model.gguf") is None


def with_gguf(installed: bool) -> Callable[[str], object]:
    """`find_spec` where the package gguf is, or is not, installed."""
    found = importlib.util.find_spec

    def find(name: str) -> object:
        return (object() if installed else None) if name == "gguf" else found(name)

    return find


@pytest.mark.parametrize(
    ("content", "installed", "parts"),
    [
        (None, True, ["is not a file", "correct the path"]),
        (b"PK\x03\x04" + bytes(40), True, ["is no GGUF file", "copy it again"]),
        (header("llama")[:40], True, ["broken GGUF header", "ends too early"]),
        (header("clip"), True, ["architecture 'clip'", "llama", "Hugging Face folder"]),
        (header("llama"), False, ["gguf", "not installed", "pip install --no-deps gguf=="]),
    ],
)
def test_a_gguf_file_that_cannot_be_read_is_refused_before_any_job_and_by_the_job(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: bytes | None,
    installed: bool,
    parts: list[str],
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", with_gguf(installed))
    file = tmp_path / "model.gguf"
    if content is not None:
        file.write_bytes(content)
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    config["policy"]["path"] = str(file)
    with pytest.raises(ConfigError) as early:
        check_config(config)
    with pytest.raises(ValueError) as late:
        load_config(file)
    for part in ["model.gguf", *parts]:
        assert part in str(early.value)
        assert part in str(late.value)
    assert "- policy.path: " in str(early.value)
