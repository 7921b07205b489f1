"""A report shows no figure that has nothing to draw."""

from pathlib import Path

import yaml

from warpflow.experiments import make_plan
from warpflow.figures.available import CONDITIONS, available_figures
from warpflow.pipeline.config_files import read_config

ROOT = Path(__file__).parents[2]
ALL = ["fronts", *CONDITIONS]


def figures(group: str = "main", **changes: object) -> list[str]:
    config = read_config([ROOT / "config/config.yaml", ROOT / "config/ablations.yaml"])
    return available_figures(make_plan(config | changes), group, ALL)


def test_the_default_run_has_all_but_the_averages() -> None:
    assert figures() == ["fronts", "eta_sweep", "lambda_sweep", "geometry", "envelopes"]


def test_a_group_that_measures_averages_has_their_figure() -> None:
    groups = yaml.safe_load((ROOT / "config/ablations.yaml").read_text())["ablations"]
    [group] = [name for name, found in groups.items() if "averages_of_one_run" in (found or {})]
    assert "averages" in figures(group)


def test_one_run_at_one_eta_has_a_front_alone() -> None:
    config = read_config([ROOT / "config/config.yaml"])
    point = config["interpolate_policy"] | {"etas": [1]}
    assert figures(experiments={}, ablations={}, members=1, interpolate_policy=point) == ["fronts"]
