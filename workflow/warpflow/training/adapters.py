"""LoRA through `peft`: small trained factors A and B beside frozen weights, W + s·BA.

Every average of WARP is of the *merged* weights W + s·BA: a mean of A's times a mean of B's is not
the mean of the products. So the EMA anchor follows the merged weights, and a run ends with them
merged into a checkpoint like any other, from which task vectors are taken.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import PreTrainedModel

BASE = ".base_layer."


def add_adapters(policy: PreTrainedModel, rank: int, alpha: int, seed: int) -> PeftModel:
    """Freeze the policy and put a LoRA of rank r, scaled by α/r, beside every linear layer but the
    output's; in place. B starts at 0, so the policy's outputs are what they were."""
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules="all-linear")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(policy, config)


def acting_weights(policy: PreTrainedModel) -> Iterator[Tensor]:
    """The weights that the policy acts with, as its parameters are listed without adapters: W, or
    W + s·BA, one at a time."""
    for name, parameter in policy.named_parameters():
        owner, is_base, kind = name.rpartition(BASE)
        layer = policy.get_submodule(owner) if is_base else None
        if isinstance(layer, LoraLayer) and kind == "weight":
            yield parameter.detach() + layer.get_delta_weight("default").detach()
        elif "lora_" not in name:
            yield parameter.detach()


def merge_adapters(adapters: PeftModel) -> PreTrainedModel:
    """The policy with its adapters merged into its weights, without them from here on."""
    return adapters.merge_and_unload()
