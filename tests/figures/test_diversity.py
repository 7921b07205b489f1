"""Diversity is drawn where it was measured, and shares only of equally many completions."""

import numpy as np
import pytest
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


@pytest.mark.parametrize("along", [100, 50, None])
def test_distinct_bigrams_are_drawn_together_only_over_equally_many(along: int | None) -> None:
    tables = make_tables()
    evaluations = tables["evaluations"].assign(distinct_2=0.3, distinct_completions=100)
    evaluations.loc[evaluations["experiment"] == "lerp", "distinct_completions"] = 80
    trajectories = tables["trajectories"].assign(distinct_2=0.4, distinct_completions=along)
    [axes] = plot_diversity(evaluations, trajectories, FigureStyle()).axes
    assert axes.get_ylabel() == "Distinct bigrams (share, 100 completions)"
    fronts = {str(item.get_label()) for item in axes.containers}
    assert "front: warp, iteration 2" in fronts
    assert not any("lerp, iteration" in label for label in fronts)
    assert bool(lines_of(axes, "trajectory: ")) == (along == 100)
    left_out = (evaluations["experiment"] == "lerp").sum()
    left_out += 0 if along == 100 else len(trajectories)
    assert axes.get_title() == f"{left_out} rows of other numbers of completions are left out"


def test_shares_of_all_completions_as_older_tables_have_them_are_not_drawn() -> None:
    tables = make_tables()
    evaluations, trajectories = (
        tables[name].assign(distinct_2=0.3, entropy=1.5) for name in ("evaluations", "trajectories")
    )
    [axes] = plot_diversity(evaluations, trajectories, FigureStyle()).axes
    assert axes.get_ylabel() == "Entropy (nats per token)"
