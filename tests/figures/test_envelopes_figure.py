"""Envelopes of both anchors, with the β that are chosen, and their difference."""

import numpy as np
import pandas as pd
import pytest
from drawn import STYLE, legend_texts, lines, message_of

from warpflow.figures.envelopes import plot_envelopes


def table(changes: str = "") -> pd.DataFrame:
    kl = np.linspace(0, 4, 5)
    arms = {"ema": (0.9, [1, 1, 0.3, 0.3, 0.1]), "sft": (1.0, [0.3, 0.3, 0.1, 0.1, 0.03])}
    rows = [
        {"arm": arm, "kl": k, "reward": gain * k**0.5, "beta": beta, "betas": "0.1 0.3 1"}
        for arm, (gain, betas) in arms.items()
        for k, beta in zip(kl, betas, strict=True)
    ]
    rows += [{"arm": "ema - sft", "kl": k, "reward": -0.1 * k**0.5} for k in kl]
    made = pd.DataFrame(rows).assign(training_changes=changes, interval_over="prompts and runs")
    return made.assign(low=made["reward"] - 0.1, high=made["reward"] + 0.1)


def test_arms_and_their_difference_are_drawn_with_the_chosen_betas() -> None:
    figure = plot_envelopes(table(), STYLE)
    left, right = figure.axes
    assert set(lines(left)) == {"ema", "sft"}
    np.testing.assert_allclose(lines(left)["ema"].get_ydata(), 0.9 * np.linspace(0, 4, 5) ** 0.5)
    assert [text.get_text() for text in left.texts] == [
        "β 1",
        "β 0.3",
        "β 0.1",
        "β 0.3",
        "β 0.1",
        "β 0.03",
    ]
    np.testing.assert_allclose(lines(right)["ema - sft"].get_ydata()[-1], -0.2)
    assert "interval over prompts and runs" in legend_texts(figure)


def test_runs_with_other_settings_have_panels_of_their_own() -> None:
    both = pd.concat([table(), table("max_grad_norm 1e+09")])
    figure = plot_envelopes(both, STYLE)
    assert [axes.get_title() for axes in figure.axes] == ["", ""] + ["max_grad_norm 1e+09"] * 2


@pytest.mark.parametrize("arms", [["ema"], ["sft"], []])
def test_one_anchor_alone_is_said(arms: list[str]) -> None:
    rows = table()
    figure = plot_envelopes(rows[rows["arm"].isin(arms)], STYLE)
    assert "No anchor was compared over β" in message_of(figure.axes[0])
