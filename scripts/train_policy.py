"""One RL fine-tuning run: member m of iteration i, from θ_init, against its anchor (stage 1).

Writes the final policy θ_m with `training.csv` (a row per logged step), `trajectory.csv` (the
policy evaluated along the way) and `trajectory_prompts.csv` (its values of every prompt). What
depends on the clock (progress, tokens/s, TensorBoard) goes to the log and to `--tensorboard`, so
that the checkpoint's bytes depend on its inputs alone.
With `--state` the run saves itself every `--save_every` steps and on SIGTERM (exit status 75), and
goes on from there when started again, to the same bytes. Several processes share the work when it
is started by `accelerate launch`.
Next in reading order: warpflow.training.reinforce.train_policy.
"""

from __future__ import annotations

import importlib
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from transformers import PreTrainedModel

from warpflow.cli import parse_arguments
from warpflow.evaluation.evaluate import (
    EvaluationSettings,
    Samples,
    distinct_n,
    entropy_per_token,
    evaluate,
    join_samples,
    mean_and_error,
    prompt_values,
)
from warpflow.evaluation.rewards import Reading, response_texts
from warpflow.evaluation.task import JudgeArguments, Judges, load_judges
from warpflow.lm.models import compute_in, load_config, load_policy, save_checkpoint
from warpflow.seeds import derive_seed
from warpflow.training.distributed import (
    any_process,
    gather_objects,
    gathered,
    own_part,
    process_index,
    share_of,
    whole_state_dict,
)
from warpflow.training.reinforce import (
    ReinforceSettings,
    Run,
    StepRow,
    finish_run,
    start_run,
    train_policy,
)
from warpflow.training.resume import STOPPED, load_state, locked, noting_termination, save_state


@dataclass
class Arguments:
    init: str = field(metadata={"help": "checkpoint of θ_init"})
    out: str = field(metadata={"help": "checkpoint folder to write"})
    seed: int = field(metadata={"help": "base seed"})
    replicate: int = field(metadata={"help": "r, from 1: part of the seed"})
    iteration: int = field(metadata={"help": "i, from 1: part of the seed"})
    member: int = field(metadata={"help": "m, from 0: part of the seed"})
    log_every: int = field(metadata={"help": "steps between rows of training.csv"})
    evaluate_every: int = field(metadata={"help": "steps between rows of trajectory.csv"})
    evaluate_prompts: int = field(metadata={"help": "prompts of those evaluations"})
    save_every: int = field(metadata={"help": "steps between saves of the state"})
    evaluate_batch_size: int = field(
        default=256, metadata={"help": "completions of those evaluations at once"}
    )
    state: str | None = field(default=None, metadata={"help": "folder to save to and resume from"})
    tensorboard: str | None = field(default=None, metadata={"help": "folder for event files"})


Tables = dict[str, list[dict[str, Any]]]


