"""Training with several processes: what they share, and what each one does alone.

`accelerate launch` starts them and sets up their group, one process to a GPU. Each samples and
scores its own rows of the batch. Rewards and log-ratios are gathered, since the baseline of a row
may depend on every other row. The gradient is the mean over all processes. The policy is whole in
each process or sharded by FSDP. If it is sharded, so are its anchor, gradient and optimiser.
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
    """Return the places of this process among `count`. Every process has equally many.

    Raises:
        ValueError: `count` is no multiple of the number of processes. The message names `what`.
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
    """Gather the rows [B / processes, …] of each process to [B, …], in the order of processes."""
    if process_count() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(process_count())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def share_of(count: int) -> slice:
    """Return the places of this process among `count`, which need not divide evenly."""
    processes, index = process_count(), process_index()
    return slice(index * count // processes, (index + 1) * count // processes)


def gather_objects(mine: T) -> list[T]:
    """Return what each process has, in the order of processes. Tensors in it must be in host
    memory."""
    if process_count() == 1:
        return [mine]
    parts: list[T] = [mine] * process_count()
    dist.all_gather_object(parts, mine)
    return parts


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether `flag` is set in any process. So processes decide together what they must do
    together."""
    return bool(gather(torch.tensor([flag], device=device)).any())


def average_gradients_(model: torch.nn.Module) -> None:
    """Average the gradient over the processes, once a step, after the last micro-batch. For a
    sharded model FSDP has done so in the backward pass."""
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
    """Shard the policy, its anchor and its optimiser where accelerate's configuration says FSDP.
    Return them as they are otherwise."""
    if not accelerator.is_fsdp2:
        return policy, anchor, optimizer
    policy, wrapped = accelerator.prepare(policy, optimizer)
    return policy, fsdp2_prepare_model(accelerator, anchor), wrapped.optimizer


def local(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return the part of each tensor that this process holds."""
    with torch.no_grad():
        return [t.to_local() if isinstance(t, DTensor) else t for t in tensors]


def like(part: Tensor, whole: Tensor) -> Tensor:
    """Return `part` as this process's shard of a tensor that is laid out as `whole`."""
    if not isinstance(whole, DTensor) or part.dim() == 0:
        return part
    mesh, placements = whole.device_mesh, whole.placements
    return DTensor.from_local(part, mesh, placements, shape=whole.shape, stride=whole.stride())


@contextmanager
def gathered(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """Have the weights of a sharded model whole while the context lasts. Sampling takes hundreds of
    forward passes, and another number of them in each process. Where autocast is on, this is a copy
    whose matrices are rounded already, in half the memory."""
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
    """Return a whole copy of a sharded model, for scoring only. Under autocast it computes the same
    numbers. All processes gather the weights together, one at a time."""
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
    """Replace the parameter or buffer of that name."""
    owner, _, kind = name.rpartition(".")
    setattr(model.get_submodule(owner), kind, tensor)


def release(model: torch.nn.Module) -> None:
    """Keep only this process's shards. After a forward pass without a backward one, FSDP leaves the
    outermost weights whole."""
    for module in sharded_modules(model):
        module.reshard()


def sharded_modules(model: torch.nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def whole_state_dict(model: PreTrainedModel) -> dict[str, Tensor] | None:
    """Return all weights of a sharded model, in host memory of the main process. They are empty in
    the other processes, and None for a model that every process has whole."""
    if not is_sharded(model):
        return None
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return cast("dict[str, Tensor]", get_model_state_dict(model, options=options))
