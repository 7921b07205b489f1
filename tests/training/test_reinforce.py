"""REINFORCE against exact gradients by enumeration, and the training loop's guarantees."""

import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import BOS, EOS, PAD, WORDS, Enumerate, MakeModel, Perturb
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from warpflow.evaluation.rewards import Reward
from warpflow.evaluation.sample import kls_and_entropy
from warpflow.lm.log_probs import Completions, split_by_length, token_log_probs
from warpflow.lm.models import load_policy, load_tokenizer, save_checkpoint
from warpflow.training.anchors import Anchor
from warpflow.training.reinforce import (
    ReinforceSettings,
    Run,
    StepRow,
    advantages,
    compute_gradient,
    learning_rate_at,
    penalised_rewards,
    prompts_at,
    reinforce_loss,
    sample_batch,
    start_run,
    train_policy,
)

TEMPERATURE, BETA = 0.7, 0.3
PROMPTS = [[BOS, 5, 6], [BOS, 7], [BOS, 8, 9, 10], [BOS]]

SETTINGS = ReinforceSettings(
    steps=3,
    batch_size=8,
    samples_per_prompt=2,
    learning_rate=1e-2,
    warmup_steps=0,
    max_grad_norm=1.0,
    temperature=0.9,
    max_new_tokens=6,
    beta=0.1,
    mu=0.3,
    anchor="ema",
    baseline="rloo",
    length_penalty=0.0,
    gradient_checkpointing=False,
    compute_dtype="float32",
    reset_every=2,
)


def settings(**changes: Any) -> ReinforceSettings:
    return dataclasses.replace(SETTINGS, **changes)


@dataclasses.dataclass
class Enumerated:
    """A policy, an anchor, and everything that can be sampled for one prompt (40 completions)."""

    policy: PreTrainedModel
    anchor: PreTrainedModel
    batch: Completions
    rewards: Tensor

    def run(self, anchor: PreTrainedModel | None = None) -> Run:
        return Run(
            self.policy, Anchor(anchor or self.anchor), torch.optim.Adam(self.policy.parameters())
        )

    def log_probs(self, model: PreTrainedModel, temperature: float = TEMPERATURE) -> Tensor:
        return token_log_probs(model, self.batch, temperature)


@pytest.fixture
def small(make_model: MakeModel, perturb: Perturb, enumerate_completions: Enumerate) -> Enumerated:
    policy = make_model("llama", words=[], initializer_range=0.2)
    batch = enumerate_completions([BOS, 3], vocabulary=4, limit=3)
    rewards = torch.randn(len(batch.response_ids), generator=torch.Generator().manual_seed(0))
    return Enumerated(policy, perturb(policy, 1, 0.1), batch, rewards + 2)


def gradient(scalar: Tensor, model: PreTrainedModel) -> Tensor:
    grads = torch.autograd.grad(scalar, list(model.parameters()))
    return torch.cat([grad.flatten() for grad in grads])


def exact_gradient(small: Enumerated) -> Tensor:
    """∇ Σ_y π(y) (r(y) − β log(π(y)/π_anchor(y))), differentiated through everything: the
    penalty's own derivative has mean zero, so REINFORCE may leave it out."""
    policy = small.log_probs(small.policy).sum(1)
    anchor = small.log_probs(small.anchor).sum(1).detach()
    value = (policy.exp() * (small.rewards - BETA * (policy - anchor))).sum()
    return gradient(value, small.policy)


def estimator_gradient(small: Enumerated, baseline: str, draws: int) -> Tensor:
    """The expected −∇loss over all batches of `draws` completions, each weighted by its
    probability."""
    log_probs = small.log_probs(small.policy).sum(1)
    anchor = small.log_probs(small.anchor).sum(1).detach()
    shaped = penalised_rewards(small.rewards, log_probs - anchor, BETA)
    probabilities = log_probs.detach().exp()
    total = torch.zeros(())
    for rows in itertools.product(range(len(shaped)), repeat=draws):
        index = torch.tensor(rows)
        advantage = advantages(shaped[index], baseline, draws)
        loss = reinforce_loss(log_probs[index], advantage)
        total = total - probabilities[index].prod() * loss
    return gradient(total, small.policy)


