"""Envelopes over β on made-up runs of known reward."""

import numpy as np
import pandas as pd
import pytest

from warpflow.fronts.bootstrap import half_of, interval, means_over_prompts, resample
from warpflow.fronts.curves import Curve
from warpflow.fronts.envelopes import (
    Arm,
    anchor_arms,
    choose,
    common_kls,
    envelope,
    envelope_difference,
    envelopes_table,
)
from warpflow.fronts.measurements import Measurements, make_measurements

PROMPTS = 100
KLS = np.array([0, 1, 4.0])
WEIGHTS = resample(PROMPTS, 200, seed=0)


def make_arm(
    gains: dict[float, float],
    ends: dict[float, float] | None = None,
    runs: float = 0.0,
    prompts: float = 0.0,
    replicates: int = 5,
    seed: int = 0,
) -> Arm:
    """Map β to a front `gain · √KL`, up to KL `ends` (4), for each replicate with an effect of its
    run and of the prompts, in units of reward at KL 4 and proportional to √KL."""
    generator = np.random.default_rng(seed)
    halves: tuple[list[Curve], list[Curve]] = ([], [])
    whole = []
    for beta, gain in gains.items():
        kl = KLS * (ends or {}).get(beta, 4.0) / 4
        shape = (len(KLS), replicates, PROMPTS)
        noise = runs * generator.standard_normal((1, replicates, 1))
        noise = noise + prompts * generator.standard_normal((1, replicates, PROMPTS))
        values = np.broadcast_to((gain + noise / 2) * np.sqrt(kl)[:, None, None], shape)
        kls = np.broadcast_to(kl[:, None, None], shape)
        for weights, curves in (
            (WEIGHTS, whole),
            (half_of(WEIGHTS, 0), halves[0]),
            (half_of(WEIGHTS, 1), halves[1]),
        ):
            points = (
                np.stack([means_over_prompts(weights, v) for v in quantity], -1)
                for quantity in (kls, values)
            )
            curves.append(Curve(*points))
    return Arm("arm", list(gains), [f"run {beta}" for beta in gains], whole, halves)


def test_envelope_is_the_best_beta_at_each_kl_that_reaches_it() -> None:
    arm = make_arm({0.1: 1.0, 1.0: 1.5}, ends={1.0: 1.0})
    kl = np.array([0.25, 0.81, 1.21, 4])
    np.testing.assert_allclose(envelope(arm, kl)[0], [[0.75, 1.35, 1.1, 2]] * 5, atol=1e-6)
    chosen = choose(arm, kl)
    assert chosen.shape == (2, 5, 4)
    assert (chosen == [1, 1, 0, 0]).all()


def test_every_replicate_has_to_reach_a_kl() -> None:
    arm = make_arm({0.1: 1.0, 1.0: 1.5})
    short = [Curve(c.kl * np.array([1, 1, 1, 1, 0.25])[:, None], c.value) for c in arm.curves[1:]]
    arm = Arm("arm", arm.betas, arm.experiments, arm.curves, ([arm.curves[0], *short],) * 2)
    assert arm.reach()[1] == pytest.approx([4, 1])
    assert (choose(arm, np.array([0.9, 1.1])) == [1, 0]).all()


@pytest.mark.parametrize("noise", [{"runs": 0.2}, {"prompts": 2.0}, {"runs": 0.2, "prompts": 2.0}])
def test_many_equal_betas_are_no_better_than_one(noise: dict[str, float]) -> None:
    """Eight β that are all alike against one: the largest of noisy values would be too large."""
    found, naive = [], []
    kl = np.array([1.0, 4.0])
    for seed in range(60):
        many = make_arm(dict.fromkeys(map(float, range(1, 9)), 1.0), seed=seed, **noise)
        found.append(envelope(many, kl)[0].mean(0))
        values = np.stack([curve.at(kl)[0].mean(0) for curve in many.curves])
        naive.append(values.max(0))
    error = np.std(found, axis=0) / 60**0.5
    assert (abs(np.mean(found, axis=0) - [1, 2]) < 3.5 * error).all()
    assert (np.mean(naive, axis=0) - [1, 2] > 7 * error).all()


def test_with_one_replicate_the_other_half_of_the_prompts_chooses() -> None:
    """Noise of prompts adds nothing, but a lucky run stays lucky."""
    kl = np.array([4.0])
    gains = dict.fromkeys(map(float, range(1, 9)), 1.0)
    of_prompts, of_runs = (
        [
            float(envelope(make_arm(gains, replicates=1, seed=seed, **noise), kl)[0, 0, 0])
            for seed in range(60)
        ]
        for noise in ({"prompts": 2.0}, {"runs": 0.2})
    )
    assert abs(np.mean(of_prompts) - 2) < 3.5 * np.std(of_prompts) / 60**0.5
    assert np.mean(of_runs) > 2.15


