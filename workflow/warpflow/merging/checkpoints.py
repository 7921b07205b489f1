"""Checkpoint folders as tensors: what merging and interpolation read and write.

Tensors are those of the *files*, not of `model.state_dict()`: a tied `lm_head.weight` is then
merged once, and names are the ones that the next reader expects. Reading maps the files; writing
lays the shards out first and takes the tensors in pieces, so that neither needs memory of a
checkpoint's size. A checkpoint appears under its name whole, or not at all.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from warpflow.version import VERSION

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
RECIPE = "recipe.json"
PROVENANCE = "provenance.json"
SHARD_BYTES = 5_000_000_000  # of one file of a written checkpoint, at most

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.uint16: "U16",
    torch.uint32: "U32",
    torch.uint64: "U64",
    torch.bool: "BOOL",
}


# --- reading -----------------------------------------------------------------------------------


class MappedTensors(dict[str, Tensor]):
    """Name → tensor of a checkpoint, views of its mapped files; `files` says where each lies."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.files: dict[str, Path] = {}


def shard_files(folder: str | Path) -> list[Path]:
    """The safetensors files of a checkpoint, in the index's order.

    Raises:
        FileNotFoundError: no safetensors weights (a pickle checkpoint is refused, with the
            command that converts it), or a shard that the index names is missing.
    """
    folder = Path(folder)
    if (folder / INDEX).is_file():
        weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
        shards = [folder / name for name in dict.fromkeys(weight_map.values())]
    else:
        shards = [folder / SINGLE]
    missing = [str(shard) for shard in shards if not shard.is_file()]
    if missing:
        raise FileNotFoundError(f"{folder}: missing {', '.join(missing)}{missing_hint(folder)}")
    return shards


