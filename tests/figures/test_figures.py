"""The figures show the rows that they should, and the same rows give the same bytes."""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from warpflow.figures import plotting
from warpflow.figures.averages import plot_averages
from warpflow.figures.cli import TABLE_COLUMNS, read_tables
from warpflow.figures.diversity import plot_diversity
from warpflow.figures.plotting import FigureStyle, plot_fronts

ROOT = Path(__file__).resolve().parents[2]
ETAS = (0.0, 0.3, 0.5, 1.0)
STEPS = (0, 10, 20, 30)
BETAS = (0.1, 0.3)
FIGURES = ("fronts", "eta_sweep", "lambda_sweep", "geometry", "training_curves")
STYLE = FigureStyle()

Tables = dict[str, pd.DataFrame]


def measured(kl: float, boost: float, gold: bool) -> dict[str, float]:
    """A reward that grows with the root of KL, and a gold reward that turns down again."""
    reward = boost * np.sqrt(kl)
    gold_reward = reward - 0.06 * kl if gold else np.nan
    return {
        "reward": reward,
        "reward_se": 0.02,
        "gold": gold_reward,
        "gold_se": 0.03 if gold else np.nan,
        "kl_exact": kl,
        "kl_exact_se": 0.04 + 0.01 * kl,
    }


def liti_rows(name: str, settings: dict, iterations: int, gold: bool) -> Iterator[dict]:
    for iteration in range(1, iterations + 1):
        for eta in ETAS:
            kl = (3 + 2 * iteration) * eta**1.6
            boost = 0.75 + 0.08 * iteration - (0.06 if name == "lerp" else 0)
            yield {
                **settings,
                **measured(kl, boost, gold),
                "experiment": name,
                "stage": "interpolate_policy",
                "iteration": iteration,
                "towards": "sft",
                "eta": eta,
                "policy": f"interpolate/{name}/{iteration}/{eta}" if eta else "sft",
            }


def member_rows(name: str, run: str, settings: dict, iterations: int, gold: bool) -> Iterator[dict]:
    for iteration in range(1, iterations + 1):
        for member in range(settings["members"]):
            kl = 5 + 2 * iteration + member - (0.3 if run == "lerp" else 0)
            if settings["anchor"] == "sft":
                kl -= 10 * settings["beta"]
            yield {
                **settings,
                **measured(kl, 0.7 + 0.03 * iteration, gold),
                "experiment": name,
                "stage": "train_policy",
                "iteration": iteration,
                "member": member,
                "policy": f"train/{run}/{iteration}/{member}",
            }


def lambda_rows(base: dict, weights: tuple[float, ...], gold: bool) -> Iterator[dict]:
    for method in ("slerp", "lerp"):
        for weight in weights:
            bend = weight * (1 - weight)
            kl = 7 + weight - (1.0 if method == "slerp" else 4.0) * bend
            yield {
                **base,
                **measured(kl, 0.73 + (0.25 if method == "slerp" else 0.3) * bend, gold),
                "experiment": f"{method}_lambda_{weight}",
                "stage": "interpolate_policy",
                "iteration": 1,
                "towards": "sft",
                "eta": 1.0,
                "merge_method": method,
                "merge_weight": weight,
                "policy": f"interpolate/{method}/{weight}",
            }


def evaluation_rows(iterations: int, weights: tuple[float, ...], gold: bool) -> Iterator[dict]:
    base: dict = {
        "replicate": 1,
        "anchor": "ema",
        "beta": 0.1,
        "mu": 0.03,
        "members": 2,
        "merge_method": "slerp",
    }
    changes: tuple[tuple[str, dict, int], ...] = (
        ("warp", {}, iterations),
        ("lerp", {"merge_method": "lerp"}, iterations),
        ("one_run", {"members": 1}, 1),
    )
    for name, change, count in changes:
        yield from liti_rows(name, base | change, count, gold)
        # Iteration 2 starts elsewhere for LERP, iteration 1 does not.
        yield from member_rows(name, "warp", base | change, 1, gold)
        later = member_rows(name, name, base | change, count, gold)
        yield from (row for row in later if row["iteration"] > 1)
    for beta in BETAS:
        settings = base | {"anchor": "sft", "beta": beta, "mu": np.nan, "members": 1}
        name = f"sft_anchor_beta_{beta}"
        yield from member_rows(name, name, settings, 1, gold)
        end = next(member_rows(name, name, settings, 1, gold))
        yield end | {
            "stage": "interpolate_policy",
            "member": np.nan,
            "towards": "sft",
            "eta": 1.0,
            "policy": f"interpolate/{name}",
        }
    yield from lambda_rows(base, weights, gold)


