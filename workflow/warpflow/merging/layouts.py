"""Which files of a folder are its model's weights, and how transformers names their tensors.

`from_pretrained` reads more layouts than `save_pretrained` writes: weights without the base model's
prefix (GPT-2 on the hub), masks and angles that older versions stored (Pythia), a head beside the
embedding that it is tied to (Qwen3-0.6B). Here each of them is given the names under which
transformers 5.23 would save the loaded model, so that folders of unlike layouts have the same
tensors. This is done by rules on names and shapes. transformers itself is not imported, which would
cost every merge several seconds. tests/merging/test_model_folders.py compares the result with what
`from_pretrained` loads, and the tables below with transformers' own classes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

# The input embedding of each model type's causal language model. What comes before the first dot is
# the prefix of the base model (`base_model_prefix`). Types that are not named have the first one.
EMBEDDINGS = {
    "model.embed_tokens.weight": "",
    "model.decoder.embed_tokens.weight": "opt",
    "transformer.wte.weight": "codegen dbrx gpt-sw3 gpt2 gpt_bigcode gpt_neo gptj mpt",
    "transformer.word_embeddings.weight": "bloom falcon",
    "transformer.tokens_embed.weight": "openai-gpt",
    "gpt_neox.embed_in.weight": "gpt_neox",
    "gpt_neox_japanese.embed_in.weight": "gpt_neox_japanese",
    "backbone.embeddings.weight": "mamba mamba2 falcon_mamba",
}
HEADS = ("lm_head.weight", "embed_out.weight")  # these may be tied to the embedding
OUTSIDE = ("lm_head.", "embed_out.", "score.")  # these names get no prefix of the base model
# These model types have a tied head where config.json does not say it, as GPT-2's on the hub.
TIED_BY_DEFAULT = (
    "bloom cohere cohere2 cohere2_moe cohere_compass_text ernie4_5 ernie4_5_moe falcon "
    "falcon_mamba gemma gemma2 gemma3_text gemma3n_text gemma4_text gemma4_unified_assistant "
    "gemma4_unified_text gpt-sw3 gpt2 gpt_bigcode gpt_neo gpt_neox_japanese granite_swa jetmoe "
    "lfm2 lfm2_moe lfm3 mamba minicpm3 mpt openai-gpt opt recurrent_gemma smollm3 starcoder2 "
    "vaultgemma xglm youtu zamba zamba2 zaya"
)


def read_config(folder: Path) -> dict[str, Any]:
    """Return config.json of a folder, or an empty one where there is none."""
    file = folder / "config.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that `from_pretrained` would read, whether they exist or not:
    those that config.json names (`transformers_weights`), else the single file, else those of an
    index. If two files have a tensor of the same name, the later one counts."""
    named = read_config(folder).get("transformers_weights")
    if named is None:
        named = SINGLE if (folder / SINGLE).is_file() or not (folder / INDEX).is_file() else INDEX
    if not named.endswith(".index.json"):
        return [folder / named]
    if not (folder / named).is_file():
        return [folder / named]
    weight_map = json.loads((folder / named).read_text(encoding="utf-8"))["weight_map"]
    return [folder / name for name in sorted(set(weight_map.values()))]


def require_plain_weights(folder: Path) -> None:
    """Raise ValueError where `from_pretrained` would do more than load the weights: add an adapter,
    or read numbers of a quantiser."""
    adapters = [p for p in sorted(folder.glob("adapter_model.*")) if p.suffix != ".json"]
    if adapters and (folder / "adapter_config.json").is_file():
        raise ValueError(
            f"{folder} holds an adapter ({adapters[0].name}) beside its weights, and transformers "
            "would add it to them: merge it with `python scripts/convert_model.py --model "
            f"{folder} --out FOLDER`, or move adapter_config.json and {adapters[0].name} away"
        )
    if quantisation := read_config(folder).get("quantization_config"):
        raise ValueError(
            f"{folder} is quantised ({quantisation.get('quant_method', 'quantization_config')}) "
            "and cannot be averaged: take the model as it was before it was quantised, or see "
            "docs/your_models.md"
        )


