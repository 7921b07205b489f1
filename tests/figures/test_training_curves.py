"""Training curves: the log of each run above, its evaluated policies below."""

import numpy as np
from drawn import draw, heights, lines, message_of
from example_tables import BETAS, make_tables
from matplotlib.collections import PolyCollection


def test_training_curves_draw_log_and_trajectories() -> None:
    tables = make_tables()
    figure = draw("training_curves", tables)
    reward, anchor, eval_reward, eval_kl, eval_gold = figure.axes
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "Training reward",
        "KL to the anchor (nats)",
        "Reward",
        "KL to SFT (nats)",
        "Gold reward",
    ]
    runs = 4 + 2 + len(BETAS)
    for axes in (reward, anchor):
        raw = [line for line in axes.lines if line.get_label() == "_raw"]
        assert len(raw) == len(lines(axes)) == runs
        assert all(line.get_alpha() == 0.15 for line in raw)
    log = tables["training"].query("experiment == 'warp' and iteration == 1 and member == 0")
    np.testing.assert_array_equal(heights(reward.lines[0]), log["reward"])
    smooth = heights(lines(reward)["warp, replicate 1, iteration 1, member 0"])
    assert np.diff(smooth).std() < np.diff(log["reward"]).std()
    rows = tables["trajectories"].query("experiment == 'warp' and iteration == 1 and member == 0")
    for axes, metric in ((eval_reward, "reward"), (eval_kl, "kl_exact"), (eval_gold, "gold")):
        assert len(lines(axes)) == runs
        assert sum(isinstance(c, PolyCollection) for c in axes.collections) == runs
        drawn = lines(axes)["warp, replicate 1, iteration 1, member 0"].get_xydata()
        np.testing.assert_array_equal(drawn, rows[["step", metric]].to_numpy())


def test_training_curves_say_what_half_is_missing() -> None:
    tables = make_tables()
    tables["trajectories"] = tables["trajectories"].iloc[:0]
    figure = draw("training_curves", tables)
    assert len(figure.axes) == 3
    assert "evaluated during training" in message_of(figure.axes[2])


def test_steps_are_whole_numbers() -> None:
    tables = make_tables()
    tables["training"] = tables["training"].query("step <= 3")
    tables["trajectories"]["step"] //= 10  # 0 to 3 too
    for axes in draw("training_curves", tables).axes:
        assert all(float(tick).is_integer() for tick in axes.get_xticks())
