"""What the run of a config takes: its jobs, their work in floating-point operations, checkpoints.

A pass over N tokens costs 2 N operations for each weight, its backward pass twice that. Attention's
own products, short at these lengths, are left out; every prompt and completion is at its limit. So
these are figures for planning, to be replaced by the run's own times once there are some.
"""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
)

from warpflow.data.toy_reviews import write_tokenizer
from warpflow.estimates.memory import Estimate, estimate_training
from warpflow.evaluation.benchmark_points import benchmark_points
from warpflow.experiments import (
    MAIN,
    SFT,
    Experiment,
    Plan,
    Weights,
    evaluations,
    fronts,
    point_of,
    policy_settings,
    recipe_parents,
    trajectories,
    weights_of,
)
from warpflow.gold_names import GOLD_RESULT, held_out_shares
from warpflow.lm.models import load_config, load_tokenizer
from warpflow.side_by_side.answers import list_pairs
from warpflow.side_by_side.settings import Comparison, policy_result, read_comparisons
from warpflow.training.reinforce import ReinforceSettings

TRAINS = ("train_sft", "train_reward_model", GOLD_RESULT, "train_policy")
USES_GPU = (
    *(*TRAINS, "evaluate_front", "score_trajectories", "estimate_optimum"),
    *("answer_prompts", "benchmark_policy"),
)


FETCHED = "fetch_policy"


@dataclass(frozen=True)
class Job:
    """A heavy job of a run.

    Attributes:
        result: its name, as in the plan; rule first.
        work: floating-point operations; None where the time goes into reading and writing.
        checkpoint: bytes that stay.
    """

    result: str
    work: float | None = None
    checkpoint: int = 0

    @property
    def rule(self) -> str:
        return self.result.split("/")[0]


# --- the models of a config, without weights ---------------------------------------------------


def policy_config(config: Mapping[str, Any]) -> PreTrainedConfig:
    """The user's policy's, or that of the architecture with its vocabulary.

    Raises:
        ValueError: the policy is yet to be fetched.
    """
    if config["policy"]["path"] == FETCHED:
        fetched = Path(config["results"], FETCHED, "checkpoint")
        if not fetched.is_dir():
            raise ValueError(
                f"policy.path is {FETCHED}, and {fetched} is not there yet: fetch it first, with "
                f"`snakemake --cores 1 {fetched}.dvc` and this config"
            )
        return load_config(fetched)
    if config["policy"]["path"] and not is_placeholder(config, config["policy"]["path"]):
        return load_config(config["policy"]["path"])
    if config["data"] == "prepare_data":
        vocabulary = config["prepare_data"]["vocab_size"]
    else:
        with tempfile.TemporaryDirectory() as folder:
            write_tokenizer(Path(folder))
            vocabulary = len(load_tokenizer(folder))
    return AutoConfig.for_model(**config["policy"]["architecture"], vocab_size=vocabulary)


def is_placeholder(config: Mapping[str, Any], path: str) -> bool:
    """Whether a model is yet to come, and the config says instead how large it is."""
    return not Path(path).is_dir() and config["prepare_data"].get("vocab_size") is not None


def reward_config(config: Mapping[str, Any], policy: PreTrainedConfig) -> PreTrainedConfig | None:
    """The user's reward model's, or that of one trained from the policy; None where it has no
    weight."""
    if not config["rewards"]["reward_model"]:
        return None
    path = config["train_reward_model"]["path"]
    if path and not is_placeholder(config, path):
        return load_config(path)
    return AutoConfig.for_model(
        **{k: v for k, v in policy.to_dict().items() if k not in ("id2label", "label2id")},
        num_labels=1,
    )


def count_parameters(family: Any, config: PreTrainedConfig | None) -> int:
    if config is None:
        return 0
    with torch.device("meta"):
        model = family.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


def estimate_memory(
    config: Mapping[str, Any], training: Mapping[str, Any], shards: int = 1
) -> Estimate:
    """Of one RL run with the settings `training` of section train_policy, on each of the `shards`
    devices that FSDP shares it among."""
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
        shards=shards,
    )


# --- the jobs of a group -----------------------------------------------------------------------


