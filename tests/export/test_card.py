"""What a model card says of data and rewards, from the config."""

from pathlib import Path
from typing import Any

from warpflow.experiments import resolve_experiments
from warpflow.export.card import data_text, gold_text, rewards_text
from warpflow.pipeline.config_files import DEFAULTS, read_config

ROOT = Path(__file__).parents[2]
MODEL = "a reward model that was trained on the preferences"


def config(**changes: Any) -> dict[str, Any]:
    return read_config([ROOT / name for name in DEFAULTS]) | {"experiments": {}} | changes


def text(given: dict[str, Any], name: str = "warp") -> str:
    return rewards_text(given, resolve_experiments(given)[name])


def test_the_weight_of_an_endpoint_is_told_as_those_of_others() -> None:
    served = {"url": "http://judge:1", "weight": 0.5}
    given = config(rewards={"reward_model": 1.0, "judge": served, "mine:off": 0})
    assert text(given) == f"1 × {MODEL} + 0.5 × `judge`"


def test_rewards_are_those_that_the_experiment_was_trained_on() -> None:
    other = {"rewards": {"reward_model": 0, "mine:short": 2.0}}
    soup = {"members": 2, "member_rewards": [{}, {"mine:short": 1.0}]}
    given = config(experiments={"other": other, "soup": soup})
    assert text(given, "other") == "2 × `mine:short`"
    assert text(given, "soup") == f"member 0: 1 × {MODEL}; member 1: 1 × {MODEL} + 1 × `mine:short`"


def test_a_file_is_told_by_its_name_and_a_dataset_of_the_hub_as_it_is() -> None:
    paths = {"sft_path": "my/folder/a.jsonl", "prompts_path": "hub:org/name?split=test"}
    given = config(data="prepare_data", prepare_data=paths)
    assert data_text(given) == "sft from `a.jsonl`, prompts from `hub:org/name?split=test`"


def test_golds_are_told_without_the_address_of_an_endpoint() -> None:
    golds = {"f": "mine:short", "judge": {"url": "http://inner:1/score"}}
    given = config()
    told = given | {"evaluate_policy": given["evaluate_policy"] | {"gold": golds}}
    assert gold_text(told) == "`mine:short`, `gold.judge`, which was served elsewhere"
