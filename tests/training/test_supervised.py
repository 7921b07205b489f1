"""SFT and the reward model: labels, losses, and short runs of Trainer."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import BOS, EOS, PAD, MakeModel, MakeTokenizer
from transformers import AutoModelForSequenceClassification

from warpflow.lm.models import load_policy, load_tokenizer, save_checkpoint
from warpflow.lm.prompts import encode_example, encode_prompts
from warpflow.lm.sampling import draw_uniforms, pad_left, sample_completions
from warpflow.training.supervised import (
    IGNORED,
    SupervisedSettings,
    bradley_terry_loss,
    language_model_collator,
    preference_collator,
    preference_scores,
    train,
)

SETTINGS = SupervisedSettings(
    steps=60, batch_size=8, learning_rate=1e-2, warmup_steps=5, weight_decay=0.0
)


def test_examples_are_bos_prompt_completion_eos(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(["a", "b", "c"])
    assert encode_example(tokenizer, "a b", "c") == ([BOS, 4, 5, 6, EOS], 3)
    assert encode_example(tokenizer, "", "c") == ([BOS, 6, EOS], 1)
    tokenizer.bos_token = None
    assert encode_example(tokenizer, "a", "c") == ([4, 6, EOS], 1)


def test_the_prompt_is_encoded_as_it_is_when_sampled(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(["a", "b", "c"])
    ids, length = encode_example(tokenizer, "a b", "c")
    assert encode_prompts(tokenizer, ["a b"]) == [ids[:length]]


def test_labels_are_on_the_completion_and_its_eos_only() -> None:
    batch = language_model_collator(PAD)(
        [
            {"ids": [BOS, 4, 5, 6, EOS], "prompt_length": 3},
            {"ids": [BOS, 7, EOS], "prompt_length": 1},
        ]
    )
    assert batch["input_ids"].tolist() == [[BOS, 4, 5, 6, EOS], [BOS, 7, EOS, PAD, PAD]]
    assert batch["attention_mask"].tolist() == [[1] * 5, [1, 1, 1, 0, 0]]
    n = IGNORED
    assert batch["labels"].tolist() == [[n, n, n, 6, EOS], [n, 7, EOS, n, n]]


def test_eos_is_a_label_even_where_it_is_the_pad_token() -> None:
    """Masking labels by `ids == pad` would forget it: completions would never end."""
    batch = language_model_collator(EOS)(
        [{"ids": [BOS, 4, EOS], "prompt_length": 1}, {"ids": [BOS, EOS], "prompt_length": 1}]
    )
    assert batch["labels"].tolist() == [[IGNORED, 4, EOS], [IGNORED, EOS, IGNORED]]


def test_preferences_are_all_chosen_then_all_rejected() -> None:
    pairs = [
        {"chosen": [1, 4, 2], "rejected": [1, 2]},
        {"chosen": [1, 5, 2], "rejected": [1, 6, 7, 2]},
    ]
    batch = preference_collator(PAD)(pairs)
    assert batch["input_ids"].tolist() == [[1, 4, 2, 0], [1, 5, 2, 0], [1, 2, 0, 0], [1, 6, 7, 2]]


@pytest.mark.parametrize("count", [None, 4])
def test_bradley_terry_loss(count: int | None) -> None:
    """Chosen 1 and 0, rejected −1 and 3: mean of −log σ(2) and −log σ(−3); 4 rows of labels."""
    outputs = SimpleNamespace(logits=torch.tensor([[1.0], [0.0], [-1.0], [3.0]]))
    loss = bradley_terry_loss(outputs, torch.zeros(4), count)
    expected = (math.log1p(math.exp(-2)) + math.log1p(math.exp(3))) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_bradley_terry_loss_of_equal_and_of_extreme_scores() -> None:
    equal = SimpleNamespace(logits=torch.zeros(6, 1))
    assert bradley_terry_loss(equal, torch.zeros(6)).item() == pytest.approx(math.log(2))
    extreme = SimpleNamespace(logits=torch.tensor([[-1e4], [1e4]], requires_grad=True))
    loss = bradley_terry_loss(extreme, torch.zeros(2))
    assert loss.item() == pytest.approx(2e4)
    loss.backward()
    assert extreme.logits.grad.tolist() == [[-1.0], [1.0]]


def review_examples(make_tokenizer: MakeTokenizer) -> list[dict[str, Any]]:
    texts = [(f"w{k}", f"w{k} w{k + 1} w{k + 2}") for k in range(8)] * 4
    encoded = [encode_example(make_tokenizer(), *text) for text in texts]
    return [{"ids": ids, "prompt_length": length} for ids, length in encoded]


def test_a_short_run_lowers_the_loss_and_learns_where_to_end(
    make_model: MakeModel, make_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    model = make_model("llama", initializer_range=0.1).train()
    rows = train(
        model,
        review_examples(make_tokenizer),
        language_model_collator(PAD),
        SETTINGS,
        seed=2**62,
        work_folder=tmp_path,
    )
    assert rows[-1]["loss"] < 0.2 * rows[0]["loss"]
    assert rows[-1]["step"] == 60
    assert not model.training
    ids, mask = pad_left(encode_prompts(make_tokenizer(), ["w0", "w5"]), PAD)
    batch = sample_completions(
        model,
        ids,
        mask,
        max_new_tokens=10,
        temperature=1e-3,
        eos_ids=[EOS],
        pad_id=PAD,
        uniforms=draw_uniforms(2, 10, "cpu", 0),
    )
    assert batch.response_ids.tolist() == [[4, 5, 6, EOS], [9, 10, 11, EOS]]
    assert not list(tmp_path.rglob("*.safetensors")), "Trainer stores no checkpoints of its own"


def test_the_seed_decides_the_run(
    make_model: MakeModel, make_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    settings = SupervisedSettings(6, 4, 1e-2, 0, 0.0)
    losses = []
    for seed in (1, 1, 2):
        rows = train(
            make_model("gpt2"),
            review_examples(make_tokenizer),
            language_model_collator(PAD),
            settings,
            seed=seed,
            work_folder=tmp_path,
        )
        losses.append([row["loss"] for row in rows])
    assert losses[0] == losses[1] != losses[2]


def test_a_loss_that_is_not_finite_stops_with_the_seed(
    make_model: MakeModel, make_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    with pytest.raises(FloatingPointError, match="seed 5"):
        train(
            make_model("llama"),
            review_examples(make_tokenizer),
            language_model_collator(PAD),
            SupervisedSettings(3, 4, 1e-2, 0, 0.0),
            seed=5,
            work_folder=tmp_path,
            loss=lambda outputs, labels, num_items_in_batch=None: outputs.logits.sum() * math.nan,
        )


def test_reward_model_learns_preferences_and_trainer_logs_the_closed_form(
    make_model: MakeModel, make_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    """Chosen texts hold w1, rejected ones w2. The first logged loss is that of the model before
    its first step, so neither Trainer's averaging nor ours scales it."""
    save_checkpoint(make_model("llama", initializer_range=0.1), make_tokenizer(), tmp_path / "sft")
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "sft", num_labels=1)
    tokenizer = load_tokenizer(tmp_path / "sft")
    pairs = [
        {
            side: encode_example(tokenizer, f"w{k % 4 + 4}", f"w{k % 3 + 8} {word}")[0]
            for side, word in (("chosen", "w1"), ("rejected", "w2"))
        }
        for k in range(16)
    ]
    chosen, rejected = preference_scores(model, pairs, 5)
    before = torch.nn.functional.softplus(rejected - chosen).mean().item()
    rows = train(
        model,
        pairs,
        preference_collator(PAD),
        SupervisedSettings(20, 16, 1e-2, 0, 0.0),
        seed=0,
        work_folder=tmp_path,
        loss=bradley_terry_loss,
    )
    assert rows[0]["loss"] == pytest.approx(before, abs=1e-3)
    chosen, rejected = preference_scores(model, pairs, 5)
    assert chosen.shape == rejected.shape == (16,)
    assert (chosen > rejected).all()
    assert rows[-1]["loss"] < 0.3


def test_policies_load_in_fp32_without_dropout(
    make_model: MakeModel, make_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    """A bf16 checkpoint would stay bf16, where steps of lr 1e-6 round to nothing."""
    save_checkpoint(make_model("gpt2").bfloat16(), make_tokenizer(), tmp_path)
    model = load_policy(tmp_path)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not model.training


def test_a_tokenizer_without_eos_is_refused_and_pad_falls_back_to_eos(
    make_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).pad_token_id == EOS
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no EOS token"):
        load_tokenizer(tmp_path)
