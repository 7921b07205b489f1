"""Run tasks of lm-eval on one policy. A recipe is composed in memory, and nothing is exported.

It writes one JSON file with `rows` of task, metric, value and error, and lm-eval's version. Next in
reading order: warpflow.evaluation.lm_eval.
"""

from __future__ import annotations

import warpflow.quick_start  # noqa: F401  # first: see there

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase

from warpflow.cli import parse_arguments
from warpflow.evaluation.lm_eval import HINT, require_tasks, result_rows
from warpflow.lm.models import load_tokenizer
from warpflow.merging.points import load_point
from warpflow.settings.base import listed, section
from warpflow.settings.benchmark_policy import TaskSettings


@section
class Arguments:
    """Arguments of the command line beside the settings."""

    policy: str
    """The checkpoint to benchmark."""
    out: str
    """The JSON file to write."""
    seed: int = 0
    """The seed of few-shot examples."""
    parents: list[str] = listed()
    """The two checkpoints of a policy that is a recipe."""


def main(argv: Sequence[str] | None = None) -> None:
    arguments, settings = parse_arguments(__doc__, argv, Arguments, TaskSettings)
    results = run_tasks(arguments, settings)
    document = {"rows": result_rows(results), "lm_eval": results["lm_eval_version"]}
    Path(arguments.out).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def run_tasks(arguments: Arguments, settings: TaskSettings) -> dict[str, Any]:
    """Return lm-eval's results.

    Raises:
        SystemExit: lm-eval is not installed. ValueError: lm-eval knows no such task.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # lm-eval forks
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ModuleNotFoundError as error:
        raise SystemExit(f"{HINT} ({error})") from None
    manager = TaskManager(include_path=settings.task_folder)
    require_tasks(settings.tasks, manager.all_tasks)
    tokenizer = begin_with_bos(load_tokenizer(arguments.policy))
    policy = load_point(arguments.policy, arguments.parents)
    results = lm_eval.simple_evaluate(
        model=HFLM(pretrained=policy, tokenizer=tokenizer, batch_size=settings.batch_size),
        tasks=settings.tasks,
        task_manager=manager,
        num_fewshot=settings.num_fewshot,
        limit=settings.limit,
        apply_chat_template=settings.apply_chat_template,
        log_samples=False,
        random_seed=arguments.seed,
        numpy_random_seed=arguments.seed,
        torch_random_seed=arguments.seed,
        fewshot_random_seed=arguments.seed,
    )
    return {**results, "lm_eval_version": lm_eval.__version__}


def begin_with_bos(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Make the tokenizer put BOS before texts where it has one, as the policies here read them
    (`prompts.prompt_tokens`). Most tokenizers that come with models do so already."""
    bos = tokenizer.bos_token
    ids = tokenizer("a")["input_ids"]
    if bos is not None and (ids[0] != tokenizer.bos_token_id or ids[-1] == tokenizer.eos_token_id):
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
        )
    return tokenizer


if __name__ == "__main__":
    main()
