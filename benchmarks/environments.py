"""Environments beside the project's: each has one package more than it, and all that it has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def make_environment(folder: Path, package: str, *arguments: str | Path) -> None:
    """Make an environment where it is not complete.

    Args:
        package: the start of the name of the folder that the package has in site-packages.
        arguments: what `pip install` is given.
    """
    if any(folder.glob(f"lib/python*/site-packages/{package}-*")):
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    paths = [path for path in sys.path if path.endswith("site-packages")]
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "base.pth").write_text(
        "\n".join([*paths, str(ROOT / "workflow")]) + "\n", encoding="utf-8"
    )
    pip = [folder / "bin/python", "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, *arguments], check=True)
