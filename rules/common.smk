# This file has names, paths and small helpers that several rule files use. What only one of them
# uses is in that file.
#
# A heavy result is a folder RESULTS/<rule>/…/. It has the bytes in checkpoint/ (or data/, tables/),
# what went in in provenance.json (made by the rule) and what came out in checkpoint.dvc (made by
# rule track). Rules take the .dvc pointer as their input. It is small text, so content decides what
# runs again (docs/how_reruns_work.md). workflow/warpflow/pipeline/jobs.py runs a job.

import functools
import json
import shlex

from snakemake.exceptions import WorkflowError

from warpflow.experiments import MAIN, fronts, make_plan, recipe_parents
from warpflow.gold_names import (
    GOLD,
    GOLD_RESULT,
    gold_sources,
    held_out_shares,
    is_endpoint,
    is_function,
)
from warpflow.pipeline.code_files import code_hash
from warpflow.pipeline.command_line import flags
from warpflow.pipeline.config import ConfigError, check_config, check_config_files
from warpflow.pipeline.config_files import expand_paths
from warpflow.pipeline.dvc_cache import tracking_problem
from warpflow.pipeline.gpus import visible_gpus
from warpflow.reward_terms import endpoint_calls, gold_calls, reward_terms
from warpflow.side_by_side.settings import read_comparisons

try:
    check_config_files(workflow.configfiles)
    config.update(expand_paths(config))
    check_config(config)
except ConfigError as error:
    raise WorkflowError(str(error)) from None

RESULTS = config["results"]
LOGS = f"{RESULTS}/logs"
PLAN = make_plan(config)
code_hash = functools.cache(code_hash)  # no file changes while Snakemake runs
COMPARISONS = read_comparisons(config)


# This command runs another one once for each content of its inputs, and keeps its result.
JOB = shlex.join(["python", "-m", "warpflow.pipeline.jobs", "run", "--results", RESULTS])


def reading(*models):
    """Tell a job which of the user's models it reads, since their content is part of its key."""
    given = [model for model in models if model]
    return shlex.join(["--models", *given]) if given else ""


wildcard_constraints:
    group=r"[\w-]+",
    experiment=r"[\w.-]+",
    replicate=r"\d+",
    iteration=r"\d+",
    member=r"\d+",
    towards="sft|init",
    eta=r"[\d.]+",
    front=r"[\w./-]+",
    made="checkpoint|data|tables",
    comparison="|".join(COMPARISONS) or "none",
    contestant=r"[\w.-]+",
    judge=r"[\w.-]+",


def evaluation(result):
    """Return the evaluation of a policy, e.g. train_policy/warp/replicate1/iteration1/member0."""
    return f"{RESULTS}/evaluate_policy/{result}/evaluation.json"


# What each job evaluates, by its name, e.g. warp/replicate1/iteration1, and which job evaluates a
# policy.
FRONTS = fronts(PLAN, config["evaluate_policy"]["points_per_job"])
FRONT_OF = {result: front for front, results in FRONTS.items() for result in results}


def evaluations_index(front):
    """Return the file that names the evaluations of a front, each with the hash of its content."""
    return f"{RESULTS}/evaluate_front/{front}/evaluations.json"


def evaluations_of(results):
    """Return the indices that name the evaluations of these policies."""
    return sorted({evaluations_index(FRONT_OF[result]) for result in results})


def stage(w):
    """Return the plan's key of an iteration."""
    return w.experiment, int(w.replicate), int(w.iteration)


def pointer(result, made="checkpoint"):
    """Return the DVC pointer of a result, e.g. train_policy/warp/replicate1/iteration1/member0."""
    made = "data" if result in ("generate_data", "prepare_data") else made
    return f"{RESULTS}/{result}/{made}.dvc"


def trajectory(result):
    """Return the file of an iteration's scored trajectories."""
    return f"{RESULTS}/{result}/trajectories.json"


def of_group(named, group, made="checkpoint"):
    """Return the pointers of the plan's results that experiments of a group use."""
    used = {result for (name, *_), result in named.items() if name in PLAN.groups[group]}
    return [pointer(result, made) for result in sorted(used)]


# The policy from which all starts: a result of ours, or as the config names it, or None where it is
# built here.
FETCHED = pointer("fetch_policy") if config["policy"]["path"] == "fetch_policy" else []
GIVEN_POLICY = None if FETCHED else config["policy"]["path"]
POLICY = FETCHED or GIVEN_POLICY
SFT = pointer("train_sft")
DATA = pointer(config["data"])
# Gold rewards by column: functions, reward models, endpoints, and one that is trained here on a share
# of the preferences.
GOLDS = gold_sources(config["evaluate_policy"]["gold"])
GOLD_SHARE = next(iter(held_out_shares(config["evaluate_policy"]["gold"])), None)
GOLD_MODEL = pointer(GOLD_RESULT) if GOLD_SHARE else []
GIVEN_GOLDS = [
    name
    for name in GOLDS.values()
    if name != GOLD_RESULT and not (is_function(name) or is_endpoint(name))
]
REWARDS = reward_terms(config["rewards"])
# All policies are measured by these rewards. An RL run may be trained on others
# (rules/helpers/warp.smk). A reward model without a weight is not trained.
REWARD_MODEL = pointer("train_reward_model") if "reward_model" in REWARDS else []
# The files of functions that the config names are code of the jobs that call them. Training never
# sees gold.
REWARD_FUNCTIONS = [name for name in REWARDS if is_function(name)]
SCORERS = [*REWARD_FUNCTIONS, *filter(is_function, GOLDS.values())]
# These settings say how completions are sampled.
SAMPLING = {
    "max_prompt_tokens": config["policy"]["max_prompt_tokens"],
    "max_new_tokens": config["policy"]["max_new_tokens"],
    "temperature": config["policy"]["temperature"],
}
# These settings say what scores them where they are measured.
SCORING = {
    "rewards": json.dumps(REWARDS, sort_keys=True),
    "reward_model": REWARD_MODEL or None,
    "gold": [GOLD_MODEL if source == GOLD_RESULT else source for source in GOLDS.values()] or None,
    "gold_names": list(GOLDS) if GOLDS and list(GOLDS) != [GOLD] else None,
}


def calling(rewards, gold=None):
    """Return how the endpoints among these rewards and golds are called, which changes no
    result."""
    calls = endpoint_calls(rewards) | gold_calls(gold)
    return {"endpoints": json.dumps(calls, sort_keys=True)} if calls else {}


CALLING = calling(config["rewards"], config["evaluate_policy"]["gold"])


def look_of(figures):
    """Return section figures without what only the summary reads, so that a budget draws no figure
    anew."""
    return {name: value for name, value in figures.items() if name != "kl_budget"}


LOOK = look_of(config["figures"])

# A job that uses a GPU holds one by itself (warpflow.pipeline.gpus), so that as many run at once as
# there are GPUs.
GPUS = len(visible_gpus())
GPUS_OF_A_JOB = min(GPUS, 1)
