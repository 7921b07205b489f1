"""Compare our RL step with TRL's RLOOTrainer, interleaved in one process, in CPU seconds.

    python benchmarks/rl_step.py --model tiny --lengths varying
    python benchmarks/rl_step.py --model tiny --members 2      # two runs at once, on two cores

TRL is not a dependency. The first run makes its own environment beside the project's
(trl_environment.py) and starts itself there. Both sides have the same model, prompts, batch,
lengths, reward, KL weight and an EMA anchor that moves at every step. TRL's slow CPU defaults
(bf16, gradient checkpointing) are off. After each step of TRL ours makes one, so that both see the
same load of the machine. The model's logit of EOS governs the completion lengths: `full` (none ends
early) or `varying` (half end before half of the maximum).

With --members 2 the times are wall-clock times: two runs of ours side by side, with a core each,
against two of TRL one after the other, each with both cores. With --device cuda all times are
wall-clock times.
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
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trl_environment import ENVIRONMENT, PYTHON, make_trl_environment

PROMPTS, GENERATIONS, PROMPT_TOKENS = 16, 4, 8
BETA, MU, LEARNING_RATE = 0.05, 0.01, 1e-8  # a larger rate moves the lengths within a few steps
WARM_UP = 3  # steps
MODELS = {
    "tiny": {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "words": 512},
    "30m": {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "words": 8000},
    "400m": {
        **{"hidden_size": 1024, "num_hidden_layers": 18, "num_attention_heads": 16},
        "words": 50000,
    },
    "1b": {"hidden_size": 2048, "num_hidden_layers": 18, "num_attention_heads": 16, "words": 50000},
}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, default="tiny")
    parser.add_argument("--lengths", choices=["full", "varying"], default="full")
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="of a step")
    parser.add_argument("--generations", type=int, default=GENERATIONS, help="of a prompt")
    parser.add_argument("--prompt_tokens", type=int, default=PROMPT_TOKENS)
    parser.add_argument("--new_tokens", type=int, default=32, help="limit of a completion")
    parser.add_argument("--steps", type=int, default=12, help=f"measured, after {WARM_UP}")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--learning_rate", type=float, default=LEARNING_RATE)
    parser.add_argument("--members", type=int, default=1, help="2: two runs on two cores")
    parser.add_argument("--side", choices=["both", "ours", "trl"], default="both")
    return parser


def main() -> None:
    arguments = make_parser().parse_args()
    start_in_trl_environment()
    if arguments.device == "cpu":
        os.environ.update(CUDA_VISIBLE_DEVICES="")
    os.environ.update(HF_HUB_OFFLINE="1", TRL_EXPERIMENTAL_SILENCE="1")
    if arguments.members > 1:
        compare_members(arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        measure(arguments, Path(folder))


def compare_members(arguments: argparse.Namespace) -> None:
    """Compare the wall seconds of all members' steps: ours at once, TRL's one after the other."""
    base = [sys.executable, *sys.argv]
    del base[base.index("--members") : base.index("--members") + 2]
    rounds = []
    for _ in range(3):
        ours = [
            subprocess.Popen([*base, "--side", "ours", "--threads", "1"], stdout=subprocess.PIPE)
            for _ in range(arguments.members)
        ]
        at_once = max(float(process.communicate()[0].split()[-1]) for process in ours)
        command = [*base, "--side", "trl", "--threads", str(arguments.members)]
        in_turn = sum(
            float(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.split()[-1])
            for _ in range(arguments.members)
        )
        rounds.append((in_turn, at_once))
    ratios = [in_turn / at_once for in_turn, at_once in rounds]
    for in_turn, at_once in rounds:
        print(f"TRL in turn {in_turn:.1f} s, ours at once {at_once:.1f} s")
    print(
        f"{arguments.members} members, {arguments.model}, lengths {arguments.lengths}, up to "
        f"{arguments.new_tokens} tokens: ratio TRL / ours {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f}–{max(ratios):.2f})"
    )


def clock_of(device: str) -> float:
    """Return the CPU seconds of this process, or on a GPU the wall seconds once its work is
    done."""
    if device == "cpu":
        return time.process_time()
    import torch

    torch.cuda.synchronize()
    return time.perf_counter()


def start_in_trl_environment() -> None:
    """Restart in an environment that has TRL and all that this one has."""
    if Path(sys.prefix) == ENVIRONMENT:
        return
    make_trl_environment()
    os.execv(PYTHON, [str(PYTHON), *sys.argv])


def make_model(
    folder: Path, size: dict[str, int], half: int, ended: float, prompt_tokens: int, device: str
) -> None:
    """Make a random Llama and its word tokenizer, so that the share `ended` of completions is
    shorter than `half` tokens. A channel of the residual stream is constant, and only the output
    layer's row of EOS reads it. The model is made on `device`, because on a CPU a billion weights
    take minutes."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from warpflow.lm.models import build_policy, save_checkpoint

    words = ["<pad>", "<bos>", "<eos>", "<unk>", *(f"w{i}" for i in range(size["words"]))]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {f"{name}_token": f"<{name}>" for name in ("pad", "bos", "eos", "unk")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **special)
    architecture = {key: value for key, value in size.items() if key != "words"}
    architecture |= {"intermediate_size": 4 * size["hidden_size"], "tie_word_embeddings": False}
    with torch.device(device):
        model = build_policy({"model_type": "llama", **architecture}, tokenizer, seed=0)
        ids = torch.randint(4, len(words), (256, prompt_tokens + half))
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 1
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0] = layer.mlp.down_proj.weight[0] = 0
        model.lm_head.weight[:, 0] = model.lm_head.weight[2] = 0
        hidden = model.model(input_ids=ids).last_hidden_state[:, prompt_tokens - 1 : -1]
        kept = torch.arange(len(words), device=device) != 2
        # This goes row by row, as all logits of a large model would not fit.
        others = torch.stack([model.lm_head(row)[:, kept].logsumexp(-1) for row in hidden])
        low, high = -1000.0, 1000.0
        for _ in range(60):
            model.lm_head.weight[2, 0] = middle = (low + high) / 2
            goes_on = (others - middle * hidden[..., 0]).sigmoid()
            high, low = (high, middle) if 1 - goes_on.prod(1).mean() < ended else (middle, low)
    save_checkpoint(model, tokenizer, folder)


