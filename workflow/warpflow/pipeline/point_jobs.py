"""Run rule `evaluate_front`: one command for several points, each with its own key.

    python -m warpflow.pipeline.point_jobs --points JSON --index FILE --log FILE --inputs FILE... \\
        -- COMMAND...

A point is one small file, evaluation.json, with its provenance.json beside it, as if a job of its
own had made it (`pipeline.jobs`). Points that are known under their key are taken from DVC's run
cache. COMMAND computes only the others, all in one process. It writes each file as soon as its
point is done, under a name with the key, so that a killed job leaves what it finished to the next
one. At the end the index is written, which names each file with the hash of its content. It is the
rule's declared output, so that later rules run again when one of the files changes.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warpflow.pipeline.contents import checksum, write_atomically
from warpflow.pipeline.dvc_cache import KEPT
from warpflow.pipeline.jobs import (
    ONE,
    add_job_arguments,
    code_of,
    compute,
    environment,
    keep,
    keep_definitions,
    make_record,
    remove,
    require_inputs,
    restore,
    stop,
)
from warpflow.pipeline.user import provide_user

POINTS = "--points"


@dataclass(frozen=True)
class Point:
    """What is evaluated, and the file that it is written to.

    Attributes:
        out: the file to make.
        policy: the pointer of the weights, or of those at η = 1.
        init: the pointer of the weights at η = 0. eta: η. Both are None for `policy` alone.
    """

    out: str
    policy: str
    init: str | None = None
    eta: str | None = None

    @property
    def inputs(self) -> list[str]:
        return [path for path in (self.init, self.policy) if path]

    @property
    def words(self) -> list[str]:
        """Return the command line of this point alone."""
        composed = ["--init", self.init, "--eta", self.eta] if self.init and self.eta else []
        return ["--policy", self.policy, *composed, "--out", self.out]

    def computed_as(self, key: str) -> Path:
        """Return where the command writes the evaluation. A file that is there is the whole result
        of the key."""
        made = Path(self.out)
        return made.with_name(f"{made.stem}.{key[:16]}{made.suffix}")

    def entry(self, key: str) -> dict[str, Any]:
        """Return what the script is told about this point."""
        told: dict[str, Any] = {
            "policy": self.policy.removesuffix(".dvc"),
            "out": str(self.computed_as(key)),
        }
        if self.init and self.eta:
            told |= {"init": self.init.removesuffix(".dvc"), "eta": float(self.eta)}
        return told


@dataclass(frozen=True)
class Front:
    """The parts of a wrapped command.

    Attributes:
        inputs: the inputs that all points share.
        command: the command without its points.
        functions, models: those that the settings name, as for `jobs.make_record`.
        runtime_args: arguments of the command that do not change the results.
    """

    points: list[Point]
    index: Path
    results: Path
    log: Path
    inputs: list[str]
    command: list[str]
    functions: list[str]
    models: list[str]
    runtime_args: list[str]
    gpus: int

    @classmethod
    def of(cls, words: Sequence[str]) -> Front:
        """Read the settings from the arguments of this module's command line."""
        if "--" not in words:
            sys.exit("point_jobs: expected -- and a command")
        cut = list(words).index("--")
        given = parser().parse_args(list(words)[:cut])
        return cls(
            points=[Point(**point) for point in json.loads(given.points)],
            index=given.index,
            results=given.results,
            log=given.log,
            inputs=given.inputs,
            command=list(words)[cut + 1 :],
            functions=given.functions,
            models=given.models,
            runtime_args=shlex.split(given.runtime_args),
            gpus=given.gpus,
        )


def run_front(front: Front) -> None:
    """Make the file of every point unless it exists already, then the index. Where a point fails,
    the others are kept, there is no index, and the exit status is the command's."""
    code = code_of(front.command, front.functions)
    records = records_of(front, code)
    keep_definitions(records[0], front.results)
    due: dict[str, Point] = {}  # one for each key, as points with equal weights are one result
    for point, record in zip(front.points, records, strict=True):
        if not take(point, record):
            due.setdefault(record["key"], point)
    started = time.time()
    status = compute_points(front, due) if due else say_restored(front)
    seconds = round((time.time() - started) / max(1, len(due)), 1)  # with a share of the start-up
    made = {key: left for key, point in due.items() if (left := point.computed_as(key)).is_file()}
    contents = {key: left.read_bytes() for key, left in made.items()}
    loaded = records
    if due and any(not Path(model).exists() for model in front.models):
        # The command loaded a name on the hub. Only now is its commit known.
        loaded = records_of(front, code)
    for point, record, now in zip(front.points, records, loaded, strict=True):
        if record["key"] in contents:
            details = {"environment": environment(ONE), "seconds": seconds}
            hand_over(point, contents[record["key"]], now, details)
    if status:
        stop(status, front.log)
    # A point with shared weights (η = 0, the SFT policy) is always looked up, in a job of its own.
    own = [
        record["key"]
        for point, record in zip(front.points, records, strict=True)
        if point.init or point.policy not in front.inputs
    ]
    restored = not due or any(key not in due for key in own)
    write_index(front, restored, loaded[0].get("models", {}))


