"""The model card of an exported point, by huggingface_hub.

The text is `card.md` beside this file, and this file fills it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment, StrictUndefined

from warpflow.data.hub import is_hub
from warpflow.eta_names import eta_text
from warpflow.experiments import Experiment, policy_settings, trained_rewards
from warpflow.gold_names import gold_columns, gold_sources, is_endpoint
from warpflow.reward_terms import reward_weights

TEMPLATE = Path(__file__).with_name("card.md")
QUANTITIES = {"reward": "reward", "kl_exact": "KL to SFT (nats)", "length": "length (tokens)"}


def card_data(base_model: str | None, license_name: str | None) -> ModelCardData:
    """Return the card's metadata, by which the hub finds a model and its parents.

    Args:
        base_model: the hub name of what the SFT policy was trained from; None: it has no parent
            there, and the hub's tree of models cannot show one.
    """
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["merge", "warp", "text-generation", "reinforcement-learning"],
        license=license_name,
        base_model=base_model,
        base_model_relation="merge" if base_model else None,
    )


def model_card(data: ModelCardData, texts: Mapping[str, Any]) -> ModelCard:
    """Return the card. `texts` has all that `card.md` names."""
    page = Environment(  # ModelCard.from_template would leave a blank line for each block
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    ).from_string(TEMPLATE.read_text(encoding="utf-8"))
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{page.render(**texts)}")


def number_rows(metrics: Mapping[str, Any], sft: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return reward, gold rewards, KL and length of the point and of SFT, each as `value ±
    error`."""
    names = ["reward", *gold_columns(metrics), "kl_exact", "length"]
    return [
        {
            "name": QUANTITIES.get(name, name),
            "value": value_text(metrics, name),
            "sft": value_text(sft, name),
        }
        for name in names
        if metrics.get(name) is not None
    ]


def sft_metrics(evaluations: pd.DataFrame, replicate: int) -> dict[str, Any]:
    """Return SFT's values on the same prompts, at η = 0 of a front towards it, or nothing without
    one."""
    rows = evaluations[(evaluations["towards"] == "sft") & (evaluations["eta"] == 0)]
    rows = rows[rows["replicate"] == replicate]
    return {} if rows.empty else {str(k): v for k, v in rows.iloc[0].items()}


def value_text(metrics: Mapping[str, Any], name: str) -> str:
    """Write ``1.234 ± 0.012``, or a dash without a value."""
    value, error = metrics.get(name), metrics.get(f"{name}_se")
    if value is None or pd.isna(value):
        return "–"
    return f"{value:.4g}" + ("" if error is None or pd.isna(error) else f" ± {error:.2g}")


def front_rows(evaluations: pd.DataFrame, chosen: str) -> list[dict[str, str]]:
    """Return the points of the front that a result is on, by η, or none where it is on no front."""
    points = evaluations[evaluations["stage"] == "interpolate_policy"]
    own = points[points["policy"] == chosen]
    if own.empty:
        return []
    for name in ("experiment", "replicate", "iteration", "towards"):
        points = points[points[name] == own[name].iloc[0]]
    return [
        {
            "eta": eta_text(row["eta"]),
            "reward": value_text({str(k): v for k, v in row.items()}, "reward"),
            "kl": value_text({str(k): v for k, v in row.items()}, "kl_exact"),
            "mark": "**this one**" if row["policy"] == chosen else "",
        }
        for row in points.sort_values("eta").to_dict("records")
    ]


# ----------------------------------------------------------------- what the config says, in words


def data_text(config: Mapping[str, Any]) -> str:
    """Say where prompts and texts came from. A file is named without its folder, and a dataset of
    the hub as in the config."""
    if config["data"] == "generate_data":
        return "the synthetic language that the project generates; the model speaks no other"
    section = config["prepare_data"]
    names = {
        name.removesuffix("_path"): path if is_hub(path) else Path(path).name
        for name in ("sft_path", "preferences_path", "prompts_path")
        if (path := section.get(name))
    }
    return ", ".join(f"{use} from `{name}`" for use, name in names.items()) or "none"


def rewards_text(config: Mapping[str, Any], experiment: Experiment) -> str:
    """Return the terms of the reward on which the runs were trained, with their weights, for each
    member where these differ."""
    rewards = trained_rewards(experiment) or [config["rewards"]]
    texts = [
        " + ".join(f"{w:g} × {reward_name(n, config)}" for n, w in reward_weights(given).items())
        for given in rewards
    ]
    if len(set(texts)) == 1:
        return texts[0]
    return "; ".join(f"member {number}: {text}" for number, text in enumerate(texts))


def reward_name(name: str, config: Mapping[str, Any]) -> str:
    if name != "reward_model":
        return f"`{name}`"
    path = config["train_reward_model"]["path"]
    if path is None:
        return "a reward model that was trained on the preferences"
    return f"the reward model `{path if not Path(path).exists() else Path(path).name}`"


def gold_text(config: Mapping[str, Any]) -> str:
    """Say what measured the gold rewards; an endpoint is given by its name, not its address."""
    sources = gold_sources(config["evaluate_policy"]["gold"])
    return ", ".join(gold_name(column, source) for column, source in sources.items()) or "none"


def gold_name(column: str, source: str) -> str:
    if is_endpoint(source):
        return f"`{column}`, which was served elsewhere"
    return f"`{source if not Path(source).exists() else Path(source).name}`"


def hyperparameters(config: Mapping[str, Any], experiment: Experiment, iteration: int) -> str:
    """Return the settings of training, merge and interpolation as YAML."""
    settings = {
        "iterations": experiment.iterations,
        "members": experiment.members,
        "train_policy": policy_settings(experiment, iteration),
        "merge_policies": experiment.merge_policies,
        "interpolate_policy": {
            name: experiment.interpolate_policy[name] for name in ("towards", "next_eta")
        },
        "train_sft": config["train_sft"],
        "policy": {
            name: config["policy"][name]
            for name in ("max_prompt_tokens", "max_new_tokens", "temperature")
        },
        "seed": config["seed"],
    }
    plain = json.loads(json.dumps(settings))  # without aliases, which YAML would write
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True).strip()


def hub_parent(policy_path: str | None) -> str | None:
    """Return the hub name in `policy.path`, or None for a folder, a file or a policy that is built
    here."""
    if policy_path is None or Path(policy_path).exists() or policy_path.endswith(".gguf"):
        return None
    return policy_path if policy_path.count("/") == 1 else None


def commands_text(point: str, configfiles: Sequence[str]) -> str:
    """Return the commands that make the point again, from the project's root."""
    files = f" --configfile {' '.join(configfiles)}" if configfiles else ""
    return "\n".join(
        [
            f"snakemake --cores all{files}",
            f"python scripts/export_point.py {point}{files} --out FOLDER",
        ]
    )
