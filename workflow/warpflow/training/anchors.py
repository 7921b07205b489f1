"""The anchor of the KL penalty: what weights it has, where it keeps them and how it moves.

`ANCHORS`, at the end, lists all anchors.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from warpflow.lm.models import in_host_memory, lent, round_matrices_
from warpflow.training.adapters import acting_weights
from warpflow.training.distributed import local, release

if TYPE_CHECKING:
    from warpflow.training.reinforce import ReinforceSettings, Run

Memory = Literal["device", "host", "bfloat16"]


@dataclass
class Anchor:
    """A frozen model that scores, and the fp32 weights that are averaged.

    Attributes:
        model: it has no dropout and no gradient, and is sharded where the policy is.
        memory: where the weights are. With ``device`` they are the model's own. With ``host`` they
            are in host memory, and on the device only while the anchor scores; each step moves them
            to the device, and the policy's weights to the host. With ``bfloat16`` they are in host
            memory, and a copy on the device has matrices in bf16; each step moves the policy's
            weights to the host and the copy to the device.
        apart: the fp32 weights, where they are not the model's own.
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
        """Have the model's weights on the device while the context lasts. A model whose matrices
        are bf16 computes in bf16."""
        is_rounded, in_host = self.memory == "bfloat16", self.memory == "host"
        with (
            lent(self.model, self.weights, device) if in_host else nullcontext(),
            torch.autocast(device.type, torch.bfloat16, enabled=is_rounded),
        ):
            yield self.model
            release(self.model)

    def refresh(self) -> None:
        """Copy the weights into the model after they have changed."""
        if self.memory == "bfloat16":
            for parameter, weight in zip(self.model.parameters(), self.weights, strict=True):
                parameter.data.copy_(weight)


def make_anchor(source: PreTrainedModel, memory: Memory = "device") -> Anchor:
    """Return an anchor that starts as a copy of `source`, a policy in fp32 without adapters."""
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
def update_ema_(anchor: Sequence[Tensor], policy: Sequence[Tensor], mu: float) -> None:
    """θ_ema ← (1 − μ) θ_ema + μ θ, in place (Algorithm 1). μ = 1 copies the policy.

    Both must be fp32: with the paper's μ = 0.01 and lr = 1e-6 a bf16 average stands still.
    """
    for tensor in (*anchor, *policy):
        if tensor.dtype != torch.float32:
            raise TypeError(
                f"EMA tensors must be float32, got {tensor.dtype}: load masters in fp32"
            )
    torch._foreach_lerp_(list(anchor), list(policy), mu)


@torch.no_grad()
def move_anchor_(anchor: Anchor, policy: PreTrainedModel, rate: float) -> None:
    """θ_anchor ← (1 − rate) θ_anchor + rate θ (Algorithm 1), with θ the weights that the policy
    acts with, LoRA included. All weights move at once where both are on the device, else one at a
    time."""
    if anchor.memory == "device" and all(p.requires_grad for p in policy.parameters()):
        update_ema_(local(anchor.weights), local(policy.parameters()), rate)
    else:
        names = [name for name, _ in anchor.model.named_parameters()]
        averages = dict(zip(names, anchor.weights, strict=True))
        for name, weight in acting_weights(policy):
            update_ema_([averages[name]], [weight.to(averages[name].device)], rate)
    anchor.refresh()


# --- which anchors there are -------------------------------------------------------------------


def stay_(run: Run, settings: ReinforceSettings, step: int) -> None:
    """Leave the anchor where it is."""


def follow_(run: Run, settings: ReinforceSettings, step: int) -> None:
    """Move the anchor as the EMA of the policy. WARP does so at every step (Algorithm 1), TR-DPO's
    soft update (arXiv 2404.09656) every `anchor_every` steps."""
    if step % settings.anchor_every == 0:
        move_anchor_(run.anchor, run.policy, settings.mu)


def forget_moments_(run: Run, settings: ReinforceSettings) -> None:
    """Start the optimiser anew where `reset_optimizer` asks for it (ProRL, arXiv 2505.24864)."""
    if settings.reset_optimizer:
        run.optimizer.state.clear()


def reset_hard_(run: Run, settings: ReinforceSettings, step: int) -> None:
    """Renew the anchor as a copy of the policy every `reset_every` steps."""
    if step % settings.reset_every == 0:
        move_anchor_(run.anchor, run.policy, 1.0)
        forget_moments_(run, settings)


@torch.no_grad()
def reset_elastically_(run: Run, settings: ReinforceSettings, step: int) -> None:
    """Do an Elastic Reset (arXiv 2312.07551): every `reset_every` steps the policy falls back to
    its EMA, and the EMA to the initialisation, which is the anchor."""
    if step % settings.reset_every:
        return
    ema = run.averages["ema"]
    for parameter, weight in zip(run.policy.parameters(), ema.weights, strict=True):
        parameter.copy_(weight)
    for weight, start in zip(ema.weights, run.anchor.weights, strict=True):
        weight.copy_(start)
    ema.refresh()
    forget_moments_(run, settings)


@dataclass(frozen=True)
class AnchorKind:
    """What an anchor starts as, and what happens after each step.

    Attributes:
        starts_as: which of the policies θ_init and θ_sft it is at the start.
        after_step_: is called with the run, its settings and the step (from 1), once the policy has
            moved and its averages have followed. It may move the anchor, and the policy itself.
        needs: the averages of the policy (`Run.averages`) that `after_step_` reads.
        stands_for: the averages of the policy that are the anchor itself, so that none is kept
            twice.
    """

    starts_as: Literal["init", "sft"]
    after_step_: Callable[[Run, ReinforceSettings, int], None] = stay_
    needs: frozenset[str] = frozenset()
    stands_for: frozenset[str] = frozenset()


# A new anchor needs one function above and one line here. Its config key is train_policy.anchor.
ANCHORS: dict[str, AnchorKind] = {
    "ema": AnchorKind("init", follow_, stands_for=frozenset({"ema"})),
    "init": AnchorKind("init"),
    "sft": AnchorKind("sft"),
    "hard_reset": AnchorKind("init", reset_hard_),
    "elastic_reset": AnchorKind("init", reset_elastically_, needs=frozenset({"ema"})),
}


def is_sft_itself(kind: str, memory: Memory) -> bool:
    """Whether the anchor is θ_sft itself and no copy: it starts there, never moves, and stays on
    the device."""
    anchor = ANCHORS[kind]
    return anchor.starts_as == "sft" and anchor.after_step_ is stay_ and memory == "device"


def start_anchor(
    kind: str, init: PreTrainedModel, sft: PreTrainedModel, memory: Memory = "device"
) -> Anchor:
    """Return the anchor of that name in `ANCHORS` before the first step."""
    if is_sft_itself(kind, memory):
        return Anchor(sft.requires_grad_(False).eval())
    return make_anchor(init if ANCHORS[kind].starts_as == "init" else sft, memory)