def main(argv: Sequence[str] | None = None) -> None:
    arguments, given, settings = parse_arguments(
        __doc__, argv, Arguments, JudgeArguments, ReinforceSettings
    )
    # Of one process where nothing else was launched; several share a CPU only if they are told to.
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    own_part(settings.batch_size // settings.samples_per_prompt, "batch_size / samples_per_prompt")
    with ExitStack() as stack:
        stopped = stack.enter_context(noting_termination())
        if arguments.state and accelerator.is_main_process:
            stack.enter_context(locked(Path(arguments.state)))
        try:
            train(arguments, given, settings, stopped, accelerator)
        except RuntimeError as error:
            explain_out_of_memory(error, arguments, given, settings)
            raise
    accelerator.end_training()


def train(
    arguments: Arguments,
    given: JudgeArguments,
    settings: ReinforceSettings,
    stopped: list[int],
    accelerator: Accelerator,
) -> None:
    """Start or resume the run, train to the end, write the checkpoint. Once `stopped` is not
    empty: save and leave with exit status `STOPPED`."""
    judges = load_judges(given, settings.max_new_tokens, reading(settings))
    policy = load_policy(arguments.init)
    replicate = derive_seed(arguments.seed, "replicate", arguments.replicate)
    lora_seed = derive_seed(replicate, "lora", arguments.iteration)  # members start alike
    run = start_run(policy, judges.sft, settings, lora_seed, accelerator)
    fingerprint = {
        key: value
        for key, value in (asdict(arguments) | asdict(given) | asdict(settings)).items()
        if key not in ("out", "state", "tensorboard", "save_every", "evaluate_batch_size")
    }
    state = Path(arguments.state) if arguments.state else None
    tables = load_state(state, run, fingerprint) if state else None
    if tables is None:
        tables = {"training": []} | measure(run, judges, arguments, settings)
    else:
        logging.info("resumed after step %d from %s", run.step, state)
    seed = derive_seed(replicate, "train_policy", arguments.iteration, arguments.member)
    steps = train_policy(
        run,
        judges.reward,
        judges.train_prompts,
        settings,
        eos_ids=judges.eos_ids,
        pad_id=judges.tokenizer.pad_token_id,
        seed=seed,
    )
    for row in show_progress(steps, run.step, settings, arguments.tensorboard):
        if row.step % arguments.log_every == 0:
            tables["training"].append(asdict(row))
        if row.step % arguments.evaluate_every == 0 or row.step == settings.steps:
            for name, rows in measure(run, judges, arguments, settings).items():
                tables[name] += rows
        stopping = any_process(bool(stopped), run.policy.device)
        if state and (stopping or row.step % arguments.save_every == 0):
            save_state(state, run, fingerprint, tables)
        if stopping:
            logging.info("stopped by SIGTERM after step %d", row.step)
            sys.exit(STOPPED)
    if run.policy.device.type == "cuda":
        logging.info("peak GPU memory: %.0f MB", torch.cuda.max_memory_allocated() / 1e6)
    trained, weights = finish_run(run), whole_state_dict(run.policy)
    if not accelerator.is_main_process:
        return
    save_checkpoint(trained, judges.tokenizer, arguments.out, weights)
    for name, rows in tables.items():
        pd.DataFrame(rows).to_csv(Path(arguments.out, f"{name}.csv"), index=False)


def reading(settings: ReinforceSettings) -> Reading:
    """How the reward model reads: as the policy is scored."""
    rows = settings.micro_batch_size or Reading.rows
    return Reading(rows, settings.compute_dtype, settings.frozen_memory)


def explain_out_of_memory(
    error: RuntimeError, arguments: Arguments, given: JudgeArguments, settings: ReinforceSettings
) -> None:
    """Raise MemoryError with what to do, where `error` says that memory ran out."""
    # By name: the estimate is no part of a result, and a change to it must not train anew.
    memory = importlib.import_module("warpflow.estimates.memory")
    if memory.is_out_of_memory(error):
        estimate = memory.estimate_training(
            load_config(arguments.init),
            load_config(given.reward_model) if given.reward_model else None,
            settings,
            prompt_tokens=given.max_prompt_tokens,
            evaluate_prompts=arguments.evaluate_prompts,
            evaluate_batch_size=arguments.evaluate_batch_size,
        )
        raise MemoryError(memory.advise(settings, estimate)) from error


def show_progress(
    steps: Iterator[StepRow], done: int, settings: ReinforceSettings, tensorboard: str | None
) -> Iterator[StepRow]:
    """Pass the rows on, with a progress bar on standard error and TensorBoard event files."""
    is_main = process_index() == 0
    writer = SummaryWriter(tensorboard) if tensorboard and is_main else None
    started, tokens = time.monotonic(), 0.0
    bar = tqdm(
        steps,
        initial=done,
        total=settings.steps,
        mininterval=2,
        file=sys.stderr,
        disable=not is_main,
    )
    for row in bar:
        tokens += row.length * settings.batch_size
        rate = tokens / (time.monotonic() - started)
        bar.set_postfix(
            reward=f"{row.reward:.2f}", kl=f"{row.kl_to_anchor:.2f}", tok_s=f"{rate:.0f}"
        )
        if writer:
            for name, value in (asdict(row) | {"tokens_per_second": rate}).items():
                writer.add_scalar(f"train/{name}", value, row.step)
        yield row
    if writer:
        writer.close()


def measure(run: Run, judges: Judges, arguments: Arguments, settings: ReinforceSettings) -> Tables:
    """Rows of trajectory.csv, one for each of `evaluate_weights`: the policy (or an average of it)
    on the first held-out prompts; and of trajectory_prompts.csv, two for each: reward and KL of
    every prompt, a column each. The same in every process."""
    tables: Tables = {"trajectory": [], "trajectory_prompts": []}
    for weights in settings.evaluate_weights:
        with ExitStack() as stack:
            model = run.policy
            if weights != "policy":
                scoring = run.weights(weights).scoring(run.policy.device)
                model = stack.enter_context(scoring)
            # As in training: sharded, the weights are whole in this dtype.
            stack.enter_context(compute_in(settings.compute_dtype, run.policy.device))
            model = stack.enter_context(gathered(model))
            samples = sample_for_trajectory(model, judges, arguments, settings)
        key = {"step": run.step, "weights": weights}
        tables["trajectory"].append(key | trajectory_row(samples, judges))
        of_prompts = prompt_values(samples, 1)
        for name in ("reward", "kl_exact"):
            values = of_prompts[name] or []
            columns = {str(prompt): value for prompt, value in enumerate(values)}
            tables["trajectory_prompts"].append(key | {"quantity": name} | columns)
    return tables


def sample_for_trajectory(
    model: PreTrainedModel, judges: Judges, arguments: Arguments, settings: ReinforceSettings
) -> Samples:
    """A completion of each of the first held-out prompts, shared among the processes."""
    count = min(arguments.evaluate_prompts, len(judges.eval_prompts))
    mine = evaluate(
        model,
        judges.sft,
        judges.reward,
        judges.gold,
        judges.eval_prompts,
        EvaluationSettings(
            prompts=arguments.evaluate_prompts,
            samples_per_prompt=1,
            batch_size=arguments.evaluate_batch_size,
            temperature=settings.temperature,
            max_new_tokens=settings.max_new_tokens,
        ),
        eos_ids=judges.eos_ids,
        pad_id=judges.tokenizer.pad_token_id,
        seed=arguments.seed,
        part=share_of(count),
    )
    return join_samples(gather_objects(mine))


def trajectory_row(samples: Samples, judges: Judges) -> dict[str, float | None]:
    """Means and standard errors of one model's completions."""
    row: dict[str, float | None] = {}
    for name in ("reward", "gold", "kl", "kl_exact", "length"):
        values = getattr(samples, name)
        row[name], row[f"{name}_se"] = (None, None) if values is None else mean_and_error(values, 1)
    texts = [text for batch in samples.batch for text in response_texts(batch, judges.tokenizer)]
    return row | {"entropy": entropy_per_token(samples), "distinct_2": distinct_n(texts, 2)}


if __name__ == "__main__":
    main()