@pytest.mark.parametrize(
    ("baseline", "draws", "factor"), [("none", 1, 1.0), ("rloo", 2, 1.0), ("batch", 2, 0.5)]
)
def test_expected_gradient_is_the_exact_one(
    small: Enumerated, baseline: str, draws: int, factor: float
) -> None:
    """Unbiased without baseline and with leave-one-out; the batch mean scales by (B − 1)/B."""
    exact = exact_gradient(small)
    expected = estimator_gradient(small, baseline, draws)
    torch.testing.assert_close(expected, factor * exact, atol=2e-5, rtol=1e-3)
    assert exact.norm() > 0.1


def test_penalty_is_inside_the_reward_over_the_whole_sequence_without_gradient() -> None:
    log_ratio = torch.tensor([-0.5, 2.0], requires_grad=True)
    shaped = penalised_rewards(torch.tensor([1.0, 2.0]), log_ratio, 0.1)
    torch.testing.assert_close(shaped, torch.tensor([1 + 0.05, 2 - 0.2]))
    assert not shaped.requires_grad
    assert torch.equal(penalised_rewards(torch.ones(2), log_ratio, 0.0), torch.ones(2))


def test_loss_has_no_gradient_through_the_advantage() -> None:
    log_probs = torch.tensor([-3.0, -3.0], requires_grad=True)
    advantage = torch.tensor([2.0, -4.0], requires_grad=True)
    reinforce_loss(log_probs, advantage).backward()
    assert log_probs.grad is not None
    assert log_probs.grad.tolist() == [-1.0, 2.0]
    assert advantage.grad is None


@pytest.mark.parametrize("baseline", ["none", "batch", "rloo"])
def test_baselines_ignore_no_reward_and_shift_as_they_should(baseline: str) -> None:
    rewards = torch.tensor([1.0, 3.0, 10.0, 10.0])
    shifted = advantages(rewards + 5, baseline, 2) - advantages(rewards, baseline, 2)
    assert shifted.tolist() == [5.0 if baseline == "none" else 0.0] * 4


def test_rloo_compares_completions_of_one_prompt_only() -> None:
    rewards = torch.tensor([1.0, 3.0, 10.0, 10.0])
    assert advantages(rewards, "rloo", 2).tolist() == [-2.0, 2.0, 0.0, 0.0]
    assert advantages(rewards, "rloo", 4)[0].item() == pytest.approx(1 - 23 / 3)


def test_baseline_errors() -> None:
    with pytest.raises(ValueError, match="samples_per_prompt >= 2"):
        advantages(torch.ones(2), "rloo", 1)
    with pytest.raises(ValueError, match="'mean': expected none, batch or rloo"):
        advantages(torch.ones(2), "mean", 1)


# --- KL ----------------------------------------------------------------------------------------


def test_kl_estimators_have_the_exact_kl_as_mean(small: Enumerated) -> None:
    """They are weighted by the policy. A known bug weighs by the reference, which gives another
    number."""
    with torch.no_grad():
        policy = small.log_probs(small.policy).sum(1).double()
        sft = small.log_probs(small.anchor).sum(1).double()
    probabilities = policy.exp()
    exact = (probabilities * (policy - sft)).sum().item()
    reverse = (sft.exp() * (sft - policy)).sum().item()
    by_reference = (sft.exp() * (policy - sft)).sum().item()
    *kls, entropy = kls_and_entropy(small.policy, small.anchor, small.batch, TEMPERATURE)
    sampled, by_token = ((probabilities * kl).sum().item() for kl in kls)
    assert sampled == pytest.approx(exact, rel=1e-4)
    assert by_token == pytest.approx(exact, rel=1e-4)
    assert min(abs(exact - reverse), abs(exact - by_reference)) > 0.02 * exact
    assert (kls[1] >= 0).all()
    variances = [(probabilities * (kl - exact) ** 2).sum().item() for kl in kls]
    assert variances[1] < variances[0]
    # The entropies of the tokens add up to that of whole sequences.
    of_sequences = -(probabilities * policy).sum().item()
    assert (probabilities * entropy).sum().item() == pytest.approx(of_sequences, rel=1e-4)


