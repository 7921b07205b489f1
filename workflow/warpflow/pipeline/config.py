"""Checks of the configuration, before any job starts."""

from __future__ import annotations

import difflib
import importlib.metadata
import importlib.util
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from packaging.version import Version

from warpflow.data.dataset_formats import COLUMN_KEYS, columns_of, named_columns
from warpflow.data.files import read_label, require_columns
from warpflow.data.hub import hub_problem, is_hub
from warpflow.data.sources import iterate_rows
from warpflow.evaluation.benchmark_points import check_benchmarks
from warpflow.experiments import (
    BASE,
    Experiment,
    experiment_groups,
    make_plan,
    resolve_experiments,
    trained_rewards,
    uses_reward_model,
)
from warpflow.gold_names import gold_sources, held_out_shares, is_endpoint, is_function
from warpflow.pipeline.architectures import (
    architecture_classes,
    architecture_problems,
    architectures_of_vllm,
    kernels_versions,
)
from warpflow.pipeline.code_files import module_file
from warpflow.pipeline.config_files import repeated_keys
from warpflow.pipeline.given_models import (
    GivenModel,
    given_models,
    model_problems,
    read_model_config,
)
from warpflow.pipeline.wrong_values import missing_keys, wrong_values
from warpflow.reward_terms import reward_weights
from warpflow.settings.base import described
from warpflow.settings.config import Config
from warpflow.settings.fetch_policy import FetchPolicy
from warpflow.settings.figures import Figures
from warpflow.settings.rewards import KNOWN
from warpflow.settings.train_policy import (
    BY_BITSANDBYTES,
    FLASH_PACKAGES,
    INSTALL_BITSANDBYTES,
    INSTALL_VLLM,
    LOWEST_OF_VLLM,
)
from warpflow.side_by_side.settings import check_comparison, read_comparisons
from warpflow.weight_files import GGUF_MISSING, is_gguf, reads_gguf


class ConfigError(ValueError):
    """What is wrong with the config. A message says the key, what came, what was expected and what
    to do."""


def check_config(config: Mapping[str, Any], files: bool = True) -> None:
    """Raise one ConfigError with every problem of the config. Nothing is changed or started.

    Args:
        files: whether to look at the files that the config names, too.
    """
    problems = sorted([*wrong_values(config), *missing_keys(config, Config())])
    if not problems:  # the cross-checks need correct types
        problems = list(cross_check(config, files))
    if not problems and files:  # and these need the plan of the run
        problems = list(check_measurements(config))
    if problems:
        raise ConfigError(
            "\n".join(["The configuration is wrong; nothing was started.", *problems])
        )


def check_config_files(paths: Iterable[str | Path]) -> None:
    """Raise one ConfigError with every key that a config file has twice."""
    problems = [problem for path in paths for problem in repeated_keys(path)]
    if problems:
        raise ConfigError(
            "\n".join(["The configuration is wrong; nothing was started.", *problems])
        )


def cross_check(config: Mapping[str, Any], files: bool) -> Iterator[str]:
    """Yield problems between keys, and files that are not there."""
    yield from check_paths(config)
    yield from check_palette(config["figures"]["palette"])
    if config["policy"]["path"] is None:
        yield from architecture_problems(config["policy"]["architecture"])
    yield from check_held_out(config)
    yield from check_reward_names(config["rewards"])
    if files:
        yield from check_policy(config)
        yield from check_fetched(config)
        yield from check_rewards(config)
        yield from check_installed(config)
        yield from check_vllm(config)
        yield from check_trackers(config["report_to"])
        if config["data"] == "prepare_data":
            yield from check_files(config)
    yield from check_groups(config)
    optimum = config["estimate_optimum"]
    if optimum["samples_per_prompt"] < 2 * optimum["min_ess"]:
        yield (
            f"- estimate_optimum.samples_per_prompt: {optimum['samples_per_prompt']} samples leave "
            f"no part of the front with min_ess = {optimum['min_ess']} effective ones: expected at "
            "least twice as many samples; raise it, or lower min_ess"
        )


