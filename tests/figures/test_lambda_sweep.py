"""Curves over λ: their ends, their names and their colours."""

import numpy as np
import pandas as pd
from drawn import containers, data_of, draw, legend_texts, message_of
from example_tables import make_tables


def test_lambda_sweep_joins_ends_half_and_set_weights() -> None:
    tables = make_tables()
    figure = draw("lambda_sweep", tables)
    rows = tables["evaluations"]
    reward, kl, plane = figure.axes
    assert containers(reward) == ["slerp", "lerp"] == legend_texts(figure)
    for method in ("slerp", "lerp"):
        drawn = data_of(reward, method)
        np.testing.assert_allclose(drawn[:, 0], [0, 0.25, 0.5, 0.75, 1])
        name = {"slerp": "warp", "lerp": "lerp"}[method]
        half = rows[(rows["experiment"] == name) & (rows["eta"] == 1) & (rows["iteration"] == 1)]
        assert drawn[2, 1] == half["reward"].item()
        for member, index in ((0, 0), (1, -1)):
            trained = rows.query(f"experiment == 'warp' and iteration == 1 and member == {member}")
            assert drawn[index, 1] == trained["reward"].item()
            assert data_of(kl, method)[index, 1] == trained["kl_exact"].item()
    np.testing.assert_array_equal(data_of(plane, "lerp")[:, 1], data_of(reward, "lerp")[:, 1])


def test_lambda_sweep_takes_the_sweep_of_another_setting_apart() -> None:
    tables = make_tables()
    rows = tables["evaluations"]
    other = rows[rows["merge_weight"].notna() | rows["member"].notna()]
    other = other[(other["anchor"] == "ema") & (other["iteration"] == 1)]
    other = other.assign(experiment="strong_" + other["experiment"], beta=0.5)
    tables["evaluations"] = pd.concat([rows, other])
    axes = draw("lambda_sweep", tables).axes[0]
    names = containers(axes)
    assert sorted(names) == [
        "lerp, beta 0.1",
        "lerp, beta 0.5",
        "slerp, beta 0.1",
        "slerp, beta 0.5",
    ]
    drawn = {(c[0].get_color(), c[0].get_linestyle()) for c in axes.containers}
    assert len(drawn) == 4


def test_merge_methods_without_a_front_get_colours_of_their_own() -> None:
    tables = make_tables()
    rows = tables["evaluations"]
    tables["evaluations"] = rows[~rows["experiment"].isin(["warp"]) | rows["member"].notna()]
    axes = draw("lambda_sweep", tables).axes[0]
    slerp, lerp = (container[0].get_color() for container in axes.containers)
    assert slerp != lerp


def test_no_lambda_rows_give_a_sentence() -> None:
    [axes] = draw("lambda_sweep", make_tables(weights=())).axes
    assert "`merge_policies.weight`" in message_of(axes)
