"""Say why a job is due: how what its result was made from differs from what is there now.

`snakemake -n` says that a parameter changed. This file says which setting, which input and which
function of which file. Read next: `scripts/explain_rerun.py`, which prints it, and
`warpflow.pipeline.accept`, which declares results good where only code has changed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from warpflow.pipeline.code_files import definitions
from warpflow.pipeline.contents import read_pointer
from warpflow.pipeline.dvc_cache import find_folder, find_text
from warpflow.pipeline.jobs import code_record, is_small, make_record, parse_run
from warpflow.pipeline.point_jobs import Front
from warpflow.pipeline.user import provide_user

WRAPPER = "warpflow.pipeline.jobs"
FRONT_WRAPPER = "warpflow.pipeline.point_jobs"


@dataclass(frozen=True)
class Due:
    """A job that Snakemake would run.

    Attributes:
        outputs: the outputs as the rule declares them.
        command: its shell command.
        after: the first outputs of the due jobs whose results it takes.
    """

    rule: str
    outputs: tuple[str, ...]
    command: str
    after: tuple[str, ...]

    @property
    def is_heavy(self) -> bool:
        """Whether the job wrapper runs it. Tables, figures and trackers run without the wrapper."""
        return f"{WRAPPER} run " in self.command or f"{FRONT_WRAPPER} " in self.command


@dataclass(frozen=True)
class Parts:
    """A result that a wrapped command makes: the arguments of `jobs.run`, and the first output that
    the rule declares."""

    makes: list[Path]
    inputs: list[str]
    command: list[str]
    functions: list[str]
    results: Path
    target: str
    models: list[str] = field(default_factory=list)

    @property
    def provenance(self) -> Path:
        return self.makes[0].parent / "provenance.json"

    @property
    def result(self) -> str:
        """The result's name, as in the plan."""
        return self.makes[0].parent.relative_to(self.results).as_posix()

    @property
    def last_outputs(self) -> list[str]:
        """What Snakemake makes last of it: pointers of folders, else the declared output."""
        if is_small(self.makes[0]):
            return [self.target]
        return [str(made.with_name(f"{made.name}.dvc")) for made in self.makes]

    def record(self) -> dict[str, Any]:
        """Return what would go in now. Every input must be there."""
        return make_record(
            self.makes, self.inputs, self.command, self.functions, models=self.models
        )


@dataclass(frozen=True)
class Differences:
    """The differences between a recorded result and what would go in now, in words, with a line for
    each."""

    settings: list[str] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    code: list[str] = field(default_factory=list)

    @property
    def lines(self) -> list[str]:
        return [*self.settings, *self.inputs, *self.code]


def parts_of(job: Due) -> list[Parts]:
    """Return what a heavy job makes: one result, or each point of a front."""
    words, target = shlex.split(job.command), job.outputs[0]
    if FRONT_WRAPPER not in words:
        given, command = parse_run(words[words.index(WRAPPER) + 1 :])
        made = (given.makes, given.inputs, command, given.functions, given.results, target)
        return [Parts(*made, given.models)]
    front = Front.of(words[words.index(FRONT_WRAPPER) + 1 :])
    return [
        Parts(
            [Path(point.out)],
            [*front.inputs, *point.inputs],
            [*front.command, *point.words],
            front.functions,
            front.results,
            target,
            front.models,
        )
        for point in front.points
    ]


def add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the arguments that Snakemake would get: targets and config."""
    parser.add_argument("targets", nargs="*", help="results, as for snakemake; all by default")
    parser.add_argument("--configfile", type=Path, nargs="+", default=[], help="as for snakemake")
    parser.add_argument("--config", type=key_and_value, nargs="+", default=[], help="KEY=VALUE")
    return parser


def key_and_value(text: str) -> tuple[str, str]:
    """Read ``KEY=VALUE``."""
    key, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected KEY=VALUE")
    return key, value


def due_jobs(given: argparse.Namespace) -> tuple[list[Due], dict[str, Any]]:
    """Return the jobs that Snakemake would run, in an order in which it could run them, and the
    config in force. Nothing is run, and no file is changed.

    Args:
        given: the arguments of `add_arguments`.
    """
    for line in provide_user():
        print(line, file=sys.stderr)
    from snakemake.api import SnakemakeApi  # this import takes seconds and is needed only here
    from snakemake.settings.types import (
        ConfigSettings,
        DAGSettings,
        OutputSettings,
        Quietness,
        ResourceSettings,
    )

    quiet = OutputSettings(dryrun=True, quiet={Quietness.ALL})
    with contextlib.redirect_stdout(io.StringIO()), SnakemakeApi(quiet) as api:
        workflow = api.workflow(
            resource_settings=ResourceSettings(cores=1),
            config_settings=ConfigSettings(
                config=dict(given.config), configfiles=tuple(given.configfile)
            ),
            snakefile=Path("Snakefile"),
        )
        workflow.dag(DAGSettings(targets=set(given.targets))).summary()
        dag = workflow._workflow.dag  # there is no public way to a DAG's jobs
        needed = set(dag.needrun_jobs())
        ordered = [job for level in dag.toposorted() for job in level if job in needed]
        jobs = [
            Due(
                rule=job.rule.name,
                outputs=tuple(map(str, job.output)),
                command=job.shellcmd or "",
                after=tuple(
                    str(other.output[0])
                    for other in dag.dependencies[job]
                    if other in needed and other.output
                ),
            )
            for job in ordered
            if job.output
        ]
        return jobs, workflow._workflow.globals["config"]


def waiting(due: Sequence[Due]) -> Iterator[tuple[Parts, list[str]]]:
    """Yield each heavy job with the names of the results before it that may change. Results that
    are only looked up, and are in place already, do not count."""
    by_output = {output: job for job in due for output in job.outputs}
    in_place: set[str] = set()
    for job in due:
        if not job.is_heavy:
            continue
        made_before = [p for b in heavy_before(job, by_output) for p in parts_of(b)]
        for parts in parts_of(job):
            read = {Path(path).parent for path in parts.inputs}
            before = {p.result for p in made_before if p.makes[0].parent in read} - in_place
            if not before and is_in_place(parts):
                in_place.add(parts.result)
            yield parts, sorted(before)


def heavy_before(job: Due, by_output: Mapping[str, Due]) -> Iterator[Due]:
    """Yield the due heavy jobs that a job waits for, also those behind trackers."""
    for output in job.after:
        other = by_output[output]
        if other.is_heavy:
            yield other
        else:
            yield from heavy_before(other, by_output)


def differences(old: Mapping[str, Any], new: Mapping[str, Any], results: Path) -> Differences:
    """Return what differs between two records of `jobs.make_record`.

    Args:
        results: the folder whose code/ says what the recorded code did.
    """
    return Differences(
        settings=list(setting_lines(old, new)),
        inputs=list(input_lines(contents(old), contents(new))),
        code=list(code_lines(old["code"], new["code"], results)),
    )


def setting_lines(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """Yield the flags whose values differ. A path whose content is an input is compared as an
    input."""
    before, after = flags_of(old), flags_of(new)
    for flag in sorted(before.keys() | after.keys()):
        if before.get(flag) != after.get(flag):
            was, now = before.get(flag, "not there"), after.get(flag, "not there")
            yield f"setting {flag}: {was} → {now}"


def flags_of(record: Mapping[str, Any]) -> dict[str, str]:
    """Return the flags of a record's command, each with its values. The content or the name of
    inputs and results replaces their path."""
    inputs = contents(record)
    found: dict[str, list[str]] = {}
    flag = "command"
    for word in record["command"]:
        if word.startswith("--"):
            flag = word
            found[flag] = []
        elif word not in inputs and flag not in ("--out", "--tables"):
            found.setdefault(flag, []).append(word)
    return {name: " ".join(words) for name, words in found.items()}


def contents(record: Mapping[str, Any]) -> dict[str, str]:
    """Return what was read, by path: inputs and the user's models."""
    return {**record["inputs"], **record.get("models", {})}


