"""Write the data folder of the synthetic language: SFT texts, preferences, prompts, tokenizer.

Next in reading order: warpflow.data.toy_reviews.
"""

from __future__ import annotations

import warpflow.quick_start  # noqa: F401  # first: see there

import random
from collections.abc import Sequence
from pathlib import Path

from warpflow.cli import parse_arguments
from warpflow.data.files import write_jsonl
from warpflow.data.toy_reviews import (
    sample_distinct_prompts,
    sample_preferences,
    sample_sft,
    write_tokenizer,
)
from warpflow.seeds import derive_seed
from warpflow.settings.base import section
from warpflow.settings.generate_data import GenerateData


@section
class Arguments:
    """Arguments of the command line beside the settings."""

    out: str
    """The data folder to write."""
    seed: int
    """The base seed."""


def main(argv: Sequence[str] | None = None) -> None:
    arguments, settings = parse_arguments(__doc__, argv, Arguments, GenerateData)

    def stream(purpose: str) -> random.Random:
        # Each purpose has a stream of its own, so that a size changes only its own file.
        return random.Random(derive_seed(arguments.seed, "generate_data", purpose))

    prompts = sample_distinct_prompts(
        stream("prompts"), settings.train_prompts + settings.eval_prompts
    )
    files: dict[str, list[dict[str, str]]] = {
        "sft.jsonl": sample_sft(stream("sft"), settings.sft_examples),
        "preferences.jsonl": sample_preferences(
            stream("preferences"), settings.preference_pairs, settings.preference_noise_scale
        ),
        "train_prompts.jsonl": [{"prompt": p} for p in prompts[settings.eval_prompts :]],
        "eval_prompts.jsonl": [{"prompt": p} for p in prompts[: settings.eval_prompts]],
    }
    for name, rows in files.items():
        write_jsonl(Path(arguments.out) / name, rows)
        print(f"{name}: {len(rows)} rows")
    write_tokenizer(Path(arguments.out) / "tokenizer")


if __name__ == "__main__":
    main()
