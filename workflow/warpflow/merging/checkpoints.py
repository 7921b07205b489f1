"""Checkpoint folders as tensors, which merging and interpolation read.

Tensors are those of the *files*, not of `model.state_dict()`, so that a tied `lm_head.weight` is
merged once. Their names are those of today's transformers, whatever the folder's layout is
(`layouts`). The files are mapped, so that reading needs no memory of a checkpoint's size. `writing`
writes such folders.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from warpflow.merging.layouts import (
    canonical_names,
    read_config,
    require_plain_weights,
    weight_files,
)

RECIPE = "recipe.json"
PROVENANCE = "provenance.json"

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.uint16: "U16",
    torch.uint32: "U32",
    torch.uint64: "U64",
    torch.bool: "BOOL",
}


class MappedTensors(dict[str, Tensor]):
    """The tensors of a checkpoint by name, as views of its mapped files. `files` says where each
    is."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.files: dict[str, Path] = {}


def shard_files(folder: str | Path) -> list[Path]:
    """Return the safetensors files of a checkpoint that transformers would read.

    Raises:
        FileNotFoundError: there are no safetensors weights, or a shard that the index names is
            missing. A pickle checkpoint is refused with the command that converts it.
    """
    folder = Path(folder)
    shards = weight_files(folder)
    missing = [str(shard) for shard in shards if not shard.is_file()]
    if missing:
        raise FileNotFoundError(f"{folder}: missing {', '.join(missing)}{missing_hint(folder)}")
    return shards


def missing_hint(folder: Path) -> str:
    """Say what is in a folder in place of safetensors weights, and what to do about it."""
    pickles = sorted(str(p) for kind in ("*.bin", "*.pt") for p in folder.glob(kind))
    if (folder / RECIPE).is_file():
        return (
            "; it is a recipe: write its weights with "
            f"`python scripts/interpolate_policy.py --export {folder} --out FOLDER`"
        )
    if (folder / "adapter_config.json").is_file():
        return (
            "; it is an adapter, whose factors cannot be averaged: write the whole model with "
            f"`python scripts/convert_model.py --model {folder} --out FOLDER`"
        )
    if pickles:
        return (
            f"; {pickles[0]} is a pickle, which is not read here: convert it with "
            "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    return "" if folder.is_dir() else "; there is no such folder"


def read_tensors(folder: str | Path) -> MappedTensors:
    """Return every tensor of a checkpoint that transformers would load, under the name by which it
    would save it (`layouts`), in the files' dtype.

    The tensors are views of the mapped files. Nothing is read before it is used, except a head that
    may be a copy of the embedding.

    Raises:
        FileNotFoundError: see `shard_files`.
        ValueError: a file is cut short or is no safetensors file, an adapter is beside the weights,
            or the weights are quantised.
    """
    folder = Path(folder)
    stored: dict[str, Tensor] = {}
    files: dict[str, Path] = {}
    for shard in shard_files(folder):
        check_size(shard)
        with safe_open(shard, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                stored[name] = file.get_tensor(name)
                files[name] = shard
    require_plain_weights(folder)
    tensors = MappedTensors(folder)
    names = canonical_names(stored, read_config(folder))
    for name, canonical in names.items():
        tensors[canonical] = stored[name]
        tensors.files[canonical] = files[name]
    if left_out := sorted(stored.keys() - names.keys()):
        logging.warning(
            "%s: %d tensors that transformers does not load or has twice are left out, e.g. %s",
            folder,
            len(left_out),
            left_out[0],
        )
    return tensors


def check_size(shard: Path) -> None:
    """Raise ValueError unless a safetensors file is as long as its header says."""
    size = shard.stat().st_size
    with open(shard, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = {}
        if 8 + length <= size:
            with suppress(ValueError):  # not JSON; the error is raised below
                header = json.loads(file.read(length))
    if not header:
        raise ValueError(
            f"{shard}: no complete safetensors header in its {size} bytes: the file was cut short "
            "or is of another format; copy or download it again"
        )
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise ValueError(
            f"{shard}: {size} bytes, but its header says {expected}: the file was cut short; copy "
            "or download it again"
        )


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Return a name for a checkpoint's content, whatever its shards are. It is the SHA-256 of every
    tensor's name, dtype, shape and the first, middle and last 4 KiB of its bytes.

    Reading all of 28 GB to name it would cost more than merging it. Training moves every tensor, so
    two policies have different names. A single flipped bit may go unseen.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {DTYPE_NAMES.get(tensor.dtype)} {list(tensor.shape)};".encode())
        data = tensor.reshape(-1).view(torch.uint8)
        for start in (0, max(0, len(data) // 2 - 2048), max(0, len(data) - 4096)):
            digest.update(as_bytes(data[start : start + 4096]))
    return f"sampled-sha256:{digest.hexdigest()}"


def as_bytes(tensor: Tensor) -> memoryview:
    """Return the memory of a contiguous 1-D tensor."""
    return tensor.view(torch.uint8).numpy().data


def check_vocabularies(folders: Sequence[Path]) -> None:
    """Raise ValueError where two tokenizers give a token different ids, or an id different tokens.
    Folders without tokenizer.json are left out.

    Tokens that only one of them has are no contradiction, because a trainer may add a pad token
    whose id is a row of the padded embedding that no other token uses. The embeddings show whether
    rows were added (`chunks.check_sources`). The first folder's tokenizer is kept, and a message
    says so.
    """
    with_tokenizer = [folder for folder in folders if (folder / "tokenizer.json").is_file()]
    contents = [(folder / "tokenizer.json").read_bytes() for folder in with_tokenizer]
    if len(set(contents)) < 2:
        return
    vocabularies = [vocabulary(json.loads(content)) for content in contents]
    first, known = vocabularies[0], dict(vocabularies[0])
    for folder, other in zip(with_tokenizer[1:], vocabularies[1:], strict=True):
        if differing := contradictions(known, other):
            raise ValueError(
                f"{folder}: its tokenizer has {len(other)} tokens, that of {with_tokenizer[0]} "
                f"{len(first)}; {len(differing)} differ, e.g. {differing[0]!r}: policies of "
                "different vocabularies cannot be averaged"
            )
        if added := sorted(other.keys() - first.keys()):
            logging.warning(
                "%s: its tokenizer has %d tokens that %s has not, e.g. %r; the latter's is kept",
                folder,
                len(added),
                with_tokenizer[0],
                added[0],
            )
        known |= other


def contradictions(first: Mapping[str, int], other: Mapping[str, int]) -> list[str]:
    """Return the tokens that both have with different ids, and those whose id is another
    token's."""
    names, other_names = ({i: t for t, i in known.items()} for known in (first, other))
    return sorted(
        token
        for token in first.keys() | other.keys()
        if first.get(token, other.get(token)) != other.get(token, first.get(token))
        or (token not in first and other[token] in names)
        or (token not in other and first[token] in other_names)
    )


def vocabulary(tokenizer: dict[str, Any]) -> dict[str, int]:
    """Return the ids by token of a parsed tokenizer.json."""
    known = tokenizer["model"].get("vocab", {})
    if isinstance(known, list):  # Unigram has [token, score], and the place is the id
        known = {entry[0]: index for index, entry in enumerate(known)}
    return known | {token["content"]: token["id"] for token in tokenizer.get("added_tokens", [])}
