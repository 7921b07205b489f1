"""Load points of a LITI sweep as models: folders of weights, recipes, or two parents and η."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from warpflow.lm.models import load_config, load_policy, to_device
from warpflow.merging.checkpoints import MappedTensors, read_tensors
from warpflow.merging.chunks import check_etas, check_sources, interpolate, output_dtypes
from warpflow.merging.liti import interpolate_into
from warpflow.merging.recipes import compose, is_recipe


def load_point(path: str | Path, parents: Sequence[str | Path] = ()) -> PreTrainedModel:
    """Load a policy as `lm.models.load_policy` does. A recipe is composed of its two parents.

    Args:
        parents: the folders of a recipe's parents. By default they are those that it names itself.

    Raises: see `lm.models.load_policy` and `recipes.read_recipe`.
    """
    if not is_recipe(path):
        return load_policy(path)
    return model_of(path, compose(path, parents))


def model_of(folder: str | Path, tensors: dict[str, Tensor]) -> PreTrainedModel:
    """Return a causal language model with the config of a folder and these weights, on the
    device."""
    config = load_config(folder)
    with torch.device("meta"):  # without weights: only the class that the config stands for
        model_class = type(AutoModelForCausalLM.from_config(config))
    model = model_class.from_pretrained(
        None, config=config, state_dict=tensors, dtype=torch.float32
    )
    return to_device(model)


class Composer:
    """The points of one front, (1 − η) θ_init + η θ, one after the other in one model.

    The parents' files are mapped once, and the model is built once. For the next η its weights are
    overwritten in place.
    """

    def __init__(self, init: str | Path, policy: str | Path) -> None:
        """Map the parents.

        Args:
            init, policy: folders of weights, at η = 0 and η = 1.

        Raises:
            ValueError, FileNotFoundError: a folder has no weights, or the parents' tensors differ
                in name or shape. The message names the file and the tensor.
        """
        self.init, self.policy = read_tensors(init), read_tensors(policy)
        check_sources([self.init, self.policy])
        self.model: PreTrainedModel | None = None

    def compose(self, eta: float) -> PreTrainedModel:
        """Return the model at η, on the device, bit for bit as `load_point` composes a recipe of
        the same parents. It is valid until the next call.

        Raises:
            ValueError: η is outside [0, 2], or a parent has NaN or Inf.
        """
        check_etas([eta])
        if self.model is None or not overwrite(self.model, self.init, self.policy, eta):
            self.model = None  # its memory is free before the next one is built
            self.model = model_of(self.init.folder, interpolate(self.init, self.policy, eta))
        return self.model


def overwrite(
    model: PreTrainedModel, init: MappedTensors, policy: MappedTensors, eta: float
) -> bool:
    """Write (1 − η) θ_init + η θ into a model's weights, a chunk at a time. Return whether that was
    possible, which needs a checkpoint with the same tensor names as the model."""
    state = model.state_dict()
    if any(name not in state or state[name].shape != init[name].shape for name in init):
        return False
    dtypes = output_dtypes([init, policy], None)
    flat = {name: state[name].view(-1) for name in init}

    def emit(_: int, name: str, start: int, piece: Tensor) -> None:
        # It is rounded as a file of the point would be.
        flat[name][start : start + piece.numel()].copy_(piece.to(dtypes[name]))

    interpolate_into(emit, init, policy, [eta])
    return True
