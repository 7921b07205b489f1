"""Print what memory the RL runs of a config take, before anything runs.

    python scripts/estimate_resources.py --configfile config/movie_sentences.yaml

Nothing is loaded but configs, so a 7 B policy is estimated on a laptop. docs/memory.md says what
the parts are and how near the estimate is.
Next in reading order: warpflow.memory.estimate_training.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from snakemake.utils import update_config
from transformers import AutoConfig, PreTrainedConfig

from warpflow.config import check_config
from warpflow.language import write_tokenizer
from warpflow.memory import Estimate, describe, estimate_training
from warpflow.models import load_config, load_tokenizer
from warpflow.plan import policy_settings, resolve_experiments
from warpflow.reinforce import ReinforceSettings


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configfile", nargs="*", default=[], help="laid over config/config.yaml")
    arguments = parser.parse_args(argv)
    config: dict[str, Any] = {}
    for path in ("config/config.yaml", *arguments.configfile):
        update_config(config, yaml.safe_load(Path(path).read_text()))
    check_config(config)
    seen: dict[str, list[str]] = {}
    for experiment in resolve_experiments(config).values():
        text = describe(estimate(config, policy_settings(experiment, 1)))
        seen.setdefault(text, []).append(experiment.name)
    for text, names in seen.items():
        print(f"train_policy of {', '.join(names)}\n{text}\n")


def estimate(config: Mapping[str, Any], training: Mapping[str, Any]) -> Estimate:
    """Of one run with the settings `training` of section train_policy."""
    policy = policy_config(config)
    known = {field.name for field in fields(ReinforceSettings)}
    given = {**config["policy"], **training}
    return estimate_training(
        policy,
        reward_config(config, policy),
        ReinforceSettings(**{key: value for key, value in given.items() if key in known}),
        prompt_tokens=config["policy"]["max_prompt_tokens"],
        evaluate_prompts=training["evaluate_prompts"],
        evaluate_batch_size=config["evaluate_policy"]["batch_size"],
    )


def policy_config(config: Mapping[str, Any]) -> PreTrainedConfig:
    """The user's policy's, or that of the architecture with its vocabulary."""
    if config["policy"]["path"]:
        return load_config(config["policy"]["path"])
    if config["data"] == "prepare_data":
        vocabulary = config["prepare_data"]["vocab_size"]
    else:
        with tempfile.TemporaryDirectory() as folder:
            write_tokenizer(Path(folder))
            vocabulary = len(load_tokenizer(folder))
    return AutoConfig.for_model(**config["policy"]["architecture"], vocab_size=vocabulary)


def reward_config(config: Mapping[str, Any], policy: PreTrainedConfig) -> PreTrainedConfig | None:
    """The user's reward model's, or that of one trained from the policy; None where it has no
    weight."""
    if not config["rewards"]["reward_model"]:
        return None
    if config["train_reward_model"]["path"]:
        return load_config(config["train_reward_model"]["path"])
    return AutoConfig.for_model(
        **{k: v for k, v in policy.to_dict().items() if k not in ("id2label", "label2id")},
        num_labels=1,
    )


if __name__ == "__main__":
    main()
