# Names, paths and small helpers that every rule uses.
#
# A heavy result is a folder RESULTS/<rule>/…/ with the bytes in checkpoint/ (or data/), what went in
# in provenance.json (made by the rule) and what came out in checkpoint.dvc (made by rule track). Rules
# take the .dvc pointer as their input: it is small text, so content decides what runs again.
# How a job runs and how DVC comes in: workflow/warpflow/pipeline/jobs.py.

import json
from pathlib import Path

import yaml

from snakemake.exceptions import WorkflowError

from warpflow.evaluation.lm_eval import benchmark_points
from warpflow.pipeline.code_files import code_files, flags
from warpflow.settings.compare_answers import JUDGE_TEMPLATE
from warpflow.side_by_side.settings import (
    OWN_REWARD_MODEL,
    policy_result,
    read_comparisons,
)
from warpflow.pipeline.config import ConfigError, check_config
from warpflow.pipeline.gpus import visible_gpus
from warpflow.pipeline.dvc_cache import remove_broken_lock, tracking_problem
from warpflow.pipeline.freshness import touch_changed_inputs
from warpflow.experiments import (
    MAIN,
    PLANNED,
    evaluations,
    make_plan,
    policy_settings,
    recipe_parents,
)
from warpflow.pipeline.slurm import Needs, login_node_warning, submission_problem

try:
    check_config(config)
except ConfigError as error:
    raise WorkflowError(str(error)) from None

RESULTS = config["results"]
LOGS = f"{RESULTS}/logs"
PLAN = make_plan(config)
COMPARISONS = read_comparisons(config)


wildcard_constraints:
    group=r"[\w-]+",
    experiment=r"[\w.-]+",
    replicate=r"\d+",
    iteration=r"\d+",
    member=r"\d+",
    towards="sft|init",
    eta=r"[\d.]+",
    made="checkpoint|data",
    comparison="|".join(COMPARISONS) or "none",
    contestant=r"[\w.-]+",
    judge=r"[\w.-]+",


def evaluation(result):
    """The evaluation of a policy, e.g. train_policy/warp/replicate1/iteration1/member0."""
    return f"{RESULTS}/evaluate_policy/{result}/evaluation.json"


def stage(w):
    """What the plan knows an iteration by."""
    return w.experiment, int(w.replicate), int(w.iteration)


def training(w):
    """Settings of section train_policy for the RL run with these wildcards."""
    return policy_settings(PLAN.experiments[w.experiment], int(w.iteration))


def pointer(result):
    """The DVC pointer of a result, e.g. train_policy/warp/replicate1/iteration1/member0."""
    made = "data" if result in ("generate_data", "prepare_data") else "checkpoint"
    return f"{RESULTS}/{result}/{made}.dvc"


def evaluated(w):
    """The policies that the experiments of a group evaluate."""
    return sorted({row["policy"] for row in evaluations(PLAN, w.group)})


def of_group(named, group):
    """Pointers of those results of the plan that experiments of a group use."""
    used = {result for (name, *_), result in named.items() if name in PLAN.groups[group]}
    return [pointer(result) for result in sorted(used)]


def plot_command(figure):
    """What draws a figure: its stage of dvc.yaml, which are of the main group, or its script."""
    return lambda w: (
        f"dvc repro plot_{figure}"
        if UNDER_DVC and w.group == MAIN
        else f"python scripts/plot_{figure}.py --tables {RESULTS}/collect_evaluations/{w.group} "
        f"--out {RESULTS}/figures/{w.group} {flags(config['figures'])}"
    )


def answers(w):
    """The contestants' files of answers, in the config's order."""
    comparison = COMPARISONS[w.comparison]
    return [
        comparison.stored.get(name, f"{RESULTS}/answer_prompts/{w.comparison}/{name}/answers.json")
        for name in comparison.contestants
    ]


def own_policy(w):
    """The run's result that a contestant is; None for another checkpoint."""
    given = COMPARISONS[w.comparison].contestants[w.contestant]
    return policy_result(PLAN, given["policy"]) if "policy" in given else None


