"""Make an environment that has TRL and all that the project's has, in the folder .venv-trl.

    python benchmarks/trl_environment.py     # or: make trl

TRL is not a dependency. The benchmark of an RL step and the test that compares our step with TRL's
(tests/training/test_trl_oracle.py) run it there.
"""

from __future__ import annotations

from environments import ROOT, make_environment

ENVIRONMENT = ROOT / ".venv-trl"
PYTHON = ENVIRONMENT / "bin/python"


def make_trl_environment() -> None:
    """Make the environment where it is not complete, which takes half a minute."""
    lock, constraints = ROOT / "benchmarks/trl.lock", ROOT / "requirements.lock"
    make_environment(ENVIRONMENT, "trl", "-r", lock, "-c", constraints)


if __name__ == "__main__":
    make_trl_environment()