def input_lines(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[str]:
    """Yield inputs whose content differs, and those that came or went with a new content."""
    for path in sorted(old.keys() & new.keys()):
        if old[path] != new[path]:
            yield f"input {path}: {old[path][:8]} → {new[path][:8]}"
    for path in sorted(new.keys() - old.keys()):
        if new[path] not in old.values():
            yield f"input {path}: is new"
    for path in sorted(old.keys() - new.keys()):
        if old[path] not in new.values():
            yield f"input {path}: is no longer read"


def code_lines(old: Mapping[str, Any], new: Mapping[str, Any], results: Path) -> Iterator[str]:
    """Yield files whose code does something else now, with the functions and classes that
    changed."""
    before, after = old["files"], new["files"]
    file = code_record(old["hash"], results)
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for path in sorted(before.keys() | after.keys()):
        if path not in after:
            yield f"code {path}: is no longer used"
        elif path not in before:
            yield f"code {path}: is new"
        elif before[path] != after[path]:
            yield f"code {path}: {', '.join(changed_names(known.get(path), path)) or 'changed'}"


def changed_names(recorded: Mapping[str, str] | None, path: str) -> list[str]:
    """Return the functions and classes of a file that came, went or do something else. There are
    none where it is not known what they did."""
    if recorded is None:
        return []
    now = {name: value[:12] for name, value in definitions(Path(path)).items()}
    changed = {name for name in recorded.keys() | now.keys() if recorded.get(name) != now.get(name)}
    return [
        name + (" (new)" if name not in recorded else " (gone)" if name not in now else "")
        for name in sorted(changed)
    ]


def explain(parts: Parts, waits_for: Sequence[str]) -> tuple[str, list[str]]:
    """Return in a few words what would happen to a heavy job, and why, with a line for each reason.

    Args:
        waits_for: the results that are due before it.
    """
    lines = [f"input {name}: is due itself" for name in waits_for]
    if not parts.provenance.is_file():
        return "runs", [*lines, "it has not been made yet"]
    old = json.loads(parts.provenance.read_text(encoding="utf-8"))
    if any(not Path(path).is_file() for path in parts.inputs):
        return "waits for its inputs", lines
    new = parts.record()
    found = differences(old, new, parts.results)
    if waits_for:
        happens = "runs again, unless these inputs come out unchanged"
        return happens, [*lines, *found.settings, *found.code]
    if is_at_hand(parts, new["key"]):
        return "is looked up", ["it was made before from the same inputs: nothing is computed"]
    return "runs again", found.lines or ["its result is not in place, and not in DVC's cache"]


def is_at_hand(parts: Parts, key: str) -> bool:
    """Whether DVC's cache has the result of a key."""
    if is_small(parts.makes[0]):
        return find_text(key) is not None
    return all(find_folder(key, folder.name) for folder in parts.makes)


def is_in_place(parts: Parts) -> bool:
    """Whether the result in place is that of what would go in now."""
    if any(not Path(path).is_file() for path in parts.inputs):
        return False
    key = parts.record()["key"]
    if is_small(parts.makes[0]):
        return parts.makes[0].is_file() and find_text(key) == parts.makes[0].read_text(
            encoding="utf-8"
        )
    for folder in parts.makes:
        pointer, found = folder.with_name(f"{folder.name}.dvc"), find_folder(key, folder.name)
        if not (found and pointer.is_file() and read_pointer(pointer)["md5"] == found["md5"]):
            return False
    return True
