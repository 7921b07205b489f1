"""Averages of one run's weights have a line each."""

import pandas as pd
import pytest
from drawn import lines_of
from example_tables import make_tables

from warpflow.figures.averages import plot_averages
from warpflow.figures.fronts import plot_fronts
from warpflow.figures.style import FigureStyle


def test_averages_draw_a_line_for_each_kind_of_weights() -> None:
    tables = make_tables()
    run = tables["trajectories"].query("experiment == 'one_run'")
    others = [run.assign(weights=kind, reward=run["reward"] + 1) for kind in ("ema", "average")]
    trajectories = pd.concat([tables["trajectories"], *others])
    figure = plot_averages(tables["evaluations"], trajectories, FigureStyle())
    lines = lines_of(figure.axes[0], "one_run, iteration 1: ")
    assert [line.get_label() for line in figure.axes[0].containers] == [
        "one_run, iteration 1: policy",
        "one_run, iteration 1: EMA, rate μ",
        "one_run, iteration 1: mean of all steps",
    ]
    assert lines[1].get_ydata() == pytest.approx(lines[0].get_ydata() + 1)
    # The other figures keep to the policies.
    before = plot_fronts(tables["evaluations"], tables["trajectories"], FigureStyle())
    after = plot_fronts(tables["evaluations"], trajectories, FigureStyle())
    assert len(after.axes[0].lines) == len(before.axes[0].lines)


def test_without_averages_the_figure_says_what_to_set() -> None:
    tables = make_tables()
    figure = plot_averages(tables["evaluations"], tables["trajectories"], FigureStyle())
    assert "evaluate_weights" in figure.axes[0].texts[0].get_text()
