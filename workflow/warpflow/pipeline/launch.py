"""One training run over several processes, on this machine's devices or over nodes of SLURM.

`accelerate launch` starts them, and this file makes its arguments. Their number and place are
resources and no part of the config, because a result is the same to float tolerance and has the
same key.
"""

from __future__ import annotations

import os
import shlex
import shutil
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SETUPS = Path("config/accelerate")


@dataclass(frozen=True)
class Processes:
    """Where one run is computed.

    Attributes:
        count: the number of all processes.
        nodes: the nodes of the SLURM job, with equally many processes each.
        setup: the name of a file of config/accelerate/, such as ddp or fsdp.
    """

    count: int = 1
    nodes: int = 1
    setup: str = "ddp"


def choose_processes(processes: int, gpus: int, nodes: int, setup: str) -> Processes:
    """Return the processes that a rule's resources ask for. With 0 processes there is one on each
    GPU, and one where there is no GPU.

    Raises:
        ValueError: the resources do not fit. The message names the one to change.
    """
    count = processes or max(gpus, 1)
    if gpus and count > gpus:
        raise ValueError(f"resource processes: got {count}, expected at most gpu = {gpus}")
    if count % nodes:
        raise ValueError(
            f"resource nodes: got {nodes}, expected a divisor of the {count} processes (resource "
            "processes, or one to each gpu)"
        )
    if nodes > 1 and "SLURM_JOB_ID" not in os.environ:
        raise ValueError(f"resource nodes: got {nodes}, expected 1: this is no job of SLURM")
    if nodes > 1 and not shutil.which("srun"):
        raise ValueError(f"resource nodes: got {nodes}, expected 1: srun is not on the PATH")
    if count > 1 and not (SETUPS / f"{setup}.yaml").is_file():
        known = ", ".join(sorted(path.stem for path in SETUPS.glob("*.yaml")))
        raise ValueError(f"resource accelerate: got {setup}, expected a file of {SETUPS}/: {known}")
    return Processes(count, nodes, setup)


def launched(command: Sequence[str], processes: Processes, threads: int) -> list[str]:
    """Return the command that starts ``python SCRIPT …`` in several processes.

    Over several nodes this process is on the first node. The others meet at its name and a port
    that is free now. On one node accelerate finds the port (0 in its file).

    Args:
        threads: the cores that each node gives.
    """
    if processes.count == 1:
        return list(command)
    words = ["python", "-m", "accelerate.commands.launch", "--machine_rank", "{rank}"]
    words += ["--config_file", str(SETUPS / f"{processes.setup}.yaml")]
    words += ["--num_processes", str(processes.count), "--num_machines", str(processes.nodes)]
    if processes.nodes == 1:
        return ["0" if word == "{rank}" else word for word in words] + list(command[1:])
    words += ["--main_process_ip", socket.gethostname(), "--main_process_port", str(free_port())]
    text = shlex.join([*words, *command[1:]]).replace("'{rank}'", '"$SLURM_NODEID"')
    # This is a step on all nodes. This process is in none, and SIGTERM goes only to theirs.
    step = ["srun", "--overlap", "--kill-on-bad-exit", f"--nodes={processes.nodes}"]
    step += [f"--ntasks={processes.nodes}", "--ntasks-per-node=1", f"--cpus-per-task={threads}"]
    return [*step, "bash", "-c", f"exec {text}"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def process_environment(processes: Processes, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a run's processes.

    The cores of a node are shared among its processes. After a SIGTERM accelerate waits for them to
    save themselves for as long as the sender of the signal does, and not only for half a minute.
    """
    if processes.count == 1:
        return {}
    share = str(max(1, cores(environment) * processes.nodes // processes.count))
    return {
        "OMP_NUM_THREADS": share,
        "MKL_NUM_THREADS": share,  # Snakemake sets it, and torch reads it first
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "86400",
    }


def cores(environment: Mapping[str, str]) -> int:
    """Return `threads` of the rule, as Snakemake passes it to its jobs."""
    return int(environment.get("OMP_NUM_THREADS") or 1)
