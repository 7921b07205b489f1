"""LoRA: averages are of the merged weights, and a run ends as a checkpoint like any other."""

from pathlib import Path

import pytest
import torch
from conftest import EOS, PAD, MakeModel
from peft.tuners.lora import LoraLayer
from test_reinforce import PROMPTS, count_fives, settings, weights
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from warpflow.evaluation.rewards import Reward
from warpflow.merging.checkpoints import read_tensors
from warpflow.training.adapters import acting_weights, add_adapters
from warpflow.training.reinforce import Run, finish_run, start_run, train_policy
from warpflow.training.resume import load_state, save_state

LORA = settings(steps=4, lora_rank=2, lora_alpha=4)
IDS = torch.tensor([[1, 5, 6, 7]])


def start(make_model: MakeModel, name: str = "llama", seed: int = 0) -> Run:
    return start_run(make_model(name), make_model(name), LORA, seed)


def train(run: Run, steps: int = LORA.steps, seed: int = 0, reward: Reward = count_fives) -> None:
    rows = train_policy(run, reward, PROMPTS, LORA, eos_id=EOS, pad_id=PAD, seed=seed)
    while run.step < steps:
        next(rows)


def factors(policy: PreTrainedModel) -> list[tuple[Tensor, Tensor]]:
    layers = [m for m in policy.modules() if isinstance(m, LoraLayer)]
    return [
        (m.lora_A["default"].weight.detach(), m.lora_B["default"].weight.detach()) for m in layers
    ]


def test_adapters_change_nothing_at_the_start_and_alone_are_trained(
    make_model: MakeModel, architecture: str
) -> None:
    plain, policy = make_model(architecture), make_model(architecture)
    add_adapters(policy, rank=2, alpha=4, seed=0)
    assert torch.equal(policy(input_ids=IDS).logits, plain(input_ids=IDS).logits)
    trained = [name for name, p in policy.named_parameters() if p.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    for acting, parameter in zip(acting_weights(policy), plain.parameters(), strict=True):
        assert torch.equal(acting, parameter)


def test_a_run_ends_merged_with_the_outputs_and_the_names_it_had(
    make_model: MakeModel, architecture: str, tmp_path: Path
) -> None:
    run = start(make_model, architecture)
    train(run, reward=lambda batch: batch.response_ids.float().sum(1))  # some never say w1
    with torch.no_grad():
        before = run.policy(input_ids=IDS).logits
        acting = [weight.clone() for weight in acting_weights(run.policy)]
        merged = finish_run(run)
        torch.testing.assert_close(merged(input_ids=IDS).logits, before, atol=1e-4, rtol=1e-4)
    for weight, parameter in zip(acting, merged.parameters(), strict=True):
        assert torch.equal(weight, parameter)
    merged.save_pretrained(tmp_path / "merged")
    make_model(architecture).save_pretrained(tmp_path / "plain")
    saved, plain = (read_tensors(tmp_path / name) for name in ("merged", "plain"))
    assert saved.keys() == plain.keys()
    assert any(not torch.equal(saved[name], plain[name]) for name in saved)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").num_parameters() > 0


def test_the_anchor_is_the_average_of_the_merged_weights(make_model: MakeModel) -> None:
    run = start(make_model)
    average = weights(make_model("llama"))
    for step in range(1, LORA.steps + 1):
        train(run, step)
        merged = torch.cat([weight.flatten() for weight in acting_weights(run.policy)])
        average = (1 - LORA.mu) * average + LORA.mu * merged
    torch.testing.assert_close(weights(run.anchor.model), average, atol=1e-6, rtol=1e-5)
    assert (average - weights(make_model("llama"))).norm() > 1e-3


def test_averaging_the_factors_apart_is_another_policy(make_model: MakeModel) -> None:
    """½(B₁A₁ + B₂A₂) is the mean of the task vectors; ½(B₁ + B₂)·½(A₁ + A₂) carries the cross
    terms B₁A₂ and B₂A₁, of no run: here it is off by more than a third of the mean itself."""
    first, second = start(make_model, seed=1), start(make_model, seed=2)
    train(first, seed=1)
    train(second, seed=2)
    scale = LORA.lora_alpha / LORA.lora_rank
    right, wrong = [], []
    pairs = zip(factors(first.policy), factors(second.policy), strict=True)
    for (a1, b1), (a2, b2) in pairs:
        right.append((b1 @ a1 + b2 @ a2).flatten() * scale / 2)
        wrong.append(((b1 + b2) / 2 @ ((a1 + a2) / 2)).flatten() * scale)
    init = weights(make_model("llama"))
    vectors = [weights(finish_run(run)) - init for run in (first, second)]
    mean, apart = torch.cat(right), torch.cat(wrong)
    assert mean.norm() == pytest.approx(float((sum(vectors) / 2).norm()), rel=1e-3)
    assert (apart - mean).norm() > mean.norm() / 3


def test_a_loaded_lora_run_goes_on_bit_for_bit(make_model: MakeModel, tmp_path: Path) -> None:
    whole, first, second = start(make_model), start(make_model), start(make_model, seed=9)
    train(whole)
    train(first, 2)
    save_state(tmp_path, first, {}, {})
    assert load_state(tmp_path, second, {}) == {}
    train(second)
    assert torch.equal(weights(finish_run(second)), weights(finish_run(whole)))
    assert torch.equal(weights(second.anchor.model), weights(whole.anchor.model))
