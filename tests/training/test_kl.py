"""Expected gradients of the training step, over all completions of a small model, against the exact
gradient of the KL of whole sequences: which estimators are biased."""

import math

import pytest
import torch
from conftest import BOS, MakeModel, Perturb
from test_reinforce import (
    BETA,
    TEMPERATURE,
    Enumerated,
    exact_gradient,
    gradient,
    gradient_of,
    run,
    settings,
    small,  # noqa: F401  a fixture
    weights,
)
from torch import Tensor

from warpflow.lm.log_probs import Completions, response_logits
from warpflow.lm.scoring import scores_by_part
from warpflow.training.kl import KL_ESTIMATORS, k1, k2, k3
from warpflow.training.reinforce import compute_gradient


def expected_gradient(small: Enumerated, estimator: str, rewards: bool = True) -> Tensor:  # noqa: F811
    """Return the expected gradient of −loss without baseline. Each completion counts by itself,
    weighted by its probability."""
    chosen = settings(
        kl_estimator=estimator,
        beta=BETA,
        baseline="none",
        samples_per_prompt=1,
        temperature=TEMPERATURE,
        max_grad_norm=1e9,
    )
    with torch.no_grad():
        probabilities = small.log_probs(small.policy).sum(1).exp()
    total = torch.zeros(())
    for row, probability in enumerate(probabilities):
        one = small.batch.rows(torch.tensor([row]))
        given = small.rewards[row : row + 1] if rewards else torch.zeros(1)
        compute_gradient(small.run(), given, one, chosen, 1)
        left = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters(small)]
        total = total - probability * torch.cat([grad.flatten() for grad in left])
    return total


def parameters(small: Enumerated) -> list[Tensor]:  # noqa: F811
    return list(small.policy.parameters())


def token_divergences(small: Enumerated, reverse: bool) -> Tensor:  # noqa: F811
    """Return Σ_y π(y) Σ_t KL of the step's distributions, with the prefixes' probabilities
    fixed."""
    probabilities = small.log_probs(small.policy).sum(1).exp().detach()
    log_p, log_q = (
        response_logits(model, small.batch, TEMPERATURE).log_softmax(-1)
        for model in (small.policy, small.anchor)
    )
    first, second = (log_q.detach(), log_p) if reverse else (log_p, log_q.detach())
    kls = (first.exp() * (first - second)).sum(-1) * small.batch.is_response
    return (probabilities * kls.sum(1)).sum()


