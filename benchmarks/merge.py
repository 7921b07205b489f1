"""Compare our merging and LITI with mergekit and with copying the same bytes, interleaved.

    python benchmarks/merge.py                       # the table, the growth plot, the memory trace
    python benchmarks/merge.py --sizes 0.05 0.1 --size 0.1 --rounds 1      # a quick look
    python benchmarks/merge.py --record              # mergekit's values for the oracle test

mergekit is not a dependency. The first run makes its own environment (folder .venv-mergekit) with
the same torch. The checkpoints are random, in the shapes of a Llama and in bf16: an init and two
policies about 69° apart. Each command is its own process, and wall and CPU seconds include its
imports. "floor" reads the three inputs and copies one, and no merge can be faster. The files go to
TMPDIR and take about 17 GB at a time for 4 GB a model.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[1]
MERGEKIT = "mergekit==0.1.5"
CORES = os.cpu_count() or 1
ETAS = (0.1, 0.3, 0.5, 0.7, 0.9)
RECORD = ROOT / "tests/merging/mergekit_nuslerp.json"
WIDE = {"hidden_size": 1024, "intermediate_size": 4096, "vocab_size": 32000}
TINY = {"hidden_size": 8, "intermediate_size": 12, "vocab_size": 16}


@dataclass(frozen=True)
class Run:
    """One process: its seconds, and its anonymous memory in MiB (the largest, and a trace over
    time)."""

    wall: float
    cpu: float
    anonymous: float
    trace: tuple[tuple[float, float], ...]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=float, default=1.0, help="GB a model, against mergekit")
    parser.add_argument("--sizes", type=float, nargs="*", default=[0.5, 1, 2, 4], help="growth, GB")
    parser.add_argument("--rounds", type=int, default=3, help="medians of so many")
    parser.add_argument("--threads", type=int, default=1, help="of torch, in every process")
    parser.add_argument("--cold", action="store_true", help="inputs not in the page cache")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs/images/merge_benchmark.png")
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.relative_to(ROOT)}")
    arguments = parser.parse_args()
    os.environ |= {
        "PYTHONPATH": str(ROOT / "workflow"),
        "OMP_NUM_THREADS": str(arguments.threads),
        "HF_HUB_OFFLINE": "1",
    }
    mergekit = mergekit_command()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.record:
            record(Path(folder), mergekit)
        else:
            compare(Path(folder), mergekit, arguments)
            grow(Path(folder), arguments)


def mergekit_command() -> Path:
    """Return mergekit-yaml in an environment that also has all that this one has."""
    environment = ROOT / ".venv-mergekit"
    if not (environment / "bin/mergekit-yaml").exists():
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        paths = [path for path in sys.path if path.endswith("site-packages")]
        (site,) = environment.glob("lib/python*/site-packages")
        (site / "base.pth").write_text("\n".join(paths) + "\n", encoding="utf-8")
        pip = [environment / "bin/python", "-m", "pip", "install", "--quiet", MERGEKIT]
        subprocess.run([*pip, "-c", ROOT / "requirements.lock"], check=True)
    return environment / "bin/mergekit-yaml"


# --- inputs ------------------------------------------------------------------------------------


def shapes(size: dict[str, int], layers: int) -> dict[str, tuple[int, ...]]:
    """Return the tensors' shapes in a Llama with an untied head."""
    width, inner = size["hidden_size"], size["intermediate_size"]
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (size["vocab_size"], width)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        for name in ("q", "k", "v", "o"):
            found[f"{prefix}self_attn.{name}_proj.weight"] = (width, width)
        for name in ("gate", "up"):
            found[f"{prefix}mlp.{name}_proj.weight"] = (inner, width)
        found[f"{prefix}mlp.down_proj.weight"] = (width, inner)
        for name in ("input", "post_attention"):
            found[f"{prefix}{name}_layernorm.weight"] = (width,)
    return found | {"model.norm.weight": (width,), "lm_head.weight": (size["vocab_size"], width)}


