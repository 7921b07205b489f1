"""Supervised stages: fine-tuning on completions and the Bradley–Terry reward model.

Both are ordinary Hugging Face `Trainer` runs. Only what is particular to them is here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import PreTrainedModel, Trainer, TrainingArguments

from warpflow.lm.reward_models import sequence_scores
from warpflow.settings.supervised import SupervisedSettings

IGNORED = -100  # the label that Hugging Face's cross-entropy skips


def language_model_collator(pad_id: int) -> Callable[[list[dict[str, Any]]], dict[str, Tensor]]:
    """Return a collator that right-pads ``{"ids", "prompt_length"}``. Only completions have
    labels."""

    def collate(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        width = max(len(e["ids"]) for e in examples)
        ids = torch.full((len(examples), width), pad_id)
        labels = torch.full((len(examples), width), IGNORED)
        mask = torch.zeros(len(examples), width, dtype=torch.int64)
        for row, example in enumerate(examples):
            length, prompt = len(example["ids"]), example["prompt_length"]
            ids[row, :length] = torch.tensor(example["ids"])
            labels[row, prompt:length] = ids[row, prompt:length]
            mask[row, :length] = 1
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    return collate


def preference_collator(pad_id: int) -> Callable[[list[dict[str, Any]]], dict[str, Tensor]]:
    """Return a collator that right-pads pairs ``{"chosen", "rejected"}`` of ids, all chosen rows
    first."""
    collate_rows = language_model_collator(pad_id)

    def collate(pairs: list[dict[str, Any]]) -> dict[str, Tensor]:
        rows = [
            {"ids": p[side], "prompt_length": 0} for side in ("chosen", "rejected") for p in pairs
        ]
        batch = collate_rows(rows)
        # The labels carry nothing, but without them Trainer does not call the loss function.
        return batch | {"labels": torch.zeros(len(rows), dtype=torch.int64)}

    return collate


def bradley_terry_loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """Return the mean over pairs of −log σ(r_chosen − r_rejected). Logits are [2B, 1], chosen
    first.

    Trainer passes `num_items_in_batch` in order to average over accumulated batches. It counts rows
    of labels, two for each pair.
    """
    chosen, rejected = outputs.logits[:, 0].float().chunk(2)
    losses = -logsigmoid(chosen - rejected)
    if num_items_in_batch is None:
        return losses.mean()
    return 2 * losses.sum() / num_items_in_batch


def train(
    model: PreTrainedModel,
    examples: Sequence[dict[str, Any]],
    collator: Callable[[list[dict[str, Any]]], dict[str, Tensor]],
    settings: SupervisedSettings,
    *,
    seed: int,
    work_folder: str | Path,
    loss: Callable[..., Tensor] | None = None,
) -> list[dict[str, float]]:
    """Train in place with AdamW and a cosine schedule, and return the rows that Trainer logged.

    Raises:
        FloatingPointError: the loss is not finite. The message names the seed.
    """
    arguments = TrainingArguments(
        output_dir=str(work_folder),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        lr_scheduler_type="cosine",
        logging_steps=max(1, settings.steps // 20),
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        seed=seed % 2**32,  # numpy takes no larger seed
        remove_unused_columns=False,
        train_sampling_strategy="random",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=examples,  # type: ignore[arg-type]
        data_collator=collator,
        compute_loss_func=loss,
    )
    trainer.train()
    model.eval()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    if not all(math.isfinite(row["loss"]) for row in rows):
        raise FloatingPointError(
            f"seed {seed}: the training loss is not finite: lower learning_rate"
        )
    return rows


@torch.no_grad()
def preference_scores(
    model: PreTrainedModel, pairs: Sequence[dict[str, list[int]]], batch_size: int
) -> tuple[Tensor, Tensor]:
    """Return the scores of the chosen and of the rejected sequences, [N] each."""
    chosen, rejected = (
        torch.cat(
            [
                sequence_scores(model, [p[side] for p in pairs[i : i + batch_size]])
                for i in range(0, len(pairs), batch_size)
            ]
        )
        for side in ("chosen", "rejected")
    )
    return chosen, rejected