def answering(w, input):
    """Who answers what, and how: flags of answer_prompts."""
    comparison = COMPARISONS[w.comparison]
    given = {
        "policy": input.policy or comparison.contestants[w.contestant].get("path"),
        "name": w.contestant,
        "prompts": comparison.prompts,
        "instructions": input.instructions or None,
        "data": input.data or None,
        "seed": config["seed"],
    }
    for key in ("max_prompt_tokens", "max_new_tokens", "temperature"):
        given[key] = getattr(comparison, key) or config["policy"][key]
    return flags(given) + (f" --parents {input.parents}" if input.parents else "")


def judge(w):
    """The config of a judge."""
    return COMPARISONS[w.comparison].judges[w.judge]


def judging(w, input):
    """Who judges what: flags of judge_answers."""
    comparison = COMPARISONS[w.comparison]
    return flags(
        {
            "judge": json.dumps(judge(w), sort_keys=True),
            "pairs": comparison.pairs,
            "prompts": comparison.prompts,
            "reward_model": input.reward_model or None,
            "sft": input.sft or None,
            "as_messages": True if comparison.stored else None,
        }
    )


SFT = pointer("train_sft")
DATA = pointer(config["data"])
GOLD = config["evaluate_policy"]["gold"]
REWARDS = {name: float(weight) for name, weight in config["rewards"].items() if weight}
# No reward model is trained where it has no weight.
REWARD_MODEL = pointer("train_reward_model") if "reward_model" in REWARDS else []
# Functions that the config names: their files are code of the jobs that call them.
SCORERS = [GOLD, *(name for name in REWARDS if name != "reward_model")]
# What training and evaluation have in common: how completions are sampled, and what scores them.
JUDGING = {
    "max_prompt_tokens": config["policy"]["max_prompt_tokens"],
    "max_new_tokens": config["policy"]["max_new_tokens"],
    "temperature": config["policy"]["temperature"],
    "rewards": json.dumps(REWARDS, sort_keys=True),
    "reward_model": REWARD_MODEL or None,
    "gold": GOLD,
}
# A figure that dvc.yaml would draw just so is drawn by it.
DEFAULTS = yaml.safe_load(Path("config/config.yaml").read_text())  # what dvc.yaml reads
UNDER_DVC = (
    RESULTS == "results" and config["figures"] == DEFAULTS["figures"] and not tracking_problem()
)

# Jobs that use a GPU where there is one; each holds its own (warpflow.pipeline.gpus), so that as many run
# at once as there are. On a cluster slurm/config.yaml says what a job asks for, and the login node's
# GPUs limit nothing.
GPUS = len(visible_gpus())
GPUS_OF_A_JOB = min(GPUS, 1)
# --jobs is given, beside an executor that submits.
IS_SUBMITTED = workflow.resource_settings.nodes is not None

if workflow.is_main_process:
    touch_changed_inputs()
    remove_broken_lock()
    if tracking_problem():
        logger.warning(f"Results are not tracked by DVC: {tracking_problem()}.")
    if not IS_SUBMITTED:
        workflow.register_resource("gpu", GPUS)
workflow.register_resource("dvc", 1)


def needs(job):
    """What a job asks of one node; what is not known yet counts as nothing."""
    asked = {name: job.resources.get(name) for name in ("mem_mb", "gpu", "nodes")}
    number = {name: value if isinstance(value, int) else 0 for name, value in asked.items()}
    return Needs(
        str(job.resources.get("slurm_partition", "")),
        job.threads,
        number["mem_mb"],
        -(-number["gpu"] // max(1, number["nodes"])),
    )


onstart:
    jobs = [job for job in workflow.dag.needrun_jobs() if not job.is_local]
    if workflow.executor_plugin.name == "slurm":
        if problem := submission_problem([(job.rule.name, needs(job)) for job in jobs]):
            raise WorkflowError(problem)
    elif workflow.executor_plugin.name == "local":
        if warning := login_node_warning({job.rule.name for job in jobs}):
            logger.warning(warning)