def make_checkpoints(folder: Path, size: dict[str, int], layers: int, dtype: torch.dtype) -> None:
    """Write init, a and b, with task vectors of 5 % of the weights' size and a common part of
    0.6."""
    generator = torch.Generator().manual_seed(0)
    sizes = {name: torch.Size(shape).numel() for name, shape in shapes(size, layers).items()}
    longest = max(sizes.values())
    pool = torch.randn(longest + (1 << 20), generator=generator)  # cut at many places: fast

    def draw(shape: tuple[int, ...]) -> torch.Tensor:
        count = torch.Size(shape).numel()
        start = int(torch.randint(len(pool) - count, (), generator=generator))
        return pool[start : start + count].view(shape)

    common = {name: (draw(shape), draw(shape)) for name, shape in shapes(size, layers).items()}
    config = size | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": layers,
        "num_attention_heads": 2 if size is TINY else 16,
        "num_key_value_heads": 2 if size is TINY else 16,
        "tie_word_embeddings": False,
        "dtype": str(dtype).removeprefix("torch."),
    }
    for name in ("init", "a", "b"):
        tensors = {}
        for key, (start, shared) in common.items():
            weights = start.clone()
            if name != "init":
                weights += 0.05 * (0.6 * shared + 0.8 * draw(tuple(start.shape)))
            tensors[key] = (0.02 * weights).to(dtype)
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(config), encoding="utf-8")
        save_file(tensors, folder / name / "model.safetensors", {"format": "pt"})


def layers_of(gigabytes: float) -> int:
    """Return the layers of a model of this many GB in bf16, at least one."""
    outside = torch.tensor([2 * WIDE["vocab_size"] * WIDE["hidden_size"]]).item()
    each = sum(torch.Size(s).numel() for s in shapes(WIDE, 1).values()) - outside
    return max(1, round((gigabytes * 1e9 / 2 - outside) / each))


# --- commands ----------------------------------------------------------------------------------


def merge_command(folder: Path, out: Path, *flags: str) -> list[str]:
    script = str(ROOT / "scripts/merge_policies.py")
    paths = {"init": folder / "init", "out": out}
    named = [word for key, path in paths.items() for word in (f"--{key}", str(path))]
    policies = ["--policies", str(folder / "a"), str(folder / "b")]
    workers = () if "--workers" in flags else ("--workers", "1")
    return [sys.executable, script, *named, *policies, *flags, *workers]


def interpolate_command(folder: Path, out: Path) -> list[str]:
    script = str(ROOT / "scripts/interpolate_policy.py")
    ends = ["--init", str(folder / "init"), "--policy", str(folder / "a"), "--out", str(out)]
    return [sys.executable, script, *ends, "--workers", "1", "--eta", *map(str, ETAS)]


def mergekit_commands(
    mergekit: Path, folder: Path, out: Path, method: str, weights: Sequence[tuple[float, float]]
) -> list[list[str]]:
    """Return a command for each pair of weights, of a and b from the init (nuslerp), or of init and
    a."""
    commands = []
    stored = json.loads((folder / "init/config.json").read_text(encoding="utf-8"))
    for number, pair in enumerate(weights):
        names = ("a", "b") if method == "nuslerp" else ("init", "a")
        document = {
            "merge_method": method,
            "models": [
                {"model": str(folder / name), "parameters": {"weight": weight}}
                for name, weight in zip(names, pair, strict=True)
            ],
            "dtype": "float32",
            "out_dtype": stored["dtype"],
        }
        if method == "nuslerp":
            document["base_model"] = str(folder / "init")
        config = folder / f"{method}{number}.yaml"  # JSON is YAML
        config.write_text(json.dumps(document), encoding="utf-8")
        flags = ["--no-write-model-card", "--no-copy-tokenizer", "--quiet", "--lazy-unpickle"]
        commands.append([str(mergekit), str(config), str(out / str(number)), *flags])
    return commands


def floor_command(folder: Path, out: Path, copies: int = 1, readings: str = "init a") -> list[str]:
    """Return a command that reads the inputs and writes as many outputs."""
    reads = " ".join(str(folder / name / "model.safetensors") for name in readings.split())
    copy = "".join(f" && cp {folder}/b/model.safetensors {out}/{k}" for k in range(copies))
    return ["sh", "-c", f"mkdir -p {out} && cat {reads} > /dev/null{copy}"]


def execute(*commands: list[str]) -> Run:
    """Run commands one after another. Return the sum of their seconds and the most of their
    memory."""
    started, cpu, trace = time.monotonic(), 0.0, []
    for command in commands:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            trace.append((time.monotonic() - started, anonymous_memory(process.pid)))
            time.sleep(0.01)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.stdout is not None
        if process.returncode:
            sys.exit(f"{' '.join(command)}\n{process.stdout.read().decode()}")
        process.stdout.close()
        cpu += usage.ru_utime + usage.ru_stime
    most = max(memory for _, memory in trace)
    return Run(time.monotonic() - started, cpu, most, tuple(trace))


