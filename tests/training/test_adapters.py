"""LoRA: averages are of the merged weights, and a run ends as a checkpoint like any other."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import EOS, PAD, MakeModel, MakeTokenizer
from peft import get_peft_model
from peft.tuners.lora import LoraLayer
from test_reinforce import PROMPTS, count_fives, settings, weights
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from warpflow.evaluation.rewards import Reward
from warpflow.lm.models import build_policy
from warpflow.merging.checkpoints import read_tensors
from warpflow.training.adapters import acting_weights, add_adapters, merge_adapters
from warpflow.training.reinforce import Run, finish_run, start_run, train_policy
from warpflow.training.resume import load_state, save_state

LORA = settings(steps=4, lora_rank=2, lora_alpha=4)
IDS = torch.tensor([[1, 5, 6, 7]])

DEEPSEEK: dict[str, object] = {
    **{"n_routed_experts": 4, "moe_intermediate_size": 24, "first_k_dense_replace": 1},
    **{"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8},
    **{"v_head_dim": 8, "n_shared_experts": 1, "n_group": 1, "topk_group": 1},
}
FULL_ATTENTION = {"layer_types": ["full_attention"] * 2}
# Mixtures of experts of every layout that transformers fuses: experts of [out, in] and [in, out],
# with biases, gate and up together or not, and of those that peft renames and those that it does
# not; with dense layers and shared experts beside them.
MIXTURES: dict[str, dict[str, object]] = {
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {
        **{"num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24},
        "decoder_sparse_step": 1,
    },
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 24, "decoder_sparse_step": 1},
    "gpt_oss": {"num_local_experts": 4, "head_dim": 16, **FULL_ATTENTION},
    "llama4_text": {
        **{"num_local_experts": 4, "num_experts_per_tok": 1, "head_dim": 16},
        **{"interleave_moe_layer_step": 1, "intermediate_size_mlp": 24},
    },
    "deepseek_v2": DEEPSEEK,
    "deepseek_v3": DEEPSEEK,
    "olmoe": {"num_experts": 4},
    "phimoe": {"num_local_experts": 4},
    "granitemoe": {"num_local_experts": 4},
    "jetmoe": {"num_local_experts": 4, "kv_channels": 8},
    "glm4_moe": {
        **{"n_routed_experts": 4, "moe_intermediate_size": 24, "first_k_dense_replace": 1},
        **{"head_dim": 8, "n_shared_experts": 1, "n_group": 1, "topk_group": 1},
    },
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_intermediate_size": 24},
    "lfm2_moe": {
        **{"num_experts": 4, "moe_intermediate_size": 24, "num_dense_layers": 0},
        **FULL_ATTENTION,
    },
}
SIZES = {
    **{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2},
    **{"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64},
    **{"num_experts_per_tok": 2, "moe_k": 2},
}


@pytest.fixture(params=MIXTURES)
def mixture(request: pytest.FixtureRequest, make_tokenizer: MakeTokenizer) -> PreTrainedModel:
    """A tiny mixture of experts of each layout."""
    architecture = SIZES | MIXTURES[request.param] | {"model_type": request.param}
    return build_policy(architecture, make_tokenizer(), seed=0)


def start(make_model: MakeModel, name: str = "llama", seed: int = 0) -> Run:
    return start_run(make_model(name), make_model(name), LORA, seed)


def train(run: Run, steps: int = LORA.steps, seed: int = 0, reward: Reward = count_fives) -> None:
    rows = train_policy(run, reward, PROMPTS, LORA, eos_ids=[EOS], pad_id=PAD, seed=seed)
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
    acting = dict(acting_weights(policy))
    for name, parameter in plain.named_parameters():
        assert torch.equal(acting.pop(name), parameter)
    assert not acting


def test_a_run_ends_merged_with_the_outputs_and_the_names_it_had(
    make_model: MakeModel, architecture: str, tmp_path: Path
) -> None:
    run = start(make_model, architecture)
    train(run, reward=lambda batch: batch.response_ids.float().sum(1))  # some never say w1
    with torch.no_grad():
        before = run.policy(input_ids=IDS).logits
        acting = {name: weight.clone() for name, weight in acting_weights(run.policy)}
        merged = finish_run(run)
        torch.testing.assert_close(merged(input_ids=IDS).logits, before, atol=1e-4, rtol=1e-4)
    for name, parameter in merged.named_parameters():
        assert torch.equal(acting.pop(name), parameter)
    assert not acting
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
        merged = torch.cat([weight.flatten() for _, weight in acting_weights(run.policy)])
        average = (1 - LORA.mu) * average + LORA.mu * merged
    torch.testing.assert_close(weights(run.anchor.model), average, atol=1e-6, rtol=1e-5)
    assert (average - weights(make_model("llama"))).norm() > 1e-3


def test_the_weights_of_a_mixture_act_as_they_are_merged(mixture: PreTrainedModel) -> None:
    """This holds after forward passes, in which `peft` reorders the parameters of layers with
    experts."""
    plain = {name: weight.detach().clone() for name, weight in mixture.named_parameters()}
    experts = [name for name, weight in plain.items() if weight.dim() == 3]
    adapters = add_adapters(mixture, rank=2, alpha=4, seed=0)
    with torch.no_grad():
        assert mixture(input_ids=IDS).logits.isfinite().all()
        for name, parameter in mixture.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(0, 0.1)
        logits = mixture(input_ids=IDS).logits
        acting = {name: weight.clone() for name, weight in acting_weights(mixture)}
        merged = merge_adapters(adapters)
        torch.testing.assert_close(merged(input_ids=IDS).logits, logits, atol=1e-5, rtol=1e-4)
    for name, weight in merged.named_parameters():
        torch.testing.assert_close(acting.pop(name), weight.detach())
    assert not acting
    weights = dict(merged.named_parameters())
    assert experts and all(not torch.equal(weights[name], plain[name]) for name in experts)


def test_the_anchor_of_a_mixture_follows_its_experts(mixture: PreTrainedModel) -> None:
    """With μ = 1 the anchor is the policy, and the KL to it is 0."""
    chosen = settings(steps=3, lora_rank=2, lora_alpha=4, mu=1.0, learning_rate=0.03)
    run = start_run(mixture, mixture, chosen)
    rows = train_policy(
        *(run, lambda batch: batch.response_ids.float().mean(1), PROMPTS, chosen),
        **{"eos_ids": [EOS], "pad_id": PAD, "seed": 0},
    )
    assert max(abs(row.kl_to_anchor) for row in rows) < 1e-5


def test_experts_that_no_adapter_reaches_are_refused(
    make_tokenizer: MakeTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    architecture = SIZES | MIXTURES["gpt_oss"] | {"model_type": "gpt_oss"}
    policy = build_policy(architecture, make_tokenizer(), seed=0)
    monkeypatch.setattr(
        "warpflow.training.adapters.get_peft_model",
        lambda model, config: get_peft_model(model, replace(config, target_parameters=None)),
    )
    with pytest.raises(ValueError, match=r"no adapter reaches 4 .*experts\.gate_up_proj"):
        add_adapters(policy, rank=2, alpha=4, seed=0)


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
