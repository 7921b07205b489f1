"""Print how much memory the RL runs of a config take, before anything runs.

    python scripts/estimate_resources.py --configfile config/movie_sentences.yaml

Only configs are loaded, so a 7 B policy can be estimated on a laptop. docs/memory.md explains the
parts and says how near the estimate is. Next in reading order:
warpflow.estimates.memory.estimate_training.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

import yaml

from warpflow.estimates.costs import estimate_memory
from warpflow.estimates.memory import describe
from warpflow.experiments import policy_settings, resolve_experiments
from warpflow.pipeline.config import check_config
from warpflow.pipeline.config_files import read_config


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configfile", nargs="*", default=[], help="laid over config/config.yaml")
    parser.add_argument(
        "--shards", type=int, default=1, help="GPUs of a run, among which FSDP shares it"
    )
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="of section train_policy, to try"
    )
    arguments = parser.parse_args(argv)
    config = read_config(("config/config.yaml", *arguments.configfile))
    tried = (pair.partition("=") for pair in arguments.set)
    config["train_policy"] |= {key: yaml.safe_load(value) for key, _, value in tried}
    check_config(config, files=False)  # nothing is loaded, so files may come later
    # Few experiments differ in what takes memory, and each estimate goes through a whole step.
    texts: dict[str, str] = {}
    seen: dict[str, list[str]] = {}
    for experiment in resolve_experiments(config).values():
        chosen = policy_settings(experiment, 1)
        same = json.dumps(chosen, sort_keys=True)
        if same not in texts:
            texts[same] = describe(estimate_memory(config, chosen, arguments.shards))
        seen.setdefault(texts[same], []).append(experiment.name)
    for text, names in seen.items():
        print(f"train_policy of {', '.join(names)}\n{text}\n")


if __name__ == "__main__":
    main()