def reward_of(ids: list[int]) -> float:
    """Return how many tokens differ, a cheap reward that is the same on both sides."""
    return len(set(ids)) / 32


class Ours:
    """Our step, with a clock on each of its phases."""

    def __init__(self, arguments: argparse.Namespace, folder: Path, prompts: list[str]) -> None:
        from warpflow.lm import scoring
        from warpflow.lm.models import load_policy, load_tokenizer
        from warpflow.lm.prompts import encode_prompts
        from warpflow.training import anchors, reinforce

        tokenizer = load_tokenizer(folder)
        self.settings = reinforce.ReinforceSettings(
            steps=10**6,
            batch_size=arguments.prompts * arguments.generations,
            samples_per_prompt=arguments.generations,
            learning_rate=arguments.learning_rate,
            warmup_steps=0,
            max_grad_norm=1.0,
            temperature=1.0,
            max_new_tokens=arguments.new_tokens,
            beta=BETA,
            mu=MU,
            anchor="ema",
            baseline="rloo",
            length_penalty=0.0,
            reset_every=1,
            gradient_checkpointing=False,
            compute_dtype=arguments.dtype,
        )
        self.device = arguments.device
        policy = load_policy(folder)
        self.run = run = reinforce.start_run(policy, policy, self.settings)
        self.phases: dict[str, float] = defaultdict(float)
        for module, function, phase in (
            (reinforce, "sample_batch", "sample"),
            (scoring, "packed_log_probs", "score"),
            (anchors, "move_anchor_", "EMA"),
        ):
            setattr(module, function, self.timed(phase, getattr(module, function)))
        run.optimizer.step = self.timed("optimiser", run.optimizer.step)  # type: ignore[method-assign]
        self.tokens = self.longest = 0
        self.steps = reinforce.train_policy(
            run,
            self.timed("reward", self.reward),
            encode_prompts(tokenizer, prompts),
            self.settings,
            eos_ids=[2],
            pad_id=0,
            seed=0,
        )

    def timed(self, name: str, function: Any) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            started = clock_of(self.device)
            result = function(*arguments, **keywords)
            policy = name == "score" and result.requires_grad  # the anchor has no gradient
            phase = "policy forward" if policy else name
            self.phases[phase] += clock_of(self.device) - started
            return result

        return call

    def reward(self, batch: Any) -> Any:
        import torch

        rows = [
            ids[mask].tolist()
            for ids, mask in zip(batch.response_ids, batch.is_response, strict=True)
        ]
        self.tokens += sum(map(len, rows))
        self.longest = max(map(len, rows))  # of the last step
        return torch.tensor([reward_of(row) for row in rows], device=batch.response_ids.device)


