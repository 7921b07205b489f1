"""Layers of a model that kernels of the package `kernels` compute (`train_policy.use_kernels`).

transformers says which kernel of the hub computes which layer on which device, and whether it has a
gradient. The package replaces `forward` of such layers, and keeps their weights. It is not
installed with the others.
"""

from __future__ import annotations

import importlib
import logging
from collections import Counter
from typing import Any

from transformers import PreTrainedModel


def use_kernels_(model: PreTrainedModel) -> None:
    """Replace the layers for which there is a kernel with a gradient. The log says how many they
    are.

    A policy in RL is in evaluation mode and has gradients. transformers would choose kernels by
    that mode, and those for inference have no gradient, or a wrong one.

    Args:
        model: the model on its device, for which the kernels are chosen.

    Raises:
        ModuleNotFoundError: the package is not installed.
        ValueError: transformers does not take its version; or no layer was replaced.
    """
    training = importlib.import_module("kernels").Mode.TRAINING
    model.set_use_kernels(True, mode=training)
    # This keeps the kernels. Without it train() and eval() of the model would choose them anew.
    model.set_use_kernels(False)
    replaced = replaced_layers(model)
    if not replaced:
        raise ValueError(
            f"train_policy.use_kernels: got true, but no layer of {type(model).__name__} was "
            f"replaced on {model.device.type}: transformers knows no kernel with a gradient for "
            "this model and device, or could not load it from the hub; set it to false"
        )
    found = ", ".join(f"{count} {name}" for name, count in sorted(replaced.items()))
    logging.info("kernels compute these layers of %s: %s", type(model).__name__, found)


def replaced_layers(model: PreTrainedModel) -> Counter[str]:
    """Return how many layers a kernel computes, by the name under which transformers lists them.

    Where there is no kernel for a layer, the package sets the layer's own `forward` anew.
    """
    layers: dict[int, Any] = {}
    for module in model.modules():
        # Functions that layers call are modules of the package, and all models share them.
        for layer in (module, *getattr(module, "_kernel_funcs", {}).values()):
            layers[id(layer)] = layer
    return Counter(
        type(layer).kernel_layer_name
        for layer in layers.values()
        if hasattr(type(layer), "kernel_layer_name")
        and "forward" in vars(layer)
        and layer.forward.__func__ is not type(layer).forward
    )
