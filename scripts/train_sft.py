"""Fine-tune the policy on completions. Every KL in this project is measured to the result, θ_sft.

It reads a data folder and writes a Hugging Face checkpoint. With `--steps 0` and `--policy` it only
stores the given policy in fp32, which is fine-tuned already. Next in reading order:
warpflow.training.supervised.train.
"""

from __future__ import annotations

import warpflow.quick_start  # noqa: F401  # first: see there

import json
import logging
import tempfile
from collections.abc import Sequence

import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from warpflow.cli import parse_arguments
from warpflow.data.files import iterate_rows, read_rows
from warpflow.lm.models import (
    build_policy,
    load_config,
    load_policy,
    load_tokenizer,
    require_attention,
    require_vocabulary,
    save_checkpoint,
    template_closing,
    warn_of_half_precision,
)
from warpflow.lm.prompts import encode_example, end_of_turn, is_rendered
from warpflow.seeds import derive_seed
from warpflow.settings.base import section
from warpflow.settings.train_sft import TrainSft
from warpflow.training.supervised import (
    language_model_collator,
    train,
)


@section
class Arguments:
    """Arguments of the command line beside the settings."""

    data: str
    """The data folder."""
    out: str
    """The checkpoint folder to write."""
    seed: int
    """The base seed."""
    policy: str | None = None
    """The Hugging Face policy to start from; without it, --architecture says what is built."""
    architecture: str | None = None
    """The config of a Hugging Face model as JSON, with model_type."""


def main(argv: Sequence[str] | None = None) -> None:
    arguments, settings = parse_arguments(__doc__, argv, Arguments, TrainSft)
    if arguments.policy:
        tokenizer = load_tokenizer(arguments.policy)
        warn_of_half_precision(arguments.policy)
        require_attention(load_config(arguments.policy), arguments.policy)
        model = load_policy(arguments.policy)
        require_vocabulary(tokenizer, model.config, arguments.policy)
        end_answers_as_the_template(tokenizer, model, f"{arguments.data}/train_prompts.jsonl")
    else:
        tokenizer = load_tokenizer(f"{arguments.data}/tokenizer")
        architecture = json.loads(arguments.architecture)
        model = build_policy(architecture, tokenizer, derive_seed(arguments.seed, "build_policy"))
    history: list[dict[str, float]] = []
    if settings.steps:
        rows = read_rows(f"{arguments.data}/sft.jsonl")
        encoded = (encode_example(tokenizer, row["prompt"], row["completion"]) for row in rows)
        examples = [{"ids": ids, "prompt_length": length} for ids, length in encoded]
        with tempfile.TemporaryDirectory() as work_folder:
            history = train(
                model,
                examples,
                language_model_collator(tokenizer.pad_token_id),
                settings,
                seed=derive_seed(arguments.seed, "train_sft"),
                work_folder=work_folder,
            )
    save_checkpoint(model, tokenizer, arguments.out)
    columns = ["step", "loss", "learning_rate", "grad_norm"]
    pd.DataFrame(history, columns=columns).to_csv(f"{arguments.out}/training.csv", index=False)


def end_answers_as_the_template(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, prompts: str
) -> None:
    """Make the token that closes an answer in the chat template the EOS token, from SFT to
    sampling, where prompts are messages or texts that the template has rendered. It is stored with
    θ_sft, beside all that ended a completion before."""
    prompt = next(iterate_rows(prompts))["prompt"]
    if isinstance(prompt, str):
        closing = template_closing(tokenizer) if is_rendered(tokenizer, prompt) else None
    else:
        closing = end_of_turn(tokenizer, prompt)
    if closing is None or closing == tokenizer.eos_token:
        return
    logging.info("completions end with %s, as in the chat template", closing)
    before = tokenizer.eos_token_id
    tokenizer.eos_token = closing
    assert model.generation_config is not None
    ends = model.generation_config.eos_token_id  # one id or several, at which generate() stops
    ends = ends if isinstance(ends, list) else [ends]
    if tokenizer.eos_token_id not in ends:
        known = [*ends, before, tokenizer.eos_token_id]
        model.generation_config.eos_token_id = sorted(set(known) - {None})


if __name__ == "__main__":
    main()
