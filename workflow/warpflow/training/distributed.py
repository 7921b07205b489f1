"""Training with several processes: what they share, and what each one does alone.

`accelerate launch` starts them and sets up their group, one process to a GPU. Each samples and
scores its own rows of the batch; rewards and log-ratios are gathered, since the baseline of a row
may depend on every other; the gradient is the mean over all. The policy is whole in each process,
or sharded by FSDP: then so are its anchor, gradient and optimiser.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from warpflow.lm.models import matrices

T = TypeVar("T")


def process_count() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def process_index() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def wait_for_all() -> None:
    """Return once every process has come here."""
    if process_count() > 1:
        dist.barrier()


def own_part(count: int, what: str) -> slice:
    """The places of this process among `count`; every process has equally many.

    Raises:
        ValueError: they do not divide; names `what`.
    """
    processes = process_count()
    if count % processes:
        raise ValueError(
            f"{what}: got {count}, expected a multiple of the {processes} processes: change it or "
            "start another number of processes"
        )
    share = count // processes
    return slice(process_index() * share, (process_index() + 1) * share)


def gather(rows: Tensor) -> Tensor:
    """[B, …] of the rows [B / processes, …] that each process has, in the processes' order."""
    if process_count() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(process_count())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def share_of(count: int) -> slice:
    """The places of this process among `count`, which need not divide evenly."""
    processes, index = process_count(), process_index()
    return slice(index * count // processes, (index + 1) * count // processes)


def gather_objects(mine: T) -> list[T]:
    """What each process has, in the processes' order; tensors in it must be in host memory."""
    if process_count() == 1:
        return [mine]
    parts: list[T] = [mine] * process_count()
    dist.all_gather_object(parts, mine)
    return parts


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether `flag` is set in one of them: what they must do together, they decide together."""
    return bool(gather(torch.tensor([flag], device=device)).any())


def average_gradients_(model: torch.nn.Module) -> None:
    """The mean gradient over the processes, once a step, after the last micro-batch. A sharded
    model's has been averaged by FSDP in the backward pass."""
    if process_count() == 1 or is_sharded(model):
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    for work in [dist.all_reduce(gradient, async_op=True) for gradient in gradients]:
        work.wait()
    torch._foreach_div_(gradients, process_count())


# --- sharding ----------------------------------------------------------------------------------


def is_sharded(model: torch.nn.Module) -> bool:
    return isinstance(model, FSDPModule)


def shard(
    policy: PreTrainedModel,
    anchor: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
) -> tuple[PreTrainedModel, PreTrainedModel, torch.optim.Optimizer]:
    """Shard the policy, its optimiser and its anchor where accelerate's configuration says FSDP;
    else return them as they are."""
    if not accelerator.is_fsdp2:
        return policy, anchor, optimizer
    policy, wrapped = accelerator.prepare(policy, optimizer)
    return policy, fsdp2_prepare_model(accelerator, anchor), wrapped.optimizer


def local(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The part of each tensor that this process holds."""
    with torch.no_grad():
        return [t.to_local() if isinstance(t, DTensor) else t for t in tensors]


def like(part: Tensor, whole: Tensor) -> Tensor:
    """`part` as this process's shard of a tensor laid out as `whole`."""
    if not isinstance(whole, DTensor) or part.dim() == 0:
        return part
    mesh, placements = whole.device_mesh, whole.placements
    return DTensor.from_local(part, mesh, placements, shape=whole.shape, stride=whole.stride())


@contextmanager
def gathered(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """A sharded model with its weights whole for a while: sampling takes hundreds of forward
    passes, and another number of them in each process. Where autocast is on, a copy whose matrices
    are rounded already, in half the memory."""
    if is_sharded(model) and torch.is_autocast_enabled(model.device.type):
        yield rounded_copy(model)
        return
    for module in sharded_modules(model):
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield model
    finally:
        for module in sharded_modules(model):
            module.set_reshard_after_forward(True, recurse=False)
        release(model)


@torch.no_grad()
def rounded_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A sharded model whole and for scoring alone: under autocast it computes the same numbers.
    Weights are gathered one at a time, by all processes together."""
    plain = type(model).__bases__[1]  # FSDP makes a class of FSDPModule and the model's own
    with torch.device("meta"):
        copy = cast("PreTrainedModel", plain(model.config)).eval()
    rounded = {id(weight) for weight in matrices(model)}
    for name, weight in model.named_parameters():
        whole = weight.full_tensor() if isinstance(weight, DTensor) else weight.detach().clone()
        whole = whole.bfloat16() if id(weight) in rounded else whole
        set_tensor(copy, name, torch.nn.Parameter(whole, requires_grad=False))
    for name, buffer in model.named_buffers():
        set_tensor(copy, name, buffer)
    copy.tie_weights()
    return copy


def set_tensor(model: torch.nn.Module, name: str, tensor: Tensor) -> None:
    """Put a parameter or a buffer in the place of that name."""
    owner, _, kind = name.rpartition(".")
    setattr(model.get_submodule(owner), kind, tensor)


def release(model: torch.nn.Module) -> None:
    """Keep this process's shards alone: after a forward pass without a backward one, FSDP leaves
    the outermost weights whole."""
    for module in sharded_modules(model):
        module.reshard()


def sharded_modules(model: torch.nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def whole_state_dict(model: PreTrainedModel) -> dict[str, Tensor] | None:
    """All weights of a sharded model, in the memory of the main process's host (empty in the
    others); None for a model that every process has whole."""
    if not is_sharded(model):
        return None
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return cast("dict[str, Tensor]", get_model_state_dict(model, options=options))
