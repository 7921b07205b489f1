"""Contents of files and folders, named by hash as DVC names them."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import yaml

# A folder's entry in a pointer: {"md5": …, "size": bytes, "nfiles": …, "hash": "md5", "path": …}.
Out = dict[str, Any]


def file_md5(path: Path) -> str:
    """Return the MD5 of a file, the hash by which DVC names contents."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum(path: Path) -> str:
    """Return the checksum of a file's content, as Snakemake records it."""
    return f"sha256:{file_sha256(path)}"


def folder_files(folder: Path) -> list[str]:
    """Return every file below a folder, relative to it, in DVC's order."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def folder_listing(folder: Path) -> list[dict[str, str]]:
    """Return each file of a folder with its MD5, as DVC lists a folder."""
    return [{"md5": file_md5(folder / name), "relpath": name} for name in folder_files(folder)]


def listing_md5(listing: list[dict[str, str]]) -> str:
    """Return DVC's hash of a folder."""
    return hashlib.md5(json.dumps(listing, sort_keys=True).encode()).hexdigest() + ".dir"


def folder_out(folder: Path) -> Out:
    """Return the entry that DVC writes for a folder, without calling DVC."""
    listing = folder_listing(folder)
    size = sum((folder / row["relpath"]).stat().st_size for row in listing)
    return {
        "md5": listing_md5(listing),
        "size": size,
        "nfiles": len(listing),
        "hash": "md5",
        "path": folder.name,
    }


def read_pointer(pointer: Path) -> Out:
    """Return the single `outs` entry of a .dvc file."""
    return yaml.safe_load(pointer.read_text(encoding="utf-8"))["outs"][0]


def write_pointer(pointer: Path, out: Out) -> None:
    """Write a .dvc file as DVC does."""
    write_atomically(pointer, yaml.safe_dump({"outs": [out]}, sort_keys=False).encode())


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file aside and rename it, so that a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.tmp{os.getpid()}")
    aside.write_bytes(content)
    os.replace(aside, path)