def check_paths(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield paths that Snakemake would not take as they are."""
    results = Path(config["results"])
    if results.is_absolute() and results.is_relative_to(Path.cwd()):
        inside = results.relative_to(Path.cwd())
        yield f"- results: {results} lies in the project: write it from there, as {inside}"
    section = config["prepare_data"]
    paths = {f"prepare_data.{key}": section.get(key) for key in section if key.endswith("_path")}
    paths |= {
        "results": config["results"],
        "policy.path": config["policy"]["path"],
        "train_reward_model.path": config["train_reward_model"]["path"],
        "benchmark_policy.task_folder": config["benchmark_policy"]["task_folder"],
        "fetch_policy.requirements": config["fetch_policy"].get("requirements"),
        **{key: name for key, name in golds_by_key(config).items() if not is_endpoint(name)},
    }
    for key, path in paths.items():
        if path and (problem := path_problem(path)):
            yield f"- {key}: got {path!r}, {problem}"


def path_problem(path: str) -> str | None:
    """Say what `config_files.expand_paths` could not replace in a path."""
    variable = re.search(r"\$\{?(\w+)", path)
    if path.startswith("~") and not Path(path).exists():
        return "but there is no user of this name with a home: write the whole path"
    if variable and not Path(path).exists():
        return f"but the environment has no variable {variable[1]}: set it, or write the whole path"
    if set(path) & set("{}\n"):
        return (
            "expected a path without braces and line breaks, which Snakemake would take for its "
            "own: rename the file or folder"
        )
    return None


def check_palette(palette: str) -> Iterator[str]:
    """Check whether matplotlib knows the palette. The import takes a while, and the default needs
    none."""
    if palette == Figures().palette:
        return
    from matplotlib import colormaps

    if palette not in colormaps:
        near = difflib.get_close_matches(palette, list(colormaps), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "okabe_ito or viridis, say"
        yield f"- figures.palette: got {palette!r}, expected a matplotlib colour map; {hint}"


def check_trackers(names: Iterable[str]) -> Iterator[str]:
    """Yield the trackers whose packages are not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            package = "mlflow-skinny" if name == "mlflow" else name
            yield f"- report_to: {name} is not installed: `pip install {package}`, or leave it out"


def check_held_out(config: Mapping[str, Any]) -> Iterator[str]:
    """Check whether enough is held out: prompts for what is measured on them, and pairs for the
    reward."""
    along_runs = config["train_policy"]["evaluate_prompts"]
    asked = {
        "evaluate_policy.prompts": config["evaluate_policy"]["prompts"],
        "estimate_optimum.prompts": config["estimate_optimum"]["prompts"],
        "train_policy.evaluate_prompts": along_runs,
    }
    for name, experiment in resolve_experiments(config).items():
        if experiment.train_policy["evaluate_prompts"] != along_runs:
            own = experiment.train_policy["evaluate_prompts"]
            asked[f"{name}: train_policy.evaluate_prompts"] = own
    yield from too_few_prompts(asked, config)
    pairs = config[config["data"]].get("preference_pairs")
    if pairs is not None:
        yield from too_few_pairs(pairs, config)


def too_few_prompts(asked: Mapping[str, int], config: Mapping[str, Any]) -> Iterator[str]:
    """Yield keys that ask for more prompts than are held out. They would silently get fewer."""
    held_out = config[config["data"]].get("eval_prompts")
    for key, count in asked.items():
        if held_out is not None and count > held_out:
            yield (
                f"- {key}: got {count}, expected at most the {held_out} prompts that are held out "
                f"({config['data']}.eval_prompts): lower it, or hold out more"
            )


def too_few_pairs(pairs: int, config: Mapping[str, Any]) -> Iterator[str]:
    """Check whether pairs are left to train each reward model on, besides the held-out ones."""
    held_out, needed = config["train_reward_model"]["held_out"], held_out_pairs(config)
    if needed is None or pairs > needed:
        return
    shares = smallest_share(config)
    of_share = f", of which {shares:g} are for one reward model" if shares < 1 else ""
    both = " in each share (held_out_preferences in evaluate_policy.gold)" if shares < 1 else ""
    yield (
        f"- train_reward_model.held_out: got {held_out}{both}, but there are only {pairs} "
        f"preference pairs{of_share}, so that nothing is left to train on: lower it, or give more "
        "pairs"
    )


def held_out_pairs(config: Mapping[str, Any]) -> int | None:
    """Return the number that the preference pairs must exceed, so that each reward model that is
    trained here has some to learn from beside those for its accuracy. Return None where none is
    trained."""
    if smallest_share(config) == 0:
        return None
    return math.ceil(config["train_reward_model"]["held_out"] / smallest_share(config))


def smallest_share(config: Mapping[str, Any]) -> float:
    """Return the smallest share of the preferences that one reward model is trained on, or 0 where
    none is."""
    for_gold = sum(held_out_shares(config["evaluate_policy"]["gold"]))
    shares = [for_gold] if for_gold else []
    return min([*shares, *([1 - for_gold] if trains_reward_model(config) else [])], default=0)


def trains_reward_model(config: Mapping[str, Any]) -> bool:
    return uses_reward_model(config) and config["train_reward_model"]["path"] is None


def check_measurements(config: Mapping[str, Any]) -> Iterator[str]:
    """Check what is measured beside the run: answers side by side, and benchmarks."""
    plan = make_plan(config)
    for name, comparison in read_comparisons(config).items():
        yield from check_comparison(f"compare_answers.{name}", comparison, plan)
        if not comparison.stored and comparison.prompts:
            asked = {f"compare_answers.{name}.prompts": comparison.prompts}
            yield from too_few_prompts(asked, config)
        for judge, given in comparison.judges.items():
            problem = function_problem(given["function"]) if "function" in given else None
            if problem:
                yield f"- compare_answers.{name}.judges.{judge}: {problem}"
    yield from check_benchmarks(plan, config["benchmark_policy"])


def check_policy(config: Mapping[str, Any]) -> Iterator[str]:
    policy = config["policy"]
    needed = policy["max_prompt_tokens"] + policy["max_new_tokens"]
    context = policy["architecture"].get("max_position_embeddings")
    if policy["path"] is None and context is not None and needed > context:
        yield (
            f"- policy: max_prompt_tokens + max_new_tokens = {needed} exceed the context of "
            f"architecture.max_position_embeddings = {context}: lower those or raise this"
        )
    if policy["path"] is None and config["train_sft"]["steps"] == 0:
        yield "- train_sft.steps: got 0, expected 1 or more, since policy.path is null"
    objected = list(model_problems(config))
    yield from objected
    for model in given_models(config):
        if not any(problem.startswith(f"- {model.key}:") for problem in objected):
            yield from check_model_folder(model, needed)


def check_fetched(config: Mapping[str, Any]) -> Iterator[str]:
    """Check whether a policy to fetch is named, and can be read once it is here."""
    if config["policy"]["path"] != "fetch_policy":
        return
    section = config.get("fetch_policy", {})
    for key in described(FetchPolicy):
        if section.get(key) is None:
            yield f"- fetch_policy.{key}: missing, since policy.path is fetch_policy"
    requirements, file = section.get("requirements"), section.get("file")
    if requirements and not Path(requirements).is_file():
        yield f"- fetch_policy.requirements: {requirements} is not a file"
    if file and not is_gguf(file):
        yield f"- fetch_policy.file: got {file}, expected a file in GGUF (….gguf)"
    elif file and not reads_gguf():
        yield f"- fetch_policy.file: {file}: {GGUF_MISSING}"


def check_model_folder(model: GivenModel, needed: int) -> Iterator[str]:
    """Check whether a plain model is there and suits the run. The header of a GGUF file has been
    read.

    Args:
        needed: the largest number of tokens of a prompt and its completion.
    """
    path = model.path
    if is_gguf(path):
        return
    # A hub name is owner/name. Anything that looks like a path must be there.
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1
    if (looks_local or Path(path).is_dir()) and not Path(path, "config.json").is_file():
        yield f"- {model.key}: no config.json in {path}: expected a Hugging Face model folder"
    elif model.is_reward:
        yield from check_labels(model)
    elif model.key == "policy.path":
        yield from check_context(model, needed)


def check_context(model: GivenModel, needed: int) -> Iterator[str]:
    """Check whether the user's own policy can hold a prompt and its completion."""
    given = read_model_config(model.folder)
    context = given.get("max_position_embeddings", given.get("n_positions"))
    if context is not None and needed > context:
        yield (
            f"- policy: max_prompt_tokens + max_new_tokens = {needed} exceed the context of "
            f"{model.path} (max_position_embeddings = {context} in its config.json): lower them"
        )


def check_labels(model: GivenModel) -> Iterator[str]:
    """Check whether the user's own reward model gives one number."""
    given = read_model_config(model.folder)
    labels = len(given.get("id2label", (0, 1)))  # a config does not write two labels
    if given and labels != 1:
        yield (
            f"- {model.key}: {model.path} has {labels} labels in its config.json, expected 1 "
            "(num_labels=1): a reward is one number"
        )


def check_reward_names(rewards: Mapping[str, Any], where: str = "rewards") -> Iterator[str]:
    """Check whether the reward model and functions have a weight, and endpoints an address."""
    for name, given in rewards.items():
        has_weight = name == "reward_model" or is_function(name)
        if has_weight and isinstance(given, Mapping):
            yield f"- {where}.{name}: got {given}, expected a weight; an endpoint has another name"
        elif not has_weight and not isinstance(given, Mapping):
            yield (
                f"- {where}.{name}: unknown key; {KNOWN}; or write {name}: "
                f"{{url: http://…, weight: {given}}} for an endpoint (docs/your_rewards.md)"
            )


def check_rewards(config: Mapping[str, Any]) -> Iterator[str]:
    """Check whether anything is rewarded, and whether the functions that the config names are
    there."""
    weights = reward_weights(config["rewards"])
    if not weights:
        yield "- rewards: every weight is 0: nothing would be learned; give one another weight"
    functions = {f"rewards.{name}": name for name in weights if is_function(name)}
    problems: dict[str, None] = {}  # members with one reward have the same problems
    for where, given in rewards_of_runs(config):
        if not given and weights:
            problems[
                f"- {where}: every weight is 0: nothing would be learned; give one another weight"
            ] = None
        changed = {n: value for n, value in given.items() if config["rewards"].get(n) != value}
        problems |= dict.fromkeys(check_reward_names(changed, where))
        for name in given:
            if is_function(name) and name not in weights:
                functions[f"{where}.{name}"] = name
    yield from problems
    for key, name in functions.items() | golds_by_key(config).items():
        problem = function_problem(name) if is_function(name) else None
        if problem:
            yield f"- {key}: {problem}"
    shares = held_out_shares(config["evaluate_policy"]["gold"])
    if len(shares) > 1:
        yield (
            f"- evaluate_policy.gold: got {len(shares)} golds with held_out_preferences, expected "
            "at most one: there is one share that training never sees"
        )


def check_installed(config: Mapping[str, Any]) -> Iterator[str]:
    """Check whether packages that only some settings need are installed."""
    for name, experiment in resolve_experiments(config).items():
        where = "" if name == BASE else f"{name}: "
        attention = experiment.train_policy["attn_implementation"]
        package = FLASH_PACKAGES.get(attention)
        if package and importlib.util.find_spec(package) is None:
            yield (
                f"- {where}train_policy.attn_implementation: got {attention}, which needs the "
                f"package {package}, and that is not installed: install it as the page of "
                "flash-attn says, or set it to sdpa, which uses torch's own such kernel where "
                "there is one"
            )
        if experiment.train_policy["use_kernels"] and (problem := kernels_problem()):
            yield f"- {where}train_policy.use_kernels: got true, {problem}, or set it to false"
        optimizer = experiment.train_policy["optimizer"]
        if optimizer in BY_BITSANDBYTES and importlib.util.find_spec("bitsandbytes") is None:
            yield (
                f"- {where}train_policy.optimizer: got {optimizer}, which needs the package "
                f"bitsandbytes, and that is not installed: `{INSTALL_BITSANDBYTES}`, or set it to "
                f"{optimizer.removesuffix('_8bit')}"
            )
        sampler = experiment.train_policy["sampler"]
        if sampler == "vllm" and importlib.util.find_spec("vllm") is None:
            yield (
                f"- {where}train_policy.sampler: got vllm, which needs the package vllm, and that "
                f"is not installed: `{INSTALL_VLLM}` makes an environment that has it, to start "
                "from (docs/vllm.md); or set it to own"
            )


def kernels_problem() -> str | None:
    """Say why transformers cannot use the package kernels, and how to install it. Return None where
    it can, as far as its files tell which versions it takes."""
    versions = kernels_versions()
    if importlib.util.find_spec("kernels") is None:
        found = "that is not installed"
    else:
        version = importlib.metadata.version("kernels")
        if versions is None or Version(versions[0]) <= Version(version) < Version(versions[1]):
            return None
        found = f"{version} is installed"
    wanted = f"{versions[0]} or later, below {versions[1]}, " if versions else ""
    pinned = f"kernels=={versions[0]}" if versions else "kernels"
    return f"which needs the package kernels, {wanted}and {found}: `pip install {pinned}`"


def check_vllm(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield why vLLM cannot sample with the policy, where a run asks for it. The files of an
    installed vLLM tell which architectures it has."""
    asking = [
        name
        for name, experiment in resolve_experiments(config).items()
        if experiment.train_policy["sampler"] == "vllm"
    ]
    if not asking:
        return
    where = "" if BASE in asking else f"{asking[0]}: "
    temperature = config["policy"]["temperature"]
    if temperature < LOWEST_OF_VLLM:
        yield (
            f"- policy.temperature: got {temperature:g}, but vLLM samples at {LOWEST_OF_VLLM} or "
            f"more ({where}train_policy.sampler): raise it, or set sampler to own"
        )
    names = policy_classes(config)
    known = architectures_of_vllm()
    if names and known and not set(names) & known:
        yield (
            f"- {where}train_policy.sampler: got vllm, but the installed vLLM has no architecture "
            f"{names[0]}, the policy's: set it to own, or take another policy"
        )


def policy_classes(config: Mapping[str, Any]) -> list[str]:
    """Return the names of the policy's class in transformers, as far as files tell."""
    if config["policy"]["path"] is None:
        return architecture_classes(config["policy"]["architecture"])
    if any(problem.startswith("- policy.path:") for problem in model_problems(config)):
        return []  # which is said already
    policy = next((model for model in given_models(config) if model.key == "policy.path"), None)
    if policy is None or is_gguf(policy.path):
        return []
    return list(read_model_config(policy.folder).get("architectures", []))


def rewards_of_runs(config: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield where in the config a run's reward is, and its terms. Runs whose weights are all 0 are
    left out."""
    for experiment in resolve_experiments(config).values():
        where = "" if experiment.name == BASE else f"{experiment.name}: "
        members = experiment.member_rewards
        if members and len(members) != experiment.members:
            continue  # check_experiment says so
        for member, given in enumerate(trained_rewards(experiment)):
            yield f"{where}member_rewards.{member}" if members else f"{where}rewards", given


def golds_by_key(config: Mapping[str, Any]) -> dict[str, str]:
    """Return what scores each gold reward (`gold_names.gold_sources`), by its key in the config."""
    sources = gold_sources(config["evaluate_policy"]["gold"])
    return {f"evaluate_policy.{column}": source for column, source in sources.items()}


def function_problem(name: str) -> str | None:
    """Say why ``package.module:function`` cannot be called, as far as files show without running
    them."""
    module, _, function = name.partition(":")
    path = module_file(module)
    if path is not None:
        is_there = re.search(rf"\b{function}\b", path.read_text(encoding="utf-8"))
        return None if is_there else f"{path} has no function {function}"
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        return (
            f"no module {module}: expected {module.replace('.', '/')}.py in this folder, or an "
            "installed package"
        )
    return None


def check_groups(config: Mapping[str, Any]) -> Iterator[str]:
    """Check each experiment, and compare it with the others of its group and of other groups."""
    given: dict[str, tuple[str, Any]] = {}
    for group, named in experiment_groups(config).items():
        for name, difference in named.items():
            other, first = given.setdefault(name, (group, difference))
            if first != difference:
                yield (
                    f"- ablations.{group}.{name}: differs from the experiment of that name in "
                    f"{other}: give one of them another name"
                )
    experiments = resolve_experiments(config)
    for experiment in experiments.values():
        yield from check_experiment(experiment)
        for member, other in enumerate(experiment.policies_of):
            found = experiments.get(other)
            if found is None or found.policies_of or found.members <= member:
                yield (
                    f"- {experiment.name}.policies_of: got {other} in place {member + 1}, expected "
                    f"an experiment of at least {member + 1} members of its own; there are "
                    f"{', '.join(n for n, e in experiments.items() if e.members > member)}"
                )
        if experiment.policies_of and (
            experiment.iterations != 1 or experiment.members != len(experiment.policies_of)
        ):
            yield (
                f"- {experiment.name}: policies_of merges {len(experiment.policies_of)} policies "
                "of iteration 1: leave out iterations and members"
            )


def check_experiment(experiment: Experiment) -> Iterator[str]:
    where = "" if experiment.name == "warp" else f"{experiment.name}: "
    rl, merging = experiment.train_policy, experiment.merge_policies
    if rl["batch_size"] % rl["samples_per_prompt"]:
        yield (
            f"- {where}train_policy.batch_size: got {rl['batch_size']}, expected a multiple of "
            f"samples_per_prompt = {rl['samples_per_prompt']}"
        )
    if rl["baseline"] == "rloo" and rl["samples_per_prompt"] < 2:
        yield f"- {where}train_policy.samples_per_prompt: got 1, baseline rloo needs 2 or more"
    if rl["anchor_memory"] == "bfloat16" and rl["compute_dtype"] != "bfloat16":
        yield (
            f"- {where}train_policy.anchor_memory: bfloat16 needs compute_dtype bfloat16, got "
            f"{rl['compute_dtype']}: policy and anchor would be scored in different precision"
        )
    if rl["attn_implementation"] in FLASH_PACKAGES and rl["compute_dtype"] != "bfloat16":
        yield (
            f"- {where}train_policy.attn_implementation: {rl['attn_implementation']} computes "
            f"only in bfloat16, got compute_dtype {rl['compute_dtype']}: set that to bfloat16, or "
            "this to sdpa"
        )
    if rl["kl_estimator"] == "exact" and rl["anchor_memory"] == "host":
        yield (
            f"- {where}train_policy.kl_estimator: exact needs the anchor's output layer during the "
            "backward pass, but anchor_memory is host: set that to device or bfloat16, or this to "
            "k1"
        )
    own = experiment.member_rewards
    if own and len(own) != experiment.members:
        yield (
            f"- {where}member_rewards: got {len(own)} entries, expected one for each of members = "
            f"{experiment.members}, or none: {{}} is a member that changes nothing"
        )
    if rl["anchor_every"] > 1 and rl["anchor"] != "ema":
        yield (
            f"- {where}train_policy.anchor_every: got {rl['anchor_every']}, but anchor "
            f"{rl['anchor']} is not moved by mu: set it to 1, or anchor to ema (anchors with "
            "resets have reset_every)"
        )
    if rl["reset_optimizer"] and not rl["anchor"].endswith("_reset"):
        yield (
            f"- {where}train_policy.reset_optimizer: got true, but anchor {rl['anchor']} is never "
            "reset: set it to false, or anchor to hard_reset or elastic_reset"
        )
    if rl["carry_optimizer"] and rl["lora_rank"]:
        yield (
            f"- {where}train_policy.carry_optimizer: got true, but each run has a LoRA of its own "
            f"(lora_rank = {rl['lora_rank']}), and the next run cannot use its optimiser: set "
            "it to false, or lora_rank to null"
        )
    if rl["sampler"] == "vllm" and rl["lora_rank"]:
        yield (
            f"- {where}train_policy.sampler: got vllm, which takes over whole weights, but "
            f"lora_rank = {rl['lora_rank']}: set it to own, or lora_rank to null"
        )
    if rl["weight_decay"] and not rl["optimizer"].startswith("adamw"):
        yield (
            f"- {where}train_policy.weight_decay: got {rl['weight_decay']:g}, but optimizer "
            f"{rl['optimizer']} decays no weights: set it to 0, or optimizer to adamw"
        )
    if rl["anchor"] == "elastic_reset" and rl["lora_rank"]:
        yield (
            f"- {where}train_policy.anchor: elastic_reset sets the policy's weights, which "
            f"lora_rank = {rl['lora_rank']} freezes: set lora_rank to null"
        )
    if merging["weight"] is not None and experiment.members != 2:
        yield (
            f"- {where}merge_policies.weight: λ = {merging['weight']} is for two policies, but "
            f"members = {experiment.members}: set members to 2 or weight to null"
        )
    if merging["method"] == "ties" and merging["vectors"] != "task_vectors":
        yield (
            f"- {where}merge_policies.vectors: got {merging['vectors']}, but method ties trims "
            "task vectors: set vectors to task_vectors"
        )
    if merging.get("density") is not None and merging["method"] != "ties":
        yield (
            f"- {where}merge_policies.density: got {merging['density']}, but method "
            f"{merging['method']} keeps all weights: set density to null or method to ties"
        )


def needed_file_keys(config: Mapping[str, Any]) -> list[str]:
    """Return the keys of `prepare_data` that later stages read. A stage that is left out needs no
    file."""
    keys = ["prompts_path", "eval_prompts"]
    if config["train_sft"]["steps"]:
        keys += ["sft_path"]
    if held_out_pairs(config) is not None:
        keys += ["preferences_path"]
    texts = [config["prepare_data"].get(key) for key in ("sft_path", "preferences_path")]
    return [*keys, "max_text_tokens"] if any(texts) else keys


def check_files(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield missing keys and files of the user's data, and columns absent from their first row. For
    a dataset of the hub the first job, `prepare_data`, reports the rest."""
    section, policy_path = config["prepare_data"], config["policy"]["path"]
    missing = [key for key in needed_file_keys(config) if section.get(key) is None]
    yield from (f"- prepare_data.{key}: missing; see config/README.md" for key in missing)
    if policy_path is None and section.get("vocab_size") is None:
        yield "- prepare_data.vocab_size: missing; policy.path is null, so a tokenizer is trained"
    if section.get("sft_prompt") is not None and section.get("sft_completion") is None:
        yield "- prepare_data.sft_completion: missing, since sft_prompt is set"
    pairs = [section.get("preferences_chosen"), section.get("preferences_rejected")]
    labelled = [section.get("preferences_text"), section.get("preferences_label")]
    is_named = named_columns(section, "preferences")
    if (
        section.get("preferences_path") is not None
        and is_named
        and (None in pairs) == (None in labelled)
    ):
        yield (
            "- prepare_data: give either preferences_chosen and preferences_rejected, or "
            "preferences_text and preferences_label"
        )
    for kind in COLUMN_KEYS:
        path = section.get(f"{kind}_path")
        if path is None:
            continue
        if is_hub(path):
            if problem := hub_problem(path):
                yield f"- prepare_data.{kind}_path: {problem}"
            continue
        if not Path(path).is_file():
            columns = named_columns(section, kind)
            yield (
                f"- prepare_data.{kind}_path: {path} is not a file (from {Path.cwd().name}/): "
                "bring it there (the head of one of our configs says where its files come "
                "from), or name another one: JSON lines, a JSON list or CSV, plain or .gz, or "
                "Parquet, or a dataset of the hub (hub:org/name), with "
                f"the columns {', '.join(columns.values()) or 'that the other keys name'}"
            )
            continue
        problems = list(check_columns(path, section, kind, policy_path))
        if not problems and kind == "preferences" and held_out_pairs(config) is not None:
            problems = list(check_pairs(config, path))
        yield from problems


def check_pairs(config: Mapping[str, Any], path: str) -> Iterator[str]:
    """Check whether a file of preferences has more pairs than are held out. It reads only as many
    rows as that takes. `prepare_data` checks those rows, and counts again what is left of them."""
    label = config["prepare_data"].get("preferences_label")
    rows = (row for row in iterate_rows(path) if label is None or read_label(row[label], path))
    try:
        pairs = sum(1 for _ in islice(rows, (held_out_pairs(config) or 0) + 1))
    except ValueError as error:
        yield f"- {error}"
    else:
        yield from too_few_pairs(pairs, config)


def check_columns(
    path: str, section: Mapping[str, Any], kind: str, policy_path: str | None
) -> Iterator[str]:
    """Check whether a file has a row, that row has the columns, and there is a chat template where
    a column holds messages. `prepare_data` checks the other rows."""
    try:
        first = next(iterate_rows(path), None)
        if first is None:
            yield f"- {path}: the dataset is empty; expected at least one row"
            return
        for key, column in columns_of(section, kind, first, path).items():
            if column is None:
                continue
            require_columns([first], [column], path, f"prepare_data.{key}")
            if isinstance(first[column], list) and lacks_template(policy_path):
                yield (
                    f"- prepare_data.{key}: column {column!r} of {path} holds a list, messages as "
                    "it seems, but there is no chat template for them: policy.path is "
                    f"{policy_path or 'null, and a tokenizer trained here has none'}; set it to a "
                    "model whose tokenizer has one, or give text"
                )
    except (ValueError, ModuleNotFoundError) as error:
        yield f"- {error}"


def lacks_template(policy_path: str | None) -> bool:
    """Whether files show that the policy's tokenizer has no chat template."""
    if policy_path is None:
        return True
    folder = Path(policy_path)
    settings = folder / "tokenizer_config.json"
    return folder.is_dir() and not (
        (folder / "chat_template.jinja").is_file()
        or (
            settings.is_file()
            and "chat_template" in json.loads(settings.read_text(encoding="utf-8"))
        )
    )
