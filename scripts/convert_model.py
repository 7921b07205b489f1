"""Write a plain model folder, as policy.path takes it, from one that is more than its weights.

    python scripts/convert_model.py --model FOLDER_OR_HUB_NAME --out PLAIN
    python scripts/convert_model.py --model FOLDER_OR_HUB_NAME --out PLAIN --reward_model

An adapter (LoRA) is merged into its base model, quantised weights become float32, and of a
multimodal model only the language model is kept. docs/your_models.md lists what is taken as it is.
Next in reading order: warpflow.lm.plain_models.plain_model.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from warpflow.file_modes import make_readable
from warpflow.lm.models import save_model
from warpflow.lm.plain_models import plain_model, plain_tokenizer


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder or hub name")
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    parser.add_argument(
        "--reward_model", action="store_true", help="it classifies sequences, with one label"
    )
    arguments = parser.parse_args(argv)
    if arguments.out.exists() and any(arguments.out.iterdir()):
        sys.exit(f"convert_model: {arguments.out} is there already: give another folder")
    try:
        model = plain_model(arguments.model, arguments.reward_model)
        tokenizer = plain_tokenizer(arguments.model)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"convert_model: {error}")
    save_model(model, arguments.out)
    tokenizer.save_pretrained(arguments.out)
    make_readable(arguments.out)


if __name__ == "__main__":
    main()
