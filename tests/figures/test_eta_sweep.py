"""The sweep over η has a panel for each metric."""

import numpy as np
from drawn import data_of, draw
from example_tables import make_tables


def test_eta_sweep_draws_each_metric() -> None:
    tables = make_tables()
    figure = draw("eta_sweep", tables)
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "Reward",
        "KL to SFT (nats)",
        "Gold reward",
    ]
    rows = tables["evaluations"].query("experiment == 'lerp' and iteration == 1 and eta == eta")
    for axes, metric in zip(figure.axes, ("reward", "kl_exact", "gold"), strict=True):
        assert len(axes.containers) == 5
        np.testing.assert_array_equal(
            data_of(axes, "lerp, iteration 1"), rows[["eta", metric]].to_numpy()
        )