def records_of(front: Front, code: dict[str, str]) -> list[dict[str, Any]]:
    """Return what goes into each point, with the code `code`."""
    return [
        make_record(
            [Path(point.out)],
            [*front.inputs, *point.inputs],
            [*front.command, *point.words],
            code=code,
            models=front.models,
        )
        for point in front.points
    ]


def take(point: Point, record: Mapping[str, Any]) -> bool:
    """Take a point's file where it exists: in DVC's run cache, from a job that was killed before it
    could hand the file over, or in place. Return whether it did."""
    made, left = Path(point.out), point.computed_as(record["key"])
    details = restore([made], record["key"]) or in_place(made, record["key"])
    if details is not None:
        write_provenance(made, record, details)
    elif left.is_file():
        details = {"environment": environment(ONE), "seconds": None}
        hand_over(point, left.read_bytes(), record, details)
    return details is not None


def in_place(made: Path, key: str) -> dict[str, Any] | None:
    """Return how the file in place was made, where it is the whole result of the key. This is used
    without DVC."""
    provenance = made.with_name("provenance.json")
    if not made.is_file() or not provenance.is_file():
        return None
    record = json.loads(provenance.read_text(encoding="utf-8"))
    if record["key"] != key or record.get("sha256") != checksum(made):
        return None
    return {name: record[name] for name in KEPT if name in record} | {"restored": True}


def compute_points(front: Front, due: Mapping[str, Point]) -> int:
    """Run the command for the points that are due, given by key, and return its exit status."""
    inputs = [*front.inputs, *(path for point in due.values() for path in point.inputs)]
    require_inputs(list(dict.fromkeys(inputs)))
    for point in due.values():
        Path(point.out).parent.mkdir(parents=True, exist_ok=True)
    entries = [point.entry(key) for key, point in due.items()]
    command = [*front.command, POINTS, json.dumps(entries), *front.runtime_args]
    return compute(inputs, command, front.log, front.gpus)


def say_restored(front: Front) -> int:
    names = "\n".join(point.out for point in front.points)
    front.log.write_text(
        f"already made from the same inputs, not computed again:\n{names}\n", encoding="utf-8"
    )
    return 0


def hand_over(
    point: Point, content: bytes, record: Mapping[str, Any], details: Mapping[str, Any]
) -> None:
    """Put a point's file in place, remember it under its key, and remove what jobs left there."""
    made = Path(point.out)
    write_atomically(made, content)
    keep([made], dict(record), dict(details))
    write_provenance(made, record, details)
    for left in made.parent.glob(f"{made.stem}.*{made.suffix}"):
        remove(left)


def write_provenance(made: Path, record: Mapping[str, Any], details: Mapping[str, Any]) -> None:
    document = {**record, **details, "sha256": checksum(made)}
    text = json.dumps(document, indent=1, sort_keys=True) + "\n"
    write_atomically(made.with_name("provenance.json"), text.encode())


def write_index(front: Front, restored: bool, models: Mapping[str, str]) -> None:
    """Write the rule's outputs: the index and a provenance.json. The latter says whether any point
    was restored, so that nobody takes the job's time for that of all points, and which content the
    user's models had (`freshness.other_models`)."""
    note: dict[str, Any] = {"points": [point.out for point in front.points]}
    note |= {"models": dict(models)} if models else {}
    note |= {"restored": True} if restored else {}
    write_atomically(front.index.with_name("provenance.json"), (json.dumps(note) + "\n").encode())
    files = {
        Path(point.out).relative_to(front.results).as_posix(): checksum(Path(point.out))
        for point in front.points
    }
    text = json.dumps(files, indent=1, sort_keys=True) + "\n"
    write_atomically(front.index, text.encode())


def listed_files(index: Path, results: Path) -> Iterator[tuple[str, str]]:
    """Yield the files of an index with their SHA-256, or none where it is no index."""
    if index.name == "evaluations.json" and index.is_file():
        for name, hashed in json.loads(index.read_text(encoding="utf-8")).items():
            yield str(results / name), hashed


def parser() -> argparse.ArgumentParser:
    """Return the parser of the arguments before ``--``."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_job_arguments(made)
    made.add_argument("--points", required=True, help="a JSON list of out, policy, init and eta")
    made.add_argument("--index", type=Path, required=True, help="the file that names what was made")
    made.add_argument("--results", type=Path, required=True, help="the folder of all results")
    return made


def main(argv: Sequence[str] | None = None) -> None:
    for line in provide_user():
        print(line, file=sys.stderr)
    run_front(Front.of(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    main()