def test_kl_is_exactly_zero_where_policy_and_anchor_are_equal(
    small: Enumerated, make_model: MakeModel
) -> None:
    """The temperature is not 1, so that an untempered anchor would show here."""
    twin = make_model("llama", words=[], initializer_range=0.2)
    for kl in kls_and_entropy(small.policy, twin, small.batch, TEMPERATURE)[:2]:
        assert (kl == 0).all()
    arguments = (small.rewards, small.batch, settings(temperature=TEMPERATURE), 1)
    assert compute_gradient(small.run(twin), *arguments).kl_to_anchor == 0
    assert compute_gradient(small.run(), *arguments).kl_to_anchor != 0


def test_update_leaves_the_clipped_gradient_and_reports_the_batch(small: Enumerated) -> None:
    chosen = settings(beta=0.0, baseline="none", temperature=TEMPERATURE, max_grad_norm=1e-3)
    row = compute_gradient(small.run(), small.rewards, small.batch, chosen, 7)
    left = torch.cat([p.grad.flatten() for p in small.policy.parameters() if p.grad is not None])
    expected = gradient(
        -(small.rewards * small.log_probs(small.policy).sum(1)).mean(), small.policy
    )
    assert row.grad_norm == pytest.approx(expected.norm().item(), rel=1e-4)
    assert left.norm().item() == pytest.approx(1e-3, rel=1e-2)
    torch.testing.assert_close(left / left.norm(), expected / expected.norm(), atol=1e-5, rtol=1e-3)
    assert row.step == 7
    assert row.reward == pytest.approx(small.rewards.mean().item())
    assert row.length == pytest.approx(small.batch.lengths.float().mean().item())
    assert row.unfinished == pytest.approx(27 / 40)


def test_length_penalty_counts_tokens_in_the_loss_but_not_in_the_reported_reward(
    small: Enumerated,
) -> None:
    losses, rewards = [], []
    for given, penalty in ((small.rewards, 0.5), (small.rewards - 0.5 * small.batch.lengths, 0.0)):
        chosen = settings(length_penalty=penalty)
        row = compute_gradient(small.run(), given, small.batch, chosen, 1)
        losses.append(row.loss)
        rewards.append(row.reward)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert rewards[0] == pytest.approx(small.rewards.mean().item())


# --- the loop ----------------------------------------------------------------------------------


def count_fives(batch: Completions) -> Tensor:
    """A reward that is easy to raise."""
    return ((batch.response_ids == 5) & batch.is_response).float().sum(1)


def run(
    policy: PreTrainedModel,
    sft: PreTrainedModel,
    chosen: ReinforceSettings,
    seed: int = 0,
    reward: Reward = count_fives,
) -> list[StepRow]:
    return list(
        train_policy(
            start_run(policy, sft, chosen),
            reward,
            PROMPTS,
            chosen,
            eos_ids=[EOS],
            pad_id=PAD,
            seed=seed,
        )
    )


def weights(model: PreTrainedModel) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in model.parameters()])


@pytest.mark.gpu
def test_a_seed_decides_the_run_and_members_differ(make_model: MakeModel) -> None:
    results: dict[str, tuple[list[StepRow], Tensor]] = {}
    for label, seed in (("first", 1), ("again", 1), ("other", 2)):
        policy = make_model("gpt2")
        torch.manual_seed(len(results))  # the global stream must not matter
        rows = run(policy, make_model("gpt2"), SETTINGS, seed)
        results[label] = (rows, weights(policy))
    assert results["first"][0] == results["again"][0]
    assert torch.equal(results["first"][1], results["again"][1])
    assert results["first"][0] != results["other"][0]
    assert not torch.equal(results["first"][1], results["other"][1])


