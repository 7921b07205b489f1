# Names, paths and small helpers that every rule uses.
#
# A heavy result is a folder RESULTS/<rule>/…/ with the bytes in checkpoint/ (or data/), what went in
# in provenance.json (made by the rule) and what came out in checkpoint.dvc (made by rule track). Rules
# take the .dvc pointer as their input: it is small text, so content decides what runs again.
# How a job runs and how DVC comes in: workflow/warpflow/jobs.py.
import ast
import re
import shlex
import subprocess
from pathlib import Path

from snakemake.exceptions import WorkflowError

from warpflow.config import ConfigError, check_config
from warpflow.freshness import touch_changed_inputs
from warpflow.dvc_cache import tracking_problem
from warpflow.plan import evaluations, make_plan, policy_settings

try:
    check_config(config)
except ConfigError as error:
    raise WorkflowError(str(error)) from None

RESULTS = config["results"]
LOGS = f"{RESULTS}/logs"
PLAN = make_plan(config)


wildcard_constraints:
    results=re.escape(RESULTS),
    experiment=r"[\w.-]+",
    iteration=r"\d+",
    member=r"\d+",
    towards="sft|init",
    eta=r"[\d.]+",
    made="checkpoint|data",


def pointer(result):
    """The DVC pointer of a result, e.g. of train_policy/warp/iteration1/member0."""
    made = "data" if result in ("generate_data", "prepare_data") else "checkpoint"
    return f"{RESULTS}/{result}/{made}.dvc"


def code(script):
    """The script of a rule and the library modules it imports, directly or not: editing one of
    them re-runs the rule, editing any other does not."""
    files, pending = [], [Path("scripts", f"{script}.py")]
    if script in ("train_policy", "evaluate_policy"):
        pending += function_files(config["evaluate_policy"]["gold"])
    while pending:
        path = pending.pop()
        if str(path) in files:
            continue
        files.append(str(path))
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("warpflow."):
                name = node.module.removeprefix("warpflow.")
                pending.append(Path("workflow", "warpflow", f"{name}.py"))
    return sorted(files)


def function_files(name):
    """The file of a function that the config names as package.module:function, where it is ours or
    lies in this folder."""
    path = Path((name or "").partition(":")[0].replace(".", "/") + ".py")
    return [file for file in (path, Path("workflow") / path) if file.is_file()]


def flags(settings):
    """Settings as a command line: {"beta": 0.1} → --beta 0.1. Null settings are left out."""
    return shlex.join(
        text
        for key, value in settings.items()
        if value is not None
        for text in (f"--{key}", str(value))
    )


# The wrapper of every heavy job's command; {output.provenance} is written last.
RUN = "python -m warpflow.jobs run --inputs {input} --makes "


def visible_gpus():
    """How many GPUs this machine shows."""
    listing = subprocess.run("nvidia-smi -L || true", shell=True, capture_output=True, text=True)
    return sum(line.startswith("GPU ") for line in listing.stdout.splitlines())


SFT = pointer("train_sft")
REWARD_MODEL = pointer("train_reward_model")
DATA = pointer(config["data"])
# Settings that sampling has in common wherever it happens.
SAMPLING = {
    key: config["policy"][key] for key in ("max_prompt_tokens", "max_new_tokens", "temperature")
}
# Jobs that use a GPU where there is one; one at a time, since they would share its memory.
TRAINING_GPUS = min(visible_gpus(), 1)

if workflow.is_main_process:
    touch_changed_inputs()
    if tracking_problem():
        logger.warning(f"Results are not tracked by DVC: {tracking_problem()}.")
workflow.register_resource("dvc", 1)
workflow.register_resource("gpu", TRAINING_GPUS)
