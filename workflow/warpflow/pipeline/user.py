"""Give the user of this process a name and a home.

A container may be started with a user id that it does not know. Then the user has no name, and HOME
is unset or `/`, where nothing can be written. Snakemake, DVC and PyTorch ask for both, and each
ends with a traceback. Every process that starts others calls `provide_user` first; they inherit
what it sets.
"""

from __future__ import annotations

import getpass
import os
import tempfile
from pathlib import Path


def provide_user() -> list[str]:
    """Set USER, LOGNAME and HOME in this process's environment where there is no name or home.
    Return in words what was set and why. Caches are in HOME unless XDG_CACHE_HOME and HF_HOME say
    otherwise."""
    said = []
    if not has_name():
        name = f"user{os.getuid()}"
        os.environ |= {"USER": name, "LOGNAME": name}
        said.append(
            f"User id {os.getuid()} has no name on this machine: USER and LOGNAME are set to {name}"
        )
    if not has_home():
        was = os.environ.get("HOME")
        os.environ["HOME"] = str(temporary_home())
        said.append(
            f"HOME is {'unset' if was is None else was}, where nothing can be kept: it is set to "
            f"{os.environ['HOME']}; set HOME yourself to keep caches and DVC's settings"
        )
    return said


def has_name() -> bool:
    """Whether the environment or the machine has a name for the user."""
    try:
        return bool(getpass.getuser())
    except (KeyError, OSError):
        return False


def has_home() -> bool:
    """Whether the user has a home. A read-only one is left as it is, because settings and models in
    it are read."""
    home = Path(os.environ.get("HOME", os.path.expanduser("~")))
    return home.is_absolute() and home.is_dir() and (home != Path("/") or os.access(home, os.W_OK))


def temporary_home() -> Path:
    """Return the same folder for each process of this user, or a new one where another user has
    taken it."""
    home = Path(tempfile.gettempdir(), f"warpflow-home-{os.getuid()}")
    home.mkdir(mode=0o700, exist_ok=True)
    return home if home.stat().st_uid == os.getuid() else Path(tempfile.mkdtemp())