def anonymous_memory(pid: int) -> float:
    """Return RssAnon of a process and its children in MiB, or 0 once it has ended. What they share
    counts again."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    except OSError:
        return 0.0
    own = sum(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))
    return own + sum(anonymous_memory(int(child)) for child in children)


def evict(folder: Path) -> None:
    """Drop a folder's files from the page cache."""
    os.sync()
    for path in folder.rglob("*.safetensors"):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def interleave(
    cases: dict[str, list[list[str]]], rounds: int, inputs: Path, out: Path, cold: bool
) -> dict[str, list[Run]]:
    """Run each case in turn, `rounds` times, and remove the output after each."""
    runs: dict[str, list[Run]] = defaultdict(list)
    for _ in range(rounds):
        for name, commands in cases.items():
            shutil.rmtree(out, ignore_errors=True)
            if cold:
                evict(inputs)
            runs[name].append(execute(*commands))
            os.sync()  # else the next case would wait for this one's pages
            print(f"  {name}: {runs[name][-1].wall:.2f} s", file=sys.stderr)
    shutil.rmtree(out, ignore_errors=True)
    return runs


def median(runs: list[Run], field: str) -> float:
    return statistics.median(getattr(run, field) for run in runs)


# --- what is measured --------------------------------------------------------------------------


def compare(folder: Path, mergekit: Path, arguments: argparse.Namespace) -> None:
    """Compare merge and LITI sweep at one size with mergekit and the floor."""
    inputs, out = folder / "inputs", folder / "out"
    make_checkpoints(inputs, WIDE, layers_of(arguments.size), torch.bfloat16)
    halves, sweep = [(0.5, 0.5)], [(1 - eta, eta) for eta in ETAS]
    imports = [sys.executable, "-c", "import torch, safetensors"]
    merges = {
        "ours, slerp by layer": [merge_command(inputs, out)],
        f"ours, {CORES} processes": [merge_command(inputs, out, "--workers", str(CORES))],
        "ours, slerp by tensor": [merge_command(inputs, out, "--granularity", "tensor")],
        "mergekit nuslerp": mergekit_commands(mergekit, inputs, out, "nuslerp", halves),
        "mergekit linear": mergekit_commands(mergekit, inputs, out, "linear", halves),
        "floor: read three, copy one": [floor_command(inputs, out)],
        "import torch alone": [imports],
    }
    sweeps = {
        "ours, 5 η in one pass": [interpolate_command(inputs, out)],
        "mergekit linear, 5 runs": mergekit_commands(mergekit, inputs, out, "linear", sweep),
        "floor: read two, copy five": [floor_command(inputs, out, 5, "init")],
    }
    size = (inputs / "init/model.safetensors").stat().st_size / 1e9
    state = "cold" if arguments.cold else "warm"
    print(f"{size:.2f} GB a model in bf16, {arguments.threads} thread(s), {state} page cache\n")
    execute(floor_command(inputs, out))  # into the page cache
    for cases in (merges, sweeps):
        runs = interleave(cases, arguments.rounds, inputs, out, arguments.cold)
        table(runs)
    difference(inputs, out, mergekit)
    shutil.rmtree(inputs)


def table(runs: dict[str, list[Run]]) -> None:
    """Print a table in Markdown: seconds, memory, and how many times as long as ours the others
    take."""
    ours = next(iter(runs.values()))
    print(
        "| | wall s | CPU s | anonymous MiB | wall / ours | CPU / ours |\n|---|---|---|---|---|---|"
    )
    for name, found in runs.items():
        wall, cpu = median(found, "wall"), median(found, "cpu")
        ratios = f"{wall / median(ours, 'wall'):.2f} | {cpu / median(ours, 'cpu'):.2f}"
        print(f"| {name} | {wall:.2f} | {cpu:.2f} | {median(found, 'anonymous'):.0f} | {ratios} |")
    print(flush=True)


