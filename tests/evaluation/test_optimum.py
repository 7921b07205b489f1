"""The optimal front and best-of-n: a small world in which both are known in closed form."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import BOS, EOS, PAD, MakeModel

from warpflow.evaluation.optimum import (
    OptimumSettings,
    best_of,
    best_of_n_kl,
    best_of_n_weights,
    choose_betas,
    effective_samples,
    is_reliable,
    optimum_at,
    optimum_table,
    reliable_front,
    tilt,
)
from warpflow.evaluation.sft_samples import score_samples
from warpflow.lm.log_probs import Completions

SETTINGS = OptimumSettings(
    prompts=3,
    samples_per_prompt=10,
    betas="auto",
    min_ess=50,
    min_ess_decile=10,
    batch_size=6,
    temperature=0.8,
    max_new_tokens=5,
)
# Two prompts, four completions each: π_sft and r are all there is to know.
SFT = np.array([[0.5, 0.3, 0.15, 0.05], [0.25, 0.25, 0.25, 0.25]])
REWARD = np.array([[0.0, 1.0, -1.0, 3.0], [2.0, 0.5, 0.5, 1.0]])


def draw(samples: int, seed: int = 0) -> np.ndarray:
    """Rewards [2, samples] of completions drawn from SFT."""
    generator = np.random.default_rng(seed)
    return np.stack(
        [r[generator.choice(4, samples, p=p)] for p, r in zip(SFT, REWARD, strict=True)]
    )


def closed_form(beta: float) -> tuple[float, float]:
    """KL and reward of π* ∝ π_sft exp(r / β), averaged over the prompts."""
    tilted = SFT * np.exp(REWARD / beta)
    optimal = tilted / tilted.sum(1, keepdims=True)
    kl = (optimal * np.log(optimal / SFT)).sum(1).mean()
    return float(kl), float((optimal * REWARD).sum(1).mean())


@pytest.mark.parametrize("beta", [10.0, 1.0, 0.4])
def test_tilted_samples_give_the_optimal_policy(beta: float) -> None:
    reward = draw(200_000)
    weights, kl = tilt(reward, beta)
    expected_kl, expected_reward = closed_form(beta)
    assert kl.mean() == pytest.approx(expected_kl, rel=0.02, abs=1e-4)
    assert (weights * reward).sum(1).mean() == pytest.approx(expected_reward, rel=0.01)
    np.testing.assert_allclose(weights.sum(1), 1)


def test_no_policy_beats_the_front() -> None:
    """Random policies on the same completions lie below π* at their KL."""
    points = np.array([closed_form(beta) for beta in np.geomspace(100, 0.05, 400)])
    generator = np.random.default_rng(1)
    for scale in (0.3, 1.0, 3.0):
        logits = np.log(SFT) + scale * generator.standard_normal((200, 2, 4))
        policies = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        kl = (policies * np.log(policies / SFT)).sum(-1).mean(-1)
        reward = (policies * REWARD).sum(-1).mean(-1)
        inside = kl < points[-1, 0]
        assert inside.sum() > 50
        assert (reward <= np.interp(kl, *points.T) + 1e-3)[inside].all()


def test_infinite_beta_is_sft_and_a_constant_reward_moves_nothing() -> None:
    weights, kl = tilt(REWARD, math.inf)
    assert (weights == 0.25).all() and (kl == 0).all()
    weights, kl = tilt(np.ones((1, 8)), 0.1)
    assert (effective_samples(weights) == pytest.approx(8)) and kl == pytest.approx(0, abs=1e-12)
    assert choose_betas(np.ones((1, 100)), SETTINGS) == [math.inf]


def test_large_rewards_do_not_overflow() -> None:
    weights, kl = tilt(np.array([[1e4, 0.0, -1e4]]), 1e-3)
    np.testing.assert_array_equal(weights, [[1, 0, 0]])
    assert kl == pytest.approx(math.log(3))


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_best_of_n_is_the_mean_over_all_sets(n: int) -> None:
    reward = np.array([[3.0, 1.0, 2.0, 5.0, 4.0, 0.0]])
    gold = np.array([[0.0, 10.0, 20.0, 30.0, 40.0, 50.0]])
    weights = best_of_n_weights(reward, n)
    sets = [list(chosen) for chosen in itertools.combinations(range(6), n)]
    best = [max(chosen, key=lambda i: reward[0, i]) for chosen in sets]
    assert (weights * reward).sum() == pytest.approx(reward[0, best].mean())
    assert (weights * gold).sum() == pytest.approx(gold[0, best].mean())


def test_best_of_n_breaks_ties_fairly() -> None:
    """With equal rewards each completion is equally likely, and gold must not depend on their
    order."""
    reward = np.array([[1.0, 1.0, 0.0, 1.0]])
    weights = best_of_n_weights(reward, 2)
    assert weights[0, [0, 1, 3]] == pytest.approx([1 / 3] * 3)
    assert weights[0, 2] == pytest.approx(0, abs=1e-12)


def test_best_of_n_agrees_with_fresh_samples_and_lies_below_the_front() -> None:
    generator = np.random.default_rng(0)
    table = optimum_table(generator.standard_normal((50, 1000)), {}, SETTINGS)
    best = table[table.kind == "best_of_n"].set_index("n")
    fresh = generator.standard_normal((200_000, 4)).max(1).mean()
    assert best.reward[4] == pytest.approx(fresh, abs=4 * best.reward_se[4])
    assert best.kl[4] == pytest.approx(math.log(4) - 3 / 4)
    assert best.index.tolist() == [1, 2, 4, 8, 16, 32, 64] == best_of(1000)
    assert best_of_n_kl(1) == 0
    within = best[best.kl < reliable_front(table).kl.max()]
    assert len(within) > 3
    assert (within.gain <= optimum_at(table, within.kl.to_numpy()) + 0.01).all()


def test_front_of_a_normal_reward_is_known() -> None:
    """For r ~ N(0, 1), π* is N(1 / β, 1), so the reward is √(2 KL)."""
    reward = np.random.default_rng(2).standard_normal((60, 2000))
    front = reliable_front(optimum_table(reward, {"gold": 2 * reward}, SETTINGS))
    assert front.kl.iloc[-1] > 1
    inner = front[front.kl > 0.01]
    np.testing.assert_allclose(inner.gain, np.sqrt(2 * inner.kl), rtol=0.05)
    np.testing.assert_allclose(inner.gold, 2 * inner.reward)


def test_automatic_front_rises_is_concave_and_ends_where_it_is_reliable() -> None:
    reward = draw_prompts(np.random.default_rng(4))
    table = optimum_table(reward, {}, SETTINGS)
    front = reliable_front(table)
    assert len(front) == (table.kind == "optimum").sum() == 25
    assert front.beta.iloc[0] == math.inf and front.kl.iloc[0] == 0
    assert front.gain.iloc[0] == pytest.approx(0, abs=1e-12)
    slopes = np.diff(front.reward) / np.diff(front.kl)
    assert (np.diff(front.kl) > 0).all() and (np.diff(slopes) < 1e-9).all() and (slopes > 0).all()
    last = front.beta.iloc[-1]
    assert is_reliable(tilt(reward, last)[0], SETTINGS)
    assert not is_reliable(tilt(reward, 0.99 * last)[0], SETTINGS)


def test_given_betas_are_kept_and_the_unreliable_marked() -> None:
    reward = np.random.default_rng(3).standard_normal((20, 200))
    table = optimum_table(reward, {}, replace(SETTINGS, betas=[0.1, 2.0, 1.0]))
    front = table[table.kind == "optimum"]
    assert front.beta.tolist() == [math.inf, 2, 1, 0.1]
    assert front.reliable.tolist() == [True, True, True, False]
    assert (front.ess.diff().dropna() < 0).all()
    end = reliable_front(table).kl.max()
    known, beyond = optimum_at(table, np.array([end, 1.01 * end]))
    assert known == pytest.approx(front.gain.iloc[2])
    assert math.isnan(beyond)


def test_errors_cover_the_truth_as_often_as_they_say() -> None:
    """68 % of intervals of one error hold the gain at the KL of β = 1, prompts being random."""
    held = 0
    for seed in range(100):
        reward = draw_prompts(np.random.default_rng(seed))
        table = optimum_table(reward, {}, replace(SETTINGS, betas=[1.0]))
        row = table.iloc[1]
        held += abs(row.gain - 1.0) < row.gain_se
    assert 0.55 < held / 100 < 0.8


def draw_prompts(generator: np.random.Generator) -> np.ndarray:
    """Return normal rewards [40, 500] with a level and a spread (mean variance 1) for each
    prompt."""
    spread = np.sqrt(generator.uniform(0.5, 1.5, (40, 1)))
    level = generator.standard_normal((40, 1))
    return level + spread * generator.standard_normal((40, 500))


def test_samples_do_not_depend_on_the_batch_size(make_model: MakeModel) -> None:
    prompts = [[BOS, 5], [BOS, 6, 7, 8], [BOS], [BOS, 9]]
    sizes: list[int] = []

    def count_tokens(batch: Completions) -> torch.Tensor:
        sizes.append(len(batch.finished))
        return batch.lengths.float()

    def first_token(batch: Completions) -> torch.Tensor:
        return batch.response_ids[:, 0].float()

    def scores(settings: OptimumSettings) -> np.ndarray:
        return score_samples(
            make_model("gpt2"),
            [count_tokens, first_token],
            prompts,
            settings,
            eos_ids=[EOS],
            pad_id=PAD,
            seed=1,
        )

    small = scores(SETTINGS)
    assert small.shape == (2, 3, 10)
    assert sizes == [6, 4] * 3
    np.testing.assert_array_equal(small, scores(replace(SETTINGS, batch_size=100)))
    assert len(np.unique(small[1])) > 3, "completions of a prompt differ"
