"""Recipes: checkpoint folders without weights, composed of two others while they are loaded.

A point of a LITI sweep is (1 − η) θ_init + η θ, so not every point of a sweep must be on disk. A
recipe is a Hugging Face folder with config and tokenizer, and recipe.json in place of the weights:

    {"made_by": "warpflow interpolate_policy", "eta": 0.3, "dtype": null,
     "parents": {"init": "sampled-sha256:…", "policy": "sampled-sha256:…"},
     "paths": {"init": "../sft", "policy": "../merged"}}

`parents` are fingerprints of contents, which are checked whenever a recipe is loaded. `paths` are
relative to the folder. They may be left out, so that its bytes depend only on contents. Then the
caller that loads it says where the parents are. The composed weights equal the written ones bit for
bit. `points.load_point` loads a recipe as a model, and `writing.write_recipe` writes it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from warpflow.merging.checkpoints import RECIPE, MappedTensors, fingerprint, read_tensors
from warpflow.merging.chunks import interpolate, to_dtype

ROLES = ("init", "policy")


def is_recipe(folder: str | Path) -> bool:
    return Path(folder, RECIPE).is_file()


def read_recipe(
    folder: str | Path, parents: Sequence[str | Path] = ()
) -> tuple[dict[str, Any], list[MappedTensors]]:
    """Return a recipe and its two parents, θ_init and θ.

    Args:
        parents: their folders, in any order. By default the recipe's own `paths` are taken.

    Raises:
        ValueError, FileNotFoundError: a parent is not given, is missing, or has other content.
    """
    folder = Path(folder)
    recipe = json.loads((folder / RECIPE).read_text(encoding="utf-8"))
    paths = [folder / path for path in recipe.get("paths", {}).values()]
    if not parents and not paths:
        raise ValueError(
            f"{folder} is a recipe that names its parents by content alone: give their folders "
            "(--parents); provenance.json beside it says what they were"
        )
    found = {}
    for path in map(Path, parents or paths):
        if not path.is_dir():
            raise FileNotFoundError(f"{folder} is a recipe; its parent {path} is missing")
        tensors = read_tensors(path)
        found[fingerprint(tensors)] = tensors
    for role in ROLES:
        if recipe["parents"][role] not in found:
            held = ", ".join(f"{tensors.folder} is {name}" for name, tensors in found.items())
            raise ValueError(
                f"{folder} is a recipe; its parent {role} is {recipe['parents'][role]}, "
                f"but {held}: it was changed since, or is another checkpoint"
            )
    return recipe, [found[recipe["parents"][role]] for role in ROLES]


def compose(folder: str | Path, parents: Sequence[str | Path] = ()) -> dict[str, Tensor]:
    """Return the tensors that a recipe stands for, in memory. Errors are those of `read_recipe`."""
    recipe, (init, policy) = read_recipe(folder, parents)
    return interpolate(init, policy, recipe["eta"], to_dtype(recipe["dtype"]))
