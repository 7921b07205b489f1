# This file has all that happens when Snakemake starts and that reads or changes more than the
# rules' own files. Every job of a cluster reads the rules too, but only the main process does these
# things.

import gc

from snakemake.io import apply_wildcards

from warpflow.pipeline.dvc_cache import remove_broken_lock
from warpflow.pipeline.freshness import Records, results_without_records
from warpflow.pipeline.slurm import Needs, login_node_warning, step_warning, submission_problem
from warpflow.pipeline.user import provide_user

RECORDS = Records(results=Path(RESULTS))
# --jobs is given, and an executor that submits.
IS_SUBMITTED = workflow.resource_settings.nodes is not None

PROVIDED = provide_user()  # for the jobs of this process, on a node too

if workflow.is_main_process:
    for line in PROVIDED:
        logger.warning(line)
    remove_broken_lock()
    if tracking_problem(RESULTS):
        logger.warning(f"Results are not tracked by DVC: {tracking_problem(RESULTS)}.")
    if problem := RECORDS.problem or results_without_records(RESULTS, RECORDS):
        raise WorkflowError(problem)
    # The login node's GPUs limit nothing, as slurm/config.yaml says what a job asks for.
    if not IS_SUBMITTED:
        workflow.register_resource("gpu", GPUS)
workflow.register_resource("dvc", 1)


def inputs_of(made):
    """Return a parameter of a rule that changes when the content of one of its inputs is not the
    one from which its output was made. Snakemake itself compares contents only of inputs that are
    newer than the output, and Git and DVC leave arbitrary times behind."""
    return lambda wildcards: RECORDS.inputs_of(apply_wildcards(made.output[0], wildcards))


for made in workflow.rules:
    if made.output:
        made.set_params(inputs=inputs_of(made))


def needs(job):
    """Return what a job asks of one node. What is not known yet counts as nothing."""
    asked = {name: job.resources.get(name) for name in ("mem_mb", "gpu", "nodes")}
    number = {name: value if isinstance(value, int) else 0 for name, value in asked.items()}
    return Needs(
        str(job.resources.get("slurm_partition", "")),
        job.threads,
        number["mem_mb"],
        -(-number["gpu"] // max(1, number["nodes"])),
    )


# A message says what the cluster does not have, before the first job is submitted.
onstart:
    jobs = [job for job in workflow.dag.needrun_jobs() if not job.is_local]
    if workflow.executor_plugin.name == "slurm":
        if problem := submission_problem([(job.rule.name, needs(job)) for job in jobs]):
            raise WorkflowError(problem)
    elif workflow.executor_plugin.name == "local":
        rules_of_jobs = {job.rule.name for job in jobs}
        for warning in filter(
            None, [login_node_warning(rules_of_jobs), step_warning(rules_of_jobs)]
        ):
            logger.warning(warning)


# What was read so far lives as long as the process, so Python need not look for garbage in it.
gc.freeze()
