"""Checkpoint folders as tensors: what merging and interpolation read and write.

Tensors are those of the *files*, not of `model.state_dict()`: a tied `lm_head.weight` is then
merged once, and names are the ones that the next reader expects.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


def shard_files(folder: str | Path) -> list[Path]:
    """The safetensors files of a checkpoint, in the index's order.

    Raises:
        FileNotFoundError: no safetensors weights (a pickle checkpoint is refused, with the
            command that converts it), or a shard that the index names is missing.
    """
    folder = Path(folder)
    if (folder / INDEX).is_file():
        weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
        shards = [folder / name for name in dict.fromkeys(weight_map.values())]
    else:
        shards = [folder / SINGLE]
    missing = [str(shard) for shard in shards if not shard.is_file()]
    if missing:
        pickles = sorted(str(p) for p in folder.glob("*.bin")) + sorted(
            str(p) for p in folder.glob("*.pt")
        )
        hint = (
            f"; {pickles[0]} is a pickle, which is not read here: convert it with "
            "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(FOLDER)"
            if pickles
            else ""
        )
        raise FileNotFoundError(f"{folder}: missing {', '.join(missing)}{hint}")
    return shards


def read_tensors(folder: str | Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint by its name in the files, in the files' dtype."""
    tensors: dict[str, Tensor] = {}
    for shard in shard_files(folder):
        with safe_open(shard, "pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return tensors


def write_checkpoint(tensors: dict[str, Tensor], like: str | Path, out: str | Path) -> None:
    """Write `tensors` as a checkpoint that carries over all else from the folder `like`:
    config, generation config, tokenizer, chat template."""
    like, out = Path(like), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(like.iterdir()):
        if path.is_file() and is_carried_over(path.name):
            shutil.copyfile(path, out / path.name)
    save_file({name: t.contiguous() for name, t in tensors.items()}, out / SINGLE, {"format": "pt"})
    make_readable(out)


def is_carried_over(name: str) -> bool:
    """Whether a merge takes the file as it is from the initialisation: neither weights nor the
    tables of one training run."""
    return not name.endswith((".safetensors", ".csv", INDEX, ".bin", ".pt"))


def make_readable(folder: str | Path) -> None:
    """Give every file the mode that the umask asks for: safetensors writes 0600 regardless,
    which makes a shared cache unreadable to colleagues."""
    umask = os.umask(0)
    os.umask(umask)
    for path in Path(folder).rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~umask)
