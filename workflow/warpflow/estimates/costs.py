"""What the run of a config takes: its jobs, their floating-point operations, and checkpoints.

A forward pass over N tokens costs 2 N operations for each weight, and its backward pass twice that.
The products inside attention are small at these lengths and left out. Every prompt and completion
is taken at its limit. So these are figures for planning. The run's own times replace them once
there are some.
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
    uses_reward_model,
    weights_of,
)
from warpflow.gold_names import GOLD_RESULT, held_out_shares
from warpflow.lm.models import load_config, load_tokenizer
from warpflow.settings.train_policy import BY_BITSANDBYTES
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
class Sampling:
    """What a job samples: its completion tokens, and the operations, those of the prompts
    included."""

    tokens: float = 0.0
    work: float = 0.0

    def __add__(self, other: Sampling) -> Sampling:
        return Sampling(self.tokens + other.tokens, self.work + other.work)


@dataclass(frozen=True)
class Job:
    """A heavy job of a run.

    Attributes:
        result: its name, as in the plan, which begins with the rule.
        work: its floating-point operations. None: the time goes into reading and writing.
        checkpoint: the bytes that stay.
        sampling: the part of `work` that samples.
    """

    result: str
    work: float | None = None
    checkpoint: int = 0
    sampling: Sampling = Sampling()

    @property
    def rule(self) -> str:
        return self.result.split("/")[0]


# --- the models of a config, without weights ---------------------------------------------------


def policy_config(config: Mapping[str, Any]) -> PreTrainedConfig:
    """Return the config of the user's policy, or of the architecture with its vocabulary.

    Raises:
        ValueError: the policy has not been fetched yet.
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
    """Whether a model is not there yet, and the config says how large it is."""
    return not Path(path).is_dir() and config["prepare_data"].get("vocab_size") is not None


def reward_config(config: Mapping[str, Any], policy: PreTrainedConfig) -> PreTrainedConfig | None:
    """Return the config of the user's reward model, or of one that is trained from the policy.
    Return None where it has no weight in any run."""
    if not uses_reward_model(config):
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
    """Estimate the memory of one RL run with the settings `training` of section train_policy, on
    each of the `shards` devices that FSDP shares it among."""
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
    """Return every job that trains, merges, interpolates or evaluates for a group of experiments.
    The main group also has the comparisons and benchmarks of the config."""
    policy = policy_config(config)
    size = count_parameters(AutoModelForCausalLM, policy)
    judge = count_parameters(AutoModelForSequenceClassification, reward_config(config, policy))
    prompt, new = config["policy"]["max_prompt_tokens"], config["policy"]["max_new_tokens"]
    tokens = prompt + new
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
            given = (config, members[name], iteration, size)
            work, sampling = training_work(*given, judge), training_sampling(*given)
            kept = 4 * size + optimizer_bytes_kept(members[name], size)
            jobs.append(Job(result, work, kept, sampling))
    jobs += [
        Job(result, None, 4 * size) for (name, *_), result in plan.merged.items() if name in members
    ]
    starts = {result for (name, *_), result in plan.init.items() if name in members}
    for (name, *_), result in plan.points.items():
        # Points that no iteration starts from are composed where they are evaluated.
        if name in members and (result in starts or point_of(plan, result) is None):
            jobs.append(Job(result, None, 4 * size))
    optimum = config["estimate_optimum"]
    drawn = optimum["prompts"] * optimum["samples_per_prompt"]
    sampling = sampling_of(drawn, size, prompt, new)
    work = 2.0 * drawn * tokens * (size + judge)
    jobs.append(Job("estimate_optimum", work, sampling=sampling))
    evaluated = completions_of(config["evaluate_policy"])
    for front, policies in fronts_of(config, plan, group).items():
        completions = evaluated * len(policies)
        work = evaluation_work(completions, size, judge, tokens)
        sampling = sampling_of(completions, size, prompt, new)
        jobs.append(Job(f"evaluate_front/{front}", work, sampling=sampling))
    jobs += [Job(result) for result in trajectories(plan, group)]
    if group == MAIN:
        jobs += [*comparison_jobs(config, size), *benchmark_jobs(config, plan)]
        jobs += recipe_jobs(config, plan)
    return list({job.result: job for job in jobs}.values())


def fronts_of(config: Mapping[str, Any], plan: Plan, group: str) -> dict[str, set[Weights]]:
    """Return the jobs that evaluate for a group, each with the policies that it computes. Policies
    with equal weights are computed once, and the SFT policy has its own job."""
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
    """Yield the jobs of answers and judgements. What a judge takes is not known beforehand."""
    for name, comparison in read_comparisons(config).items():
        prompts = count_prompts(config, comparison)
        prompt = comparison.max_prompt_tokens or config["policy"]["max_prompt_tokens"]
        new = comparison.max_new_tokens or config["policy"]["max_new_tokens"]
        sampling = sampling_of(prompts or 0, size, prompt, new)
        for contestant in comparison.sampled:
            result = f"answer_prompts/{name}/{contestant}"
            yield Job(result, sampling.work or None, sampling=sampling)
        for judge in comparison.judges:
            yield Job(f"judge_answers/{name}/{judge}")


