"""Measure all that docs/gpu.md says about a card, in one command, without network, in ten minutes.

    python benchmarks/gpu_kit.py                                # everything, on the GPU
    python benchmarks/gpu_kit.py --parts floor step             # some parts
    python benchmarks/gpu_kit.py --size tiny --device cpu       # a rehearsal on the CPU

It prints the rows and writes `rows.json` and `rows.md` to --out (folder gpu_kit) after every part,
with date, card, versions and commit, so that a run that is cut short leaves what it had. Each part
is its own process, which is ended after --minutes. A part that fails is written down, the others go
on, and the exit status is 1. Neither Snakemake nor DVC is needed. `NEEDED` lists the packages that
are needed, and docs/gpu.md says how to bring those that a machine lacks.

| part | what it measures |
|---|---|
| floor | the card's memory bandwidth and rate of matrix products |
| step | our RL step: phases, tokens/s, and the least time that bytes and operations allow |
| trl | TRL's RLOOTrainer and ours in turn, where TRL can be imported |
| memory | peak memory of scripts/train_policy.py against warpflow.estimates.memory |
| identical | the same run twice: are the bytes equal? |
| two_at_once | two runs on one card against one |
| tests | the tests marked `gpu`, with their models on the card |
| merge | merging and LITI from and to disk, on the CPU's cores |
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# The import name and the package that has it. pip says what these packages need themselves.
NEEDED = {
    "torch": "torch",
    "transformers": "transformers",
    "tokenizers": "tokenizers",
    "accelerate": "accelerate",
    "peft": "peft",
    "safetensors": "safetensors",
    "jinja2": "Jinja2",
    "numpy": "numpy",
    "pandas": "pandas",
    "psutil": "psutil",
    "pytest": "pytest",
    "tensorboard": "tensorboard",
    "tqdm": "tqdm",
    "yaml": "PyYAML",
    "filelock": "filelock",
    "pydantic": "pydantic",
    "pydantic_core": "pydantic_core",
    "annotated_types": "annotated-types",
    "typing_inspection": "typing-inspection",
    "typing_extensions": "typing_extensions",
}
LEAST = {"pydantic": (2, 14), "transformers": (5, 0)}  # as pyproject.toml


@dataclass(frozen=True)
class Row:
    """A measured value, or why there is none."""

    part: str
    what: str
    value: float | str | None
    unit: str = ""
    note: str = ""


@dataclass(frozen=True)
class Size:
    """The sizes of what is measured.

    Attributes:
        step: flags of benchmarks/rl_step.py.
        trl, members: other flags where TRL's models are on the card too, and where two runs are. By
            calculation 80 GB are too few for two runs like `step`.
        memory: the size and settings of benchmarks/memory.py for each run.
        matrix: the width of the square matrices that are multiplied.
        copied: the bytes of the tensor that is copied.
        merged: GB of a model. 0 takes a model of a few kB.
    """

    step: dict[str, Any]
    trl: dict[str, Any]
    members: dict[str, Any]
    memory: list[tuple[str, dict[str, Any]]]
    matrix: int
    copied: int
    merged: float


AT_1B = {"compute_dtype": "bfloat16", "batch_size": 128, "max_new_tokens": 96}
SIZES = {
    "tiny": Size(
        {"model": "tiny", "prompts": 4, "generations": 2, "new_tokens": 8, "steps": 2},
        {},
        {},
        [("tiny", {})],
        256,
        2**20,
        0,
    ),
    "1b": Size(
        {
            **{"model": "1b", "dtype": "bfloat16", "prompts": 32, "generations": 4, "steps": 10},
            **{"prompt_tokens": 64, "new_tokens": 128},
        },
        {"prompts": 8},
        {"model": "400m"},
        [
            ("1b", AT_1B),
            ("1b", AT_1B | {"micro_batch_size": 16}),
            ("1b", AT_1B | {"micro_batch_size": 16, "gradient_checkpointing": True}),
            ("1b", AT_1B | {"micro_batch_size": 16, "lora_rank": 16}),
        ],
        8192,
        2**30,
        2.0,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--size", choices=SIZES, default="1b")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--out", type=Path, default=Path("gpu_kit"), help="folder to write")
    parser.add_argument("--work", type=Path, help="folder for models (20 GB); default: temporary")
    parser.add_argument("--minutes", type=float, default=9.5, help="what is due then is not run")
    parser.add_argument("--commit", help="of this code, where there is no Git")
    parser.add_argument(
        "--start",
        choices=["spawn", "fork"],
        default="spawn",
        help="of a part's process; fork saves imports, but not where a GPU is used",
    )
    arguments = parser.parse_args()
    deadline = time.monotonic() + 60 * arguments.minutes
    check_packages()
    prepare_environment(arguments.device)
    import torch

    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit(
            "--device cuda, but torch finds no GPU (torch.cuda.is_available() is False): check the "
            "driver and that torch is a CUDA build, or rehearse with --size tiny --device cpu"
        )
    if arguments.device == "cuda" and arguments.start == "fork":
        sys.exit("--start fork cannot be used with --device cuda: CUDA does not survive a fork")
    if arguments.start == "fork":
        for module in ("rl_step", "memory", "merge"):  # imported once for all parts
            importlib.import_module(module)
    machine = describe_machine(arguments)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        rows: list[Row] = []
        for part in arguments.parts:
            rows += run_part(part, arguments, arguments.work or Path(folder), deadline)
            write(arguments.out, machine, rows)
    print(f"\n{arguments.out / 'rows.json'}\n{arguments.out / 'rows.md'}")
    sys.exit(any(row.what == FAILED for row in rows))


# --- before anything runs ----------------------------------------------------------------------


def check_packages() -> None:
    """Exit with what to carry, and how, where a package is missing or too old."""
    missing = [package for name, package in NEEDED.items() if not importlib.util.find_spec(name)]
    for name, least in LEAST.items():
        if name not in missing and version(name) < least:
            missing.append(name)
    if not missing:
        return
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)", lock, re.M))
    wanted = " ".join(f"{name}=={pinned[name]}" for name in missing)
    tag = f"{sys.version_info.major}.{sys.version_info.minor}"
    sys.exit(
        f"These packages are missing here, or too old: {', '.join(missing)}. Carry their wheels. "
        "On a machine with network:\n"
        f"  python -m pip download --no-deps --only-binary=:all: --python-version {tag} "
        f"--platform manylinux_2_17_{platform.machine()} "
        f"--platform manylinux_2_28_{platform.machine()} --dest wheels {wanted}\n"
        "and here, with that folder:\n"
        "  python -m pip install --no-index --no-deps --target site wheels/*.whl\n"
        "  export PYTHONPATH=$PWD/site"
    )


def version(package: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", importlib.metadata.version(package))[:2]))


def prepare_environment(device: str) -> None:
    """Tell this process, and all that it starts, where the code is, the device, and to use no
    network."""
    folders = [str(ROOT / name) for name in ("workflow", "scripts", "benchmarks")]
    sys.path[:0] = folders
    known = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([*folders, *([known] if known else [])])
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    if device == "cpu":
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def describe_machine(arguments: argparse.Namespace) -> dict[str, str]:
    import torch

    card = "none (CPU)"
    if arguments.device == "cuda":
        found = torch.cuda.get_device_properties(0)
        card = f"{found.name}, {found.total_memory / 1e9:.1f} GB"
    packages = ("torch", "transformers", "tokenizers", "accelerate", "peft", "safetensors", "trl")
    found_versions = {}
    for name in packages:
        if importlib.util.find_spec(name):
            found_versions[name] = importlib.metadata.version(name)
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "card": card,
        "CUDA": str(torch.version.cuda),
        "cores": str(os.cpu_count()),
        "Python": platform.python_version(),
        **found_versions,
        "commit": arguments.commit or commit(),
        "size": arguments.size,
    }


def commit() -> str:
    """Return the commit of the working tree, with a + where files differ from it."""
    words = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--dirty=+"]
    try:
        found = subprocess.run(
            [*words, "--exclude=*"], capture_output=True, encoding="utf-8", check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown (give --commit)"
    return found.stdout.strip()


# --- parts as processes ------------------------------------------------------------------------

FAILED, NOT_RUN = "failed", "not run"


def run_part(part: str, arguments: argparse.Namespace, work: Path, deadline: float) -> list[Row]:
    """Return the rows of a part, which are also printed. The last says it where the part failed or
    was cut short."""
    left = deadline - time.monotonic()
    if left <= 0:
        rows = [Row(part, NOT_RUN, None, note=f"--minutes {arguments.minutes:g} were over")]
        print(markdown(rows), flush=True)
        return rows
    started = time.monotonic()
    found = arguments.out / f"{part}.jsonl"
    found.unlink(missing_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    size = (arguments.size, arguments.device, work, found)
    process = multiprocessing.get_context(arguments.start).Process(
        target=write_rows, args=(part, *size, arguments.start)
    )
    process.start()
    process.join(left)
    if process.is_alive():
        assert process.pid is not None
        try:
            os.killpg(process.pid, signal.SIGKILL)  # with all that it started
        except ProcessLookupError:  # it has no group yet
            process.kill()
        process.join()
        with found.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(Row(part, FAILED, None, note="out of time"))) + "\n")
    lines = found.read_text(encoding="utf-8").splitlines() if found.exists() else []
    rows = [Row(**json.loads(line)) for line in lines]
    if process.exitcode and not any(row.what == FAILED for row in rows):
        rows.append(Row(part, FAILED, None, note=f"exit status {process.exitcode}"))
    found.unlink(missing_ok=True)
    rows.append(Row(part, "wall clock of this part", round(time.monotonic() - started, 1), "s"))
    print(markdown(rows), flush=True)
    return rows


def write_rows(part: str, size: str, device: str, work: Path, out: Path, start: str) -> None:
    """Write rows in a process with its own process group. A row is kept as soon as it is known."""
    os.setpgid(0, 0)
    with out.open("a", encoding="utf-8") as file:
        try:
            for row in PARTS[part](SIZES[size], device, work, start):
                file.write(json.dumps(asdict(row)) + "\n")
                file.flush()
        except BaseException as error:  # written down, and raised again
            last = "".join(traceback.format_exception_only(error)).strip()
            file.write(json.dumps(asdict(Row(part, FAILED, None, note=last[-500:]))) + "\n")
            raise


def make_once(folder: Path, make: Callable[[Path], object]) -> Path:
    """Return a folder of inputs, which is made unless it is there. A half-made folder does not
    count."""
    if not folder.is_dir():
        making = folder.with_name(folder.name + ".making")
        make(making)
        making.rename(folder)
    return folder


def write(out: Path, machine: dict[str, str], rows: list[Row]) -> None:
    document = {"machine": machine, "rows": [asdict(row) for row in rows]}
    text = json.dumps(document, indent=1, ensure_ascii=False)
    (out / "rows.json").write_text(text + "\n", encoding="utf-8")
    about = "\n".join(f"- {name}: {value}" for name, value in machine.items())
    heading = "| part | what | value | unit | note |\n|---|---|---|---|---|\n"
    (out / "rows.md").write_text(f"{about}\n\n{heading}{markdown(rows)}\n", encoding="utf-8")


def markdown(rows: list[Row]) -> str:
    return "\n".join(
        f"| {' | '.join(show(cell) for cell in asdict(row).values())} |" for row in rows
    )


def show(cell: Any) -> str:
    if isinstance(cell, float):
        return f"{cell:.4g}" if abs(cell) < 1e4 else f"{cell:.0f}"
    return "" if cell is None else " ".join(str(cell).replace("|", "\\|").split())


# --- the floor ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Speed:
    """The speed of a device: bytes per second read or written, and operations per second."""

    bandwidth: float
    products: float


@dataclass(frozen=True)
class Work:
    """What one step has to do.

    Attributes:
        inner, output, total: the numbers of weights of the layers' matrices, of the output layer,
            and of all.
        cached: the bytes of a token's keys and values.
        width: the bytes of a weight in the products.
        prompts, rows, prompt_tokens: P prompts of so many tokens, and B completions.
        length: the mean length of the completions. longest: the largest, which is the number of
            decoding steps.
    """

    inner: int
    output: int
    total: int
    cached: int
    width: int
    prompts: int
    rows: int
    prompt_tokens: int
    length: float
    longest: int


def least_seconds(work: Work, speed: Speed) -> dict[str, float]:
    """Return the least time of each phase of a step that bytes and operations allow.

    Sampling reads each prompt once. Each of its steps reads all weights, and the keys and values of
    the rows so far. Scores are products, and the backward pass has twice as many. Adam reads
    weight, gradient and two moments and writes three (28 bytes a weight), and the EMA reads two and
    writes one (12 bytes). The products inside attention and all that could be fused into these are
    left out.
    """
    tokens = work.rows * work.length
    prompt = 2 * work.inner * work.prompts * work.prompt_tokens / speed.products
    read = work.longest * work.width * (work.inner + work.output)
    read += work.cached * tokens * (work.prompt_tokens + work.length / 2)
    drawn = max(read / speed.bandwidth, 2 * (work.inner + work.output) * tokens / speed.products)
    scored = work.prompts * work.prompt_tokens + tokens
    score = 2 * (work.inner * scored + work.output * tokens) / speed.products
    return {
        "sample": prompt + drawn,
        "score": score,
        "policy forward": score,
        "backward and the rest": 2 * score,
        "optimiser": 28 * work.total / speed.bandwidth,
        "EMA": 12 * work.total / speed.bandwidth,
    }


def work_of(model: Any, arguments: argparse.Namespace, length: float, longest: int) -> Work:
    config = model.config
    output = model.get_output_embeddings().weight.numel()
    named = list(model.named_parameters())
    matrices = sum(p.numel() for name, p in named if p.dim() == 2 and "embed" not in name)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = 2 if arguments.dtype == "bfloat16" else 4
    return Work(
        inner=matrices - output,
        output=output,
        total=sum(p.numel() for _, p in named),
        cached=2 * width * config.num_hidden_layers * heads * head,
        width=width,
        prompts=arguments.prompts,
        rows=arguments.prompts * arguments.generations,
        prompt_tokens=arguments.prompt_tokens,
        length=length,
        longest=longest,
    )


def seconds_of(function: Callable[[], object], device: str, times: int = 10) -> float:
    """Return the median wall seconds of a call, after three calls that do not count."""
    import torch

    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    taken = []
    for _ in range(3 + times):
        wait()
        started = time.perf_counter()
        function()
        wait()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[3:])


def measure_speed(size: Size, device: str, dtype: str) -> Speed:
    import torch

    source = torch.ones(size.copied // 4, device=device)
    target = torch.empty_like(source)
    bandwidth = 2 * size.copied / seconds_of(lambda: target.copy_(source), device)
    kind = getattr(torch, dtype)
    a, b = (torch.randn(size.matrix, size.matrix, device=device).to(kind) for _ in range(2))
    return Speed(bandwidth, 2 * size.matrix**3 / seconds_of(lambda: a @ b, device))


def measure_floor(size: Size, device: str, work: Path, start: str) -> Iterator[Row]:
    for dtype in ("bfloat16", "float32"):
        speed = measure_speed(size, device, dtype)
        what = f"products of {size.matrix} × {size.matrix} matrices, {dtype}"
        yield Row("floor", what, speed.products / 1e12, "TFLOP/s")
    what = f"copy of {size.copied / 2**20:.0f} MiB, bytes read and written"
    yield Row("floor", what, speed.bandwidth / 1e9, "GB/s")


# --- our step ----------------------------------------------------------------------------------


def step_arguments(size: Size, device: str, **changes: Any) -> argparse.Namespace:
    """Return the arguments of benchmarks/rl_step.py."""
    import rl_step

    given = {"device": device, "lengths": "varying"} | size.step | changes
    words = [word for key, value in given.items() for word in (f"--{key}", str(value))]
    return rl_step.make_parser().parse_args(words)


def start_ours(arguments: argparse.Namespace, work: Path) -> Any:
    """Start our side of benchmarks/rl_step.py, with its model in `work`."""
    import rl_step
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if arguments.device == "cpu":
        torch.set_num_threads(1)
    folder = work / arguments.model
    return rl_step.Ours(arguments, folder / "model", rl_step.make_inputs(arguments, folder))


def measure_step(size: Size, device: str, work: Path, start: str) -> Iterator[Row]:
    import rl_step
    import torch

    from warpflow.lm.fast import layers

    arguments = step_arguments(size, device)
    ours = start_ours(arguments, work)
    for _ in range(rl_step.WARM_UP):
        next(ours.steps)
    ours.phases.clear()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before, taken, longest = ours.tokens, [], []
    for _ in range(arguments.steps):
        started = rl_step.clock_of(device)
        next(ours.steps)
        taken.append(rl_step.clock_of(device) - started)
        longest.append(ours.longest)
    rows = arguments.prompts * arguments.generations
    length = (ours.tokens - before) / arguments.steps / rows
    model = ours.run.policy
    yield Row("step", "parameters", model.num_parameters() / 1e6, "M", arguments.dtype)
    note = f"{arguments.prompts} prompts × {arguments.generations}, {arguments.prompt_tokens} + "
    note += f"up to {arguments.new_tokens} tokens, {length:.1f} on average, {arguments.steps} steps"
    yield Row("step", "a step", statistics.mean(taken), "s", note)
    yield Row("step", "completions", rows * length / statistics.mean(taken), "tokens/s")
    speed = measure_speed(size, device, arguments.dtype)
    work_done = work_of(model, arguments, length, round(statistics.mean(longest)))
    phases = {name: total / arguments.steps for name, total in ours.phases.items()}
    phases["backward and the rest"] = statistics.mean(taken) - sum(phases.values())
    least = least_seconds(work_done, speed)
    for name, seconds in phases.items():
        floor = least.get(name)
        note = f"floor {floor:.3g} s, {seconds / floor:.1f} ×" if floor else "no floor"
        yield Row("step", f"phase: {name}", seconds, "s", note)
    total = sum(least.values())
    yield Row("step", "floor of all phases", total, "s", f"{sum(phases.values()) / total:.1f} ×")
    known = layers._agreeing.get(model, {})
    for what in ("sampling", "scoring"):
        used = "yes" if known.get(what) else "no: the library's forward pass"
        yield Row("step", f"fast layers in {what}", used)
    if device == "cuda":
        yield Row("step", "peak memory", torch.cuda.max_memory_allocated() / 1e9, "GB")


def measure_trl(size: Size, device: str, work: Path, start: str) -> Iterator[Row]:
    absent = [name for name in ("trl", "datasets") if not importlib.util.find_spec(name)]
    if absent:
        note = f"{' and '.join(absent)} cannot be imported; docs/gpu.md says how to carry wheels"
        yield Row("trl", NOT_RUN, None, note=note)
        return
    import rl_step
    from transformers.utils import logging

    logging.set_verbosity_error()
    arguments = step_arguments(size, device, **size.trl)
    folder = work / arguments.model
    prompts = rl_step.make_inputs(arguments, folder)
    clock, lengths, _, _ = rl_step.measure_trl(arguments, folder, prompts)
    rows = arguments.prompts * arguments.generations
    ratios = [a / b for a, b in zip(clock["trl"], clock["ours"], strict=True)][rl_step.WARM_UP :]
    for side, name in (("trl", "TRL RLOOTrainer"), ("ours", "ours, in turn with it")):
        seconds = statistics.median(clock[side][rl_step.WARM_UP :])
        length = statistics.mean(lengths[side][rl_step.WARM_UP :])
        note = f"{rows} completions of {length:.1f} tokens on average"
        yield Row("trl", f"a step, {name}", seconds, "s", note)
        yield Row("trl", f"completions, {name}", rows * length / seconds, "tokens/s")
    spread = f"{min(ratios):.2f}–{max(ratios):.2f} over the steps"
    yield Row("trl", "TRL / ours", statistics.median(ratios), "", spread)


# --- memory ------------------------------------------------------------------------------------


def measure_memory(size: Size, device: str, work: Path, start: str) -> Iterator[Row]:
    import memory
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    for name, changes in size.memory:
        what = f"{name}, {memory.describe(changes)}"
        with torch.device(device):
            inputs = partial(memory.make_inputs, size=memory.SIZES[name])
            folder = make_once(work / f"memory-{name}", inputs)
        torch.cuda.empty_cache()
        expected = memory.expect(folder, changes, device)
        try:
            peak, _ = memory.measure(folder, memory.SETTINGS | changes, memory.GIVE_BACK)
        except SystemExit as error:  # out of memory, for example; its log is the message
            yield Row("memory", FAILED, None, note=f"{what}: …{str(error)[-500:]}")
            continue
        note = f"estimate {expected:.0f} MB, off by {expected / peak - 1:+.1%}"
        yield Row("memory", what, peak, "MB", note)


# --- runs as processes: the same twice, two at once --------------------------------------------


def train_member(
    size: Size,
    device: str,
    work: Path,
    out: Path,
    learning_rate: float,
    deterministic: bool = False,
    barrier: Barrier | None = None,
) -> None:
    """Do some steps of our side, and write as JSON their rows, the seconds after the warm-up, a
    digest of the weights, and which operations torch calls not deterministic (only with
    `deterministic`)."""
    import rl_step
    import torch

    if deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # or torch calls cuBLAS not deterministic
    arguments = step_arguments(size, device, **size.members, learning_rate=learning_rate)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
        ours = start_ours(arguments, work)
        rows = [asdict(next(ours.steps)) for _ in range(rl_step.WARM_UP)]
        if barrier:
            barrier.wait()
        started = time.perf_counter()
        rows += [asdict(next(ours.steps)) for _ in range(arguments.steps)]
        if device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    digest = hashlib.sha256()
    for parameter in ours.run.policy.parameters():
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy())
    named = {str(w.message).split(" ")[0] for w in caught if "deterministic" in str(w.message)}
    result = {"rows": rows, "seconds": seconds, "digest": digest.hexdigest()}
    out.write_text(json.dumps(result | {"operations": sorted(named)}), encoding="utf-8")


def run_members(
    count: int, size: Size, device: str, work: Path, start: str, *rest: Any, together: bool = False
) -> list[dict[str, Any]]:
    """Return what members wrote that ran one after the other, or together.

    Raises:
        RuntimeError: one failed. Its error is on standard error.
    """
    import rl_step

    arguments = step_arguments(size, device, **size.members)
    rl_step.make_inputs(arguments, work / arguments.model)  # once, for all
    context = multiprocessing.get_context(start)
    barrier = context.Barrier(count, timeout=180) if together else None
    outs = [work / f"member{number}.json" for number in range(count)]
    processes = [
        context.Process(target=train_member, args=(size, device, work, out, *rest, barrier))
        for out in outs
    ]
    for process in processes:
        process.start()
        if not together:
            process.join()
    for process in processes:
        process.join()
        if process.exitcode:
            raise RuntimeError(f"a run ended with status {process.exitcode}; see above")
    return [json.loads(out.read_text(encoding="utf-8")) for out in outs]


def measure_identical(size: Size, device: str, work: Path, start: str) -> Iterator[Row]:
    for deterministic in (False, True) if device == "cuda" else (False,):
        one, other = run_members(2, size, device, work, start, 1e-5, deterministic)
        how = "deterministic algorithms" if deterministic else "as runs are"
        same = "yes" if one["digest"] == other["digest"] else "no"
        yield Row("identical", f"weights of two runs have the same bytes, {how}", same)
        pairs = list(zip(one["rows"], other["rows"], strict=True))
        differing = [a["step"] for a, b in pairs if a != b]
        first = str(differing[0]) if differing else "none"
        note = f"of {len(pairs)}, at a learning rate of 1e-5"
        yield Row("identical", f"first step whose row differs, {how}", first, "", note)
        far = max(abs(a["loss"] - b["loss"]) for a, b in pairs)
        yield Row("identical", f"largest difference of a loss, {how}", far)
        if deterministic:
            named = ", ".join(one["operations"]) or "none"
            yield Row("identical", "operations that torch calls not deterministic", named)


def measure_two_at_once(size: Size, device: str, work: Path, start: str) -> Iterator[Row]:
    steps = size.step["steps"]
    (alone,) = run_members(1, size, device, work, start, 1e-8, False)
    both = run_members(2, size, device, work, start, 1e-8, False, together=True)
    slower = max(member["seconds"] for member in both)
    model = (size.step | size.members)["model"]
    yield Row("two_at_once", "a step, one run alone", alone["seconds"] / steps, "s", model)
    yield Row("two_at_once", "a step of each, two runs at once", slower / steps, "s")
    ratio = 2 * alone["seconds"] / slower
    yield Row("two_at_once", "two at once against one after the other", ratio, "times as fast")
    equal = all(member["digest"] == alone["digest"] for member in both)
    yield Row("two_at_once", "weights as those of the run alone", "yes" if equal else "no")


# --- tests, merges -----------------------------------------------------------------------------


def run_tests(size: Size, device: str, work: Path, start: str) -> Iterator[Row]:
    """Run the tests marked `gpu`. On a CPU they are only collected, as all tests run there."""
    # Files are named, since other files import what need not be here, such as Snakemake.
    files = [
        str(path)
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if "pytest.mark.gpu" in path.read_text(encoding="utf-8")
    ]
    words = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", *files]
    if device == "cpu":
        words.append("--collect-only")
    # Plugins that happen to be installed are no part of these tests.
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, encoding="utf-8"
    )
    lines = done.stdout.strip().splitlines()
    yield Row("tests", "pytest -m gpu", lines[-1].strip("= ") if lines else "printed nothing")
    for line in lines:
        if line.startswith(("FAILED", "ERROR")):
            yield Row("tests", "a test", line)
    if done.returncode:
        print(done.stdout, file=sys.stderr)
        yield Row("tests", FAILED, None, note=f"exit status {done.returncode}")


def measure_merge(size: Size, device: str, work: Path, start: str) -> Iterator[Row]:
    import merge
    import torch

    large, out = size.merged > 0, work / "merged"
    shape = (merge.WIDE, merge.layers_of(size.merged)) if large else (merge.TINY, 1)
    inputs = make_once(
        work / "to_merge", lambda folder: merge.make_checkpoints(folder, *shape, torch.bfloat16)
    )
    merge.execute(merge.floor_command(inputs, out))  # into the page cache
    cases = {
        "merge of two, 1 process": [merge.merge_command(inputs, out)],
        f"merge of two, {merge.CORES} processes": [
            merge.merge_command(inputs, out, "--workers", str(merge.CORES))
        ],
        "floor: read three, copy one": [merge.floor_command(inputs, out)],
        "5 η of LITI in one pass, 1 process": [merge.interpolate_command(inputs, out)],
        "floor: read two, copy five": [merge.floor_command(inputs, out, 5, "init")],
    }
    runs = merge.interleave(cases, 3 if large else 1, inputs, out, cold=False)
    gigabytes = (inputs / "init/model.safetensors").stat().st_size / 1e9
    for name, found in runs.items():
        cpu, most = merge.median(found, "cpu"), merge.median(found, "anonymous")
        note = f"{gigabytes:.3g} GB a model, {cpu:.2f} CPU s, {most:.0f} MiB anonymous"
        yield Row("merge", name, merge.median(found, "wall"), "s", note)


PARTS: dict[str, Callable[[Size, str, Path, str], Iterator[Row]]] = {
    "floor": measure_floor,
    "step": measure_step,
    "trl": measure_trl,
    "memory": measure_memory,
    "identical": measure_identical,
    "two_at_once": measure_two_at_once,
    "tests": run_tests,
    "merge": measure_merge,
}


if __name__ == "__main__":
    main()
