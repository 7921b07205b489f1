"""One RL fine-tuning run: member m of iteration i, from θ_init, against its anchor (stage 1).

Writes the final policy θ_m with `training.csv` (a row per logged step) and `trajectory.csv` (the
policy evaluated along the way). What depends on the clock (progress, tokens/s, TensorBoard)
goes to the log and to `--tensorboard`, so that the checkpoint's bytes depend on its inputs alone.
Next in reading order: warpflow.reinforce.train_policy.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pandas as pd
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from warpflow.cli import parse_arguments
from warpflow.evaluation import EvaluationSettings, evaluate, mean_and_error
from warpflow.judging import Judges, load_judges
from warpflow.models import load_policy, save_checkpoint
from warpflow.reinforce import ReinforceSettings, train_policy
from warpflow.seeds import derive_seed


@dataclass
class Arguments:
    init: str = field(metadata={"help": "checkpoint of θ_init"})
    sft: str = field(metadata={"help": "checkpoint of θ_sft"})
    reward_model: str = field(metadata={"help": "checkpoint of the reward model"})
    data: str = field(metadata={"help": "data folder"})
    out: str = field(metadata={"help": "checkpoint folder to write"})
    seed: int = field(metadata={"help": "base seed"})
    iteration: int = field(metadata={"help": "i, from 1: part of the seed"})
    member: int = field(metadata={"help": "m, from 0: part of the seed"})
    log_every: int = field(metadata={"help": "steps between rows of training.csv"})
    evaluate_every: int = field(metadata={"help": "steps between rows of trajectory.csv"})
    evaluate_prompts: int = field(metadata={"help": "prompts of those evaluations"})
    max_prompt_tokens: int = field(metadata={"help": "longer prompts are an error"})
    gold: str | None = field(default=None, metadata={"help": "package.module:function"})
    tensorboard: str | None = field(default=None, metadata={"help": "folder for event files"})


def main(argv: Sequence[str] | None = None) -> None:
    arguments, settings = parse_arguments(__doc__, argv, Arguments, ReinforceSettings)
    policy = load_policy(arguments.init)
    judges = load_judges(
        arguments.sft,
        arguments.reward_model,
        arguments.data,
        gold=arguments.gold,
        max_prompt_tokens=arguments.max_prompt_tokens,
    )
    seed = derive_seed(arguments.seed, "train_policy", arguments.iteration, arguments.member)
    writer = SummaryWriter(arguments.tensorboard) if arguments.tensorboard else None
    rows, trajectory = [], [{"step": 0} | measure(policy, judges, arguments, settings)]
    started, tokens = time.monotonic(), 0.0
    steps = train_policy(
        policy,
        judges.sft,
        judges.reward,
        judges.train_prompts,
        settings,
        eos_id=judges.tokenizer.eos_token_id,
        pad_id=judges.tokenizer.pad_token_id,
        seed=seed,
    )
    bar = tqdm(steps, total=settings.steps, mininterval=2, file=sys.stderr)
    for row in bar:
        tokens += row.length * settings.batch_size
        rate = tokens / (time.monotonic() - started)
        bar.set_postfix(
            reward=f"{row.reward:.2f}", kl=f"{row.kl_to_anchor:.2f}", tok_s=f"{rate:.0f}"
        )
        if row.step % arguments.log_every == 0:
            rows.append(asdict(row))
            if writer:
                for name, value in asdict(row).items():
                    writer.add_scalar(f"train/{name}", value, row.step)
                writer.add_scalar("speed/tokens_per_second", rate, row.step)
        if row.step % arguments.evaluate_every == 0 or row.step == settings.steps:
            trajectory.append({"step": row.step} | measure(policy, judges, arguments, settings))
    if writer:
        writer.close()
    save_checkpoint(policy, judges.tokenizer, arguments.out)
    pd.DataFrame(rows).to_csv(Path(arguments.out, "training.csv"), index=False)
    pd.DataFrame(trajectory).to_csv(Path(arguments.out, "trajectory.csv"), index=False)


def measure(
    policy, judges: Judges, arguments: Arguments, settings: ReinforceSettings
) -> dict[str, float | None]:
    """A row of trajectory.csv: the policy on the first held-out prompts."""
    samples = evaluate(
        policy,
        judges.sft,
        judges.reward,
        judges.gold,
        judges.eval_prompts,
        EvaluationSettings(
            prompts=arguments.evaluate_prompts,
            samples_per_prompt=1,
            batch_size=256,
            temperature=settings.temperature,
            max_new_tokens=settings.max_new_tokens,
        ),
        eos_id=judges.tokenizer.eos_token_id,
        pad_id=judges.tokenizer.pad_token_id,
        seed=arguments.seed,
    )
    row: dict[str, float | None] = {}
    for name in ("reward", "gold", "kl", "kl_exact", "length"):
        values = getattr(samples, name)
        row[name], row[f"{name}_se"] = (None, None) if values is None else mean_and_error(values, 1)
    return row


if __name__ == "__main__":
    main()
