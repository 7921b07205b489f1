"""Print the tree of what made a result: a checkpoint, an evaluation, a table or a figure.

    python scripts/trace_provenance.py results/merge_policies/warp/replicate1/iteration2

Each line has the result, the key of its job, script, seconds, device, versions, code and commit. An
input that has changed since is marked. Next in reading order: warpflow.pipeline.provenance.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from warpflow.pipeline.provenance import provenance_tree


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path, help="a result, or any file of it")
    parser.add_argument("--project", type=Path, default=Path(), help="the project's root")
    arguments = parser.parse_args(argv)
    try:
        for line in provenance_tree(arguments.path.absolute(), arguments.project.absolute()):
            print(line)
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
