"""Section `benchmark_policy` of the config, and what a benchmark of one policy is told."""

from __future__ import annotations

from typing import Annotated

from warpflow.settings.base import Count, Eta, Flag, Natural, NonEmpty, Unique, listed, section


@section
class TaskSettings:
    """How the tasks are run on one policy."""

    tasks: Annotated[list[str], *Unique] = listed()
    """Names of tasks or groups of lm-eval, for example [gsm8k, mmlu]. An empty list runs none."""
    task_folder: str | None = None
    """The folder of tasks of your own, in the YAML format of lm-eval."""
    num_fewshot: Natural | None = None
    """The number of examples in the prompt; null takes the number that each task has."""
    limit: Count | None = None
    """To try it, run only so many documents of each task, the first ones; null runs all."""
    batch_size: Count = 16
    """The number of requests in a batch."""
    apply_chat_template: Flag = False
    """Whether questions go through the policy's chat template."""


@section
class BenchmarkPolicy(TaskSettings):
    """Tasks of lm-eval on points of the fronts (docs/benchmarks.md). They run on replicate 1, and
    need `pip install -e '.[benchmarks]'`. `snakemake benchmarks` runs them, and so does the whole
    run where tasks are named."""

    experiments: Annotated[list[str], NonEmpty, *Unique] = listed("warp")
    """The experiments whose fronts are benchmarked."""
    iterations: Annotated[list[Count], NonEmpty, *Unique] | None = None
    """The iterations of these experiments; null takes the last one."""
    etas: Annotated[list[Eta], NonEmpty, *Unique] = listed(0, 0.5, 1)
    """The η of the points, which must be among interpolate_policy.etas; 0 is SFT. Several points
    show how capability is traded for reward along the front."""
