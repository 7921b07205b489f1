"""An exported folder as a GGUF file, by the converter of a llama.cpp checkout.

No package of the registry converts; convert_hf_to_gguf.py of llama.cpp does, and knows each
architecture and tokenizer by name. It is run as a process of its own, and its result is read back.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from warpflow.weight_files import GGUF_MISSING, reads_gguf

CHECKOUT = "LLAMA_CPP"  # the environment variable
SCRIPT = "convert_hf_to_gguf.py"
OUT_TYPES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
SAID = 2000  # characters of what the converter printed last


@dataclass(frozen=True)
class GgufContent:
    """What a GGUF file holds: `dtypes` counts its tensors by dtype."""

    architecture: str | None
    tensors: int
    parameters: int
    dtypes: Mapping[str, int]

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} in {dtype}" for dtype, count in sorted(self.dtypes.items()))
        return (
            f"architecture {self.architecture}, {self.tensors} tensors ({kinds}), "
            f"{self.parameters:,} parameters"
        )


def find_converter(checkout: str | None) -> Path:
    """Return the converter script of a llama.cpp checkout.

    Args:
        checkout: its folder. None takes the one that the environment variable LLAMA_CPP names.

    Raises:
        ValueError: there is no such script, or the package that reads GGUF is not installed.
    """
    folder = checkout or os.environ.get(CHECKOUT)
    get_it = "`git clone --depth 1 https://github.com/ggml-org/llama.cpp`"
    if not folder:
        raise ValueError(
            f"--gguf runs {SCRIPT} of llama.cpp: get it by {get_it}, and give its folder as "
            f"--llama_cpp FOLDER or in the environment variable {CHECKOUT}"
        )
    script = Path(folder).expanduser() / SCRIPT
    if not script.is_file():
        raise ValueError(
            f"--gguf: no {SCRIPT} in {folder}: expected a checkout of llama.cpp, by {get_it}"
        )
    if not reads_gguf():
        raise ValueError(f"--gguf: {GGUF_MISSING}")
    return script


def write_gguf(script: Path, folder: Path, dtypes: Iterable[torch.dtype]) -> tuple[Path, str]:
    """Convert a model's folder into a GGUF file in it, FOLDER/NAME.gguf, in the widest of its
    dtypes. The file appears when it was checked.

    Returns: the file, and what it holds in words.

    Raises:
        ValueError: the converter fails (its last words are shown), or what it wrote is not the
            model. The folder stays as it was.
    """
    widest = max((d for d in dtypes if d.is_floating_point), key=lambda d: d.itemsize)
    out_type = OUT_TYPES.get(widest, "f32")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-gguf") as scratch:
        made = Path(scratch, "model.gguf")
        command = [sys.executable, str(script), str(folder), "--outfile", str(made)]
        command += ["--outtype", out_type]
        done = subprocess.run(
            command, capture_output=True, text=True, encoding="utf-8", check=False
        )
        if done.returncode or not made.is_file():
            raise ValueError(
                f"--gguf: {script} failed with exit status {done.returncode}; the model is in "
                f"{folder}. It may need what its requirements-convert_hf_to_gguf.txt names, or a "
                f"newer llama.cpp for this model. It said:\n{(done.stdout + done.stderr)[-SAID:]}"
            )
        content = read_gguf(made)
        require_whole(content, folder)
        file = folder / f"{folder.name}.gguf"
        os.replace(made, file)
    return file, str(content)


def require_whole(content: GgufContent, folder: Path) -> None:
    """Raise ValueError unless a GGUF file has an architecture and all parameters of the folder that
    it was made from. It may have more: tables of positions, or an output layer that was tied."""
    expected = count_parameters(folder)
    if not content.architecture or content.parameters < expected:
        raise ValueError(
            f"--gguf: the converter wrote a file with {content}, expected an architecture and at "
            f"least the {expected:,} parameters of {folder}; nothing of it was kept"
        )


def read_gguf(file: Path) -> GgufContent:
    from gguf import GGUFReader

    reader = GGUFReader(file)
    field = reader.get_field("general.architecture")
    dtypes: dict[str, int] = {}
    for tensor in reader.tensors:
        dtypes[tensor.tensor_type.name] = dtypes.get(tensor.tensor_type.name, 0) + 1
    return GgufContent(
        architecture=None if field is None else str(field.contents()),
        tensors=len(reader.tensors),
        parameters=sum(int(tensor.n_elements) for tensor in reader.tensors),
        dtypes=dtypes,
    )


def count_parameters(folder: Path) -> int:
    """Return how many numbers the safetensors files of a folder hold."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as weights:
            shapes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118
        total += sum(int(torch.Size(shape).numel()) for shape in shapes)
    return total
