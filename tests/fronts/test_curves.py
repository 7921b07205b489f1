"""Curves over KL, read at equal KL before they are averaged over replicates."""

import numpy as np
import pytest

from warpflow.fronts.curves import (
    Curve,
    common_range,
    hypervolume,
    mean_difference,
    second_differences,
)


def curve(kl: list[float], value: list[float], draws: int = 1) -> Curve:
    """The same points in each draw, of one replicate."""
    return replicates([kl], [value], draws)


def replicates(kl: list[list[float]], value: list[list[float]], draws: int = 1) -> Curve:
    """The same points in each draw, a row for each replicate."""
    return Curve(*(np.tile(np.array(rows, float), (draws, 1, 1)) for rows in (kl, value)))


def root_front(ends: list[float]) -> Curve:
    """Replicates that lie exactly on reward = √KL, with KL ∝ η² up to `ends`."""
    etas = np.array([0, 0.3, 0.5, 0.7, 0.85, 1])
    kl = np.array(ends)[:, None] * etas**2
    return replicates(kl.tolist(), np.sqrt(kl).tolist())


def test_replicates_of_unequal_reach_on_one_curve_do_not_differ() -> None:
    """The means of points at equal η would lie below the curve: 0.049 lower here, and 0.052 where
    lines in KL join them."""
    equal, unequal = root_front([4, 4, 4]), root_front([2, 4, 8])
    found = mean_difference([unequal], [equal])
    assert found is not None
    draws, between = found
    assert draws.mean() == pytest.approx(0, abs=1e-12)
    assert (between.low, between.high) == (0, 2), "the KLs that all replicates reach"
    at_equal_eta = [
        Curve(c.kl.mean(1, keepdims=True), c.value.mean(1, keepdims=True)) for c in (unequal, equal)
    ]
    wrong = mean_difference(at_equal_eta[:1], at_equal_eta[1:])
    assert wrong is not None and wrong[0].mean() < -0.045


@pytest.mark.parametrize(("power", "error"), [(0.5, 0.0), (0.25, 0.008), (1.0, 0.006)])
def test_interpolation_follows_a_front(power: float, error: float) -> None:
    """The mean error between points of `(KL / 4)^power`, as the docstring of `Curve` has it."""
    kl = 4 * np.array([0, 0.3, 0.5, 0.7, 0.85, 1, 1.3]) ** 2
    points = curve(kl.tolist(), ((kl / 4) ** power).tolist())
    grid = np.linspace(0, 4, 4001)
    found = (points.at(grid) - (grid / 4) ** power).mean()
    assert abs(found) == pytest.approx(error, abs=5e-4)


def test_values_are_linear_in_the_root_of_kl_whatever_the_order_of_the_points() -> None:
    points = curve([4, 0, 1], [4, 0, 1], draws=2)
    kl = np.array([0.0, 0.25, 1, 2.25, 4])
    np.testing.assert_allclose(points.at(kl), [[[0, 0.5, 1, 2.5, 4]]] * 2)
    np.testing.assert_allclose(points.at(np.array([-1, 9])), [[[0, 4]]] * 2)
    assert points.starts() == [0] and points.ends() == [4]


def test_each_draw_and_each_replicate_has_its_own_points() -> None:
    points = Curve(np.array([[[0.0, 1]], [[0, 4]]]), np.array([[[0.0, 1]], [[0, 4]]]))
    np.testing.assert_allclose(points.at(np.array([0.25])), [[[0.5]], [[1]]])
    np.testing.assert_allclose(points.at(np.array([[[0.25]], [[1]]])), [[[0.5]], [[2]]])
    pair = replicates([[0, 1], [0, 4]], [[0, 1], [0, 4]])
    np.testing.assert_allclose(pair.at(np.array([0.25])), [[[0.5], [1]]])


def test_points_of_equal_kl_do_not_divide_by_zero() -> None:
    points = curve([0, 1, 1, 4], [0, 1, 3, 4])
    assert np.isfinite(points.at(np.array([0.5, 1, 1.5]))).all()
    np.testing.assert_allclose(points.at(np.array([0.25, 2.25])), [[[0.5, 3.5]]])


def test_mean_difference_over_the_common_range() -> None:
    """One lies 0.5 above the other, and reaches further; slopes elsewhere must not matter."""
    first = curve([0, 1, 3, 9], [0.5, 1.5, 0.5 + 3**0.5, -7])
    second = curve([0.25, 3], [0.5, 3**0.5])
    found = mean_difference([first], [second])
    assert found is not None
    assert found[1][:2] == (0.25, 3)
    assert found[0] == pytest.approx([0.5])
    assert mean_difference([second], [first])[0] == pytest.approx([-0.5])  # type: ignore[index]


def test_several_curves_are_averaged() -> None:
    found = mean_difference([curve([0, 2], [1, 1])], [curve([0, 2], [0, 0]), curve([0, 1], [1, 1])])
    assert found is not None
    assert found[0] == pytest.approx([0.5])
    assert found[1][:2] == (0, 1)


def test_a_single_point_is_compared_at_its_own_kl_in_each_draw_and_replicate() -> None:
    front = replicates([[0, 4], [0, 4]], [[0, 4], [0, 4]], draws=2)
    point = Curve(np.array([[[0.25], [1]], [[1.0], [1]]]), np.full((2, 2, 1), 1.5))
    found = mean_difference([point], [front])
    assert found is not None
    np.testing.assert_allclose(found[0], [[0.5, -0.5], [-0.5, -0.5]])
    assert str(found[1]) == "at each replicate's own KL, 0.25 to 1"
    assert not found[1].is_range


def test_curves_without_a_kl_that_all_replicates_have_are_not_compared() -> None:
    assert mean_difference([curve([0, 1], [0, 1])], [curve([2, 3], [0, 1])]) is None
    two = replicates([[0, 1], [2, 3]], [[0, 1], [0, 1]])
    assert common_range(two) is None
    point = replicates([[0.5], [4]], [[0], [0]])
    wide = replicates([[0, 5], [0, 3]], [[0, 1], [0, 1]])
    assert mean_difference([point], [wide]) is None, "the second replicate does not reach 4"


def test_hypervolume() -> None:
    """A triangle in √KL; flat to the end; nothing below the floor or before the first point."""
    floor = np.zeros((1, 1))
    front = curve([0, 4], [0, 2])  # √KL
    assert hypervolume(front, floor, 4) == pytest.approx(16 / 3, rel=0.01)
    assert hypervolume(front, floor, 5) == pytest.approx(16 / 3 + 2, rel=0.01)
    assert hypervolume(front, floor + 1, 4) == pytest.approx(5 / 3, rel=0.02)
    assert hypervolume(curve([1, 2], [1, 1]), floor, 2) == pytest.approx(1, rel=0.02)
    falling = curve([0, 1, 4], [0, 1, 0])
    assert hypervolume(falling, floor, 4) == pytest.approx(2 / 3 + 3, rel=0.01)


def test_hypervolume_of_a_dominating_front_is_larger() -> None:
    floor = np.zeros((1, 1))
    base = curve([0, 1, 2], [0, 1, 1.5])
    for better in (curve([0, 1, 2], [0, 1.2, 1.5]), curve([0, 0.8, 2], [0, 1, 1.5])):
        assert hypervolume(better, floor, 2) > hypervolume(base, floor, 2)


def test_second_differences_of_a_parabola_are_its_curvature() -> None:
    x = np.array([0, 0.1, 0.3, 0.8, 1.0])
    y = 3 * x**2 - x + 2
    np.testing.assert_allclose(second_differences(x, np.stack([y, -y])), [[6] * 3, [-6] * 3])