def canonical_names(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, str]:
    """Map the names in the files to the names under which transformers saves the tensors that it
    loads.

    Args:
        config: the folder's config.json. An empty one, which has no model, changes no name.

    Raises:
        ValueError: two tensors would get one name.
    """
    if "model_type" not in config:
        return {name: name for name in tensors}
    kept = [name for name, tensor in tensors.items() if is_loaded(name, tensor, config)]
    embedding = embedding_of(config["model_type"])
    base, _, tail = embedding.partition(".")
    lacks_base = tail in kept and embedding not in kept
    named = (f"{base}.", *OUTSIDE)
    names: dict[str, str | None] = {
        name: f"{base}.{name}" if lacks_base and not name.startswith(named) else name
        for name in kept
    }
    sources = {str(canonical): name for name, canonical in names.items()}
    for head in HEADS:
        if head in names:
            names[head] = head_name(head, tensors, sources, config)
    saved = {name: canonical for name, canonical in names.items() if canonical is not None}
    taken: dict[str, str] = {}
    for name, canonical in saved.items():
        if taken.setdefault(canonical, name) != name:
            raise ValueError(
                f"{taken[canonical]} and {name} are both the tensor {canonical}: leave one out"
            )
    return saved


def embedding_of(model_type: str) -> str:
    """Return the name of a model type's input embedding."""
    types = {t: name for name, listed in EMBEDDINGS.items() for t in listed.split()}
    return types.get(model_type, next(iter(EMBEDDINGS)))


def is_loaded(name: str, tensor: Tensor, config: Mapping[str, Any]) -> bool:
    """Whether transformers loads a tensor. It ignores what older versions stored and today's
    versions compute (causal masks, angles, positions), and layers that predict further tokens,
    which its models do not have."""
    is_mask = tensor.dim() == 4 and tuple(tensor.shape[:2]) == (1, 1)
    if is_mask and name.endswith((".attn.bias", ".attention.bias", ".attn.causal_mask")):
        return False
    if tensor.numel() == 1 and name.endswith((".attn.masked_bias", ".attention.masked_bias")):
        return False
    if name.endswith("rotary_emb.inv_freq") or re.match(r"(model\.)?mtp(_\w+)?\.", name):
        return False
    if re.search(r"(^|\.)position_ids$", name) and not tensor.is_floating_point():
        return False
    layer, count = re.match(r"(?:model\.)?layers\.(\d+)\.", name), config.get("num_hidden_layers")
    return not (layer and count is not None and int(layer[1]) >= count)


def head_name(
    head: str, tensors: Mapping[str, Tensor], sources: Mapping[str, str], config: Mapping[str, Any]
) -> str | None:
    """Return the name under which transformers saves the head. It is none where the head is a copy
    of the embedding, the embedding's name where only the head is stored, and the old name for
    GPT-NeoX.

    transformers does not tie a head that differs from the embedding, whatever the config says.

    Args:
        sources: maps canonical names to names in the files.
    """
    own = "embed_out.weight" if config["model_type"] == "gpt_neox" else head
    embedding = embedding_of(config["model_type"])
    if not is_tied(config):
        return own
    if embedding not in sources:
        return embedding
    return None if are_equal(tensors[head], tensors[sources[embedding]]) else own


def is_tied(config: Mapping[str, Any]) -> bool:
    """Whether a config ties the head to the embedding."""
    return config.get("tie_word_embeddings", config["model_type"] in TIED_BY_DEFAULT.split())


def are_equal(a: Tensor, b: Tensor, chunk: int = 1 << 20) -> bool:
    """Whether two tensors hold the same numbers, in flat memory."""
    if a.shape != b.shape:
        return False
    pairs = zip(a.reshape(-1).split(chunk), b.reshape(-1).split(chunk), strict=True)
    return all(torch.equal(one.float(), other.float()) for one, other in pairs)
