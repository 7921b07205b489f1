"""Make an environment that has TRL and all that the project's has, in the folder .venv-trl.

    python benchmarks/trl_environment.py     # or: make trl

TRL is not a dependency. The benchmark of an RL step and the test that compares our step with TRL's
(tests/training/test_trl_oracle.py) run it there.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENVIRONMENT = ROOT / ".venv-trl"
PYTHON = ENVIRONMENT / "bin/python"


def make_environment() -> None:
    """Make the environment where it is not complete, which takes half a minute."""
    if any(ENVIRONMENT.glob("lib/python*/site-packages/trl-*")):
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", ENVIRONMENT], check=True)
    paths = [path for path in sys.path if path.endswith("site-packages")]
    (site,) = ENVIRONMENT.glob("lib/python*/site-packages")
    (site / "base.pth").write_text(
        "\n".join([*paths, str(ROOT / "workflow")]) + "\n", encoding="utf-8"
    )
    pip = [PYTHON, "-m", "pip", "install", "--quiet", "-r", ROOT / "benchmarks/trl.lock"]
    subprocess.run([*pip, "-c", ROOT / "requirements.lock"], check=True)


if __name__ == "__main__":
    make_environment()
