"""Steps of TRL's RLOOTrainer, with all that goes into them and comes out; started in TRL's own
environment by tests/training/test_trl_oracle.py. TRL itself is as it was installed.

    .venv-trl/bin/python tests/training/trl_steps.py MODEL OUT

OUT/asked.json holds the prompts and the settings, by their names in `train_policy`. OUT gets
stepN.safetensors (the batch, its rewards, the clipped gradient), and of the last step
policy.safetensors and anchor.safetensors.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from datasets import Dataset
from safetensors.torch import save_file
from torch import Tensor, tensor
from transformers import AutoTokenizer, PreTrainedModel, TrainerCallback
from trl import RLOOConfig, RLOOTrainer


def config(out: Path, asked: dict[str, Any]) -> RLOOConfig:
    """TRL's settings for those of ours. Its defaults would compute in bf16."""
    return RLOOConfig(
        output_dir=str(out / "trainer"),
        per_device_train_batch_size=asked["batch_size"],
        gradient_accumulation_steps=1,
        num_iterations=1,
        num_generations=asked["samples_per_prompt"],
        max_completion_length=asked["max_new_tokens"],
        max_steps=asked["steps"],
        learning_rate=asked["learning_rate"],
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        weight_decay=0.0,
        max_grad_norm=asked["max_grad_norm"],
        beta=asked["beta"],
        temperature=asked["temperature"],
        top_k=0,
        top_p=1.0,
        normalize_advantages=False,
        mask_truncated_completions=False,
        sync_ref_model=True,
        ref_model_mixup_alpha=asked["mu"],
        ref_model_sync_steps=1,
        disable_dropout=True,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        dataloader_pin_memory=False,
        seed=0,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        model_init_kwargs={"dtype": "float32"},
    )


def reward_of(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """A number between 0 and 1 that tells completions apart."""
    return [sum(ids) % 11 / 10 for ids in completion_ids]


class Recorded(RLOOTrainer):
    """Keeps the batch that the loss is taken of."""

    def compute_loss(self, model: PreTrainedModel, inputs: dict[str, Tensor], **keywords: Any):
        self.batch = dict(inputs)
        return super().compute_loss(model, inputs, **keywords)


class WriteStep(TrainerCallback):
    """Write a step once its gradient is clipped and before the optimiser uses it."""

    def __init__(self, trainer: Recorded, out: Path) -> None:
        self.trainer, self.out = trainer, out

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        batch = self.trainer.batch
        rows = [
            ids[mask.bool()].tolist()
            for ids, mask in zip(batch["completion_ids"], batch["completion_mask"], strict=True)
        ]
        names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
        tensors = {name: batch[name] for name in names} | {"rewards": tensor(reward_of(rows))}
        tensors["eos_id"] = tensor(self.trainer.processing_class.eos_token_id)
        for name, parameter in self.trainer.model.named_parameters():
            tensors[f"gradient/{name}"] = parameter.grad
        save_file(tensors, self.out / f"step{state.global_step + 1}.safetensors")


def main(model: Path, out: Path) -> None:
    asked = json.loads((out / "asked.json").read_text(encoding="utf-8"))
    trainer = Recorded(
        model=str(model),
        reward_funcs=reward_of,
        args=config(out, asked),
        train_dataset=Dataset.from_dict({"prompt": asked["prompts"]}),
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    trainer.add_callback(WriteStep(trainer, out))
    trainer.train()
    for name, trained in (("policy", trainer.model), ("anchor", trainer.ref_model)):
        save_file(dict(trained.named_parameters()), out / f"{name}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
