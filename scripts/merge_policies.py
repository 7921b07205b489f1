"""Merge M ≥ 1 policies fine-tuned from one initialisation (stage 2: SLERP of task vectors).

    python scripts/merge_policies.py --init A --policies B C D --method slerp --out E

It works on any Hugging Face folders with safetensors weights, of any size, and memory does not grow
with it. Snakemake is not needed. It writes the merged checkpoint with everything else of the init
(config, tokenizer, chat template), `geometry.csv` (angles and norms of the task vectors by layer)
and `provenance.json`. Next in reading order: warpflow.merging.streaming.merge_into.
"""

from __future__ import annotations

import warpflow.quick_start  # noqa: F401  # first: see there

import csv
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from warpflow.cli import parse_arguments
from warpflow.merging.checkpoints import check_vocabularies, read_tensors
from warpflow.merging.chunks import check_sources, output_dtypes, to_dtype
from warpflow.merging.streaming import merge, merge_into, rounding_loss
from warpflow.merging.workers import available_cores
from warpflow.merging.writing import new_checkpoints, provenance
from warpflow.settings.base import Count, section
from warpflow.settings.merge_policies import MergePolicies

GEOMETRY_COLUMNS = [
    "group",
    "member_a",
    "member_b",
    "omega",
    "cosine_task_vectors",
    "cosine_weights",
    "norm_a",
    "norm_b",
]


@section
class Arguments:
    """Arguments of the command line beside the settings."""

    init: Path
    """The checkpoint that the policies started from."""
    policies: list[Path]
    """The checkpoints to merge, in order."""
    out: Path
    """The checkpoint folder to write."""
    workers: Count = available_cores()
    """The number of processes; by default all cores, but at most 8."""


def main(argv: Sequence[str] | None = None) -> None:
    arguments, settings = parse_arguments(__doc__, argv, Arguments, MergePolicies)
    try:
        merge_policies(arguments, settings)
    except (ValueError, OSError) as error:
        sys.exit(f"merge_policies: {error}")


def merge_policies(arguments: Arguments, settings: MergePolicies) -> None:
    """Read, merge and write in one go, after all checks that need no pass over the weights."""
    init, *policies = parents = [read_tensors(f) for f in (arguments.init, *arguments.policies)]
    check_vocabularies([arguments.init, *arguments.policies])
    check_sources(parents)
    # A setting that only some methods have is not passed to the others.
    how = {key: value for key, value in asdict(settings).items() if key != "density" or value}
    dtype = to_dtype(how.pop("dtype"))
    roles = {"init": init} | {f"policy {m}": policy for m, policy in enumerate(policies)}
    document = provenance("merge_policies", asdict(settings), roles)
    dtypes = output_dtypes(parents, dtype)
    with new_checkpoints([arguments.out], parents, dtypes, [document]) as (emit, (folder,)):
        rows = merge_into(emit, init, policies, **how, workers=arguments.workers)
        with open(folder / "geometry.csv", "w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, GEOMETRY_COLUMNS, lineterminator="\n")
            table.writeheader()
            table.writerows(rows)
    for half in set(dtypes.values()) & {torch.bfloat16, torch.float16}:
        loss = rounding_loss(
            half, init, lambda start, others: merge(start, others, **how), policies
        )
        print(
            f"{arguments.out} is written in {half}: rounding moves its weights by {loss:.1%} of "
            "the merged task vector; --dtype float32 loses nothing"
        )


if __name__ == "__main__":
    main()