def make_inputs(arguments: argparse.Namespace, folder: Path) -> list[str]:
    """Return the prompts. The model is written to `folder`/model, unless it is there."""
    size = MODELS[arguments.model]
    if not (folder / "model").is_dir():
        ended = 0.5 if arguments.lengths == "varying" else 1e-6
        half, device = arguments.new_tokens // 2, arguments.device
        make_model(folder / "making", size, half, ended, arguments.prompt_tokens, device)
        (folder / "making").rename(folder / "model")  # a half-made model does not count
    random.seed(0)
    words = [f"w{i}" for i in range(size["words"])]
    return [" ".join(random.choices(words, k=arguments.prompt_tokens)) for _ in range(1024)]


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    torch.set_num_threads(arguments.threads)
    prompts = make_inputs(arguments, folder)
    if arguments.side == "ours":
        ours = Ours(arguments, folder / "model", prompts)
        for _ in range(WARM_UP):
            next(ours.steps)
        started = time.perf_counter()
        for _ in range(arguments.steps):
            next(ours.steps)
        print(time.perf_counter() - started)
        return
    clock, lengths, other, model = measure_trl(arguments, folder, prompts)
    if other:
        report(arguments, clock, lengths, other, model)
    else:
        print(clock["wall"][-1] - clock["wall"][WARM_UP - 1])


