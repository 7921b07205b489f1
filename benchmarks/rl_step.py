"""One RL step: ours against TRL's RLOOTrainer, interleaved in one process, CPU seconds.

    python benchmarks/rl_step.py --model tiny --lengths varying

TRL is not a dependency: the first run makes an environment of its own beside the project's (folder
.venv-trl) and starts itself there. Both sides have the same model, prompts, batch, lengths, reward,
KL weight and an EMA anchor moved at every step; TRL's slow CPU defaults (bf16, gradient
checkpointing) are off. After each step of TRL ours makes one, so both meet the same machine. The
completion lengths are governed by the model's EOS rate, set beforehand: `full` (none ends early) or
`varying` (half end before half of the maximum).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TRL = "trl==1.16.0"
PROMPTS, GENERATIONS, PROMPT_TOKENS, NEW_TOKENS = 16, 4, 8, 32
BETA, MU, LEARNING_RATE = 0.05, 0.01, 1e-4
MODELS = {
    "tiny": {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "words": 512},
    "30m": {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "words": 8000},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, default="tiny")
    parser.add_argument("--lengths", choices=["full", "varying"], default="full")
    parser.add_argument("--steps", type=int, default=12, help="measured, after 3 to warm up")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    start_in_trl_environment()
    os.environ.update(HF_HUB_OFFLINE="1", TRL_EXPERIMENTAL_SILENCE="1")
    with tempfile.TemporaryDirectory() as folder:
        measure(arguments, Path(folder))


def start_in_trl_environment() -> None:
    """Go on in an environment that has TRL besides all that this one has."""
    environment = ROOT / ".venv-trl"
    python = environment / "bin" / "python"
    if Path(sys.prefix) == environment:
        return
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        paths = [path for path in sys.path if path.endswith("site-packages")]
        (site,) = environment.glob("lib/python*/site-packages")
        (site / "base.pth").write_text("\n".join([*paths, str(ROOT / "workflow")]) + "\n")
        pip = [python, "-m", "pip", "install", "--quiet", TRL, "-c", ROOT / "requirements.lock"]
        subprocess.run(pip, check=True)
    os.execv(python, [str(python), *sys.argv])


def make_model(folder: Path, size: dict[str, int], eos_rate: float) -> None:
    """A random Llama and its word tokenizer; EOS has about `eos_rate` at every position."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from warpflow.models import build_policy, save_checkpoint

    words = ["<pad>", "<bos>", "<eos>", "<unk>", *(f"w{i}" for i in range(size["words"]))]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {f"{name}_token": f"<{name}>" for name in ("pad", "bos", "eos", "unk")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **special)
    architecture = {key: value for key, value in size.items() if key != "words"}
    architecture |= {"intermediate_size": 2 * size["hidden_size"], "max_position_embeddings": 128}
    model = build_policy({"model_type": "llama", **architecture}, tokenizer, seed=0)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    goal = torch.tensor(eos_rate).log()
    for _ in range(60):
        ids = torch.randint(4, len(words), (16, 24))
        log_probs = model(input_ids=ids).logits.log_softmax(-1)
        loss = (log_probs[..., 2] - goal).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    save_checkpoint(model, tokenizer, folder)


def reward_of(ids: list[int]) -> float:
    """Cheap, and the same on both sides: different tokens over the limit."""
    return len(set(ids)) / NEW_TOKENS