@pytest.mark.gpu
def test_training_raises_the_reward(make_model: MakeModel) -> None:
    policy = make_model("llama", initializer_range=0.1)
    chosen = settings(steps=60, batch_size=16, beta=0.01)
    rows = run(policy, make_model("llama", initializer_range=0.1), chosen)
    first, last = (sum(r.reward for r in part) / 10 for part in (rows[:10], rows[-10:]))
    assert last > first + 1
    assert [row.step for row in rows] == list(range(1, 61))


def test_any_architecture_trains_from_shards_and_is_saved_whole(
    architecture: str, make_model: MakeModel, save: Callable[..., Path], tmp_path: Path
) -> None:
    given = save(make_model(architecture), "given", max_shard_size="4KB")
    assert len(list(given.glob("model-*.safetensors"))) > 1
    policy = load_policy(given)
    chosen = settings(steps=2, baseline="none")
    rows = run(policy, load_policy(given), chosen, reward=lambda batch: batch.lengths.float())
    assert rows[1].kl_to_anchor != 0
    assert torch.isfinite(weights(policy)).all()
    before = dict(load_policy(given).named_parameters())
    assert all(not torch.equal(tensor, before[name]) for name, tensor in policy.named_parameters())
    save_checkpoint(policy, load_tokenizer(given), tmp_path / "trained")
    stored = load_policy(tmp_path / "trained")
    assert torch.equal(weights(stored), weights(policy))
    tied = [
        model.get_input_embeddings().weight is model.get_output_embeddings().weight
        for model in (make_model(architecture), stored)
    ]
    assert tied[0] == tied[1]


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["ema", "init", "sft", "hard_reset"])
def test_anchors_start_and_move_as_they_should(
    kind: str, make_model: MakeModel, perturb: Perturb
) -> None:
    """The EMA moves from the init by mu towards the policy at every step (a known bug is an EMA
    that is never updated); a hard reset copies the policy every second step; others stay."""
    policy, chosen = make_model("llama"), settings(anchor=kind)
    sft = perturb(policy, 5)
    init, sft_before = weights(policy), weights(sft)
    expected = (sft_before if kind == "sft" else init).double()
    rows = []
    state = start_run(policy, sft, chosen)
    steps = train_policy(state, count_fives, PROMPTS, chosen, eos_ids=[EOS], pad_id=PAD, seed=0)
    for row in steps:
        rows.append(row)
        if kind == "ema":
            expected = (1 - chosen.mu) * expected + chosen.mu * weights(policy).double()
        if kind == "hard_reset" and row.step % 2 == 0:
            expected = weights(policy).double()
        torch.testing.assert_close(
            weights(state.anchor.model).double(), expected, atol=1e-6, rtol=0
        )
    assert (rows[0].kl_to_anchor == 0) == (kind != "sft")
    assert rows[1].kl_to_anchor != 0
    assert torch.equal(weights(sft), sft_before)
    assert not torch.equal(weights(policy), init)


@pytest.mark.gpu
def test_mu_1_leaves_no_penalty_after_any_step(make_model: MakeModel) -> None:
    """The anchor is then the policy itself, at every step."""
    rows = run(make_model("llama"), make_model("llama"), settings(mu=1.0))
    assert [row.kl_to_anchor for row in rows] == [0, 0, 0]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_reward_that_is_not_finite_stops_the_run_before_it_spoils_the_policy(
    make_model: MakeModel, value: float
) -> None:
    policy = make_model("llama")
    calls = 0

    def breaks_at_the_third(batch: Completions) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.full((8,), value) if calls == 3 else count_fives(batch)

    with pytest.raises(FloatingPointError, match="step 3, seed 11"):
        run(policy, make_model("llama"), settings(steps=5), 11, breaks_at_the_third)
    assert torch.isfinite(weights(policy)).all()


