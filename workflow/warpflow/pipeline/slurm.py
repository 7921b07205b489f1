"""Say what keeps jobs from being submitted to SLURM, before the first job."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection
from dataclasses import dataclass

from warpflow.pipeline.gpus import output


@dataclass(frozen=True)
class Needs:
    """What a job asks for on one node, or what a node has."""

    partition: str = ""  # "": the default one
    threads: int = 0
    mem_mb: int = 0
    gpu: int = 0


def submission_problem(jobs: Collection[tuple[str, Needs]]) -> str | None:
    """Say what is wrong and what to do about it. Return None where jobs can be submitted.

    Args:
        jobs: the rule and the needs of each job.
    """
    if not shutil.which("sbatch"):
        return (
            "profile slurm submits jobs with sbatch, which is not on the PATH: start Snakemake on "
            "a login node of the cluster (perhaps after `module load slurm`), or run on this "
            "machine with `snakemake --cores all`"
        )
    nodes, default = read_nodes()
    known = {node.partition for node in nodes}
    unknown = {needs.partition for _, needs in jobs} - known - {""}
    if known and unknown:
        return (
            f"SLURM has no partition {', '.join(sorted(unknown))} (slurm_partition in "
            f"slurm/config.yaml); it has {', '.join(sorted(known))}"
        )
    for rule, needs in sorted(set(jobs), key=lambda job: job[0]):
        partition = needs.partition or default
        there = [node for node in nodes if not partition or node.partition == partition]
        if there and not any(fits(needs, node) for node in there):
            return describe_excess(rule, needs, there)
    return None


def read_nodes() -> tuple[list[Needs], str]:
    """Return what each node has, once for each of its partitions, and the default partition."""
    nodes, default = [], ""
    listing = output("sinfo", "--noheader", "--Node", "--format=%P|%c|%m|%G")
    for name, cores, memory, devices in (
        line.split("|") for line in listing.splitlines() if line.count("|") == 3
    ):
        partition = name.rstrip("*")
        default = partition if name.endswith("*") else default
        gpus = sum(int(count) for count in re.findall(r"gpu(?::[^:,(]+)?:(\d+)", devices))
        nodes.append(Needs(partition, int(cores), int(memory), gpus))
    return nodes, default


def fits(needs: Needs, node: Needs) -> bool:
    return all(getattr(needs, key) <= getattr(node, key) for key in ("threads", "mem_mb", "gpu"))


def describe_excess(rule: str, needs: Needs, nodes: list[Needs]) -> str:
    """Say what a job asks for and no node has, and which key to change."""
    parts = []
    for key, section in (
        ("threads", "set-threads"),
        ("mem_mb", "set-resources"),
        ("gpu", "set-resources"),
    ):
        most = max(getattr(node, key) for node in nodes)
        if getattr(needs, key) > most:
            parts.append(
                f"{key} = {getattr(needs, key)}, but the largest node has {most} (change it under "
                f"{section} in slurm/config.yaml)"
            )
    where = f"partition {nodes[0].partition}"
    if not parts:
        return (
            f"rule {rule} asks for threads = {needs.threads}, mem_mb = {needs.mem_mb} and gpu = "
            f"{needs.gpu} on one node, and no node of {where} has all of them: lower one in "
            "slurm/config.yaml, or choose another slurm_partition there"
        )
    return f"rule {rule} asks {where} for " + ", and for ".join(parts)


def step_warning(rules: Collection[str]) -> str | None:
    """Return a warning where this is a job of SLURM without the programs of SLURM, as in a
    container. RL runs get no step of their own there."""
    if "train_policy" not in rules or "SLURM_JOB_ID" not in os.environ or shutil.which("srun"):
        return None
    return (
        f"this is job {os.environ['SLURM_JOB_ID']} of SLURM, but srun is not on the PATH: RL runs "
        "are started without a step of their own. A SIGTERM of SLURM may not come to them, so that "
        "they go on from their last save (train_policy.save_every)"
    )


def login_node_warning(rules: Collection[str]) -> str | None:
    """Return a warning where training would run on what may be the login node of a cluster.
    Workstations may have SLURM too, so this is no error."""
    training = sorted({rule for rule in rules if rule.startswith("train_")})
    if not training or "SLURM_JOB_ID" in os.environ or not shutil.which("sbatch"):
        return None
    return (
        f"{', '.join(training)} will run on this machine, which can submit jobs to SLURM: on a "
        "login node stop now (Ctrl-C) and use `snakemake --profile slurm` (docs/slurm.md)"
    )