def count_prompts(config: Mapping[str, Any], comparison: Comparison) -> int | None:
    """Return the largest number of prompts, or None where a file of stored answers decides it,
    which is not opened here."""
    held_out = None if comparison.stored else int(config[config["data"]]["eval_prompts"])
    return min((n for n in (comparison.prompts, held_out) if n), default=None)


def chat_requests(config: Mapping[str, Any]) -> dict[str, tuple[int, int | None]]:
    """Return for each chat judge, by comparison/judge, the requests for each prompt, without
    retries (every pair in both orders), and the number of prompts, as `count_prompts` does."""
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
    """Yield a job of lm-eval for each point. How long its tasks take is not known beforehand."""
    section = config["benchmark_policy"]
    for row in benchmark_points(plan, section) if section["tasks"] else []:
        yield Job(f"benchmark_policy/{row['policy']}")


def recipe_jobs(config: Mapping[str, Any], plan: Plan) -> list[Job]:
    """Return the LITI points that are written as recipes, since comparisons and benchmarks read
    folders."""
    section = config["benchmark_policy"]
    points = benchmark_points(plan, section) if section["tasks"] else []
    read = [row["policy"] for row in points]
    for comparison in read_comparisons(config).values():
        given = [contestant.get("policy") for contestant in comparison.contestants.values()]
        read += [policy_result(plan, policy) for policy in given if policy]
    return [Job(result) for result in read if recipe_parents(plan, result)]


def optimizer_bytes_kept(experiment: Experiment, size: int) -> int:
    """Return the bytes of Adam's moments in the checkpoint of an RL run, where the next iteration
    needs them."""
    training = experiment.train_policy
    each = 2 if training["optimizer"] in BY_BITSANDBYTES else 8
    return each * size if training["carry_optimizer"] else 0


def training_work(
    config: Mapping[str, Any], experiment: Experiment, iteration: int, size: int, judge: int
) -> float:
    """Return the operations of one RL run: sampling (a prompt once for its K completions), scores
    by anchor, policy and reward model, the backward pass, and the evaluations along the way."""
    training = policy_settings(experiment, iteration)
    prompt, new = config["policy"]["max_prompt_tokens"], config["policy"]["max_new_tokens"]
    # The policy's forward and backward pass. What is not kept in memory is computed again.
    passes = 3 + training["gradient_checkpointing"] + bool(training["micro_batch_size"])
    sampled = 2.0 * size * (prompt / training["samples_per_prompt"] + new)
    scored = 2.0 * (size * (1 + passes) + judge) * (prompt + new)
    return training["steps"] * training["batch_size"] * (sampled + scored) + (
        evaluation_work(completions_along(training), size, judge, prompt + new)
    )


def training_sampling(
    config: Mapping[str, Any], experiment: Experiment, iteration: int, size: int
) -> Sampling:
    """Return what an RL run samples, to train and to be evaluated along the way."""
    training = policy_settings(experiment, iteration)
    prompt, new = config["policy"]["max_prompt_tokens"], config["policy"]["max_new_tokens"]
    trained = training["steps"] * training["batch_size"]
    return sampling_of(trained, size, prompt / training["samples_per_prompt"], new) + (
        sampling_of(completions_along(training), size, prompt, new)
    )


def sampling_of(completions: float, size: int, prompt: float, new: int) -> Sampling:
    """Return the sampling of so many completions. `prompt` is the tokens read for each of them."""
    return Sampling(completions * new, 2.0 * size * completions * (prompt + new))


def completions_of(settings: Mapping[str, Any]) -> int:
    return settings["prompts"] * settings["samples_per_prompt"]


def completions_along(training: Mapping[str, Any]) -> int:
    """Count the completions of the evaluations during an RL run, with the one before the first
    step."""
    return (1 + training["steps"] // training["evaluate_every"]) * training["evaluate_prompts"]


def evaluation_work(completions: int, size: int, judge: int, tokens: int) -> float:
    """Return the operations of an evaluation: sampling, scores by policy and SFT policy, reward
    model."""
    return 2.0 * completions * tokens * (3 * size + judge)


# --- what the run itself has shown -------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """The seconds of a finished job, and its largest resident size in MB."""

    seconds: float
    megabytes: float


def measured(results: Path, job: Job) -> Measured | None:
    """Read a job's benchmark file. Return None without one, or where the result came from the
    cache."""
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
    """Whether a result is there. `snakemake -n` says whether it is up to date."""
    return (results / job.result / "provenance.json").is_file()


def seconds_of(
    job: Job,
    known: Mapping[Job, Measured],
    speed: float | None,
    sampling_speed: float | None = None,
) -> float | None:
    """Return how long a job takes: as long as it did; else as others of its rule did, by their
    work; else by `speed` in operations per second. Return None where nothing of this is known.

    Args:
        sampling_speed: completion tokens per second. The sampling takes as long as this says, and
            the rest as `speed` says.
    """
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
    if not job.work or not speed:
        return None
    if sampling_speed is None:
        return job.work / speed
    return job.sampling.tokens / sampling_speed + (job.work - job.sampling.work) / speed
