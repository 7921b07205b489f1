"""Write the data folder of the synthetic language: SFT texts, preferences, prompts, tokenizer.

Next in reading order: warpflow.data.toy_reviews.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class Arguments:
    out: str = field(metadata={"help": "data folder to write"})
    seed: int = field(metadata={"help": "base seed"})
    sft_examples: int = field(metadata={"help": "reviews to imitate"})
    preference_pairs: int = field(metadata={"help": "pairs for the reward model"})
    preference_noise_scale: float = field(
        metadata={"help": "P(first chosen) = sigmoid(scale * gold difference); smaller is noisier"}
    )
    train_prompts: int = field(metadata={"help": "different prompts for reinforcement learning"})
    eval_prompts: int = field(metadata={"help": "prompts for evaluation, none a train prompt"})

    def __post_init__(self) -> None:
        for name in ("sft_examples", "preference_pairs", "train_prompts", "eval_prompts"):
            if getattr(self, name) < 1:
                raise ValueError(f"generate_data: {name} is {getattr(self, name)}; expected >= 1")
        if not self.preference_noise_scale >= 0:
            raise ValueError(
                f"generate_data: preference_noise_scale is {self.preference_noise_scale}; "
                "expected >= 0 (0 labels by a coin)"
            )


def main(argv: Sequence[str] | None = None) -> None:
    (arguments,) = parse_arguments(__doc__, argv, Arguments)

    def stream(purpose: str) -> random.Random:
        # one stream per purpose, so that a size changes its own file only
        return random.Random(derive_seed(arguments.seed, "generate_data", purpose))

    prompts = sample_distinct_prompts(
        stream("prompts"), arguments.train_prompts + arguments.eval_prompts
    )
    files: dict[str, list[dict[str, str]]] = {
        "sft.jsonl": sample_sft(stream("sft"), arguments.sft_examples),
        "preferences.jsonl": sample_preferences(
            stream("preferences"), arguments.preference_pairs, arguments.preference_noise_scale
        ),
        "train_prompts.jsonl": [{"prompt": p} for p in prompts[arguments.eval_prompts :]],
        "eval_prompts.jsonl": [{"prompt": p} for p in prompts[: arguments.eval_prompts]],
    }
    for name, rows in files.items():
        write_jsonl(Path(arguments.out) / name, rows)
        print(f"{name}: {len(rows)} rows")
    write_tokenizer(Path(arguments.out) / "tokenizer")


if __name__ == "__main__":
    main()