def measure_trl(
    arguments: argparse.Namespace, folder: Path, prompts: list[str]
) -> tuple[dict[str, list[float]], dict[str, list[float]], Ours | None, Any]:
    """Run TRL's trainer. After each of its steps ours makes one, unless TRL runs alone. Return the
    seconds and the mean length of each step by side (`trl`, `ours`), our side, and TRL's model."""
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import RLOOConfig, RLOOTrainer

    alone, rows = arguments.side == "trl", arguments.prompts * arguments.generations
    ours = None if alone else Ours(arguments, folder / "model", prompts)
    clock: dict[str, list[float]] = defaultdict(list)
    lengths: dict[str, list[float]] = defaultdict(list)

    class Interleave(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            now = clock_of(arguments.device)
            clock["wall"].append(time.perf_counter())
            clock["trl"].append(now - clock["trl_start"][-1])
            if ours:
                before = ours.tokens
                next(ours.steps)
                clock["ours"].append(clock_of(arguments.device) - now)
                lengths["ours"].append((ours.tokens - before) / rows)
                if len(clock["ours"]) == WARM_UP:
                    ours.phases.clear()
            clock["trl_start"].append(clock_of(arguments.device))

    def trl_reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        lengths["trl"].append(statistics.mean(map(len, completion_ids)))
        return [reward_of(ids) for ids in completion_ids]

    trainer = RLOOTrainer(
        model=str(folder / "model"),
        reward_funcs=trl_reward,
        args=RLOOConfig(
            output_dir=str(folder / "out"),
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=1,
            num_generations=arguments.generations,
            max_completion_length=arguments.new_tokens,
            max_steps=arguments.steps + WARM_UP,
            learning_rate=arguments.learning_rate,
            lr_scheduler_type="constant",
            beta=BETA,
            bf16=arguments.dtype == "bfloat16",
            gradient_checkpointing=False,
            use_cpu=arguments.device == "cpu",
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
            model_init_kwargs={"dtype": "float32"},
        ),
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
        callbacks=[Interleave()],
    )
    clock["trl_start"].append(clock_of(arguments.device))
    trainer.train()
    return clock, lengths, ours, trainer.model


def report(
    arguments: argparse.Namespace,
    clock: dict[str, list[float]],
    lengths: dict[str, list[float]],
    ours: Ours,
    model: Any,
) -> None:
    """Print a table in Markdown: seconds a step, and the ratio with its spread over the steps."""
    rows = arguments.prompts * arguments.generations
    trl, mine = clock["trl"][WARM_UP:], clock["ours"][WARM_UP:]
    ratios = sorted(a / b for a, b in zip(trl, mine, strict=True))
    quarter = len(ratios) // 4
    print(
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, lengths "
        f"{arguments.lengths}, {rows} completions of up to {arguments.new_tokens} "
        f"tokens, {arguments.device}, {arguments.dtype}, {arguments.threads} thread(s), "
        f"TRL {version('trl')}\n"
    )
    print("| | s/step | tokens/s | mean length |\n|---|---|---|---|")
    for name, seconds in (("TRL RLOOTrainer", trl), ("ours", mine)):
        length = statistics.mean(lengths["trl" if "TRL" in name else "ours"][WARM_UP:])
        rate = length * rows / statistics.median(seconds)
        print(f"| {name} | {statistics.median(seconds):.3f} | {rate:.0f} | {length:.1f} |")
    length = statistics.mean(lengths["ours"][WARM_UP:])
    least = floor(model, length, arguments)
    print(f"| floor: the products alone | {least:.3f} | | {length:.1f} |")
    spread = f"{ratios[quarter]:.2f}–{ratios[-quarter - 1]:.2f}"
    print(f"\nratio TRL / ours: {statistics.median(ratios):.2f} (middle half {spread})")
    print(f"ours / floor: {statistics.median(mine) / least:.2f}")
    known = {name: seconds / len(mine) for name, seconds in ours.phases.items()}
    known["backward and the rest"] = statistics.mean(mine) - sum(known.values())
    print("our phases, ms/step:", json.dumps({k: round(1e3 * v, 1) for k, v in known.items()}))


def floor(model: Any, length: float, arguments: argparse.Namespace) -> float:
    """Return the seconds of the matrix products that a step needs, at the speed of a large one.
    They are each prompt once and each token of a completion, then policy and anchor forward and the
    policy backward (twice a forward) over all of them. The products inside attention are left
    out."""
    import torch

    output = model.get_output_embeddings().weight.numel()
    inner = sum(p.numel() for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n)
    inner -= output
    device, rows = arguments.device, arguments.prompts * arguments.generations
    sampled = arguments.prompts * arguments.prompt_tokens + rows * length
    scored = 4 * rows * (arguments.prompt_tokens + length)
    products = 2 * inner * (sampled + scored) + 2 * output * 5 * rows * length
    width = model.config.hidden_size
    a, b = torch.randn(2048, width, device=device), torch.randn(width, 4 * width, device=device)
    times = []
    for _ in range(20):
        started = clock_of(device)
        a @ b
        times.append(clock_of(device) - started)
    speed = 2 * a.numel() * 4 * width / statistics.median(times)
    return products / speed


if __name__ == "__main__":
    main()
