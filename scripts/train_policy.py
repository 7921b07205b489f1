"""Do one RL fine-tuning run: member m of iteration i, from θ_init, against its anchor (stage 1).

It writes the final policy θ_m to `--out`. To `--tables` it writes `training.csv` (a row per logged
step) and `completions.jsonl`, what the policy answered to held-out prompts along the way, with its
KL to SFT. Rule score_trajectories scores these answers, so that measuring is no part of a run. What
depends on the clock (progress, tokens/s) goes to the log and to the trackers of `--report_to`, so
that the written bytes depend only on the inputs. With `--state` the run saves itself every
`--save_every` steps and on SIGTERM (exit status 75). When it is started again it goes on from
there, to the same bytes. Several processes share the work when `accelerate launch` starts it. Next
in reading order: warpflow.training.reinforce.train_policy.
"""

from __future__ import annotations

import warpflow.quick_start  # noqa: F401  # first: see there

import importlib
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator
from tqdm import tqdm

from warpflow.cli import parse_arguments
from warpflow.data.files import write_jsonl
from warpflow.evaluation.rewards import Reading
from warpflow.evaluation.sample import completion_rows, sample_and_measure
from warpflow.evaluation.task import JudgeArguments, Judges, load_judges
from warpflow.lm.kernels import use_kernels_
from warpflow.lm.models import (
    compute_in,
    keep_in_host_memory_,
    lent,
    load_config,
    load_policy,
    round_matrices_,
    save_checkpoint,
)
from warpflow.lm.vllm_sampler import Engine, sample_by_vllm, start_engine, stop_engine, version
from warpflow.seeds import derive_seed
from warpflow.settings.base import listed, section
from warpflow.training.anchors import is_sft_itself
from warpflow.training.distributed import (
    any_process,
    gather_objects,
    gathered,
    own_part,
    process_index,
    share_of,
    whole_state_dict,
)
from warpflow.training.optimizers import carry_optimizer_, save_optimizer
from warpflow.training.reinforce import (
    ReinforceSettings,
    Run,
    StepRow,
    check_sampler,
    finish_run,
    start_run,
    train_policy,
)
from warpflow.training.resume import STOPPED, load_state, locked, noting_termination, save_state


@section
class Arguments:
    """Arguments of the command line beside the settings."""

    init: str
    """The checkpoint of θ_init."""
    out: str
    """The checkpoint folder to write."""
    tables: str
    """The folder for training.csv and completions.jsonl."""
    seed: int
    """The base seed."""
    replicate: int
    """r, from 1, which is part of the seed."""
    iteration: int
    """i, from 1, which is part of the seed."""
    member: int
    """m, from 0, which is part of the seed."""
    evaluate_batch_size: int = 256
    """The number of completions that those evaluations sample at once."""
    optimizer_of: str | None = None
    """The checkpoint of the run whose optimiser this one goes on with; by default it starts
    afresh."""
    state: str | None = None
    """The folder to save to and resume from."""
    report_to: list[str] = listed()
    """The trackers: tensorboard, wandb, mlflow, trackio, dvclive."""
    trackers: str = "."
    """The folder for what trackers write."""
    run: str = "warp/replicate1/iteration1/member0"
    """The run's name for trackers."""


Log = Callable[[int, Mapping[str, float]], None]
Tables = dict[str, list[dict[str, Any]]]
# These say how a run is started, and are no part of what it computes.
NOT_OF_THE_RUN = (
    *("out", "tables", "state", "save_every", "evaluate_batch_size"),
    *("endpoints", "report_to", "trackers", "run"),
)


def main(argv: Sequence[str] | None = None) -> None:
    arguments, given, settings = parse_arguments(
        __doc__, argv, Arguments, JudgeArguments, ReinforceSettings
    )
    # It has one process where nothing else was launched. Several share a CPU only if asked to.
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    own_part(settings.batch_size // settings.samples_per_prompt, "batch_size / samples_per_prompt")
    check_sampler(settings, accelerator)
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
    """Start or resume the run, train to the end, and write the checkpoint. Once `stopped` is not
    empty, save and leave with exit status `STOPPED`."""
    attention = settings.attn_implementation
    judges = load_judges(given, settings.max_new_tokens, reading(settings), attention)
    policy = load_policy(arguments.init, attention)
    if settings.use_kernels:
        for model in (policy, judges.sft):
            use_kernels_(model)
    replicate = derive_seed(arguments.seed, "replicate", arguments.replicate)
    lora_seed = derive_seed(replicate, "lora", arguments.iteration)  # members start alike
    run = start_run(policy, judges.sft, settings, lora_seed, accelerator)
    if arguments.optimizer_of:
        carry_optimizer_(run.optimizer, arguments.optimizer_of)
    # θ_sft is needed on the device while the KL to it is measured; as the anchor, always.
    is_anchor = is_sft_itself(settings.anchor, settings.anchor_memory)
    if settings.compute_dtype == "bfloat16" and not is_anchor:
        round_matrices_(judges.sft)  # as autocast would each time
    is_kept = settings.frozen_memory == "host" and not is_anchor
    kept_sft = keep_in_host_memory_(judges.sft) if is_kept else []
    measured = (run, judges, arguments, settings, kept_sft)
    fingerprint = {
        key: value
        for key, value in (asdict(arguments) | asdict(given) | asdict(settings)).items()
        if key not in NOT_OF_THE_RUN
    }
    engine = None
    if settings.sampler == "vllm":
        engine = start_vllm(arguments, given, settings, run)
        fingerprint["sampler"] = version()
    state = Path(arguments.state) if arguments.state else None
    tables = load_state(state, run, fingerprint) if state else None
    if tables is None:
        tables = {"training": [], "completions": sample_along(*measured)}
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
        sampler=partial(sample_by_vllm, engine) if engine else None,
    )
    with ExitStack() as stack:
        log = stack.enter_context(trackers(arguments, settings))
        if engine:
            stack.callback(stop_engine, engine)
        for row in show_progress(steps, run.step, settings, log):
            if row.step % settings.log_every == 0:
                tables["training"].append(row.values())
            if row.step % settings.evaluate_every == 0 or row.step == settings.steps:
                tables["completions"] += sample_along(*measured)
            stopping = any_process(bool(stopped), run.policy.device)
            if state and (stopping or row.step % settings.save_every == 0):
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
    if settings.carry_optimizer:
        save_optimizer(run.optimizer, arguments.out)
    folder = Path(arguments.tables)
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(tables["training"]).to_csv(folder / "training.csv", index=False)
    write_jsonl(folder / "completions.jsonl", tables["completions"])


