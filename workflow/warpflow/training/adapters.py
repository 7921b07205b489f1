"""LoRA through `peft` trains small factors A and B beside frozen weights, W + s·BA.

WARP always averages the *merged* weights W + s·BA, because a mean of A's times a mean of B's is not
the mean of the products. So the EMA anchor follows the merged weights, and a run ends with them
merged into a checkpoint like any other, from which task vectors are taken.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel


def add_adapters(policy: PreTrainedModel, rank: int, alpha: int, seed: int) -> PeftModel:
    """Freeze the policy in place and add a LoRA of rank r, scaled by α/r, to its weights. Every
    linear layer but the output layer gets one, and so do the fused experts of a mixture. B starts
    at 0, so the policy's outputs stay what they were.

    Raises:
        ValueError: no adapter reaches the policy's fused experts. The message names them.
    """
    experts = fused_experts(policy)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        target_parameters=experts or None,
        exclude_modules=routers(policy) or None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapters = get_peft_model(policy, config)
    adapted = adapted_weights(policy)
    plain = {plain_name(name): p for name, p in policy.named_parameters()}
    if missed := [name for name in experts if plain[name] not in adapted]:
        raise ValueError(
            f"train_policy.lora_rank: no adapter reaches {len(missed)} weights of fused experts, "
            f"{', '.join(missed[:4])} among them: set lora_rank to null, or take another policy"
        )
    report_left_out(policy)
    return adapters


def fused_experts(policy: PreTrainedModel) -> list[str]:
    """Return the names of weights [experts, …, …] that hold all of a layer's experts in one
    tensor."""
    return [
        f"{name}.{kind}"
        for name, module in policy.named_modules()
        if not isinstance(module, nn.modules.conv._ConvNd)
        for kind, parameter in module.named_parameters(recurse=False)
        if parameter.dim() == 3
    ]


def routers(policy: PreTrainedModel) -> list[str]:
    """Return the names of layers that inherit from Linear but return something else than a product,
    as Llama 4's router does. `peft` would take them for plain layers and fail."""
    return [
        name
        for name, module in policy.named_modules()
        if isinstance(module, nn.Linear) and type(module) is not nn.Linear
    ]


def report_left_out(policy: PreTrainedModel) -> None:
    """Log which linear layers get no adapter. Where experts are fused, `peft` takes the names of
    the dense layers beside them for names of experts."""
    inside = {id(m.get_base_layer()) for m in policy.modules() if isinstance(m, LoraLayer)}
    output = policy.get_output_embeddings()
    left = [
        name
        for name, module in policy.named_modules()
        if type(module) is nn.Linear
        and ".lora_" not in name
        and id(module) not in inside
        and module is not output
    ]
    if left:
        logging.warning(
            "WARNING: LoRA leaves %d linear layers as they are, %s among them", len(left), left[0]
        )


def plain_name(name: str) -> str:
    """Return a parameter's name in the policy without adapters."""
    return name.replace(".base_layer", "")


def adapted_weights(policy: PreTrainedModel) -> dict[Tensor, Any]:
    """Map each weight that has an adapter to this adapter. A `ParamWrapper` names the parameter of
    its layer that it adapts, and may wrap another one. All other adapters adapt `weight`."""
    layers = [module for module in policy.modules() if isinstance(module, LoraLayer)]
    return {
        getattr(layer.get_base_layer(), getattr(layer, "parameter_name", "weight")): layer
        for layer in layers
    }


def acting_weights(policy: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights that the policy acts with, W or W + s·BA, each with its name without
    adapters. The order is not fixed, because adapters of experts reorder a layer's parameters."""
    adapted = adapted_weights(policy)
    for name, parameter in policy.named_parameters():
        if parameter in adapted:
            delta = adapted[parameter].get_delta_weight("default")
            yield plain_name(name), parameter.detach() + delta.detach()
        elif "lora_" not in name:
            yield plain_name(name), parameter.detach()


def merge_adapters(adapters: PeftModel) -> PreTrainedModel:
    """Merge the adapters into the policy's weights, and return the policy without adapters."""
    return adapters.merge_and_unload()
