"""Geometry of task vectors: layers in the model's order, means over pairs."""

import numpy as np
import pandas as pd
from drawn import draw, heights, lines
from example_tables import make_tables


def test_geometry_draws_cosines_and_norm_ratios_per_group() -> None:
    tables = make_tables()
    figure = draw("geometry", tables)
    rows = tables["geometry"].query("experiment == 'warp' and iteration == 2")
    ratio = rows["norm_b"] / rows["norm_a"]
    values = [rows["cosine_task_vectors"], rows["cosine_weights"], ratio]
    for axes, expected in zip(figure.axes, values, strict=True):
        drawn = lines(axes)
        assert set(drawn) == {"warp, iteration 1", "warp, iteration 2", "lerp, iteration 2"}
        np.testing.assert_allclose(heights(drawn["warp, iteration 2"]), expected)
        ticks = [text.get_text() for text in axes.get_xticklabels()]
        assert ticks == list(rows["group"])  # model order, not the alphabet
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()


def test_geometry_averages_over_pairs_and_survives_zero_norms() -> None:
    tables = make_tables()
    table = tables["geometry"].query("experiment == 'warp' and iteration == 1")
    other = table.assign(member_b=2, cosine_task_vectors=0.0, norm_a=0.0)
    tables["geometry"] = pd.concat([table, other])
    cosine, _, ratio = draw("geometry", tables).axes
    np.testing.assert_allclose(
        heights(lines(cosine)["warp, iteration 1"]), table["cosine_task_vectors"] / 2
    )
    assert np.isfinite(heights(lines(ratio)["warp, iteration 1"])).all()


def test_geometry_leaves_out_an_experiment_only_if_all_its_pairs_are_known() -> None:
    tables = make_tables()
    first = tables["geometry"].query("experiment == 'warp' and iteration == 1")
    new_pair = first.assign(member_b=2, cosine_task_vectors=0.0)
    fewer = first.assign(experiment="fewer", cosine_weights=0.999 + 1e-12)
    more = pd.concat([first, new_pair]).assign(experiment="more")
    tables["geometry"] = pd.concat([first, fewer, more])
    drawn = lines(draw("geometry", tables).axes[0])
    assert set(drawn) == {"warp, iteration 1", "more, iteration 1"}
    np.testing.assert_allclose(
        heights(drawn["more, iteration 1"]), first["cosine_task_vectors"] / 2
    )
