"""Merge M ≥ 1 policies fine-tuned from one initialisation (stage 2: SLERP of task vectors).

    python scripts/merge_policies.py --init A --policies B C --method slerp --out E

Works on any Hugging Face folders with safetensors weights; Snakemake is not needed. Writes the
merged checkpoint with everything else of the init (config, tokenizer), and `geometry.csv`: angles
and norms of the task vectors by layer.
Next in reading order: warpflow.averaging.merge.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from warpflow.averaging import GRANULARITIES, METHODS, geometry, merge
from warpflow.checkpoints import read_tensors, write_checkpoint

GEOMETRY_COLUMNS = [
    "group",
    "member_a",
    "member_b",
    "cosine_task_vectors",
    "cosine_weights",
    "norm_a",
    "norm_b",
]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--init", required=True, help="checkpoint the policies started from")
    parser.add_argument(
        "--policies", required=True, nargs="+", help="checkpoints to merge, in order"
    )
    parser.add_argument("--out", required=True, help="checkpoint folder to write")
    parser.add_argument("--method", default="slerp", choices=METHODS)
    parser.add_argument(
        "--granularity", default="layer", choices=GRANULARITIES, help="what shares Ω"
    )
    parser.add_argument(
        "--weight", type=float, help="λ of the second of two policies; default 1/m in sequence"
    )
    arguments = parser.parse_args(argv)
    init = read_tensors(arguments.init)
    policies = [read_tensors(path) for path in arguments.policies]
    merged = merge(init, policies, arguments.method, arguments.granularity, arguments.weight)
    write_checkpoint(merged, arguments.init, arguments.out)
    rows = geometry(init, policies, arguments.granularity)
    table = pd.DataFrame(rows, columns=GEOMETRY_COLUMNS)
    table.to_csv(Path(arguments.out, "geometry.csv"), index=False)


if __name__ == "__main__":
    main()