def jobs_of(config: Mapping[str, Any], plan: Plan, group: str) -> list[Job]:
    """Every job that trains, merges, interpolates or evaluates for a group of experiments; with the
    main group, comparisons and benchmarks of the config."""
    policy = policy_config(config)
    size = count_parameters(AutoModelForCausalLM, policy)
    judge = count_parameters(AutoModelForSequenceClassification, reward_config(config, policy))
    tokens = config["policy"]["max_prompt_tokens"] + config["policy"]["max_new_tokens"]
    sft, reward = config["train_sft"], config["train_reward_model"]
    fetched = [Job(FETCHED, None, 4 * size)] if config["policy"]["path"] == FETCHED else []
    jobs = [
        *fetched,
        Job(config["data"]),
        Job(SFT, 6.0 * size * sft["steps"] * sft["batch_size"] * tokens, 4 * size),
    ]
    if judge:
        steps = 0 if reward["path"] else reward["steps"]
        work = 6.0 * judge * steps * 2 * reward["batch_size"] * tokens  # pairs
        jobs.append(Job("train_reward_model", work, 4 * judge))
    if held_out_shares(config["evaluate_policy"]["gold"]):
        work = 6.0 * size * reward["steps"] * 2 * reward["batch_size"] * tokens
        jobs.append(Job(GOLD_RESULT, work, 4 * size))
    members = {name: plan.experiments[name] for name in plan.groups[group]}
    for (name, *_, iteration, _), result in plan.policies.items():
        if name in members:
            work = training_work(config, members[name], iteration, size, judge)
            jobs.append(Job(result, work, 4 * size))
    jobs += [
        Job(result, None, 4 * size) for (name, *_), result in plan.merged.items() if name in members
    ]
    starts = {result for (name, *_), result in plan.init.items() if name in members}
    for (name, *_), result in plan.points.items():
        # Points that no iteration starts from are composed where they are evaluated.
        if name in members and (result in starts or point_of(plan, result) is None):
            jobs.append(Job(result, None, 4 * size))
    drawn = config["estimate_optimum"]["prompts"] * config["estimate_optimum"]["samples_per_prompt"]
    jobs.append(Job("estimate_optimum", 2.0 * drawn * tokens * (size + judge)))
    each = evaluation_work(config["evaluate_policy"], size, judge, tokens)
    for front, policies in fronts_of(config, plan, group).items():
        jobs.append(Job(f"evaluate_front/{front}", each * len(policies)))
    jobs += [Job(result) for result in trajectories(plan, group)]
    if group == MAIN:
        jobs += [*comparison_jobs(config, size), *benchmark_jobs(config, plan)]
        jobs += recipe_jobs(config, plan)
    return list({job.result: job for job in jobs}.values())


def fronts_of(config: Mapping[str, Any], plan: Plan, group: str) -> dict[str, set[Weights]]:
    """The jobs that evaluate for a group, each with the policies that it computes: those of equal
    weights once, and the SFT policy in its own job."""
    evaluated = {row["policy"] for row in evaluations(plan, group)}
    used = {
        front: {weights_of(plan, result) for result in results}
        for front, results in fronts(plan, config["evaluate_policy"]["points_per_job"]).items()
        if not evaluated.isdisjoint(results)
    }
    alone = {Weights(SFT)}
    if any(alone <= found for found in used.values()):
        used = {SFT: alone} | {front: found - alone for front, found in used.items()}
    return used


def comparison_jobs(config: Mapping[str, Any], size: int) -> Iterator[Job]:
    """Answers of policies, and judgements; what a judge takes is not known beforehand."""
    for name, comparison in read_comparisons(config).items():
        prompts = count_prompts(config, comparison)
        tokens = (comparison.max_prompt_tokens or config["policy"]["max_prompt_tokens"]) + (
            comparison.max_new_tokens or config["policy"]["max_new_tokens"]
        )
        work = 2.0 * size * tokens * prompts if prompts else None
        for contestant in comparison.sampled:
            yield Job(f"answer_prompts/{name}/{contestant}", work)
        for judge in comparison.judges:
            yield Job(f"judge_answers/{name}/{judge}")


def count_prompts(config: Mapping[str, Any], comparison: Comparison) -> int | None:
    """At most; None where a file of stored answers says, which is not opened."""
    held_out = None if comparison.stored else int(config[config["data"]]["eval_prompts"])
    return min((n for n in (comparison.prompts, held_out) if n), default=None)