def missing_hint(folder: Path) -> str:
    """What may lie in a folder in place of safetensors weights, and what to do about it."""
    pickles = sorted(str(p) for kind in ("*.bin", "*.pt") for p in folder.glob(kind))
    if (folder / RECIPE).is_file():
        return (
            "; it is a recipe: write its weights with "
            f"`python scripts/interpolate_policy.py --export {folder} --out FOLDER`"
        )
    if (folder / "adapter_config.json").is_file():
        return (
            "; it is an adapter, whose factors cannot be averaged: write the whole model with "
            "peft's merge_and_unload() first"
        )
    if pickles:
        return (
            f"; {pickles[0]} is a pickle, which is not read here: convert it with "
            "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    return "" if folder.is_dir() else "; there is no such folder"


def read_tensors(folder: str | Path) -> MappedTensors:
    """Every tensor of a checkpoint by its name in the files, in the files' dtype.

    The tensors are views of the mapped files: nothing is read before it is used.

    Raises:
        FileNotFoundError: see `shard_files`.
        ValueError: a file that is cut short or is no safetensors file.
    """
    tensors = MappedTensors(Path(folder))
    for shard in shard_files(folder):
        check_size(shard)
        with safe_open(shard, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                tensors[name] = file.get_tensor(name)
                tensors.files[name] = shard
    return tensors


def check_size(shard: Path) -> None:
    """Raise ValueError unless a safetensors file is as long as its header says."""
    size = shard.stat().st_size
    with open(shard, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = {}
        if 8 + length <= size:
            with suppress(ValueError):  # no JSON: named below
                header = json.loads(file.read(length))
    if not header:
        raise ValueError(
            f"{shard}: no complete safetensors header in its {size} bytes: the file was cut short "
            "or is of another format; copy or download it again"
        )
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise ValueError(
            f"{shard}: {size} bytes, but its header says {expected}: the file was cut short; copy "
            "or download it again"
        )


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Name of a checkpoint's content, whatever its shards: SHA-256 over every tensor's name,
    dtype, shape and the first, middle and last 4 KiB of its bytes.

    Reading all of 28 GB to name it would cost more than merging it. Training moves every tensor,
    so two policies differ in it; a single flipped bit may go unseen.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {DTYPE_NAMES.get(tensor.dtype)} {list(tensor.shape)};".encode())
        data = tensor.reshape(-1).view(torch.uint8)
        for start in (0, max(0, len(data) // 2 - 2048), max(0, len(data) - 4096)):
            digest.update(as_bytes(data[start : start + 4096]))
    return f"sampled-sha256:{digest.hexdigest()}"


def as_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous 1-D tensor."""
    return tensor.view(torch.uint8).numpy().data


def check_vocabularies(folders: Sequence[Path]) -> None:
    """Raise ValueError where a tokenizer gives a token another id than the first folder's does;
    folders without tokenizer.json are left out."""
    with_tokenizer = [folder for folder in folders if (folder / "tokenizer.json").is_file()]
    contents = [(folder / "tokenizer.json").read_bytes() for folder in with_tokenizer]
    for folder, content in zip(with_tokenizer[1:], contents[1:], strict=True):
        if content == contents[0]:
            continue
        first, other = (vocabulary(json.loads(text)) for text in (contents[0], content))
        if first != other:
            differing = sorted(
                token for token in first | other if first.get(token) != other.get(token)
            )
            raise ValueError(
                f"{folder}: its tokenizer has {len(other)} tokens, that of {with_tokenizer[0]} "
                f"{len(first)}; {len(differing)} differ, e.g. {differing[0]!r}: policies of "
                "different vocabularies cannot be averaged"
            )


def vocabulary(tokenizer: dict[str, Any]) -> dict[str, int]:
    """Token → id of a parsed tokenizer.json."""
    known = tokenizer["model"].get("vocab", {})
    if isinstance(known, list):  # Unigram: [token, score], the place is the id
        known = {entry[0]: index for index, entry in enumerate(known)}
    return known | {token["content"]: token["id"] for token in tokenizer.get("added_tokens", [])}


# --- writing -----------------------------------------------------------------------------------


class CheckpointWriter:
    """Writes a checkpoint's safetensors shards, their layout fixed beforehand, from pieces of
    tensors in any order. The bytes depend on the tensors and the metadata alone."""

    def __init__(
        self,
        folder: Path,
        shapes: Mapping[str, Sequence[int]],
        dtypes: Mapping[str, torch.dtype],
        metadata: Mapping[str, str],
    ) -> None:
        self.folder, self.dtypes, self.metadata = folder, dtypes, dict(metadata)
        self.sizes = {n: math.prod(shapes[n]) * dtypes[n].itemsize for n in shapes}
        self.shards = plan_shards(self.sizes, {n: dtypes[n].itemsize for n in shapes}, SHARD_BYTES)
        self.total = sum(self.sizes.values())
        self.places: dict[str, tuple[int, int]] = {}  # name → file descriptor, first byte
        self.descriptors: list[int] = []
        self.buffers: dict[torch.dtype, Tensor] = {}
        self.shapes = shapes

    def __enter__(self) -> CheckpointWriter:
        weight_map = {}
        for number, names in enumerate(self.shards, start=1):
            file = SINGLE
            if len(self.shards) > 1:
                file = f"model-{number:05d}-of-{len(self.shards):05d}.safetensors"
            header: dict[str, Any] = {"__metadata__": {"format": "pt", **self.metadata}}
            offset = 0
            for name in names:
                end = offset + self.sizes[name]
                header[name] = {
                    "dtype": DTYPE_NAMES[self.dtypes[name]],
                    "shape": list(self.shapes[name]),
                    "data_offsets": [offset, end],
                }
                weight_map[name], offset = file, end
            text = json.dumps(header, separators=(",", ":")).encode()
            text += b" " * (-len(text) % 8)
            descriptor = os.open(self.folder / file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            self.descriptors.append(descriptor)
            write_at(descriptor, memoryview(len(text).to_bytes(8, "little") + text), 0)
            for name in names:
                first = header[name]["data_offsets"][0]
                self.places[name] = descriptor, 8 + len(text) + first
        if len(self.shards) > 1:
            index = {"metadata": {"total_size": self.total}, "weight_map": weight_map}
            (self.folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
        return self

    def __exit__(self, *error: object) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)

    def write(self, name: str, start: int, piece: Tensor) -> None:
        """Elements `start`, `start + 1` … of a tensor, 1-D, in any dtype."""
        dtype = self.dtypes[name]
        descriptor, first = self.places[name]
        if piece.dtype != dtype:
            if dtype not in self.buffers or self.buffers[dtype].numel() < piece.numel():
                self.buffers[dtype] = torch.empty(piece.numel(), dtype=dtype)
            piece = self.buffers[dtype][: piece.numel()].copy_(piece)
        write_at(descriptor, as_bytes(piece), first + start * dtype.itemsize)


def plan_shards(
    sizes: Mapping[str, int], item_sizes: Mapping[str, int], shard_bytes: int
) -> list[list[str]]:
    """Names of each shard, in the order given; within one, wide dtypes first, which aligns all."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return [sorted(names, key=lambda name: -item_sizes[name]) for names in shards]


def write_at(descriptor: int, data: memoryview, position: int) -> None:
    """All of `data` from `position` on; a disk that fills up raises OSError."""
    while data.nbytes:
        written = os.pwrite(descriptor, data, position)
        data, position = data[written:], position + written


@contextmanager
def new_checkpoints(
    outs: Sequence[Path],
    parents: Sequence[MappedTensors],
    dtypes: Mapping[str, torch.dtype],
    documents: Sequence[Mapping[str, Any]],
) -> Iterator[tuple[Callable[[int, str, int, Tensor], None], list[Path]]]:
    """Checkpoints of the tensors of `parents`, with all else from the first of them. Yields the
    function that takes pieces of result k (`streaming.Emit`), and the folders that become `outs`.

    Args:
        dtypes: of each tensor of the results.
        documents: of each result, where it comes from: goes to provenance.json and into the
            metadata of its weights.

    Raises:
        ValueError, FileExistsError, OSError: see `new_folder`.
    """
    shapes = {name: tensor.shape for name, tensor in parents[0].items()}
    needed = sum(math.prod(shape) * dtypes[name].itemsize for name, shape in shapes.items())
    inputs = [parent.folder for parent in parents]
    with ExitStack() as stack:
        folders = [stack.enter_context(new_folder(out, inputs, needed * len(outs))) for out in outs]
        with ExitStack() as files:
            writers = [
                files.enter_context(CheckpointWriter(folder, shapes, dtypes, as_metadata(document)))
                for folder, document in zip(folders, documents, strict=True)
            ]
            yield lambda k, name, start, piece: writers[k].write(name, start, piece), folders
        for folder, document in zip(folders, documents, strict=True):
            carry_over(parents[0].folder, folder, set(dtypes.values()))
            text = json.dumps(document, indent=1, sort_keys=True) + "\n"
            (folder / PROVENANCE).write_text(text)


def as_metadata(document: Mapping[str, Any]) -> dict[str, str]:
    """Provenance as safetensors metadata, which is text to text."""
    return {"provenance": json.dumps(document, sort_keys=True)}


def provenance(
    stage: str, settings: Mapping[str, Any], parents: Mapping[str, MappedTensors]
) -> dict[str, Any]:
    """What made a checkpoint: settings, fingerprints of its parents, version. No paths and no
    times: the bytes of a result depend on contents alone."""
    return {
        "made_by": f"warpflow {VERSION} {stage}",
        **settings,
        "parents": {role: fingerprint(tensors) for role, tensors in parents.items()},
    }


def carry_over(like: Path, folder: Path, dtypes: set[torch.dtype]) -> None:
    """Copy config, generation config, tokenizer and chat templates; the config gets the weights'
    dtype where it says another, or the next reader would round them."""
    for path in sorted(like.iterdir()):
        if path.is_file() and is_carried_over(path.name):
            shutil.copyfile(path, folder / path.name)
        elif path.name == "additional_chat_templates":
            shutil.copytree(path, folder / path.name)
    floating = {dtype for dtype in dtypes if dtype.is_floating_point}
    config = folder / "config.json"
    if config.is_file() and len(floating) == 1:
        settings = json.loads(config.read_text())
        (dtype,) = (str(dtype).removeprefix("torch.") for dtype in floating)
        stale = [key for key in ("dtype", "torch_dtype") if settings.get(key, dtype) != dtype]
        if stale:
            settings |= dict.fromkeys(stale, dtype)
            config.write_text(json.dumps(settings, indent=2) + "\n")


def is_carried_over(name: str) -> bool:
    """Whether a merge takes the file as it is from the initialisation: neither weights nor what
    belongs to one run."""
    own = (".safetensors", ".csv", INDEX, ".bin", ".pt", RECIPE, PROVENANCE)
    return not name.endswith(own)


@contextmanager
def new_folder(out: Path, inputs: Sequence[Path], needed: int = 0) -> Iterator[Path]:
    """A folder beside `out` to write into; it becomes `out` at the end, and is gone after an error
    or a signal. Nothing but SIGKILL leaves it behind, and the next call removes that.

    Args:
        inputs: folders that `out` must not be.
        needed: bytes that will be written.

    Raises:
        ValueError: `out` is an input. FileExistsError: it holds something.
        OSError: too little space on the disk.
    """
    for path in inputs:
        if out.resolve() == path.resolve():
            raise ValueError(f"the output folder {out} is an input: give another one")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is there already: remove it, or give another output folder")
    is_parent_new = not out.parent.exists()
    out.parent.mkdir(parents=True, exist_ok=True)
    remove_left_overs(out)
    free = shutil.disk_usage(out.parent).free
    if free < needed:
        raise OSError(
            f"{out}: {needed / 1e9:.1f} GB are to be written, but the disk has {free / 1e9:.1f} GB "
            "left: make room, or give an output folder on another disk"
        )
    aside = out.with_name(f"{out.name}.tmp{os.getpid()}")
    with stopping_on_signals():
        try:
            aside.mkdir()
            yield aside
            make_readable(aside)
            aside.rename(out)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
            if is_parent_new:
                with suppress(OSError):  # it holds what was made
                    out.parent.rmdir()


def remove_left_overs(out: Path) -> None:
    """Remove what killed processes left beside `out`."""
    for path in out.parent.glob(f"{out.name}.tmp*"):
        pid = re.fullmatch(r"\.tmp(\d+)", path.name.removeprefix(out.name))
        if pid and not is_alive(int(pid[1])):
            shutil.rmtree(path, ignore_errors=True)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def stopping_on_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the process by way of its `finally` blocks."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(n, lambda number, frame: sys.exit(128 + number)) for n in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def available_cores() -> int:
    """Cores that this process may use, at most 8: more do not make a disk faster. One on macOS,
    whose system libraries do not survive a fork."""
    return min(len(os.sched_getaffinity(0)), 8) if hasattr(os, "sched_getaffinity") else 1


def make_readable(folder: str | Path) -> None:
    """Give every file the mode that the umask asks for: safetensors writes 0600 regardless,
    which makes a shared cache unreadable to colleagues."""
    umask = os.umask(0)
    os.umask(umask)
    for path in Path(folder).rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~umask)
