"""What keeps jobs from being submitted to SLURM, said before the first of them."""

from __future__ import annotations

import shutil
from collections.abc import Collection

from warpflow.devices import output


def submission_problem(partitions: Collection[str]) -> str | None:
    """What is wrong and what to do about it; None where jobs can be submitted.

    Args:
        partitions: that jobs ask for by name.
    """
    if not shutil.which("sbatch"):
        return (
            "profile slurm submits jobs with sbatch, which is not on the PATH: start Snakemake on "
            "a login node of the cluster (perhaps after `module load slurm`), or run on this "
            "machine with `snakemake --cores all`"
        )
    known = sorted(set(output("sinfo", "--noheader", "--format=%R").split()))
    unknown = sorted(set(partitions) - set(known))
    if known and unknown:
        return (
            f"SLURM has no partition {', '.join(unknown)} (slurm_partition in slurm/config.yaml); "
            f"it has {', '.join(known)}"
        )
    return None
