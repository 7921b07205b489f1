"""Garbage is not looked for while a script imports, and is from then on."""

from warpflow.quick_start import keep_imports

import gc
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import warpflow.quick_start
import gc
print(gc.isenabled())
from warpflow.cli import parse_arguments
parse_arguments("", [])
print(gc.isenabled(), gc.get_freeze_count() > 1000)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "printed"), [("scripts", "False True True"), ("elsewhere", "True True False")]
)
def test_only_a_script_imports_without_looking_for_garbage(
    tmp_path: Path, folder: str, printed: str
) -> None:
    script = tmp_path / folder / "train.py"
    script.parent.mkdir()
    script.write_text(PROGRAM)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == printed.split()


def test_a_process_that_imports_a_script_keeps_its_garbage_collection() -> None:
    """Objects of a test session that were frozen would never be freed."""
    frozen = gc.get_freeze_count()
    keep_imports()
    assert gc.isenabled()
    assert gc.get_freeze_count() == frozen