class Ours:
    """Our step with the clock on each of its phases."""

    def __init__(self, folder: Path, prompts: list[str]) -> None:
        from warpflow import reinforce
        from warpflow.models import load_policy, load_tokenizer
        from warpflow.prompts import encode_prompts

        tokenizer = load_tokenizer(folder)
        self.settings = reinforce.ReinforceSettings(
            steps=10**6,
            batch_size=PROMPTS * GENERATIONS,
            samples_per_prompt=GENERATIONS,
            learning_rate=LEARNING_RATE,
            warmup_steps=0,
            max_grad_norm=1.0,
            temperature=1.0,
            max_new_tokens=NEW_TOKENS,
            beta=BETA,
            mu=MU,
            anchor="ema",
            baseline="rloo",
            length_penalty=0.0,
            reset_every=1,
            gradient_checkpointing=False,
            compute_dtype="float32",
        )
        policy = load_policy(folder)
        run = reinforce.start_run(policy, policy, self.settings)
        self.phases: dict[str, float] = defaultdict(float)
        for name in ("sample_batch", "token_log_probs", "update_anchor_"):
            setattr(reinforce, name, self.timed(name, getattr(reinforce, name)))
        run.optimizer.step = self.timed("optimizer", run.optimizer.step)  # type: ignore[method-assign]
        self.tokens = 0
        self.steps = reinforce.train_policy(
            run,
            self.reward,
            encode_prompts(tokenizer, prompts),
            self.settings,
            eos_id=2,
            pad_id=0,
            seed=0,
        )

    def timed(self, name: str, function: Any) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            started = time.process_time()
            result = function(*arguments, **keywords)
            self.phases[name] += time.process_time() - started
            return result

        return call

    def reward(self, batch: Any) -> Any:
        import torch

        rows = [
            ids[mask].tolist()
            for ids, mask in zip(batch.response_ids, batch.is_response, strict=True)
        ]
        self.tokens += sum(map(len, rows))
        return torch.tensor([reward_of(row) for row in rows])


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from transformers.utils import logging
    from trl import RLOOConfig, RLOOTrainer

    logging.set_verbosity_error()
    torch.set_num_threads(arguments.threads)
    rate = 1 - 0.5 ** (2 / NEW_TOKENS) if arguments.lengths == "varying" else 1e-7
    size = MODELS[arguments.model]
    make_model(folder / "model", size, rate)
    random.seed(0)
    words = [f"w{i}" for i in range(size["words"])]
    prompts = [" ".join(random.choices(words, k=PROMPT_TOKENS)) for _ in range(1024)]
    ours = Ours(folder / "model", prompts)
    clock: dict[str, list[float]] = defaultdict(list)
    lengths: dict[str, list[float]] = defaultdict(list)

    class Interleave(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            clock["begin"].append(time.process_time())

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            now = time.process_time()
            clock["trl"].append(now - clock["trl_start"][-1])
            before = ours.tokens
            next(ours.steps)
            clock["ours"].append(time.process_time() - now)
            lengths["ours"].append((ours.tokens - before) / PROMPTS / GENERATIONS)
            if len(clock["ours"]) == 3:
                ours.phases.clear()
            clock["trl_start"].append(time.process_time())

    def trl_reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        lengths["trl"].append(statistics.mean(map(len, completion_ids)))
        return [reward_of(ids) for ids in completion_ids]

    trainer = RLOOTrainer(
        model=str(folder / "model"),
        reward_funcs=trl_reward,
        args=RLOOConfig(
            output_dir=str(folder / "out"),
            per_device_train_batch_size=PROMPTS * GENERATIONS,
            gradient_accumulation_steps=1,
            num_generations=GENERATIONS,
            max_completion_length=NEW_TOKENS,
            max_steps=arguments.steps + 3,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            beta=BETA,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            temperature=1.0,
            seed=0,
            sync_ref_model=True,
            ref_model_mixup_alpha=MU,
            ref_model_sync_steps=1,
            dataloader_pin_memory=False,
        ),
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
        callbacks=[Interleave()],
    )
    clock["trl_start"].append(time.process_time())
    trainer.train()
    report(arguments, clock, lengths, ours, sum(p.numel() for p in trainer.model.parameters()))


def report(
    arguments: argparse.Namespace,
    clock: dict[str, list[float]],
    lengths: dict[str, list[float]],
    ours: Ours,
    parameters: int,
) -> None:
    """A markdown table: CPU seconds a step, and the ratio with its spread over the steps."""
    trl, mine = clock["trl"][3:], clock["ours"][3:]
    ratios = sorted(a / b for a, b in zip(trl, mine, strict=True))
    quarter = len(ratios) // 4
    print(
        f"{parameters / 1e6:.2f} M parameters, lengths {arguments.lengths}, "
        f"{PROMPTS * GENERATIONS} completions of up to {NEW_TOKENS} tokens, "
        f"{arguments.threads} thread(s), {TRL}\n"
    )
    print("| | CPU s/step | tokens/CPU s | mean length |\n|---|---|---|---|")
    for name, seconds in (("TRL RLOOTrainer", trl), ("ours", mine)):
        length = statistics.mean(lengths["trl" if "TRL" in name else "ours"][3:])
        rate = length * PROMPTS * GENERATIONS / statistics.median(seconds)
        print(f"| {name} | {statistics.median(seconds):.3f} | {rate:.0f} | {length:.1f} |")
    spread = f"{ratios[quarter]:.2f}–{ratios[-quarter - 1]:.2f}"
    print(f"\nratio TRL / ours: {statistics.median(ratios):.2f} (middle half {spread})")
    known = {name: seconds / len(mine) for name, seconds in ours.phases.items()}
    known["backward, rewards and the rest"] = statistics.mean(mine) - sum(known.values())
    print("our phases, CPU ms/step:", json.dumps({k: round(1e3 * v, 1) for k, v in known.items()}))


if __name__ == "__main__":
    main()
