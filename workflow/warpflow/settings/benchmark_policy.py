"""Section `benchmark_policy` of the config, and what a benchmark of one policy is told."""

from __future__ import annotations

from typing import Annotated

from warpflow.settings.base import Count, Eta, Flag, Natural, NonEmpty, Unique, listed, section


@section
class TaskSettings:
    """How the tasks are run on one policy."""

    tasks: Annotated[list[str], *Unique] = listed()
    """Names of tasks or groups of lm-eval, say [gsm8k, mmlu]; empty: none."""
    task_folder: str | None = None
    """Folder of tasks of your own, in lm-eval's YAML format."""
    num_fewshot: Natural | None = None
    """Examples in the prompt; null: each task's own number."""
    limit: Count | None = None
    """Only the first so many documents of each task, to try it."""
    batch_size: Count = 16
    """Requests in a batch."""
    apply_chat_template: Flag = False
    """Ask through the policy's chat template."""


@section
class BenchmarkPolicy(TaskSettings):
    """Tasks of lm-eval on points of the fronts (docs/benchmarks.md). They are of replicate 1, and
    need `pip install -e '.[benchmarks]'`. `snakemake benchmarks` runs them, and so does the whole
    run where tasks are named."""

    experiments: Annotated[list[str], NonEmpty, *Unique] = listed("warp")
    """Whose fronts."""
    iterations: Annotated[list[Count], NonEmpty, *Unique] | None = None
    """Which of their iterations; null: the last."""
    etas: Annotated[list[Eta], NonEmpty, *Unique] = listed(0, 0.5, 1)
    """Points, of those in interpolate_policy.etas; 0 is SFT. Several show how capability is traded
    for reward along the front."""