def chat_requests(config: Mapping[str, Any]) -> dict[str, tuple[int, int | None]]:
    """Of each chat judge, by comparison/judge: requests for each prompt, without retries (every
    pair in both orders), and the prompts, as `count_prompts`."""
    return {
        f"{name}/{judge}": (
            2 * len(list_pairs(list(comparison.contestants), comparison.pairs)),
            count_prompts(config, comparison),
        )
        for name, comparison in read_comparisons(config).items()
        for judge, settings in comparison.judges.items()
        if "chat" in settings
    }


def benchmark_jobs(config: Mapping[str, Any], plan: Plan) -> Iterator[Job]:
    """Of lm-eval, a job for each point; how long its tasks take is not known beforehand."""
    section = config["benchmark_policy"]
    for row in benchmark_points(plan, section) if section["tasks"] else []:
        yield Job(f"benchmark_policy/{row['policy']}")


def recipe_jobs(config: Mapping[str, Any], plan: Plan) -> list[Job]:
    """LITI points that are written as recipes, since comparisons and benchmarks read folders."""
    section = config["benchmark_policy"]
    points = benchmark_points(plan, section) if section["tasks"] else []
    read = [row["policy"] for row in points]
    for comparison in read_comparisons(config).values():
        given = [contestant.get("policy") for contestant in comparison.contestants.values()]
        read += [policy_result(plan, policy) for policy in given if policy]
    return [Job(result) for result in read if recipe_parents(plan, result)]


def training_work(
    config: Mapping[str, Any], experiment: Experiment, iteration: int, size: int, judge: int
) -> float:
    """Operations of one RL run: sampling (a prompt once for its K completions), scores by anchor,
    policy and reward model, backward pass, and the evaluations along the way."""
    training = policy_settings(experiment, iteration)
    prompt, new = config["policy"]["max_prompt_tokens"], config["policy"]["max_new_tokens"]
    # Forward and backward by the policy; what memory is saved is computed again.
    passes = 3 + training["gradient_checkpointing"] + bool(training["micro_batch_size"])
    sampled = 2.0 * size * (prompt / training["samples_per_prompt"] + new)
    scored = 2.0 * (size * (1 + passes) + judge) * (prompt + new)
    measured = 1 + training["steps"] // training["evaluate_every"]
    along = {"prompts": training["evaluate_prompts"], "samples_per_prompt": 1}
    return training["steps"] * training["batch_size"] * (sampled + scored) + (
        measured * evaluation_work(along, size, judge, prompt + new)
    )


def evaluation_work(settings: Mapping[str, Any], size: int, judge: int, tokens: int) -> float:
    """Operations of one evaluation: sampling, scores by policy and SFT policy, reward model."""
    completions = settings["prompts"] * settings["samples_per_prompt"]
    return 2.0 * completions * tokens * (3 * size + judge)


# --- what the run itself has shown -------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """Of a finished job: seconds, and the largest resident size in MB."""

    seconds: float
    megabytes: float


def measured(results: Path, job: Job) -> Measured | None:
    """From the job's benchmark file; None without one, or where the result came from the cache."""
    path, made = results / "logs" / f"{job.result}.tsv", results / job.result / "provenance.json"
    if (
        not path.is_file()
        or not made.is_file()
        or "restored" in json.loads(made.read_text(encoding="utf-8"))
    ):
        return None
    row = next(csv.DictReader(path.open(encoding="utf-8"), delimiter="\t"))
    return Measured(float(row["s"]), float(row["max_rss"]) if row["max_rss"] != "-" else 0.0)


def is_made(results: Path, job: Job) -> bool:
    """Whether a result is there; whether it is up to date is for `snakemake -n` to say."""
    return (results / job.result / "provenance.json").is_file()


def seconds_of(job: Job, known: Mapping[Job, Measured], speed: float | None) -> float | None:
    """How long a job takes: as it did; else as others of its rule did, by their work; else by
    `speed` in operations per second; None where nothing tells."""
    if job in known:
        return known[job].seconds
    alike = [other for other in known if other.rule == job.rule]
    if alike and job.work:
        pace = sum(known[j].seconds for j in alike) / sum(j.work or 0.0 for j in alike)
        return pace * job.work
    if alike:
        return sum(known[j].seconds for j in alike) / len(alike)
    if job.work == 0:
        return 0.0
    return job.work / speed if job.work and speed else None
