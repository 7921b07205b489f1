"""Interpolate a policy towards an initialisation (stage 3: LITI), (1 − η) θ_init + η θ.

    python scripts/interpolate_policy.py --init A --policy B --eta 0.3 --out C
    python scripts/interpolate_policy.py --init A --policy B --eta 0 0.3 1 --out C   # C/eta0, …
    python scripts/interpolate_policy.py --export C/eta0.3 --out D     # a recipe's weights

It works on any Hugging Face folders with safetensors weights, of any size, and does not need
Snakemake. Several η take one pass over the two checkpoints. With `--recipe` the folders hold a
recipe in place of weights (see warpflow.merging.recipes), which takes no room.
`warpflow.merging.points.load_point` composes it while loading. Next in reading order:
warpflow.merging.liti.interpolate_into.
"""

from __future__ import annotations

from warpflow.quick_start import keep_imports

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from warpflow.eta_names import eta_text
from warpflow.merging.checkpoints import MappedTensors, check_vocabularies, read_tensors
from warpflow.merging.chunks import DTYPES, check_etas, check_sources, output_dtypes, to_dtype
from warpflow.merging.liti import interpolate_into
from warpflow.merging.recipes import ROLES, read_recipe
from warpflow.merging.workers import available_cores
from warpflow.merging.writing import new_checkpoints, provenance, write_recipe


def main(argv: Sequence[str] | None = None) -> None:
    keep_imports()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--init", type=Path, help="checkpoint at η = 0")
    parser.add_argument("--policy", type=Path, help="checkpoint at η = 1")
    parser.add_argument("--eta", type=float, nargs="+", help="η in [0, 2], one or several")
    parser.add_argument(
        "--out", required=True, type=Path, help="folder to write; with several η its eta<η> folders"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="of the results; default: the policies'")
    parser.add_argument(
        "--recipe",
        nargs="?",
        const="paths",
        choices=["paths", "contents"],
        help="write recipes; contents: they name their parents by content, not by path too",
    )
    parser.add_argument("--export", type=Path, help="recipe to write the weights of")
    parser.add_argument("--parents", type=Path, nargs=2, help="its two checkpoints, if they moved")
    parser.add_argument(
        "--workers", type=int, default=available_cores(), help="processes; default: all cores, to 8"
    )
    arguments = parser.parse_args(argv)
    needed = (arguments.init, arguments.policy, arguments.eta)
    if any(needed) if arguments.export else None in needed:
        parser.error("give either --init, --policy and --eta, or --export")
    try:
        if arguments.export:
            recipe, parents = read_recipe(arguments.export, arguments.parents or ())
            eta, dtype = recipe["eta"], recipe["dtype"]
            write(parents, [eta], [arguments.out], dtype, None, arguments.workers)
        else:
            interpolate_policy(arguments)
    except (ValueError, OSError) as error:
        sys.exit(f"interpolate_policy: {error}")


def interpolate_policy(arguments: argparse.Namespace) -> None:
    """Write one point at `out`, or several below it."""
    parents = [read_tensors(folder) for folder in (arguments.init, arguments.policy)]
    check_vocabularies([arguments.init, arguments.policy])
    outs = [arguments.out]
    if len(arguments.eta) > 1:
        outs = [arguments.out / f"eta{eta_text(eta)}" for eta in arguments.eta]
    write(parents, arguments.eta, outs, arguments.dtype, arguments.recipe, arguments.workers)


def write(
    parents: Sequence[MappedTensors],
    etas: Sequence[float],
    outs: Sequence[Path],
    dtype: str | None,
    recipe: str | None,
    workers: int,
) -> None:
    """Write the points, as weights or as recipes."""
    check_etas(etas)
    check_sources(parents)
    roles = dict(zip(ROLES, parents, strict=True))
    settings = [{"eta": eta, "dtype": dtype} for eta in etas]
    documents = [provenance("interpolate_policy", chosen, roles) for chosen in settings]
    if recipe:
        for out, document in zip(outs, documents, strict=True):
            write_recipe(out, parents, document, with_paths=recipe == "paths")
        return
    dtypes = output_dtypes(parents, to_dtype(dtype))
    with new_checkpoints(outs, parents, dtypes, documents) as (emit, _):
        interpolate_into(emit, parents[0], parents[1], etas, workers)


if __name__ == "__main__":
    main()