def test_warm_up_is_linear_then_constant(make_model: MakeModel) -> None:
    chosen = settings(learning_rate=1.0, warmup_steps=4)
    rates = [learning_rate_at(step, chosen) for step in range(1, 8)]
    assert rates == [0.25, 0.5, 0.75, 1, 1, 1, 1]
    assert learning_rate_at(1, settings(warmup_steps=0)) == SETTINGS.learning_rate
    rows = run(make_model("llama"), make_model("llama"), settings(warmup_steps=2))
    assert [row.learning_rate for row in rows] == [0.005, 0.01, 0.01]


def test_dropout_is_off_in_policy_and_anchor(make_model: MakeModel) -> None:
    """Also for models handed over in training mode: with dropout the first KL were not 0."""
    dropout = {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5}
    policy, sft = (make_model("gpt2", **dropout).train() for _ in range(2))
    assert run(policy, sft, settings(anchor="sft"))[0].kl_to_anchor == 0
    policy = make_model("gpt2", **dropout).train()
    assert run(policy, sft, settings(anchor="ema"))[0].kl_to_anchor == 0


def test_prompts_come_once_in_each_pass_and_in_another_order() -> None:
    order = [i for step in range(1, 11) for i in prompts_at(step, 7, 3, seed=0)]
    passes = [order[first : first + 7] for first in (0, 7, 14, 21)]
    assert all(sorted(one) == list(range(7)) for one in passes)
    assert len({tuple(one) for one in passes}) > 1
    assert prompts_at(1, 7, 3, seed=1) != prompts_at(1, 7, 3, seed=0)


@pytest.mark.gpu
def test_completions_of_a_prompt_are_adjacent(make_model: MakeModel) -> None:
    seen: list[Completions] = []

    def reward(batch: Completions) -> Tensor:
        seen.append(batch)
        return count_fives(batch)

    run(
        make_model("llama"), make_model("llama"), settings(steps=1, samples_per_prompt=4), 0, reward
    )
    rows = [
        tuple(ids[mask].tolist())
        for ids, mask in zip(seen[0].prompt_ids, seen[0].is_prompt, strict=True)
    ]
    assert len(rows) == 8
    assert len(set(rows[:4])) == len(set(rows[4:])) == 1
    assert rows[0] != rows[4]


# --- memory and precision ----------------------------------------------------------------------


def gradient_of(make_model: MakeModel, architecture: str, chosen: ReinforceSettings) -> Tensor:
    """Return the gradient of one step, where clipping does not bind."""
    policy = make_model(architecture)
    state = start_run(policy, make_model(architecture, seed=1), chosen)
    batch = sample_batch(policy, PROMPTS, chosen, 1, EOS, PAD, 0)
    compute_gradient(state, count_fives(batch), batch, chosen, 1)
    return torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])


@pytest.mark.gpu
@pytest.mark.parametrize("size", [1, 3, 8, 100])
def test_micro_batches_leave_the_gradient_as_it_is(make_model: MakeModel, size: int) -> None:
    chosen = settings(anchor="sft", max_grad_norm=1e9)
    whole = gradient_of(make_model, "llama", chosen)
    parts = gradient_of(make_model, "llama", dataclasses.replace(chosen, micro_batch_size=size))
    torch.testing.assert_close(parts, whole, atol=1e-5 * whole.abs().max().item(), rtol=1e-4)
    assert whole.norm() > 0


@pytest.mark.parametrize("size", [None, 8])
def test_parts_hold_whole_prompts_of_like_length_each_row_once(size: int | None) -> None:
    lengths = torch.randint(1, 30, (64,))
    is_response = torch.arange(30)[None] < lengths[:, None]
    ids, is_prompt = torch.ones(64, 3, dtype=torch.int64), torch.ones(64, 3, dtype=torch.bool)
    batch = Completions(ids, is_prompt, is_response.long(), is_response, lengths < 30)
    parts = split_by_length(batch, size, together=4)
    assert len(parts) > 1
    assert sorted(torch.cat(parts).tolist()) == list(range(64))
    for part in parts:
        assert torch.equal(part.view(-1, 4), part[::4, None] + torch.arange(4))
        assert (part[::4] % 4 == 0).all()
    longest = [lengths[part].view(-1, 4).sum(1).max() for part in parts]
    assert longest == sorted(longest)


