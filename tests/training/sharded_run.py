"""A run over two processes, sharded by FSDP on the CPU. tests/training/test_distributed.py starts
it through torchrun. accelerate shards only on accelerators, so the sharding is done by hand
here."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from conftest import EOS, PAD
from test_reinforce import PROMPTS, count_fives, settings
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM, PreTrainedModel

from warpflow.lm.fast.layers import is_covered
from warpflow.lm.models import compute_in
from warpflow.training.anchors import Anchor, make_anchor
from warpflow.training.distributed import (
    gathered,
    is_sharded,
    local,
    process_index,
    whole_state_dict,
)
from warpflow.training.reinforce import ReinforceSettings, Run, train_policy
from warpflow.training.resume import load_state, save_state


def sharded(model: PreTrainedModel) -> PreTrainedModel:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def start(model: Path, chosen: ReinforceSettings) -> Run:
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    anchor = Anchor(sharded(make_anchor(policy).model))
    policy = sharded(policy)
    return Run(policy, anchor, torch.optim.Adam(policy.parameters(), 1e-2, fused=True))


def train(run: Run, chosen: ReinforceSettings, stop: int) -> None:
    steps = train_policy(run, count_fives, PROMPTS, chosen, eos_ids=[EOS], pad_id=PAD, seed=0)
    while run.step < stop:
        next(steps)


def check_copy(policy: PreTrainedModel, folder: Path) -> None:
    """In bf16 a sharded policy samples from a copy that computes what a whole one would."""
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor([[1, 5, 6, 7]])
    with compute_in("bfloat16", policy.device), torch.no_grad(), gathered(policy) as copy:
        assert not is_sharded(copy) and is_covered(copy)
        assert copy.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
        assert torch.equal(copy(ids).logits, whole(ids).logits)


def main(folder: Path) -> None:
    chosen = settings(steps=6)
    run = start(folder / "model", chosen)
    for model in (run.policy, run.anchor.model):
        assert is_sharded(model)
        held = sum(part.numel() for part in local(model.parameters()))
        assert held < 0.6 * sum(p.numel() for p in model.parameters())
    check_copy(run.policy, folder / "model")
    train(run, chosen, 3)
    save_state(folder / "state", run, {}, {"training": [3]})
    again = start(folder / "model", chosen)
    assert load_state(folder / "state", again, {}) == {"training": [3]}
    train(run, chosen, 6)
    train(again, chosen, 6)
    for name in ("policy", "anchor"):
        pair = [getattr(one, name) for one in (run, again)]
        models = [one.model if isinstance(one, Anchor) else one for one in pair]
        for a, b in zip(*(local(model.parameters()) for model in models), strict=True):
            assert torch.equal(a, b), f"{name} is another after a resume"
        whole = whole_state_dict(models[0])
        if process_index() == 0:
            torch.save(whole, folder / f"{name}.pt")


if __name__ == "__main__":
    dist.init_process_group("gloo")
    main(Path(sys.argv[1]))
    dist.destroy_process_group()
