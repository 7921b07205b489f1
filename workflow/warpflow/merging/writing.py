"""Write checkpoint folders as a whole or not at all.

The shards are laid out first and take the tensors in pieces, so that writing needs no memory of a
checkpoint's size. A folder appears under its name at the end, by rename.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from warpflow.file_modes import make_readable
from warpflow.merging.checkpoints import (
    DTYPE_NAMES,
    PROVENANCE,
    RECIPE,
    MappedTensors,
    as_bytes,
    fingerprint,
)
from warpflow.merging.chunks import output_dtypes, to_dtype
from warpflow.merging.layouts import INDEX, SINGLE, read_config, weight_files
from warpflow.merging.recipes import ROLES

# A merge takes these files from its initialisation as they are. They say how a model is built and
# how text becomes its input. All else is left behind: weights of any format, an adapter's config,
# the model card, which describes another model, and what belongs to one run.
CARRIED_OVER = (
    *("config.json", "generation_config.json", "*processor_config.json"),
    *("configuration_*.py", "modeling_*.py", "tokenization_*.py", "processing_*.py"),  # auto_map
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("tokenizer.model*", "*.tiktoken", "tekken.json", "vocab.json", "vocab.txt", "merges.txt"),
    *("spiece.model", "spm.model", "sentencepiece*.model", "bpe.codes", "emoji.json"),
    *("chat_template.jinja", "chat_template.json", "additional_chat_templates"),
    *("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*"),
)
OUR_OWN = ("*.csv", RECIPE, PROVENANCE)  # our own jobs write these, and no message names them
SHARD_BYTES = 5_000_000_000  # the largest size of one file of a written checkpoint


class CheckpointWriter:
    """Write a checkpoint's safetensors shards from pieces of tensors in any order. Their layout is
    fixed beforehand. The bytes depend only on the tensors and the metadata."""

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
            (self.folder / INDEX).write_text(
                json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8"
            )
        return self

    def __exit__(self, *error: object) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)

    def write(self, name: str, start: int, piece: Tensor) -> None:
        """Write elements `start`, `start + 1` … of a tensor, 1-D, in any dtype."""
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
    """Return the names of each shard, in the order given. Within one, wide dtypes come first, which
    aligns all."""
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
    """Write all of `data` from `position` on. A disk that fills up raises OSError."""
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
    """Open checkpoints for the tensors of `parents`, with all else from the first of them. Yields
    the function that takes pieces of result k (`chunks.Emit`), and the folders that become `outs`.

    Args:
        dtypes: the dtype of each tensor of the results.
        documents: for each result where it comes from. This goes into provenance.json and into the
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
        log_left_behind(parents[0].folder)
        for folder, document in zip(folders, documents, strict=True):
            carry_over(parents[0].folder, folder, set(dtypes.values()))
            text = json.dumps(document, indent=1, sort_keys=True) + "\n"
            (folder / PROVENANCE).write_text(text, encoding="utf-8")


def as_metadata(document: Mapping[str, Any]) -> dict[str, str]:
    """Return the provenance as safetensors metadata, which maps text to text."""
    return {"provenance": json.dumps(document, sort_keys=True)}


def provenance(
    stage: str, settings: Mapping[str, Any], parents: Mapping[str, MappedTensors]
) -> dict[str, Any]:
    """Return what made a checkpoint: settings and fingerprints of its parents. There are no paths,
    times or versions, so that the bytes of a result depend only on contents."""
    return {
        "made_by": f"warpflow {stage}",
        **settings,
        "parents": {role: fingerprint(tensors) for role, tensors in parents.items()},
    }


def write_recipe(
    out: Path, parents: Sequence[MappedTensors], document: Mapping[str, Any], with_paths: bool
) -> None:
    """Write a recipe to the folder `out`.

    Args:
        parents: the checkpoints at η = 0 and 1.
        document: `provenance` of the point, with its eta and dtype.
        with_paths: whether to name the parents' folders too, relative to `out`.
    """
    folders = [parent.folder for parent in parents]
    recipe = dict(document)
    if with_paths:
        paths = [os.path.relpath(folder.resolve(), out.resolve()) for folder in folders]
        recipe["paths"] = dict(zip(ROLES, paths, strict=True))
    with new_folder(out, folders) as folder:
        dtypes = output_dtypes(parents, to_dtype(document["dtype"]))
        log_left_behind(folders[0])
        carry_over(folders[0], folder, set(dtypes.values()))
        (folder / RECIPE).write_text(
            json.dumps(recipe, indent=1, sort_keys=True) + "\n", encoding="utf-8"
        )


def carry_over(like: Path, folder: Path, dtypes: set[torch.dtype]) -> None:
    """Copy config, generation config, tokenizer and chat templates. The config gets the weights'
    dtype where it says another one, because the next reader would round them."""
    for path in sorted(like.iterdir()):
        if not matches(path.name, CARRIED_OVER):
            continue
        if path.is_dir():
            shutil.copytree(path, folder / path.name)
        else:
            shutil.copyfile(path, folder / path.name)
    floating = {dtype for dtype in dtypes if dtype.is_floating_point}
    config = folder / "config.json"
    if config.is_file():
        settings = json.loads(config.read_text(encoding="utf-8"))
        changed = {key: value for key, value in settings.items() if key != "transformers_weights"}
        if len(floating) == 1:
            (dtype,) = (str(dtype).removeprefix("torch.") for dtype in floating)
            changed |= {key: dtype for key in ("dtype", "torch_dtype") if key in settings}
        if changed != settings:
            config.write_text(json.dumps(changed, indent=2) + "\n", encoding="utf-8")


def log_left_behind(like: Path) -> None:
    """Log what of the initialisation's folder is not copied. Its weights are replaced and not
    named. Weights that transformers would not read are named."""
    replaced = {INDEX, read_config(like).get("transformers_weights")}
    replaced |= {path.name for path in weight_files(like)}
    names = [
        path.name + "/" * path.is_dir()
        for path in sorted(like.iterdir())
        if path.name not in replaced and not matches(path.name, (*CARRIED_OVER, *OUR_OWN))
    ]
    if names:
        logging.warning("%s: not taken over: %s", like, ", ".join(names))


def matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


@contextmanager
def new_folder(out: Path, inputs: Sequence[Path], needed: int = 0) -> Iterator[Path]:
    """Yield a folder beside `out` to write into. It becomes `out` at the end, and is removed after
    an error or a signal. Only SIGKILL leaves it behind, and the next call removes it.

    Args:
        inputs: the folders that `out` must not be.
        needed: the bytes that will be written.

    Raises:
        ValueError: `out` is an input. FileExistsError: `out` exists and is not empty.
        OSError: there is too little space on the disk.
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
    """Let SIGTERM and SIGHUP end the process through its `finally` blocks."""
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
