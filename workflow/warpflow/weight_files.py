"""Whether a GGUF file can be read as a policy.

Only headers are read, and nothing of torch or transformers is imported, so that a wrong file is
named before the first job.
"""

from __future__ import annotations

import ast
import importlib.util
import struct
from pathlib import Path
from typing import IO, Any

INSTALL_GGUF = "pip install --no-deps gguf==0.19.0"
GGUF_MISSING = f"the package gguf, which reads such files, is not installed: `{INSTALL_GGUF}`"
# A file of transformers and the mapping in it whose keys are the GGUF architectures.
KNOWN_IN = (
    ("integrations/ggml.py", "GGUF_CONFIG_MAPPING"),
    ("integrations/gguf/gguf_config_mapping.py", "GGUF_CONFIG_ARCHS"),
)
NO_ARCHITECTURES = {"general", "tokenizer", "tokenizer_config"}
# The types of values in a GGUF header, as struct formats. 8 is text and 9 a list.
SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
TEXT, LIST = 8, 9


def is_gguf(path: str | Path | None) -> bool:
    """Whether a path names a GGUF file and not a folder or a model of the hub."""
    return path is not None and Path(path).suffix == ".gguf"


def gguf_problem(path: str | Path) -> str | None:
    """Say why transformers cannot read a GGUF file. Return None where it can, as far as its header
    shows."""
    if not Path(path).is_file():
        return f"{path} is not a file: expected a model in GGUF format; correct the path"
    try:
        architecture = gguf_architecture(Path(path))
    except (struct.error, KeyError, UnicodeDecodeError) as error:
        return f"{path}: broken GGUF header ({error!r}); copy the file again"
    if architecture is None:
        return f"{path} is no GGUF file (it does not begin with GGUF): copy it again"
    known = known_architectures()
    if known and plain(architecture) not in map(plain, known):
        return (
            f"{path}: architecture {architecture!r}, expected one that the installed transformers "
            f"can read from GGUF, {', '.join(sorted(known))}: take the model's Hugging Face folder"
        )
    return None if reads_gguf() else f"{path}: {GGUF_MISSING}"


def reads_gguf() -> bool:
    """Whether the package that transformers reads GGUF files with is installed."""
    return importlib.util.find_spec("gguf") is not None


def plain(architecture: str) -> str:
    """Return a name without the signs in which GGUF and transformers differ: qwen2moe,
    qwen2_moe."""
    return architecture.lower().replace("_", "").replace("-", "").removesuffix("encoder")


def gguf_architecture(path: Path) -> str | None:
    """Return `general.architecture` of a GGUF file's header, or None for a file that is not GGUF.

    Raises:
        KeyError, struct.error, UnicodeDecodeError: the header is broken.
    """
    with open(path, "rb") as handle:
        if handle.read(4) != b"GGUF":
            return None
        _, _, count = struct.unpack("<IQQ", read_exactly(handle, 20))  # version, tensors, pairs
        for _ in range(count):
            key = read_value(handle, TEXT)
            value = read_value(handle, read_number(handle, "I"))
            if key == "general.architecture":
                return str(value)
    raise KeyError("general.architecture")


def read_exactly(handle: IO[bytes], size: int) -> bytes:
    data = handle.read(size)
    if len(data) != size:
        raise struct.error("the file ends too early")
    return data


def read_number(handle: IO[bytes], code: str) -> Any:
    """Read one little-endian number of the struct format `code`."""
    return struct.unpack(f"<{code}", read_exactly(handle, struct.calcsize(f"<{code}")))[0]


def read_value(handle: IO[bytes], kind: int) -> Any:
    """Read one value of a GGUF header."""
    if kind == TEXT:
        return read_exactly(handle, read_number(handle, "Q")).decode()
    if kind == LIST:
        inner, length = read_number(handle, "I"), read_number(handle, "Q")
        return [read_value(handle, inner) for _ in range(length)]
    return read_number(handle, SCALARS[kind])


def known_architectures() -> set[str]:
    """Return the architectures that the installed transformers can read from GGUF, from the text of
    its files. The set is empty where transformers is not installed or no longer has these
    mappings."""
    found = importlib.util.find_spec("transformers")
    if found is None or not found.submodule_search_locations:
        return set()
    folder, names = Path(found.submodule_search_locations[0]), set[str]()
    for file, variable in KNOWN_IN:
        if (folder / file).is_file():
            names |= keys_of((folder / file).read_text(encoding="utf-8"), variable)
    return names - NO_ARCHITECTURES


def keys_of(source: str, variable: str) -> set[str]:
    """Return the keys of a mapping that a Python file writes out."""
    return {
        str(key.value)
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == variable
        if isinstance(node.value, ast.Dict)
        for key in node.value.keys
        if isinstance(key, ast.Constant)
    }