def difference(inputs: Path, out: Path, mergekit: Path) -> None:
    """Print how far ours by tensor is from nuslerp. Results are bf16, so at most a rounding
    apart."""
    execute(merge_command(inputs, out / "ours", "--granularity", "tensor"))
    execute(*mergekit_commands(mergekit, inputs, out / "theirs", "nuslerp", [(0.5, 0.5)]))
    ours, theirs = (
        load_file(next(out.glob(f"{name}/**/*.safetensors"))) for name in ("ours", "theirs")
    )
    assert set(ours) == set(theirs)
    differing = sum(int((ours[name] != theirs[name]).sum()) for name in ours)
    count = sum(tensor.numel() for tensor in ours.values())
    most = max(float((ours[n].float() - theirs[n].float()).abs().max()) for n in ours)
    scale = float(ours["lm_head.weight"].float().std())
    print(
        f"by tensor against nuslerp: {differing / count:.1e} of the bf16 values differ, "
        f"by {most:.1e} at most, where weights are {scale:.1e} in size\n"
    )
    shutil.rmtree(out)


def grow(folder: Path, arguments: argparse.Namespace) -> None:
    """Compare ours and the floor at several sizes: a table, and a plot with the memory over
    time."""
    runs: dict[str, dict[float, list[Run]]] = {"ours": {}, "floor": {}}
    for gigabytes in arguments.sizes:
        inputs, out = folder / "inputs", folder / "out"
        make_checkpoints(inputs, WIDE, layers_of(gigabytes), torch.bfloat16)
        size = (inputs / "init/model.safetensors").stat().st_size / 1e9
        execute(floor_command(inputs, out))
        cases = {"ours": [merge_command(inputs, out)], "floor": [floor_command(inputs, out)]}
        found = interleave(cases, arguments.rounds, inputs, out, arguments.cold)
        for name in runs:
            runs[name][size] = found[name]
        shutil.rmtree(inputs)
    if not runs["ours"]:
        return
    print("| GB a model | wall s | CPU s | anonymous MiB | floor, wall s | wall / floor |")
    print("|---|---|---|---|---|---|")
    for size, ours in runs["ours"].items():
        values = [median(ours, field) for field in ("wall", "cpu", "anonymous")]
        floor = median(runs["floor"][size], "wall")
        cells = [f"{value:.2f}" for value in (size, *values, floor, values[0] / floor)]
        print(f"| {' | '.join(cells)} |")
    plot(runs, arguments.plot)


def plot(runs: dict[str, dict[float, list[Run]]], path: Path) -> None:
    """Plot seconds by size, and anonymous memory over time for each size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    labels = {"ours": "merge of two, import included", "floor": "read three, copy one"}
    for name, sizes in runs.items():
        left.plot(
            list(sizes), [median(r, "wall") for r in sizes.values()], "o-", label=labels[name]
        )
    left.set(xlabel="GB a model (bf16)", ylabel="wall seconds", xlim=0, ylim=0)
    left.legend()
    for size, found in runs["ours"].items():
        right.plot(*zip(*found[0].trace, strict=True), label=f"{size:.1f} GB")
    right.set(xlabel="seconds", ylabel="anonymous memory, MiB", xlim=0, ylim=0)
    right.legend(title="a model")
    figure.savefig(path, dpi=120)
    print(f"\n{path}")


# --- the oracle --------------------------------------------------------------------------------


def record(folder: Path, mergekit: Path) -> None:
    """Record what mergekit's nuslerp makes of a tiny fp32 model, with its inputs, as a test's
    oracle."""
    make_checkpoints(folder, TINY, 1, torch.float32)
    weights = [(0.5, 0.5), (0.75, 0.25)]
    commands = mergekit_commands(mergekit, folder, folder / "out", "nuslerp", weights)
    execute(*commands)
    merged = {str(pair[1]): folder / f"out/{number}" for number, pair in enumerate(weights)}
    folders = {name: folder / name for name in ("init", "a", "b")} | merged
    document = {"made_by": f"{MERGEKIT} nuslerp, base_model init, models a and b; by λ of b"}
    for name, path in folders.items():
        tensors = load_file(path / "model.safetensors")
        document[name] = {
            key: [float(f"{value:.8g}") for value in tensor.flatten().tolist()]
            for key, tensor in sorted(tensors.items())
        }
    RECORD.parent.mkdir(exist_ok=True)
    RECORD.write_text(
        json.dumps(document, separators=(",", ":")).replace('},"', '},\n"') + "\n", encoding="utf-8"
    )
    print(f"{RECORD}: {RECORD.stat().st_size} bytes")


if __name__ == "__main__":
    main()
