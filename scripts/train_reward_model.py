"""Train the reward model r(x, y) on preference pairs (Bradley–Terry), or store a given one.

It starts from the SFT policy's weights with a fresh head of one label. Scores are standardised to
mean 0 and standard deviation 1 over the rejected and chosen sequences, so that β means the same
whatever the head's scale is. The two numbers are stored in the checkpoint's config. Next in reading
order: warpflow.training.supervised.bradley_terry_loss.
"""

from __future__ import annotations

import warpflow.quick_start  # noqa: F401  # first: see there

import json
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification

from warpflow.cli import parse_arguments
from warpflow.data.files import Row, read_rows
from warpflow.data.preferences import share_of_preferences
from warpflow.lm.classifiers import load_classifier
from warpflow.lm.models import (
    load_reward_tokenizer,
    load_tokenizer,
    pad_id_beside_eos,
    require_vocabulary,
    save_checkpoint,
)
from warpflow.lm.prompts import encode_example
from warpflow.seeds import derive_seed
from warpflow.settings.base import Flag, Share, section
from warpflow.settings.train_reward_model import TrainRewardModel
from warpflow.training.supervised import (
    bradley_terry_loss,
    preference_collator,
    preference_scores,
    train,
)


@section
class Arguments:
    """Arguments of the command line beside the settings."""

    data: str
    """The data folder."""
    sft: str
    """The SFT checkpoint to start from."""
    out: str
    """The checkpoint folder to write."""
    seed: int
    """The base seed."""
    gold_share: Share = 0.0
    """This share of the preferences is for the gold reward model, and the rest for the other."""
    gold: Flag = False
    """Whether to train the gold reward model, on its share and with its own seed."""


def main(argv: Sequence[str] | None = None) -> None:
    arguments, settings = parse_arguments(__doc__, argv, Arguments, TrainRewardModel)
    if settings.path:
        model = load_classifier(settings.path)
        tokenizer = load_reward_tokenizer(settings.path)
        require_vocabulary(tokenizer, model.config, settings.path)
        save_checkpoint(model, tokenizer, arguments.out)
        return
    tokenizer = load_tokenizer(arguments.sft)
    rows = read_share(arguments, settings.held_out)
    pairs = [
        {side: encode_example(tokenizer, row["prompt"], row[side])[0] for side in SIDES}
        for row in rows
    ]
    held_out, training = pairs[: settings.held_out], pairs[settings.held_out :]
    name = "train_gold_reward_model" if arguments.gold else "train_reward_model"
    seed = derive_seed(arguments.seed, name)
    torch.manual_seed(seed)  # the fresh head
    model = AutoModelForSequenceClassification.from_pretrained(
        arguments.sft, num_labels=1, dtype=torch.float32
    )
    model.config.pad_token_id = pad_id_beside_eos(tokenizer)
    with tempfile.TemporaryDirectory() as work_folder:
        train(
            model,
            training,
            preference_collator(model.config.pad_token_id),
            settings,
            seed=seed,
            work_folder=work_folder,
            loss=bradley_terry_loss,
        )
    chosen, rejected = preference_scores(model, held_out, settings.batch_size)
    scores = torch.cat([chosen, rejected])
    model.config.reward_mean, model.config.reward_std = scores.mean().item(), scores.std().item()
    save_checkpoint(model, tokenizer, arguments.out)
    metrics = {"held_out_accuracy": (chosen > rejected).float().mean().item()}
    Path(arguments.out, "metrics.json").write_text(
        json.dumps(metrics, indent=1) + "\n", encoding="utf-8"
    )
    logging.info("%s", metrics)


def read_share(arguments: Arguments, held_out: int) -> list[Row]:
    """Return the preferences that this reward model may see. Raises ValueError where too few are
    left to train on besides those that are held out for its accuracy."""
    path, share = f"{arguments.data}/preferences.jsonl", arguments.gold_share
    rows = read_rows(path)
    of_share = ""
    if share:
        rows = share_of_preferences(rows, share, arguments.seed, arguments.gold)
        part = share if arguments.gold else 1 - share
        of_share = f" in this reward model's share of {part:g} (held_out_preferences of gold)"
    if len(rows) <= held_out:
        raise ValueError(
            f"{path} has {len(rows)} pairs{of_share} and train_reward_model.held_out is "
            f"{held_out}: nothing is left to train on; lower it, or give more pairs"
        )
    return rows


SIDES = ("chosen", "rejected")

if __name__ == "__main__":
    main()
