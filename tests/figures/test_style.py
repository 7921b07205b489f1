"""Looks: an experiment keeps its colour, colours are readable, bad settings are named."""

import pytest
from drawn import STYLE, draw, lines
from example_tables import make_tables

from warpflow.figures.style import FigureStyle, experiment_looks, luminance, palette_colors, shade


def test_an_experiment_keeps_its_colour_across_figures() -> None:
    tables = make_tables()
    last = {
        "fronts": "front: lerp, iteration 2",
        "eta_sweep": "lerp, iteration 2",
        "lambda_sweep": "lerp",
    }
    colors = []
    for name, label in last.items():
        axes = draw(name, tables).axes[0]
        [container] = [c for c in axes.containers if c.get_label() == label]
        colors.append(container[0].get_color())
    colors.append(lines(draw("geometry", tables).axes[0])["lerp, iteration 2"].get_color())
    curves = lines(draw("training_curves", tables).axes[0])
    colors.append(curves["lerp, replicate 1, iteration 2, member 0"].get_color())
    assert len(set(colors)) == 1


def test_looks_stay_distinct_beyond_the_palette() -> None:
    names = [f"experiment_{i}" for i in range(20)]
    rows = make_tables()["evaluations"].iloc[:20].assign(experiment=names)
    for palette in ("okabe_ito", "viridis", "tab10"):
        looks = experiment_looks(rows, rows, palette)
        assert list(looks) == names
        assert len(set(looks.values())) == 20


def test_lambda_points_do_not_use_up_the_palette() -> None:
    tables = make_tables()
    sweep_first = tables["evaluations"].iloc[::-1]
    looks = list(experiment_looks(sweep_first, sweep_first, "okabe_ito"))
    assert all("lambda" in name for name in looks[-4:])
    assert not any("lambda" in name for name in looks[:-4])


def test_the_default_palette_is_readable_on_white() -> None:
    colors = palette_colors(STYLE.palette, 5)
    assert len(colors) >= 7
    assert all(luminance(color) < 0.7 for color in colors)


def test_an_earlier_iteration_is_lighter() -> None:
    tones = [luminance(shade("#0072b2", i, 4)) for i in (1, 2, 3, 4)]
    assert tones == sorted(tones, reverse=True)
    assert shade("#0072b2", 4, 4) == shade("#0072b2", 1, 1) == "#0072b2"


@pytest.mark.parametrize(
    ("key", "value", "hint"),
    [
        ("palette", "okabe_it", "okabe_ito"),
        ("width", 0, "greater than 0"),
        ("dpi", -1, "greater than or equal to 30"),
        ("confidence", 95.0, "less than 1"),
        ("kl_scale", "log", "'linear' or 'sqrt'"),
    ],
)
def test_a_bad_style_names_its_key(key: str, value: object, hint: str) -> None:
    with pytest.raises(ValueError, match=rf"{key}[\s\S]*{hint}"):
        FigureStyle(**{key: value})  # type: ignore[arg-type]
