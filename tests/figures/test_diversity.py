"""Diversity is drawn where it was measured."""

import numpy as np
from drawn import lines_of
from example_tables import make_tables

from warpflow.figures.diversity import plot_diversity
from warpflow.figures.style import FigureStyle


def test_diversity_draws_what_was_measured_against_kl() -> None:
    tables = make_tables()
    evaluations = tables["evaluations"].assign(entropy=1.5, length=20.0, self_similarity=np.nan)
    trajectories = tables["trajectories"].assign(entropy=1.4, entropy_se=np.nan)
    figure = plot_diversity(evaluations, trajectories, FigureStyle())
    panels = {axes.get_ylabel(): axes for axes in figure.axes}
    assert set(panels) == {"Entropy (nats per token)", "Length (tokens)"}
    fronts = lines_of(panels["Entropy (nats per token)"], "front: ")
    assert fronts and all(set(line.get_ydata()) == {1.5} for line in fronts)
    assert lines_of(panels["Entropy (nats per token)"], "trajectory: ")
    assert not lines_of(panels["Length (tokens)"], "trajectory: "), "not measured on the way"