@pytest.mark.parametrize("estimator", ["k1", "exact"])
def test_unbiased(small: Enumerated, estimator: str) -> None:  # noqa: F811
    exact = exact_gradient(small)
    found = expected_gradient(small, estimator)
    torch.testing.assert_close(found, exact, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize(("estimator", "reverse"), [("k2", False), ("k3", True)])
def test_biased_in_the_loss_as_documented(
    small: Enumerated,  # noqa: F811
    estimator: str,
    reverse: bool,
) -> None:
    """k2 has the gradient of each token's own KL, and k3 that of the reverse divergence."""
    found = expected_gradient(small, estimator, rewards=False)
    of_tokens = gradient(-BETA * token_divergences(small, reverse), small.policy)
    torch.testing.assert_close(found, of_tokens, atol=2e-5, rtol=1e-3)
    assert bias(small, found) > 0.05


def bias(small: Enumerated, found: Tensor) -> float:  # noqa: F811
    """Return the bias of an expected gradient of only the penalty, relative to the exact one's
    norm."""
    exact = expected_gradient(small, "k1", rewards=False)
    return ((found - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("estimator", ["k2_in_reward", "k3_in_reward"])
def test_biased_in_the_reward(small: Enumerated, estimator: str) -> None:  # noqa: F811
    assert bias(small, expected_gradient(small, estimator, rewards=False)) > 0.05


def test_values_have_the_mean_and_the_variance_of_the_docs(small: Enumerated) -> None:  # noqa: F811
    """k1, k3 and exact have the KL as mean, k2 has not; exact varies less than k1."""
    with torch.no_grad():
        policy, anchor = small.log_probs(small.policy), small.log_probs(small.anchor)
        ((_, score),) = scores_by_part(
            [small.policy, small.anchor], small.batch, TEMPERATURE, each=1, size=100
        )
        tokens, kls = score.kls(small.policy, small.anchor)
    ((order, _),) = scores_by_part([small.policy], small.batch, TEMPERATURE, each=1, size=100)
    probabilities = policy.sum(1).exp()
    values = {"k1": k1(policy, anchor), "k2": k2(policy, anchor), "k3": k3(policy, anchor)}
    values["exact"] = torch.empty(len(order)).index_copy(0, order, kls.sum(1))
    torch.testing.assert_close(tokens.sum(1), policy.sum(1)[order])
    means = {name: (probabilities * value).sum().item() for name, value in values.items()}
    assert means["k3"] == pytest.approx(means["k1"], rel=1e-3)
    assert means["exact"] == pytest.approx(means["k1"], rel=1e-3)
    assert abs(means["k2"] / means["k1"] - 1) > 0.01
    spread = {n: (probabilities * (v - means[n]) ** 2).sum().item() for n, v in values.items()}
    assert spread["exact"] < 0.5 * spread["k1"]


def test_token_estimators_by_hand() -> None:
    policy, anchor = torch.tensor([[-1.0, -2.0, 0.0]]), torch.tensor([[-1.5, -1.0, 0.0]])
    assert k1(policy, anchor).item() == pytest.approx(0.5 - 1.0)
    assert k2(policy, anchor).item() == pytest.approx((0.25 + 1.0) / 2)
    expected = math.exp(-0.5) - 1 + 0.5 + math.exp(1.0) - 1 - 1.0
    assert k3(policy, anchor).item() == pytest.approx(expected)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("estimator", KL_ESTIMATORS)
def test_micro_batches_and_checkpointing_leave_the_gradient(
    make_model: MakeModel, architecture: str, estimator: str
) -> None:
    """This holds also for models that our layers do not cover, and with a penalty that is not
    small."""
    chosen = {"kl_estimator": estimator, "anchor": "sft", "max_grad_norm": 1e9, "beta": 1.0}
    whole = gradient_of(make_model, architecture, settings(**chosen))
    others = {"micro_batch_size": 3}, {"micro_batch_size": 2, "gradient_checkpointing": True}
    for changes in others:
        parts = gradient_of(make_model, architecture, settings(**chosen, **changes))
        torch.testing.assert_close(parts, whole, atol=2e-5 * whole.abs().max().item(), rtol=1e-3)
    without = gradient_of(make_model, architecture, settings(**chosen | {"beta": 0.0}))
    assert (whole - without).norm() > 0.01 * without.norm()


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])  # GPT-2's key biases: only rounding
@pytest.mark.parametrize("estimator", KL_ESTIMATORS)
def test_equal_weights_have_no_penalty(
    make_model: MakeModel, architecture: str, estimator: str
) -> None:
    """With the policy as its own anchor (mu 1) β changes nothing."""
    trained = []
    for beta in (0.0, 5.0):
        policy = make_model(architecture)
        chosen = settings(mu=1.0, beta=beta, kl_estimator=estimator)
        rows = run(policy, make_model(architecture), chosen)
        assert [row.kl_to_anchor for row in rows] == [0, 0, 0]
        trained.append(weights(policy))
    torch.testing.assert_close(*trained, atol=1e-6, rtol=0)


def test_the_exact_kl_takes_many_words_in_parts(
    make_model: MakeModel, perturb: Perturb, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make_model("llama")
    anchor = perturb(policy, 1)
    ids = torch.randint(3, 10, (4, 6))
    real = torch.ones_like(ids, dtype=torch.bool)
    prompts = torch.full((4, 2), BOS)
    batch = Completions(prompts, torch.ones_like(prompts).bool(), ids, real, real[:, 0])

    def both() -> tuple[Tensor, Tensor]:
        ((_, score),) = scores_by_part([policy, anchor], batch, 0.7, each=1, size=4)
        policy.zero_grad(set_to_none=True)
        total = score.kls(policy, anchor)[1].sum()
        total.backward()
        return total.detach(), torch.cat([p.grad.flatten() for p in policy.parameters()])

    whole = both()
    monkeypatch.setattr("warpflow.lm.fast.packing.LOGITS_AT_ONCE", 100)
    for one, other in zip(both(), whole, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