def step_tables(evaluations: pd.DataFrame, gold: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Trajectories that end at the trained policies, and a noisy log of the same runs."""
    rng = np.random.default_rng(0)
    trajectories, training = [], []
    noise: dict[str, np.ndarray] = {}
    for run in evaluations[evaluations["stage"] == "train_policy"].to_dict("records"):
        key = {name: run[name] for name in ("experiment", "replicate", "iteration", "member")}
        start = 2.0 * (run["iteration"] - 1)
        for step in STEPS:
            kl = start + (run["kl_exact"] - start) * step / STEPS[-1]
            boost = run["reward"] / np.sqrt(run["kl_exact"])
            trajectories.append(
                {**key, "step": step, "weights": "policy", **measured(kl, boost, gold)}
            )
        jitter = noise.setdefault(run["policy"], rng.normal(0, 0.15, STEPS[-1]))
        for step in range(STEPS[-1]):
            share = (step + 1) / STEPS[-1]
            training.append(
                {
                    **key,
                    "step": step,
                    "reward": run["reward"] * np.sqrt(share) + jitter[step],
                    "kl_to_anchor": 2 * np.sqrt(share) + 0.5 * abs(jitter[step]),
                }
            )
    return pd.DataFrame(trajectories), pd.DataFrame(training)


def geometry_table(iterations: int, layers: int) -> pd.DataFrame:
    groups = ["embed_tokens", *(f"layer {i}" for i in range(layers)), "norm"]
    rows = [
        {
            "experiment": name,
            "replicate": 1,
            "iteration": iteration,
            "group": group,
            "member_a": 0,
            "member_b": 1,
            "cosine_task_vectors": 0.7 - 0.4 * np.sin(3 * i / len(groups)) + 0.05 * iteration,
            "cosine_weights": 0.999,
            "norm_a": 2.0 + i,
            "norm_b": 2.1 + i * (1 + 0.05 * iteration),
        }
        for name in ("warp", "lerp")
        for iteration in range(1, iterations + 1)
        for i, group in enumerate(groups)
    ]
    table = pd.DataFrame(rows)
    later = table["experiment"].eq("lerp") & (table["iteration"] > 1)
    table.loc[later, "cosine_task_vectors"] += 0.1
    return table


def make_tables(
    iterations: int = 2,
    weights: tuple[float, ...] = (0.25, 0.75),
    gold: bool = True,
    layers: int = 3,
) -> Tables:
    evaluations = pd.DataFrame(evaluation_rows(iterations, weights, gold))
    if "merge_weight" not in evaluations:
        evaluations["merge_weight"] = np.nan
    trajectories, training = step_tables(evaluations, gold)
    return {
        "evaluations": evaluations,
        "trajectories": trajectories,
        "training": training,
        "geometry": geometry_table(iterations, layers),
    }


def write_tables(tables: Tables, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False)
    return folder


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def draw(name: str, tables: Tables, style: FigureStyle = STYLE) -> Figure:
    """Draw the figure NAME from the tables that its script would read."""
    needed = {
        "fronts": ("evaluations", "trajectories"),
        "geometry": ("evaluations", "geometry"),
        "training_curves": ("evaluations", "training", "trajectories"),
    }.get(name, ("evaluations",))
    plot: Callable[..., Figure] = getattr(plotting, f"plot_{name}")
    return plot(*(tables[key] for key in needed), style)


def lines(axes: Axes, start: str = "") -> dict[str, Line2D]:
    """Labelled lines of a panel; labels with an underscore are decoration."""
    labelled = {str(line.get_label()): line for line in axes.lines}
    return {k: v for k, v in labelled.items() if k.startswith(start) and not k.startswith("_")}


def containers(axes: Axes) -> list[str]:
    return [str(container.get_label()) for container in axes.containers]


def data_of(axes: Axes, label: str) -> np.ndarray:
    """(n, 2) points of the error-bar series with that label."""
    [found] = [c for c in axes.containers if c.get_label() == label]
    return np.asarray(found[0].get_xydata())


def heights(line: Line2D) -> np.ndarray:
    return np.asarray(line.get_ydata(), dtype=float)


def legend_texts(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def message_of(axes: Axes) -> str:
    return " ".join(" ".join(text.get_text() for text in axes.texts).split())


@pytest.fixture
def tables() -> Tables:
    return make_tables()


def test_fronts_draw_every_front_with_the_numbers_of_the_table(tables: Tables) -> None:
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


def optimum_table() -> pd.DataFrame:
    kl = [0.0, 1.0, 4.0]
    table = pd.DataFrame({"kind": "optimum", "kl": kl, "reward": [7, 8, 9], "gold": [1, 2, 0]})
    best = table.iloc[:2].assign(kind="best_of_n")
    return pd.concat([table.assign(reliable=[True, True, False]), best.assign(reliable=True)])


def test_fronts_draw_the_reliable_optimum_from_the_star_on(tables: Tables) -> None:
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


def test_fronts_draw_shared_runs_once(tables: Tables) -> None:
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


def test_sft_is_at_the_origin_of_the_kl_axis(tables: Tables) -> None:
    axes = draw("fronts", tables).axes[0]
    np.testing.assert_array_equal(lines(axes, "SFT")["SFT"].get_xydata(), [[0, 0]])


def test_fronts_say_eta_beside_the_points_without_overlap(tables: Tables) -> None:
    figure = draw("fronts", tables)
    figure.draw_without_rendering()
    texts = figure.axes[0].texts
    assert {"0.3", "0.5", "1"} <= {text.get_text() for text in texts}
    boxes = [text.get_window_extent() for text in texts]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])


def test_error_bars_span_z_standard_errors(tables: Tables) -> None:
    def half_width(confidence: float) -> float:
        axes = draw("eta_sweep", tables, FigureStyle(confidence=confidence)).axes[0]
        segment = axes.containers[0][2][0].get_segments()[1]
        return (segment[1, 1] - segment[0, 1]) / 2

    assert half_width(0.95) == pytest.approx(1.959964 * 0.02)
    assert half_width(0.6826895) == pytest.approx(0.02)


def test_a_root_scale_makes_room_for_small_kls(tables: Tables) -> None:
    def share_of_axis(scale: str) -> float:
        """Where KL 1 lies between SFT and the right end."""
        axes = draw("fronts", tables, FigureStyle(kl_scale=scale)).axes[0]
        places = axes.transData.transform([(kl, 0) for kl in (0, 1, axes.get_xlim()[1])])[:, 0]
        assert axes.get_xlim()[0] < 0 < places[0]  # the star of SFT is whole
        return (places[1] - places[0]) / (places[2] - places[0])

    assert share_of_axis("sqrt") == pytest.approx(share_of_axis("linear") ** 0.5)


def test_a_far_run_does_not_squash_the_fronts(tables: Tables) -> None:
    far = tables["trajectories"].iloc[[-1]].assign(experiment="long_run", kl_exact=90.0)
    tables["trajectories"] = pd.concat([tables["trajectories"], far])
    axes = draw("fronts", tables).axes[0]
    assert axes.get_xlim()[1] < 20
    assert "90" in axes.get_xlabel()


def test_fronts_towards_init_are_hollow(tables: Tables) -> None:
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


def test_eta_sweep_draws_each_metric(tables: Tables) -> None:
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


def test_lambda_sweep_joins_ends_half_and_set_weights(tables: Tables) -> None:
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


def test_lambda_sweep_takes_the_sweep_of_another_setting_apart(tables: Tables) -> None:
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


def test_merge_methods_without_a_front_get_colours_of_their_own(tables: Tables) -> None:
    rows = tables["evaluations"]
    tables["evaluations"] = rows[~rows["experiment"].isin(["warp"]) | rows["member"].notna()]
    axes = draw("lambda_sweep", tables).axes[0]
    slerp, lerp = (container[0].get_color() for container in axes.containers)
    assert slerp != lerp


def test_geometry_draws_cosines_and_norm_ratios_per_group(tables: Tables) -> None:
    figure = draw("geometry", tables)
    rows = tables["geometry"].query("experiment == 'warp' and iteration == 2")
    ratio = rows["norm_b"] / rows["norm_a"]
    values = [rows["cosine_task_vectors"], rows["cosine_weights"], ratio]
    for axes, expected in zip(figure.axes, values, strict=True):
        drawn = lines(axes)
        assert set(drawn) == {"warp, iteration 1", "warp, iteration 2", "lerp, iteration 2"}
        np.testing.assert_allclose(heights(drawn["warp, iteration 2"]), expected)
        ticks = [text.get_text() for text in axes.get_xticklabels()]
        assert ticks == list(rows["group"])  # model order, not the alphabet
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()


def test_geometry_averages_over_pairs_and_survives_zero_norms(tables: Tables) -> None:
    table = tables["geometry"].query("experiment == 'warp' and iteration == 1")
    other = table.assign(member_b=2, cosine_task_vectors=0.0, norm_a=0.0)
    tables["geometry"] = pd.concat([table, other])
    cosine, _, ratio = draw("geometry", tables).axes
    np.testing.assert_allclose(
        heights(lines(cosine)["warp, iteration 1"]), table["cosine_task_vectors"] / 2
    )
    assert np.isfinite(heights(lines(ratio)["warp, iteration 1"])).all()


def test_geometry_leaves_out_an_experiment_only_if_all_its_pairs_are_known(
    tables: Tables,
) -> None:
    first = tables["geometry"].query("experiment == 'warp' and iteration == 1")
    new_pair = first.assign(member_b=2, cosine_task_vectors=0.0)
    fewer = first.assign(experiment="fewer", cosine_weights=0.999 + 1e-12)
    more = pd.concat([first, new_pair]).assign(experiment="more")
    tables["geometry"] = pd.concat([first, fewer, more])
    drawn = lines(draw("geometry", tables).axes[0])
    assert set(drawn) == {"warp, iteration 1", "more, iteration 1"}
    np.testing.assert_allclose(
        heights(drawn["more, iteration 1"]), first["cosine_task_vectors"] / 2
    )


def test_training_curves_draw_log_and_trajectories(tables: Tables) -> None:
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


def test_no_rows_give_a_sentence_that_names_the_setting(tables: Tables) -> None:
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


def test_fronts_of_one_table_alone(tables: Tables) -> None:
    for name, start in (("evaluations", "front"), ("trajectories", "trajectory")):
        emptied = {key: table if key == name else table.iloc[:0] for key, table in tables.items()}
        axes = draw("fronts", emptied).axes[0]
        assert any(label.startswith(start) for label in [*containers(axes), *lines(axes)])


def test_no_lambda_rows_give_a_sentence() -> None:
    [axes] = draw("lambda_sweep", make_tables(weights=())).axes
    assert "`merge_policies.weight`" in message_of(axes)


def test_training_curves_say_what_half_is_missing(tables: Tables) -> None:
    tables["trajectories"] = tables["trajectories"].iloc[:0]
    figure = draw("training_curves", tables)
    assert len(figure.axes) == 3
    assert "evaluated during training" in message_of(figure.axes[2])


def test_an_experiment_keeps_its_colour_across_figures(tables: Tables) -> None:
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
        looks = plotting.experiment_looks(rows, rows, palette)
        assert list(looks) == names
        assert len(set(looks.values())) == 20


def test_lambda_points_do_not_use_up_the_palette(tables: Tables) -> None:
    sweep_first = tables["evaluations"].iloc[::-1]
    looks = list(plotting.experiment_looks(sweep_first, sweep_first, "okabe_ito"))
    assert all("lambda" in name for name in looks[-4:])
    assert not any("lambda" in name for name in looks[:-4])


def test_the_default_palette_is_readable_on_white() -> None:
    colors = plotting.palette_colors(STYLE.palette, 5)
    assert len(colors) >= 7
    assert all(plotting.luminance(color) < 0.7 for color in colors)


def test_an_earlier_iteration_is_lighter() -> None:
    tones = [plotting.luminance(plotting.shade("#0072b2", i, 4)) for i in (1, 2, 3, 4)]
    assert tones == sorted(tones, reverse=True)
    assert plotting.shade("#0072b2", 4, 4) == plotting.shade("#0072b2", 1, 1) == "#0072b2"


@pytest.mark.parametrize("name", FIGURES)
def test_scripts_write_the_same_bytes_twice(name: str, tables: Tables, tmp_path: Path) -> None:
    folder = write_tables(tables, tmp_path / "tables")
    script = load_script(f"plot_{name}")
    written = []
    for run in ("a", "b"):
        script.main(["--tables", str(folder), "--out", str(tmp_path / run), "--dpi", "60"])
        assert sorted(p.name for p in (tmp_path / run).iterdir()) == [f"{name}.png", f"{name}.svg"]
        written.append(
            [(tmp_path / run / f"{name}.{kind}").read_bytes() for kind in ("png", "svg")]
        )
    assert written[0] == written[1]
    png, svg = written[0]
    assert png.startswith(b"\x89PNG") and b"Software" not in png
    assert b"<svg" in svg and str(tmp_path).encode() not in svg


def test_the_flags_reach_the_figure(tables: Tables, tmp_path: Path) -> None:
    folder = write_tables(tables, tmp_path / "tables")
    flags = {"width": "6", "height": "3", "dpi": "50", "palette": "viridis", "confidence": "0.9"}
    arguments = ["--tables", str(folder), "--out", str(tmp_path / "out")]
    for key, value in flags.items():
        arguments += [f"--{key}", value]
    load_script("plot_eta_sweep").main(arguments)
    header = (tmp_path / "out" / "eta_sweep.png").read_bytes()[16:24]
    width, height = (int.from_bytes(header[i : i + 4], "big") for i in (0, 4))
    assert width == 6 * 50
    assert 3 * 50 < height < 5 * 50  # the legend adds to the panels


def test_saving_replaces_a_read_only_file_by_rename(tables: Tables, tmp_path: Path) -> None:
    cached = tmp_path / "cached.png"
    cached.write_bytes(b"bytes of the cache")
    (tmp_path / "eta_sweep.png").hardlink_to(cached)
    cached.chmod(0o444)
    plotting.save_figure(draw("eta_sweep", tables), tmp_path, "eta_sweep")
    assert cached.read_bytes() == b"bytes of the cache"


def test_missing_tables_say_what_to_run(tables: Tables, tmp_path: Path) -> None:
    del tables["geometry"]
    folder = write_tables(tables, tmp_path / "tables")
    script = load_script("plot_geometry")
    with pytest.raises(ValueError, match=r"geometry\.csv.*snakemake.*dvc pull"):
        script.main(["--tables", str(folder), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_missing_columns_and_empty_files_name_the_file(tables: Tables, tmp_path: Path) -> None:
    tables["geometry"] = tables["geometry"].drop(columns="norm_a")
    folder = write_tables(tables, tmp_path / "tables")
    with pytest.raises(ValueError, match=r"geometry\.csv.*norm_a"):
        read_tables(folder, ["geometry"])
    (folder / "training.csv").write_text("")
    with pytest.raises(ValueError, match=r"training\.csv.*header"):
        read_tables(folder, ["training"])


def test_tables_that_hold_only_a_header_are_drawn_as_messages(tmp_path: Path) -> None:
    folder = tmp_path / "tables"
    folder.mkdir()
    for name, columns in TABLE_COLUMNS.items():
        (folder / f"{name}.csv").write_text(",".join(columns) + "\n")
    for name in FIGURES:
        arguments = ["--tables", str(folder), "--out", str(tmp_path / "out"), "--dpi", "40"]
        load_script(f"plot_{name}").main(arguments)
    assert len(list((tmp_path / "out").iterdir())) == 2 * len(FIGURES)


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


def lines_of(axes: Axes, prefix: str) -> list[Line2D]:
    labelled = [*axes.lines, *axes.containers]
    found = [item for item in labelled if str(item.get_label()).startswith(prefix)]
    return [item if isinstance(item, Line2D) else item.lines[0] for item in found]


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
