"""A point of a LITI sweep as a model: a folder of weights, or a recipe that is composed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from warpflow.lm.models import load_config, load_policy, to_device
from warpflow.merging.recipes import compose, is_recipe


def load_point(path: str | Path, parents: Sequence[str | Path] = ()) -> PreTrainedModel:
    """A policy as `lm.models.load_policy` loads it; a recipe is composed of its two parents.

    Args:
        parents: the folders of a recipe's parents; without, those that it names itself.

    Raises: see `lm.models.load_policy` and `recipes.read_recipe`.
    """
    if not is_recipe(path):
        return load_policy(path)
    config = load_config(path)
    with torch.device("meta"):  # no weights: only the class that the config stands for
        model_class = type(AutoModelForCausalLM.from_config(config))
    tensors = compose(path, parents)
    model = model_class.from_pretrained(
        None, config=config, state_dict=tensors, dtype=torch.float32
    )
    return to_device(model)