@pytest.mark.gpu
@pytest.mark.parametrize("architecture", ["gemma", "gpt2"])
def test_gradient_checkpointing_recomputes_and_leaves_the_gradient(
    make_model: MakeModel, architecture: str
) -> None:
    chosen = settings(anchor="sft", max_grad_norm=1e9)
    plain = gradient_of(make_model, architecture, chosen)
    calls: list[int] = []
    make = make_model

    def counting(*arguments: Any, **keywords: Any) -> PreTrainedModel:
        model = make(*arguments, **keywords)
        layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
        next(layers[0].children()).register_forward_hook(lambda *_: calls.append(1))
        return model

    chosen = dataclasses.replace(chosen, gradient_checkpointing=True)
    recomputed = gradient_of(counting, architecture, chosen)
    torch.testing.assert_close(recomputed, plain, atol=1e-5, rtol=1e-4)
    plain_calls, calls[:] = len(calls), []
    gradient_of(counting, architecture, dataclasses.replace(chosen, gradient_checkpointing=False))
    assert plain_calls == len(calls) + 1, "the backward pass runs each layer forward once more"


@pytest.mark.gpu
def test_bf16_compute_moves_the_policy_as_fp32_does_and_plain_bf16_does_not(
    make_model: MakeModel,
) -> None:
    """At the paper's lr 1e-6 and μ 0.01, fp32 masters and EMA keep steps that bf16 rounds away."""
    chosen = settings(steps=10, learning_rate=1e-6, mu=0.01, batch_size=16)
    start = weights(make_model("llama"))
    moved = {}
    for dtype in ("float32", "bfloat16"):
        policy = make_model("llama")
        state = start_run(policy, policy, dataclasses.replace(chosen, compute_dtype=dtype))
        rows = train_policy(
            state,
            count_fives,
            PROMPTS,
            dataclasses.replace(chosen, compute_dtype=dtype),
            eos_ids=[EOS],
            pad_id=PAD,
            seed=0,
        )
        assert len(list(rows)) == 10
        assert weights(policy).dtype == weights(state.anchor.model).dtype == torch.float32
        moved[dtype] = (weights(policy) - start, weights(state.anchor.model) - start)
    for fp32, bf16 in zip(moved["float32"], moved["bfloat16"], strict=True):
        assert bf16.norm() / fp32.norm() == pytest.approx(1, abs=0.1)
        assert torch.cosine_similarity(fp32, bf16, dim=0) > 0.8
    rounded = (start.bfloat16() + moved["float32"][0].bfloat16()) - start.bfloat16()
    assert rounded.float().norm() < 0.5 * moved["float32"][0].norm()


def test_attention_is_the_one_that_was_asked_for(
    make_model: MakeModel, make_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eager and sdpa train alike; with eager nothing of ours computes sdpa in its place, and the
    checkpoint does not remember it."""
    tokenizer = make_tokenizer(WORDS)
    save_checkpoint(make_model("llama"), tokenizer, tmp_path / "sft")
    trained, saved = [], []
    for attention in (None, "sdpa", "eager"):
        if attention == "eager":

            def refuse(*_: object, **__: object) -> None:
                raise AssertionError("sdpa was computed")

            for module in ("decoding", "packing"):
                name = f"warpflow.lm.fast.{module}.scaled_dot_product_attention"
                monkeypatch.setattr(name, refuse)
            monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", refuse)
        policy, sft = (load_policy(tmp_path / "sft", attention) for _ in range(2))
        run(policy, sft, settings(learning_rate=1e-3))
        trained.append(weights(policy))
        save_checkpoint(policy, tokenizer, tmp_path / "out")
        saved.append((tmp_path / "out/config.json").read_bytes())
    assert torch.equal(trained[0], trained[1])
    torch.testing.assert_close(trained[0], trained[2], atol=1e-4, rtol=0)
    assert not torch.equal(trained[0], trained[2])
    assert saved[0] == saved[1] == saved[2]