def test_difference_of_envelopes_over_the_kls_that_both_have() -> None:
    """Each arm has one β that is as good as the other arm's best, and bad ones."""
    first = make_arm({0.1: 0.5, 1.0: 1.0}, runs=0.02, prompts=0.3)
    second = make_arm({0.003: 0.9, 0.1: 1.0, 0.3: 0.2}, ends={0.1: 2.0}, seed=1, runs=0.02)
    found = envelope_difference(first, second)
    assert found is not None
    draws, between = found
    assert between.high == pytest.approx(4)
    estimate, low, high = interval(draws, 0.95, PROMPTS)
    beyond_2 = 0.1 * (16 / 3 - 2 * 2**1.5 / 3) / 4  # ∫ 0.1 √KL from 2 to 4, over the whole range
    assert estimate == pytest.approx(beyond_2, abs=0.02)
    assert low < beyond_2 < high
    far = make_arm({0.1: 1.0})
    far = Arm("far", [0.1], ["far"], [], tuple([Curve(c.kl + 9, c.value)] for (c,) in far.halves))
    assert common_kls(first, far) is None and envelope_difference(first, far) is None


# ------------------------------------------------------------------------------- measurements


def make_measured(replicates: int = 3, fronts: bool = True) -> Measurements:
    """EMA runs with β 0.1 and 1 (gains 1 and 1.5), an SFT-anchored one (1.2), and two others."""
    generator = np.random.default_rng(0)
    rows, policies, runs = [], {}, {}
    for name, anchor, beta, changes, gain in (
        ("warp", "ema", 0.1, np.nan, 1.0),
        ("b", "ema", 1.0, np.nan, 1.5),
        ("c", "sft", 0.1, np.nan, 1.2),
        ("d", "sft", 0.1, "batch_size 32", 9.0),
        ("e", "hard_reset", 0.1, np.nan, 9.0),
    ):
        settings = {"experiment": name, "anchor": anchor, "beta": beta, "iteration": 1}
        settings |= {"members": 1, "training_changes": changes}
        for r in range(1, replicates + 1):

            def values(kl: float, gain: float = gain) -> dict[str, np.ndarray]:
                noise = 0.1 * generator.standard_normal(PROMPTS)
                return {"kl_exact": np.full(PROMPTS, kl), "reward": gain * kl**0.5 + noise}

            row = settings | {"replicate": r, "stage": "train_policy", "member": 0}
            policies[f"run/{name}/{r}"] = values(4.0)
            runs[f"run/{name}/{r}"] = {step: values(step / 50) for step in (0, 50, 100, 200)}
            rows.append(row | {"policy": f"run/{name}/{r}"})
            for eta in (0, 0.5, 1) if fronts else ():
                policies[f"{name}/{r}/{eta}"] = values(4.0 * eta**2)
                point = {"replicate": r, "stage": "interpolate_policy", "towards": "sft"}
                rows.append(settings | point | {"eta": eta, "policy": f"{name}/{r}/{eta}"})
    table = pd.DataFrame(rows, columns=[*rows[0], "towards", "eta"])
    return make_measurements(table, policies, runs, pd.DataFrame(), pd.DataFrame(), 100, 0)


def test_arms_differ_in_beta_alone() -> None:
    arms, kind = anchor_arms(make_measured())
    assert kind == "LITI fronts of one run each"
    assert set(arms) == {"", "batch_size 32"}
    assert set(arms["batch_size 32"]) == {"sft"}
    ema, sft = arms[""]["ema"], arms[""]["sft"]
    assert (list(ema.betas), list(ema.experiments)) == ([0.1, 1.0], ["warp", "b"])
    assert (list(sft.betas), list(sft.experiments)) == ([0.1], ["c"])


@pytest.mark.parametrize("fronts", [True, False])
def test_table_of_envelopes(fronts: bool) -> None:
    table = envelopes_table(make_measured(fronts=fronts), 0.95)
    base = table[table.training_changes == ""]
    assert set(base.arm) == {"ema", "sft", "ema - sft"}
    assert set(table.curves) == {("LITI fronts" if fronts else "trajectories") + " of one run each"}
    ema = base[base.arm == "ema"]
    assert ema.kl.max() == pytest.approx(4) and ema.kl.is_monotonic_increasing
    assert ema.reward.tolist() == pytest.approx((1.5 * ema.kl**0.5).tolist(), abs=0.05)
    beyond = ema[ema.kl > 0.5]
    assert (beyond.beta == 1.0).all() and (beyond.agreement == 1).all()
    assert (ema.betas == "0.1 1").all()
    difference = base[base.arm == "ema - sft"]
    assert difference.reward.tolist() == pytest.approx(
        (0.3 * difference.kl**0.5).tolist(), abs=0.07
    )
    assert (difference.low <= difference.reward).all()
    assert difference.beta.isna().all()
