"""Interpolate a policy towards an initialisation (stage 3: LITI), (1 − η) θ_init + η θ.

    python scripts/interpolate_policy.py --init A --policy B --eta 0.3 --out C

Works on any Hugging Face folders with safetensors weights; Snakemake is not needed.
Next in reading order: warpflow.averaging.interpolate.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from warpflow.averaging import interpolate
from warpflow.checkpoints import read_tensors, write_checkpoint


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--init", required=True, help="checkpoint at η = 0")
    parser.add_argument("--policy", required=True, help="checkpoint at η = 1")
    parser.add_argument("--eta", required=True, type=float, help="η in [0, 2]")
    parser.add_argument("--out", required=True, help="checkpoint folder to write")
    arguments = parser.parse_args(argv)
    tensors = interpolate(
        read_tensors(arguments.init), read_tensors(arguments.policy), arguments.eta
    )
    write_checkpoint(tensors, arguments.init, arguments.out)


if __name__ == "__main__":
    main()
