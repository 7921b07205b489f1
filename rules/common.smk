# Names, paths and small helpers that every rule uses.
#
# A heavy result is a folder RESULTS/<rule>/…/ with the bytes in checkpoint/ (or data/), what went in
# in provenance.json (made by the rule) and what came out in checkpoint.dvc (made by rule track). Rules
# take the .dvc pointer as their input: it is small text, so content decides what runs again.
# How a job runs and how DVC comes in: workflow/warpflow/jobs.py.

from snakemake.exceptions import WorkflowError

from warpflow.commands import code_files, flags
from warpflow.config import ConfigError, check_config
from warpflow.freshness import touch_changed_inputs
from warpflow.jobs import visible_gpus
from warpflow.dvc_cache import tracking_problem
from warpflow.plan import VARIABLE, evaluations, make_plan, policy_settings, recipe_parents

try:
    check_config(config)
except ConfigError as error:
    raise WorkflowError(str(error)) from None

RESULTS = config["results"]
LOGS = f"{RESULTS}/logs"
PLAN = make_plan(config)


wildcard_constraints:
    experiment=r"[\w.-]+",
    iteration=r"\d+",
    member=r"\d+",
    towards="sft|init",
    eta=r"[\d.]+",
    made="checkpoint|data",


def evaluation(result):
    """The evaluation of a policy, e.g. of train_policy/warp/iteration1/member0."""
    return f"{RESULTS}/evaluate_policy/{result}/evaluation.json"


def pointer(result):
    """The DVC pointer of a result, e.g. of train_policy/warp/iteration1/member0."""
    made = "data" if result in ("generate_data", "prepare_data") else "checkpoint"
    return f"{RESULTS}/{result}/{made}.dvc"


SFT = pointer("train_sft")
REWARD_MODEL = pointer("train_reward_model")
DATA = pointer(config["data"])
# Settings that sampling has in common wherever it happens.
SAMPLING = {
    key: config["policy"][key] for key in ("max_prompt_tokens", "max_new_tokens", "temperature")
}
# Jobs that use a GPU where there is one; one at a time, since they would share its memory.
TRAINING_GPUS = min(len(visible_gpus()), 1)

if workflow.is_main_process:
    touch_changed_inputs()
    if tracking_problem():
        logger.warning(f"Results are not tracked by DVC: {tracking_problem()}.")
workflow.register_resource("dvc", 1)
workflow.register_resource("gpu", TRAINING_GPUS)
