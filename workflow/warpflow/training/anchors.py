"""The anchor of the KL penalty: whose weights it has, where it keeps them, how it moves."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from warpflow.lm.models import in_host_memory, lent, round_matrices_
from warpflow.merging.methods import update_ema_
from warpflow.training.adapters import acting_weights
from warpflow.training.distributed import local, release

Memory = Literal["device", "host", "bfloat16"]


@dataclass
class Anchor:
    """A frozen model that scores, and the fp32 weights that are averaged.

    Attributes:
        model: dropout off, no gradient; sharded where the policy is.
        memory: where the weights live. ``device``: they are the model's own. ``host``: in host
            memory, on the device only while it scores; each step moves them there, and the
            policy's here. ``bfloat16``: in host memory, with a copy on the device whose matrices
            are bf16; each step moves the policy's weights here and the copy there.
        apart: the fp32 weights where they are not the model's own.
    """

    model: PreTrainedModel
    memory: Memory = "device"
    apart: list[Tensor] | None = None

    @property
    def weights(self) -> list[Tensor]:
        """θ_anchor in fp32, in the order of the model's parameters."""
        return list(self.model.parameters()) if self.apart is None else self.apart

    @contextmanager
    def scoring(self, device: torch.device) -> Iterator[PreTrainedModel]:
        """The model with its weights on the device, for a while; one whose matrices are bf16
        computes in bf16."""
        is_rounded, in_host = self.memory == "bfloat16", self.memory == "host"
        with (
            lent(self.model, self.weights, device) if in_host else nullcontext(),
            torch.autocast(device.type, torch.bfloat16, enabled=is_rounded),
        ):
            yield self.model
            release(self.model)

    def refresh(self) -> None:
        """Bring the model up to the weights after they have changed."""
        if self.memory == "bfloat16":
            for parameter, weight in zip(self.model.parameters(), self.weights, strict=True):
                parameter.data.copy_(weight)


def make_anchor(source: PreTrainedModel, memory: Memory = "device") -> Anchor:
    """An anchor that starts as a copy of `source`, a policy in fp32 without adapters."""
    model = copy.deepcopy(source).requires_grad_(False).eval()
    if memory == "device":
        return Anchor(model)
    apart = [in_host_memory(parameter.data) for parameter in model.parameters()]
    if memory == "bfloat16":
        round_matrices_(model)
        return Anchor(model, memory, apart)
    for parameter, weight in zip(model.parameters(), apart, strict=True):
        parameter.data = weight
    return Anchor(model, memory, apart)


@torch.no_grad()
def move_anchor_(anchor: Anchor, policy: PreTrainedModel, rate: float) -> None:
    """θ_anchor ← (1 − rate) θ_anchor + rate θ (Algorithm 1), with θ the weights that the policy
    acts with, LoRA's included. All at once where both lie on the device, else one at a time."""
    if anchor.memory == "device" and all(p.requires_grad for p in policy.parameters()):
        update_ema_(local(anchor.weights), local(policy.parameters()), rate)
    else:
        names = [name for name, _ in anchor.model.named_parameters()]
        averages = dict(zip(names, anchor.weights, strict=True))
        for name, weight in acting_weights(policy):
            update_ema_([averages[name]], [weight.to(averages[name].device)], rate)
    anchor.refresh()
