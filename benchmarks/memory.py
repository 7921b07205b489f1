"""Compare the memory estimate of an RL run with what the run took, at three sizes, on the CPU.

    python benchmarks/memory.py

Each row is one run of scripts/train_policy.py (two steps and two evaluations) in its own process.
The measured value is the largest resident size that the kernel saw. glibc keeps freed memory for
itself, in pieces that fit the next tensor badly. The second run of each size tells it to give back
blocks of 1 MB or more (MALLOC_MMAP_THRESHOLD_), and the estimate is compared with that run. With
--device cuda the measured value is the most that torch had allocated on the GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from warpflow.estimates.memory import estimate_training
from warpflow.lm.models import build_policy, save_checkpoint
from warpflow.training.reinforce import ReinforceSettings

ROOT = Path(__file__).parents[1]
PROMPT_TOKENS, PROMPTS = 16, 32
SIZES: dict[str, dict[str, Any]] = {
    "small": {"hidden_size": 256, "num_hidden_layers": 4, "words": 2000},
    "medium": {"hidden_size": 512, "num_hidden_layers": 8, "words": 8000},
    "large": {"hidden_size": 768, "num_hidden_layers": 12, "words": 16000},
    # These are for a GPU (benchmarks/gpu_kit.py). `tiny` tries that script.
    "1b": {"hidden_size": 2048, "num_hidden_layers": 14, "words": 50000},
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "words": 200},
}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("small", {}),
    ("medium", {}),
    ("large", {}),
    ("large", {"micro_batch_size": 8}),
    ("large", {"micro_batch_size": 8, "gradient_checkpointing": True}),
    ("large", {"micro_batch_size": 8, "lora_rank": 8}),
]
SETTINGS = {
    "steps": 2,
    "batch_size": 32,
    "samples_per_prompt": 4,
    "learning_rate": 1e-4,
    "warmup_steps": 0,
    "max_grad_norm": 1.0,
    "temperature": 1.0,
    "max_new_tokens": 32,
    "beta": 0.1,
    "mu": 0.01,
    "anchor": "ema",
    "baseline": "rloo",
    "reset_every": 1,
    "length_penalty": 0.0,
    "gradient_checkpointing": False,
    "compute_dtype": "float32",
}
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "1000000"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="*", default=range(len(VARIANTS)))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    print(
        "| size | settings | estimate MB | measured MB | off by | CPU s | glibc's default | CPU s |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, changes in (VARIANTS[i] for i in arguments.rows):
        with tempfile.TemporaryDirectory() as folder:
            print(row(name, changes, Path(folder), arguments.device), flush=True)


def row(name: str, changes: dict[str, Any], folder: Path, device: str) -> str:
    make_inputs(folder, SIZES[name])
    expected = expect(folder, changes, device)
    settings = SETTINGS | changes
    tight, tight_seconds = measure(folder, settings, GIVE_BACK)
    usual, usual_seconds = measure(folder, settings, {})
    described = describe(changes)
    return (
        f"| {name} | {described} | {expected:.0f} | {tight:.0f} | {expected / tight - 1:+.0%} "
        f"| {tight_seconds:.0f} | {usual:.0f} | {usual_seconds:.0f} |"
    )


def describe(changes: dict[str, Any]) -> str:
    return json.dumps(changes).strip("{}").replace('"', "") or "defaults"


def expect(folder: Path, changes: dict[str, Any], device: str) -> float:
    """Return the estimate in MB, on a CPU with the libraries."""
    settings = SETTINGS | changes
    configs = (AutoConfig.from_pretrained(folder / part) for part in ("sft", "reward_model"))
    estimate = estimate_training(
        *configs,
        ReinforceSettings(**settings),
        prompt_tokens=PROMPT_TOKENS,
        evaluate_prompts=PROMPTS,
        evaluate_batch_size=PROMPTS,
    )
    return estimate.peak / 1e6 + (libraries() if device == "cpu" else 0)


def make_inputs(folder: Path, size: dict[str, Any]) -> None:
    """Write sft/, reward_model/ and data/ of a random Gemma of this size."""
    tokenizer = make_tokenizer(size["words"])
    heads = size["hidden_size"] // 64
    architecture = {
        "model_type": "gemma",
        "intermediate_size": 4 * size["hidden_size"],
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": 64,
        "max_position_embeddings": 128,
        **{key: value for key, value in size.items() if key != "words"},
    }
    policy = build_policy(architecture, tokenizer, seed=0)
    save_checkpoint(policy, tokenizer, folder / "sft")
    config = AutoConfig.from_pretrained(folder / "sft", num_labels=1)
    judge = AutoModelForSequenceClassification.from_config(config)
    save_checkpoint(judge, tokenizer, folder / "reward_model")
    (folder / "data").mkdir()
    prompt = " ".join(f"w{i}" for i in range(PROMPT_TOKENS - 1))  # and BOS
    for part in ("train", "eval"):
        rows = (json.dumps({"prompt": prompt}) + "\n") * PROMPTS
        (folder / f"data/{part}_prompts.jsonl").write_text(rows, encoding="utf-8")


def make_tokenizer(words: int) -> PreTrainedTokenizerBase:
    special = {f"{name}_token": f"<{name}>" for name in ("pad", "bos", "eos", "unk")}
    vocabulary = [*special.values(), *(f"w{i}" for i in range(words))]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, "<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)


def measure(
    folder: Path, settings: dict[str, Any], environment: dict[str, str]
) -> tuple[float, float]:
    """Return the largest resident size in MB, and the CPU seconds, of a training run."""
    arguments = settings | {
        "init": folder / "sft",
        "sft": folder / "sft",
        "reward_model": folder / "reward_model",
        "rewards": json.dumps({"reward_model": 1.0}),
        "data": folder / "data",
        "out": folder / "out",
        "tables": folder / "tables",
        "seed": 0,
        "replicate": 1,
        "iteration": 1,
        "member": 0,
        "log_every": 1,
        "evaluate_every": 2,
        "evaluate_prompts": PROMPTS,
        "evaluate_batch_size": PROMPTS,
        "save_every": 100,
        "max_prompt_tokens": PROMPT_TOKENS,
    }
    words = [word for key, value in arguments.items() for word in (f"--{key}", str(value))]
    command = [sys.executable, str(ROOT / "scripts/train_policy.py"), *words]
    with tempfile.TemporaryFile() as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            log.seek(0)
            sys.exit(log.read().decode())
        log.seek(0)
        on_gpu = re.search(r"peak GPU memory: (\d+) MB", log.read().decode())
    peak = float(on_gpu[1]) if on_gpu else usage.ru_maxrss / 1e3
    return peak, usage.ru_utime + usage.ru_stime


def libraries() -> float:
    """Return the resident size in MB of a process that has imported what a training run imports."""
    code = "import psutil, train_policy; print(psutil.Process().memory_info().rss / 1e6)"
    folders = os.pathsep.join(str(ROOT / name) for name in ("workflow", "scripts"))
    environment = {**os.environ, "PYTHONPATH": folders}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    return float(done.stdout)


if __name__ == "__main__":
    main()
