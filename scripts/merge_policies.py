"""Merge M ≥ 1 policies fine-tuned from one initialisation (stage 2: SLERP of task vectors).

    python scripts/merge_policies.py --init A --policies B C D --method slerp --out E

Works on any Hugging Face folders with safetensors weights, of any size: memory does not grow with
it. Snakemake is not needed. Writes the merged checkpoint with everything else of the init (config,
tokenizer, chat template), `geometry.csv` (angles and norms of the task vectors by layer) and
`provenance.json`.
Next in reading order: warpflow.merging.streaming.merge_into.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from warpflow.merging.checkpoints import check_vocabularies, read_tensors
from warpflow.merging.chunks import DTYPES, check_sources, output_dtypes, to_dtype
from warpflow.merging.methods import DENSITY, GRANULARITIES, METHODS, VECTORS
from warpflow.merging.streaming import merge, merge_into, rounding_loss
from warpflow.merging.workers import available_cores
from warpflow.merging.writing import new_checkpoints, provenance

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


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--init", required=True, type=Path, help="checkpoint the policies started from"
    )
    parser.add_argument(
        "--policies", required=True, type=Path, nargs="+", help="checkpoints to merge, in order"
    )
    parser.add_argument("--out", required=True, type=Path, help="checkpoint folder to write")
    parser.add_argument("--method", default="slerp", choices=METHODS)
    parser.add_argument(
        "--granularity", default="layer", choices=GRANULARITIES, help="what shares Ω"
    )
    parser.add_argument(
        "--weight", type=float, help="λ of the second of two policies; default 1/m in sequence"
    )
    parser.add_argument(
        "--vectors", default="task_vectors", choices=VECTORS, help="what the method averages"
    )
    parser.add_argument(
        "--density", type=float, help=f"share of weights that ties keeps; default {DENSITY}"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="of the result; default: the policies'")
    parser.add_argument(
        "--workers", type=int, default=available_cores(), help="processes; default: all cores, to 8"
    )
    arguments = parser.parse_args(argv)
    try:
        merge_policies(arguments)
    except (ValueError, OSError) as error:
        sys.exit(f"merge_policies: {error}")


def merge_policies(arguments: argparse.Namespace) -> None:
    """Read, merge and write in one go, after all checks that need no pass over the weights."""
    init, *policies = parents = [read_tensors(f) for f in (arguments.init, *arguments.policies)]
    check_vocabularies([arguments.init, *arguments.policies])
    check_sources(parents)
    dtype = to_dtype(arguments.dtype)
    keys = ("method", "granularity", "weight", "vectors")
    how = {key: getattr(arguments, key) for key in keys}
    if arguments.density is not None:
        how["density"] = arguments.density
    settings = how | {"dtype": arguments.dtype}
    roles = {"init": init} | {f"policy {m}": policy for m, policy in enumerate(policies)}
    document = provenance("merge_policies", settings, roles)
    dtypes = output_dtypes(parents, dtype)
    with new_checkpoints([arguments.out], parents, dtypes, [document]) as (emit, (folder,)):
        rows = merge_into(emit, init, policies, **how, workers=arguments.workers)
        with open(folder / "geometry.csv", "w", newline="") as file:
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
