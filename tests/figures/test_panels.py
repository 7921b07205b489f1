"""What every figure is built of: error bars, legends, and a sentence where rows are missing."""

import pytest
from drawn import FIGURES, draw, legend_texts, message_of
from example_tables import make_tables

from warpflow.figures.style import FigureStyle


def test_error_bars_span_z_standard_errors() -> None:
    tables = make_tables()

    def half_width(confidence: float) -> float:
        axes = draw("eta_sweep", tables, FigureStyle(confidence=confidence)).axes[0]
        segment = axes.containers[0][2][0].get_segments()[1]
        return (segment[1, 1] - segment[0, 1]) / 2

    assert half_width(0.95) == pytest.approx(1.959964 * 0.02)
    assert half_width(0.6826895) == pytest.approx(0.02)


def test_without_gold_there_is_no_gold_panel() -> None:
    tables = make_tables(gold=False)
    counts = {"fronts": 1, "eta_sweep": 2, "training_curves": 4}
    for name, count in counts.items():
        figure = draw(name, tables)
        assert len(figure.axes) == count
        assert not any("Gold" in axes.get_ylabel() for axes in figure.axes)


def test_a_single_iteration_needs_no_legend_for_iterations() -> None:
    tables = make_tables(iterations=1)
    for name in FIGURES:
        assert not any("iteration 1" in text for text in legend_texts(draw(name, tables)))


def test_no_rows_give_a_sentence_that_names_the_setting() -> None:
    tables = make_tables()
    nothing = {name: table.iloc[:0] for name, table in tables.items()}
    settings = {
        "fronts": "`interpolate_policy.etas`",
        "eta_sweep": "`interpolate_policy.etas`",
        "lambda_sweep": "`merge_policies.weight`",
        "geometry": "`members`",
        "training_curves": "`train_policy.",
    }
    for name in FIGURES:
        figure = draw(name, nothing)
        assert figure.axes
        for axes in figure.axes:
            assert not axes.axison
            assert settings[name] in message_of(axes)
            assert message_of(axes).endswith(".")
