"""Fronts: every row is drawn once, where its numbers say, and readable."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from drawn import STYLE, containers, data_of, draw, heights, legend_texts, lines
from example_tables import BETAS, Tables, make_tables
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from warpflow.figures.fronts import plot_fronts
from warpflow.figures.labels import Placed, place_texts
from warpflow.figures.style import FigureStyle, experiment_looks


def test_fronts_draw_every_front_with_the_numbers_of_the_table() -> None:
    tables = make_tables()
    figure = draw("fronts", tables)
    reward, gold = figure.axes
    rows = tables["evaluations"]
    rows = rows[(rows["experiment"] == "warp") & (rows["iteration"] == 2) & rows["eta"].notna()]
    for axes, metric in ((reward, "reward"), (gold, "gold")):
        drawn = data_of(axes, "front: warp, iteration 2")
        np.testing.assert_array_equal(drawn, rows[["kl_exact", metric]].to_numpy())
        fronts = [label for label in containers(axes) if label.startswith("front")]
        assert len(fronts) == 5  # warp and lerp twice, one_run once
    assert gold.get_ylabel() == "Gold reward"
    assert {"warp", "lerp", "one_run", "sft_anchor_beta_0.1", "iteration 2", "SFT"} <= set(
        legend_texts(figure)
    )


def test_each_of_several_golds_has_a_panel_with_its_name() -> None:
    tables = make_tables()
    for name in ("evaluations", "trajectories"):
        table = tables[name]
        for gold, shift in (("gold.model", 0.0), ("gold.words", 1.0)):
            table[gold] = table["gold"] + shift
            table[f"{gold}_se"] = table["gold_se"]
        tables[name] = table.drop(columns=["gold", "gold_se"])
    figure = plot_fronts(tables["evaluations"], tables["trajectories"], STYLE)
    _, model, words = figure.axes
    assert [axes.get_ylabel() for axes in (model, words)] == [
        "Gold reward: model",
        "Gold reward: words",
    ]
    first, second = (data_of(axes, "front: warp, iteration 2") for axes in (model, words))
    np.testing.assert_allclose(first[:, 1] + 1, second[:, 1])


def optimum_table() -> pd.DataFrame:
    kl = [0.0, 1.0, 4.0]
    table = pd.DataFrame({"kind": "optimum", "kl": kl, "reward": [7, 8, 9], "gold": [1, 2, 0]})
    best = table.iloc[:2].assign(kind="best_of_n")
    return pd.concat([table.assign(reliable=[True, True, False]), best.assign(reliable=True)])


def test_fronts_draw_the_reliable_optimum_from_the_star_on() -> None:
    tables = make_tables()
    arguments = tables["evaluations"], tables["trajectories"], STYLE
    figure = plot_fronts(*arguments, optimum_table())
    for axes, gains in zip(figure.axes, ([0, 1], [0, 1]), strict=True):
        star = heights(lines(axes)["SFT"])[0]
        for kind in ("optimum", "best_of_n"):
            line = lines(axes)[kind]
            assert np.asarray(line.get_xdata()).tolist() == [0, 1], "the last one is unreliable"
            assert heights(line) - star == pytest.approx(gains)
    assert {"optimal front", "best of n"} <= set(legend_texts(figure))
    assert not {"optimal front", "best of n"} & set(legend_texts(plot_fronts(*arguments)))


def test_fronts_draw_shared_runs_once() -> None:
    tables = make_tables()
    axes = draw("fronts", tables).axes[0]
    # Iteration 1 of lerp and the run of one_run are warp's; iteration 2 of lerp is its own.
    trajectories = lines(axes, "trajectory")
    assert len(trajectories) == 4 + 2 + len(BETAS)
    assert "trajectory: lerp, replicate 1, iteration 2, member 0" in trajectories
    assert not any("one_run" in label for label in trajectories)
    drawn = trajectories["trajectory: warp, replicate 1, iteration 1, member 1"].get_xydata()
    rows = tables["trajectories"].query("experiment == 'warp' and iteration == 1 and member == 1")
    np.testing.assert_array_equal(drawn, rows[["kl_exact", "reward"]].to_numpy())
    policies = [label for label in containers(axes) if label.startswith("policy")]
    assert sum(len(data_of(axes, label)) for label in policies) == 4 + 2 + len(BETAS)


def test_sft_is_at_the_origin_of_the_kl_axis() -> None:
    tables = make_tables()
    axes = draw("fronts", tables).axes[0]
    np.testing.assert_array_equal(lines(axes, "SFT")["SFT"].get_xydata(), [[0, 0]])


def crowded_tables() -> Tables:
    """Eight fronts of six η that lie close to one another."""
    tables = make_tables()
    evaluations = tables["evaluations"]
    fronts = evaluations[evaluations["experiment"].isin(["warp", "lerp"])]
    fronts = fronts[fronts["stage"] == "interpolate_policy"]
    between = fronts[fronts["eta"].between(0.2, 0.6)].copy()
    between[["eta", "kl_exact", "reward", "gold"]] *= 1.2
    others = [
        pd.concat([fronts, between]).assign(
            experiment=fronts["experiment"] + f"_{number}",
            reward=lambda rows, n=number: rows["reward"] * (1 + 0.02 * n),
            kl_exact=lambda rows, n=number: rows["kl_exact"] * (1 - 0.03 * n),
        )
        for number in range(3)
    ]
    return tables | {"evaluations": pd.concat([evaluations, between, *others], ignore_index=True)}


def boxes_of_texts(axes: Axes) -> dict[Text, Bbox]:
    return {text: text.get_window_extent() for text in axes.texts}


def boxes_of_markers(axes: Axes) -> list[Bbox]:
    """The squares of all markers that are seen."""
    found = []
    for line in axes.lines:
        half = line.get_markersize() / 2 * line.get_figure(root=True).dpi / 72
        drawn = line.get_marker() not in ("None", "none", "", "|", "_")
        for x, y in line.get_transform().transform(line.get_xydata()) if drawn else []:
            found.append(Bbox.from_extents(x - half, y - half, x + half, y + half))
    return found


@pytest.mark.parametrize("kl_scale", ["linear", "sqrt"])
@pytest.mark.parametrize("width", [6.0, 13.5])
def test_texts_of_a_crowded_front_lie_on_no_other_text_and_no_marker(
    tmp_path: Path, kl_scale: str, width: float
) -> None:
    tables = crowded_tables()
    figure = draw("fronts", tables, FigureStyle(kl_scale=kl_scale, width=width, dpi=200))
    figure.savefig(tmp_path / "fronts.png")
    for axes in figure.axes:
        boxes = boxes_of_texts(axes)
        assert len(boxes) >= 5
        markers = boxes_of_markers(axes)
        assert len(markers) > 60
        for text, box in boxes.items():
            others = [other for name, other in boxes.items() if name is not text]
            assert not box.count_overlaps(others), text.get_text()
            assert not box.count_overlaps(markers), text.get_text()
            assert axes.bbox.count_contains([box.min, box.max]) == 2, "it is within the panel"


def test_eta_is_written_along_the_first_front_and_at_the_end_of_others() -> None:
    tables = make_tables()
    axes = draw("fronts", tables).axes[0]
    looks = experiment_looks(tables["evaluations"], tables["trajectories"], STYLE.palette)
    written = {
        name: {text.get_text() for text in axes.texts if text.get_color() == looks[name].color}
        for name in ("warp", "lerp", "one_run")
    }
    assert written == {"warp": {"0.3", "0.5", "1"}, "lerp": {"1"}, "one_run": {"1"}}


def test_a_text_without_a_free_place_is_left_out() -> None:
    figure = Figure(figsize=(0.6, 0.6))
    axes = figure.add_subplot()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.plot([0.5], [0.5], marker="o", markersize=60)
    place_texts(figure, axes, [Placed(0.5, 0.5, "1", "black"), Placed(np.nan, 0, "2", "black")])
    assert not axes.texts


def test_a_root_scale_makes_room_for_small_kls() -> None:
    tables = make_tables()

    def share_of_axis(scale: str) -> float:
        """Return where KL 1 lies between SFT and the right end."""
        axes = draw("fronts", tables, FigureStyle(kl_scale=scale)).axes[0]
        places = axes.transData.transform([(kl, 0) for kl in (0, 1, axes.get_xlim()[1])])[:, 0]
        assert axes.get_xlim()[0] < 0 < places[0]  # the star of SFT is whole
        return (places[1] - places[0]) / (places[2] - places[0])

    assert share_of_axis("sqrt") == pytest.approx(share_of_axis("linear") ** 0.5)


def test_a_far_run_does_not_squash_the_fronts() -> None:
    tables = make_tables()
    far = tables["trajectories"].iloc[[-1]].assign(experiment="long_run", kl_exact=90.0)
    tables["trajectories"] = pd.concat([tables["trajectories"], far])
    axes = draw("fronts", tables).axes[0]
    assert axes.get_xlim()[1] < 20
    assert "90" in axes.get_xlabel()


def test_fronts_towards_init_are_hollow() -> None:
    tables = make_tables()
    rows = tables["evaluations"]
    extra = rows[(rows["experiment"] == "warp") & rows["eta"].notna() & (rows["iteration"] == 2)]
    extra = extra.assign(experiment="towards_init", towards="init", policy="other")
    tables["evaluations"] = pd.concat([rows, extra])
    figure = draw("fronts", tables)
    [container] = [
        c for c in figure.axes[0].containers if c.get_label() == "front: towards_init, iteration 2"
    ]
    assert container[0].get_markerfacecolor() == "white"
    assert "LITI towards the iteration's init" in legend_texts(figure)


def test_fronts_of_one_table_alone() -> None:
    tables = make_tables()
    for name, start in (("evaluations", "front"), ("trajectories", "trajectory")):
        emptied = {key: table if key == name else table.iloc[:0] for key, table in tables.items()}
        axes = draw("fronts", emptied).axes[0]
        assert any(label.startswith(start) for label in [*containers(axes), *lines(axes)])