def start_vllm(
    arguments: Arguments, given: JudgeArguments, settings: ReinforceSettings, run: Run
) -> Engine:
    """The engine that samples the completions of a run."""
    engine = start_engine(
        arguments.init,
        run.policy,
        rows=settings.sampling_batch_size or settings.batch_size,
        tokens=given.max_prompt_tokens + settings.max_new_tokens,
        dtype=settings.compute_dtype,
    )
    logging.info("%s samples in %s", version(), settings.compute_dtype)
    return engine


def reading(settings: ReinforceSettings) -> Reading:
    """Return how the reward model reads, which is how the policy is scored."""
    rows = settings.micro_batch_size or Reading.rows
    return Reading(rows, settings.compute_dtype, settings.frozen_memory)


def explain_out_of_memory(
    error: RuntimeError, arguments: Arguments, given: JudgeArguments, settings: ReinforceSettings
) -> None:
    """Raise MemoryError that says what to do, where `error` says that memory ran out."""
    # It is loaded by name, since it is no part of a result, and a change to it must not train anew.
    memory = importlib.import_module("warpflow.estimates.memory")
    if memory.is_out_of_memory(error):
        estimate = memory.estimate_training(
            load_config(arguments.init),
            load_config(given.reward_model) if given.reward_model else None,
            settings,
            prompt_tokens=given.max_prompt_tokens,
            evaluate_prompts=settings.evaluate_prompts,
            evaluate_batch_size=arguments.evaluate_batch_size,
        )
        raise MemoryError(memory.advise(settings, estimate)) from error


def trackers(arguments: Arguments, settings: ReinforceSettings) -> AbstractContextManager[Log]:
    """Return what reports a step to the trackers. Of several processes only the first one does."""
    # It is loaded by name, since a tracker is no part of a result, and a change must not train
    # anew.
    module = importlib.import_module("warpflow.training.trackers")
    names = arguments.report_to if process_index() == 0 else []
    run = module.RunName(arguments.run)
    return module.tracking(names, Path(arguments.trackers), run, asdict(settings))


def show_progress(
    steps: Iterator[StepRow], done: int, settings: ReinforceSettings, log: Log
) -> Iterator[StepRow]:
    """Pass the rows on, show a progress bar on standard error, and report to the trackers.

    Args:
        log: takes a step and its values by name.
    """
    is_main = process_index() == 0
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
        values = row.values() | {"tokens_per_second": rate}
        log(row.step, {f"train/{name}": value for name, value in values.items()})
        yield row


def sample_along(
    run: Run,
    judges: Judges,
    arguments: Arguments,
    settings: ReinforceSettings,
    kept_sft: Sequence[torch.Tensor],
) -> list[dict[str, Any]]:
    """Sample a completion to each of the first held-out prompts, by each of the weights that
    `evaluate_weights` names, with its KL to SFT. The processes share the prompts.

    Args:
        kept_sft: θ_sft's weights, where they are in host memory between its uses.
    """
    prompts = judges.eval_prompts[: settings.evaluate_prompts]
    share = share_of(len(prompts))
    lend_sft = partial(lent, judges.sft, kept_sft, run.policy.device) if kept_sft else nullcontext
    rows: list[dict[str, Any]] = []
    for weights in settings.evaluate_weights:
        with ExitStack() as stack:
            model = run.policy
            if weights != "policy":
                scoring = run.weights(weights).scoring(run.policy.device)
                model = stack.enter_context(scoring)
            # As in training, sharded weights are gathered in this dtype.
            stack.enter_context(compute_in(settings.compute_dtype, run.policy.device))
            model = stack.enter_context(gathered(model))
            parts = sample_and_measure(
                model,
                judges.sft,
                prompts,
                samples_per_prompt=1,
                batch_size=arguments.evaluate_batch_size,
                temperature=settings.temperature,
                max_new_tokens=settings.max_new_tokens,
                eos_ids=judges.eos_ids,
                pad_id=judges.tokenizer.pad_token_id,
                seed=arguments.seed,
                part=share,
                lend_sft=lend_sft,
            )
            mine = list(completion_rows(parts, share.start))
        key = {"step": run.step, "weights": weights}
        rows += [key | row for part in gather_objects(mine) for row in part]
    return rows


if __name__ == "__main__":
    main()
