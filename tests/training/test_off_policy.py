"""Completions that another forward pass drew: weights, gap, and the gradient that they give."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from conftest import MakeModel, Perturb
from test_kl import parameters
from test_reinforce import (
    BETA,
    PROMPTS,
    TEMPERATURE,
    Enumerated,
    count_fives,
    exact_gradient,
    run,
    settings,
    small,  # noqa: F401  a fixture
    weights,
)
from torch import Tensor
from transformers import PreTrainedModel

from warpflow.lm.log_probs import Completions, token_log_probs
from warpflow.lm.sampling import sample_completions
from warpflow.training.off_policy import GAP_LIMITS, correct, importance_weights
from warpflow.training.reinforce import (
    StepRow,
    check_sampler,
    compute_gradient,
    start_run,
    train_policy,
)

FAR = 1e9  # a limit, or a cap, that nothing reaches


def test_weights_are_ratios_up_to_the_cap() -> None:
    ratios = torch.tensor([0.25, 1.0, 1.5, 3.0, torch.inf])
    found = importance_weights(ratios.log(), 2.0)
    torch.testing.assert_close(found, torch.tensor([0.25, 1.0, 1.5, 2.0, 2.0]))


def test_the_gap_is_a_mean_over_tokens_and_weights_are_of_whole_completions() -> None:
    log_pi = torch.tensor([[-1.0, -2.0], [-1.0, 7.0]])
    log_mu = torch.tensor([[-1.2, -1.9], [-1.3, 0.0]])
    is_response = torch.tensor([[True, True], [True, False]])
    found = correct(log_pi, log_mu, is_response, settings(sampling_gap_limit=1.0), 1)
    assert found.gap == pytest.approx((0.2 + 0.1 + 0.3) / 3)
    expected = torch.tensor([0.1, 0.3]).exp()
    torch.testing.assert_close(found.weights, expected)


@pytest.mark.parametrize("dtype", GAP_LIMITS)
def test_a_gap_that_no_rounding_explains_stops_with_step_and_rows(dtype: str) -> None:
    limit = GAP_LIMITS[dtype]
    log_pi = torch.full((4, 3), -2.0)
    near = settings(compute_dtype=dtype)
    real = torch.ones(4, 3, dtype=torch.bool)
    correct(log_pi, log_pi + 0.9 * limit, real, near, 1)
    with pytest.raises(RuntimeError, match=rf"step 7: .* expected at most {limit:g} .*sampler"):
        correct(log_pi, log_pi + 1.1 * limit, real, near, 7)


def test_one_row_far_off_or_a_log_probability_that_is_no_number_stops_too() -> None:
    log_pi = torch.full((64, 3), -2.0)
    real = torch.ones(64, 3, dtype=torch.bool)
    for wrong in (-2.0 - 11 * GAP_LIMITS["float32"], float("nan"), -torch.inf):
        log_mu = log_pi.clone()
        log_mu[5] = wrong
        with pytest.raises(RuntimeError, match=r"furthest apart are rows 5 \("):
            correct(log_pi, log_mu, real, settings(), 1)
    log_mu = log_pi.clone()
    log_mu[5] = -2.0 - 9 * GAP_LIMITS["float32"]
    correct(log_pi, log_mu, real, settings(), 1)


def from_another(small: Enumerated, model: PreTrainedModel) -> tuple[Tensor, Tensor]:  # noqa: F811
    """[B] μ(y|x) and [B, C] log μ of all completions under a model that is not the policy."""
    with torch.no_grad():
        tokens = token_log_probs(model, small.batch, TEMPERATURE)
    return tokens.sum(1).exp(), tokens


def expected_gradient(
    small: Enumerated,  # noqa: F811
    model: PreTrainedModel,
    estimator: str,
    *,
    cap: float = FAR,
    weighted: bool = True,
) -> Tensor:
    """Of −loss where the model draws the completions, without baseline."""
    chosen = settings(
        kl_estimator=estimator,
        importance_cap=cap,
        sampling_gap_limit=FAR,
        beta=BETA,
        baseline="none",
        samples_per_prompt=1,
        temperature=TEMPERATURE,
        max_grad_norm=FAR,
    )
    probabilities, tokens = from_another(small, model)
    total = torch.zeros(())
    for row, probability in enumerate(probabilities):
        batch = small.batch
        if weighted:
            batch = dataclasses.replace(batch, sampler_log_probs=tokens)
        one = batch.rows(torch.tensor([row]))
        compute_gradient(small.run(), small.rewards[row : row + 1], one, chosen, 1)
        left = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters(small)]
        total = total - probability * torch.cat([grad.flatten() for grad in left])
    return total


@pytest.mark.parametrize("estimator", ["k1", "exact"])
def test_the_weights_take_out_a_known_bias(
    small: Enumerated,  # noqa: F811
    perturb: Perturb,
    estimator: str,
) -> None:
    """With the KL in the reward, and in reward and loss."""
    other = perturb(small.policy, 3, 0.2)
    exact = exact_gradient(small)
    found = expected_gradient(small, other, estimator)
    torch.testing.assert_close(found, exact, atol=3e-5, rtol=1e-3)
    left = expected_gradient(small, other, estimator, weighted=False)
    assert (left - exact).norm() > 0.2 * exact.norm()


def test_a_cap_leaves_a_part_of_the_bias(small: Enumerated, perturb: Perturb) -> None:  # noqa: F811
    other = perturb(small.policy, 3, 0.2)
    exact = exact_gradient(small)
    whole, half, none = (
        (expected_gradient(small, other, "k1", cap=cap) - exact).norm() for cap in (FAR, 2.0, 1.0)
    )
    assert whole < half < none


@pytest.mark.parametrize("size", [None, 2])
def test_a_sampler_that_is_the_policy_changes_nothing(
    make_model: MakeModel, size: int | None
) -> None:
    """Its weights are 1 to the last digits, with micro-batches too."""

    def sampler(model: PreTrainedModel, *given: Tensor, **how: object) -> Completions:
        drawn = sample_completions(model, *given, **how)
        with torch.no_grad():
            tokens = token_log_probs(model, drawn, 0.9)
        return dataclasses.replace(drawn, sampler_log_probs=tokens)

    chosen = settings(micro_batch_size=size)
    own, other = make_model("llama"), make_model("llama")
    expected = run(own, make_model("llama"), chosen)
    found = rows_of(other, make_model("llama"), chosen, sampler)
    torch.testing.assert_close(weights(other), weights(own), atol=1e-5, rtol=1e-4)
    for mine, theirs in zip(expected, found, strict=True):
        assert mine.sampling_gap is mine.sampling_weight is None
        assert "sampling_gap" not in mine.values()
        assert theirs.sampling_gap is not None and theirs.sampling_gap < 1e-5
        assert theirs.sampling_weight == pytest.approx(1, abs=1e-5)
        assert {**theirs.values(), "sampling_gap": 0}.keys() - mine.values().keys() == {
            "sampling_gap",
            "sampling_weight",
        }
        assert mine.reward == theirs.reward


def test_a_sampler_with_other_weights_stops_at_its_step(
    make_model: MakeModel, perturb: Perturb
) -> None:
    policy = make_model("llama")
    stale = perturb(policy, 1, 0.1)

    def sampler(model: PreTrainedModel, *given: Tensor, **how: object) -> Completions:
        drawn = sample_completions(stale, *given, **how)
        with torch.no_grad():
            tokens = token_log_probs(stale, drawn, 0.9)
        return dataclasses.replace(drawn, sampler_log_probs=tokens)

    before = weights(policy)
    with pytest.raises(RuntimeError, match=r"step 1: .*weights that vLLM did not take over"):
        rows_of(policy, make_model("llama"), settings(), sampler)
    assert torch.equal(weights(policy), before)


def rows_of(policy: PreTrainedModel, sft: PreTrainedModel, chosen, sampler) -> list[StepRow]:
    started = start_run(policy, sft, chosen)
    given = {"eos_ids": [2], "pad_id": 0, "seed": 0}
    return list(train_policy(started, count_fives, PROMPTS, chosen, **given, sampler=sampler))


@pytest.mark.parametrize(
    ("changes", "launched", "parts"),
    [
        ({}, {"num_processes": 2, "is_fsdp2": False}, ["2 processes", "set it to own"]),
        ({}, {"num_processes": 1, "is_fsdp2": True}, ["FSDP", "expected one process"]),
        ({"lora_rank": 4}, {"num_processes": 1, "is_fsdp2": False}, ["lora_rank = 4", "null"]),
    ],
)
def test_what_vllm_cannot_take_over_is_refused(changes, launched, parts) -> None:
    accelerator = SimpleNamespace(**launched)
    with pytest.raises(ValueError, match=r"train_policy\.sampler: got vllm") as error:
        check_sampler(settings(sampler="vllm", **changes), accelerator)  # type: ignore[arg-type]
    for part in parts:
        assert part in str(error.value)
    check_sampler(settings(**changes), accelerator)  # type: ignore[arg-type]
    check_sampler(settings(sampler="vllm"), SimpleNamespace(num_processes=1, is_fsdp2=False))  # type: ignore[arg-type]
