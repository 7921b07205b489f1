"""Declare results good after an upgrade of the code: they get the new key, and nothing is computed.

    python scripts/accept_results.py --reason "only a message changed"
    python scripts/accept_results.py train_policy/warp/replicate1/iteration1/member0 --reason "…"

Without RESULT either all that is due is accepted, or nothing is. A missing result, or one with
another setting or input, is refused with a message that says what differs. Then Snakemake passes
over the accepted results once, so that its records agree. provenance.json and DVC's run cache (`dvc
push --run-cache`) keep who accepted what, when and why, and scripts/trace_provenance.py shows it.
Next in reading order: warpflow.pipeline.accept.
"""

from __future__ import annotations

import argparse
import datetime
import subprocess
import sys
from collections.abc import Sequence

from warpflow.pipeline.accept import accept, author, refusal
from warpflow.pipeline.reruns import Parts, add_arguments, due_jobs, is_in_place, waiting


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reason", required=True, help="why the code changes none of them")
    given = add_arguments(parser).parse_args(argv)
    if not given.reason.strip():
        parser.error("--reason: got nothing, expected why the new code gives the same results")
    named, given.targets = given.targets, []
    due, _ = due_jobs(given)
    found = {parts.result: (parts, waits) for parts, waits in waiting(due)}
    chosen = choose(named, found, parser)
    refusals = [
        problem
        for parts, waits in chosen.values()
        if (problem := refusal(parts, [name for name in waits if name not in chosen]))
    ]
    if refusals:
        sys.exit("\n".join(["Nothing was accepted.", *(f"- {line}" for line in refusals)]))
    today = datetime.date.today().isoformat()
    for name, (parts, _) in chosen.items():
        if is_in_place(parts):  # the key is the same, and only Snakemake looks it up
            continue
        entry = accept(parts, given.reason.strip(), author(), today)
        print(f"{name}: {entry['old_key'][:10]} → {entry['new_key'][:10]}")
    pass_over([parts for parts, _ in chosen.values()], given)


def choose(
    named: Sequence[str],
    found: dict[str, tuple[Parts, list[str]]],
    parser: argparse.ArgumentParser,
) -> dict[str, tuple[Parts, list[str]]]:
    """Return the results to accept among those that are due."""
    names = [name.strip("/").removesuffix("/provenance.json") for name in named]
    results = {str(parts.results) for parts, _ in found.values()}
    for folder in results:
        names = [name.removeprefix(f"{folder}/") for name in names]
    for name in names:
        if name not in found:
            parser.error(
                f"{name}: is not due, or is no result; due are {', '.join(found) or 'none'}"
            )
    return {name: found[name] for name in names} if names else found


def pass_over(accepted: Sequence[Parts], given: argparse.Namespace) -> None:
    """Let Snakemake look the accepted results up, which computes nothing and renews its records."""
    if not accepted:
        print("Nothing is due.")
        return
    targets = list(dict.fromkeys(path for parts in accepted for path in parts.last_outputs))
    command = ["snakemake", *targets, "--cores", "all", "--quiet", "all"]
    if given.configfile:
        command += ["--configfile", *map(str, given.configfile)]
    if given.config:
        command += ["--config", *(f"{key}={value}" for key, value in given.config)]
    sys.exit(subprocess.run(command, check=False).returncode)


if __name__ == "__main__":
    main()
