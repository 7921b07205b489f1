"""Bootstrap over prompts and replicates; curves compared at matched KL."""

import numpy as np
import pytest

from warpflow.fronts.bootstrap import (
    Curve,
    common_range,
    decide,
    envelope,
    hypervolume,
    interval,
    mean_difference,
    resample,
    second_differences,
)


def curve(kl: list[float], value: list[float], draws: int = 1) -> Curve:
    """The same points in each draw."""
    return Curve(np.tile(np.array(kl, float), (draws, 1)), np.tile(np.array(value), (draws, 1)))


# ------------------------------------------------------------------------------- resampling


def test_the_first_row_is_the_sample_itself() -> None:
    values = np.random.default_rng(0).standard_normal((3, 20))
    draws = resample(20, 3, 100, seed=1).mean(values)
    assert draws.shape == (101,)
    assert draws[0] == pytest.approx(values.mean())
    assert np.ptp(draws) > 0


def test_same_seed_same_resamples() -> None:
    first, again, other = (resample(9, 2, 50, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.prompts, again.prompts)
    np.testing.assert_array_equal(first.replicates, again.replicates)
    assert not np.array_equal(first.prompts, other.prompts)


def test_pairing_cancels_what_two_policies_have_in_common() -> None:
    """Prompts differ by 10; the policies by 0.1 on each: the difference is known exactly."""
    prompts = 10 * np.random.default_rng(0).standard_normal((2, 50))
    weights = resample(50, 2, 2000, seed=0)
    low, high = interval(weights.mean(prompts), 0.95)[1:]
    assert high - low > 3
    paired = interval(weights.mean(prompts + 0.1) - weights.mean(prompts), 0.95)
    assert paired == pytest.approx((0.1, 0.1, 0.1))


def test_one_replicate_is_always_itself() -> None:
    weights = resample(1, 1, 100, seed=0)
    assert np.ptp(weights.mean(np.array([[3.0]]))) == 0


@pytest.mark.parametrize("replicates", [2, 3, 8])
def test_variance_of_replicates_is_unbiased(replicates: int) -> None:
    """R − 1 of R are drawn: with R the variance would be (R − 1) / R of the true one."""
    generator = np.random.default_rng(replicates)
    runs = generator.standard_normal((400, replicates))
    weights = resample(1, replicates, 300, seed=0)
    variances = [weights.mean(values[:, None])[1:].var() for values in runs]
    assert np.mean(variances) == pytest.approx(1 / replicates, rel=0.15)


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    """Effects of prompts, of replicates and noise; 40 prompts, 12 replicates."""
    generator = np.random.default_rng(0)
    weights = resample(40, 12, 1000, seed=0)
    held = 0
    for _ in range(300):
        values = generator.standard_normal((1, 40)) + generator.standard_normal((12, 1))
        values = values + generator.standard_normal((12, 40))
        _, low, high = interval(weights.mean(values), 0.9)
        held += low < 0 < high
    assert 0.82 < held / 300 < 0.97


def test_fewer_prompts_of_a_run_are_the_first() -> None:
    weights = resample(10, 1, 5, seed=0)
    values = np.arange(4.0)[None]
    counts = weights.prompts[:, :4]
    np.testing.assert_allclose(weights.mean(values), counts @ values[0] / counts.sum(1))


def test_decisions() -> None:
    assert decide(0.1, 0.2) == "held"
    assert decide(-0.2, -0.1) == "did not hold"
    assert decide(-0.1, 0.1) == "undecided"
    assert decide(50, 60, reference=45) == "held"
    assert decide(np.nan, np.nan) == "undecided"


# ----------------------------------------------------------------------------------- curves


def test_values_lie_on_the_lines_between_points_whatever_their_order() -> None:
    points = curve([2, 0, 1], [4, 0, 1], draws=2)
    kl = np.array([0.0, 0.5, 1, 1.5, 2])
    np.testing.assert_allclose(points.at(kl), [[0, 0.5, 1, 2.5, 4]] * 2)
    np.testing.assert_allclose(points.at(np.array([-1, 3])), [[0, 4]] * 2)
    assert points.ends() == (0, 2)


def test_each_draw_has_its_own_points() -> None:
    points = Curve(np.array([[0.0, 1], [0, 2]]), np.array([[0.0, 1], [0, 4]]))
    np.testing.assert_allclose(points.at(np.array([0.5])), [[0.5], [1]])
    np.testing.assert_allclose(points.at(np.array([[0.5], [1]])), [[0.5], [2]])


def test_points_of_equal_kl_do_not_divide_by_zero() -> None:
    points = curve([0, 1, 1, 2], [0, 1, 3, 4])
    assert np.isfinite(points.at(np.array([0.5, 1, 1.5]))).all()
    np.testing.assert_allclose(points.at(np.array([0.5, 1.5])), [[0.5, 3.5]])


def test_mean_difference_over_the_common_range() -> None:
    """One lies 0.5 above the other, and reaches further; slopes elsewhere must not matter."""
    first = curve([0, 1, 3, 9], [0.5, 1.5, 3.5, -7])
    second = curve([0.5, 3], [0.5, 3])
    found = mean_difference([first], [second])
    assert found is not None
    assert found[1] == (0.5, 3)
    assert found[0] == pytest.approx([0.5])
    assert mean_difference([second], [first])[0] == pytest.approx([-0.5])  # type: ignore[index]


def test_several_curves_are_averaged() -> None:
    found = mean_difference([curve([0, 2], [1, 1])], [curve([0, 2], [0, 0]), curve([0, 1], [1, 1])])
    assert found is not None
    assert found[0] == pytest.approx([0.5])
    assert found[1] == (0, 1)


def test_a_single_point_is_compared_at_its_own_kl_in_each_draw() -> None:
    front = curve([0, 2], [0, 4], draws=2)
    point = Curve(np.array([[0.5], [1.0]]), np.array([[1.5], [1.5]]))
    found = mean_difference([point], [front])
    assert found is not None
    assert found[0] == pytest.approx([0.5, -0.5])


def test_curves_without_a_common_kl_are_not_compared() -> None:
    assert mean_difference([curve([0, 1], [0, 1])], [curve([2, 3], [0, 1])]) is None
    assert common_range(curve([0, 1], [0, 1]), curve([1], [1])) == (1, 1)


def test_envelope_takes_the_best_where_it_reaches() -> None:
    best = envelope([curve([0, 1], [0, 1]), curve([0, 4], [0, 2])])
    assert best.ends() == (0, 4)
    kl = np.array([0.5, 1, 2, 4])
    np.testing.assert_allclose(best.at(kl), [[0.5, 1, 1, 2]], atol=0.05)


def test_hypervolume() -> None:
    """A triangle; then flat to the end; nothing below the floor or before the first point."""
    floor = np.zeros(1)
    triangle = curve([0, 2], [0, 2])
    assert hypervolume(triangle, floor, 2) == pytest.approx([2], rel=0.01)
    assert hypervolume(triangle, floor, 3) == pytest.approx([4], rel=0.01)
    assert hypervolume(triangle, floor + 1, 2) == pytest.approx([0.5], rel=0.02)
    assert hypervolume(curve([1, 2], [1, 1]), floor, 2) == pytest.approx([1], rel=0.02)
    falling = curve([0, 1, 2], [0, 1, 0])
    assert hypervolume(falling, floor, 2) == pytest.approx([1.5], rel=0.01)


def test_hypervolume_of_a_dominating_front_is_larger() -> None:
    floor = np.zeros(1)
    base = curve([0, 1, 2], [0, 1, 1.5])
    for better in (curve([0, 1, 2], [0, 1.2, 1.5]), curve([0, 0.8, 2], [0, 1, 1.5])):
        assert hypervolume(better, floor, 2) > hypervolume(base, floor, 2)


def test_second_differences_of_a_parabola_are_its_curvature() -> None:
    x = np.array([0, 0.1, 0.3, 0.8, 1.0])
    y = 3 * x**2 - x + 2
    np.testing.assert_allclose(second_differences(x, np.stack([y, -y])), [[6] * 3, [-6] * 3])
