"""Rewards: sequence classifiers and functions named in the config."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ARCHITECTURES, BOS, EOS, PAD, WORDS, MakeModel, MakeTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from warpflow.log_probs import Completions
from warpflow.models import load_policy, load_reward_model, load_tokenizer, save_checkpoint
from warpflow.reinforce import ReinforceSettings, start_run, train_policy
from warpflow.rewards import (
    load_function,
    model_reward,
    prompt_texts,
    response_texts,
    sequence_scores,
    text_reward,
)


def batch() -> Completions:
    """Three finished completions of prompts of different lengths; w0 has id 4."""
    return Completions(
        prompt_ids=torch.tensor([[PAD, BOS, 4], [BOS, 5, 6], [PAD, PAD, BOS]]),
        is_prompt=torch.tensor([[False, True, True], [True, True, True], [False, False, True]]),
        response_ids=torch.tensor([[7, EOS, PAD], [8, 9, EOS], [EOS, PAD, PAD]]),
        is_response=torch.tensor([[True, True, False], [True, True, True], [True, False, False]]),
        finished=torch.tensor([True, True, True]),
    )


ROWS = [[BOS, 4, 7, EOS], [BOS, 5, 6, 8, 9, EOS], [BOS, EOS]]


def classifier(labels: int = 1, name: str = "llama") -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        **ARCHITECTURES[name], vocab_size=21, pad_token_id=PAD, num_labels=labels
    )
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).eval()
    return model.requires_grad_(False)


@pytest.fixture
def foreign_tokenizer(make_tokenizer: MakeTokenizer) -> PreTrainedTokenizerBase:
    """Same ids for the same words, but one word more and special tokens added by itself."""
    tokenizer = make_tokenizer([*WORDS, "foreign"])
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", BOS), ("<eos>", EOS)]
    )
    return tokenizer


def test_sampled_ids_and_decoded_text_get_the_same_reward(
    make_tokenizer: MakeTokenizer, foreign_tokenizer: PreTrainedTokenizerBase
) -> None:
    model, policy_tokenizer = classifier(), make_tokenizer()
    by_ids = model_reward(model, make_tokenizer(), policy_tokenizer)(batch())
    by_text = model_reward(model, foreign_tokenizer, policy_tokenizer)(batch())
    torch.testing.assert_close(by_ids, by_text)
    alone = torch.cat([model(torch.tensor([row])).logits[0] for row in ROWS])
    torch.testing.assert_close(by_ids, alone, atol=1e-5, rtol=1e-5)
    assert by_ids.unique().numel() == 3


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma"])
def test_batching_and_padding_do_not_change_scores(
    name: str, make_tokenizer: MakeTokenizer
) -> None:
    model, tokenizer = classifier(name=name), make_tokenizer()
    whole = model_reward(model, tokenizer, tokenizer)(batch())
    in_twos = model_reward(model, tokenizer, tokenizer, batch_size=2)(batch())
    torch.testing.assert_close(whole, in_twos, atol=1e-5, rtol=1e-5)
    alone = torch.cat([sequence_scores(model, [row]) for row in ROWS])
    torch.testing.assert_close(whole, alone, atol=1e-5, rtol=1e-5)
    assert not whole.requires_grad


def test_scores_come_in_the_units_stored_with_the_model(
    make_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    model, tokenizer = classifier(), make_tokenizer()
    raw = model_reward(model, tokenizer, tokenizer)(batch())
    model.config.reward_mean, model.config.reward_std = 2.0, 4.0
    save_checkpoint(model, tokenizer, tmp_path)
    stored = load_reward_model(tmp_path)
    scores = model_reward(stored, load_tokenizer(tmp_path), tokenizer)(batch())
    torch.testing.assert_close(scores, (raw - 2) / 4)


def test_more_than_one_label_is_refused(make_tokenizer: MakeTokenizer, tmp_path: Path) -> None:
    save_checkpoint(classifier(labels=3), make_tokenizer(), tmp_path)
    with pytest.raises(ValueError, match="3 labels, expected 1"):
        load_reward_model(tmp_path)


def test_a_policy_without_pad_token_becomes_a_reward_model(
    make_model: MakeModel, make_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    """As GPT-2 from the hub: neither its config nor its tokenizer has a pad token, and without
    one Hugging Face's classifiers score one row at a time only."""
    policy, tokenizer = make_model("gpt2"), make_tokenizer()
    policy.config.pad_token_id = policy.generation_config.pad_token_id = None
    tokenizer.pad_token = None
    policy.save_pretrained(tmp_path / "given")
    tokenizer.save_pretrained(tmp_path / "given")

    tokenizer = load_tokenizer(tmp_path / "given")
    assert tokenizer.pad_token_id == EOS
    save_checkpoint(load_policy(tmp_path / "given"), tokenizer, tmp_path / "sft")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "sft", num_labels=1)
    save_checkpoint(model, tokenizer, tmp_path / "reward")
    model = load_reward_model(tmp_path / "reward")
    scores = sequence_scores(model.requires_grad_(False), ROWS)
    alone = torch.cat([sequence_scores(model, [row]) for row in ROWS])
    torch.testing.assert_close(scores, alone, atol=1e-5, rtol=1e-5)


def test_functions_get_prompts_completions_and_finished(make_tokenizer: MakeTokenizer) -> None:
    seen: dict[str, object] = {}

    def scorer(prompts: list[str], completions: list[str], finished: list[bool]) -> list[float]:
        seen.update(prompts=prompts, completions=completions, finished=finished)
        return [1, 2.5, -3]

    scores = text_reward(scorer, make_tokenizer(), "mine")(batch())
    assert scores.tolist() == [1.0, 2.5, -3.0]
    assert scores.dtype == torch.float32
    assert seen == {
        "prompts": ["w0", "w1 w2", ""],
        "completions": ["w3", "w4 w5", ""],
        "finished": [True, True, True],
    }


def test_texts_leave_out_special_tokens(make_tokenizer: MakeTokenizer) -> None:
    assert prompt_texts(batch(), make_tokenizer()) == ["w0", "w1 w2", ""]
    assert response_texts(batch(), make_tokenizer()) == ["w3", "w4 w5", ""]


@pytest.mark.parametrize("count", [0, 2, 4])
def test_a_wrong_count_of_scores_is_refused(make_tokenizer: MakeTokenizer, count: int) -> None:
    reward = text_reward(lambda p, c, f: [0.0] * count, make_tokenizer(), "my.module:scorer")
    with pytest.raises(ValueError, match=f"my.module:scorer returned {count} scores for 3"):
        reward(batch())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_refused(make_tokenizer: MakeTokenizer, value: float) -> None:
    """A reward of NaN replaced by 0 corrupts the training silently; in an evaluation nothing
    else would notice it."""
    reward = text_reward(lambda p, c, f: [0.0, value, 0.0], make_tokenizer(), "my.module:scorer")
    with pytest.raises(FloatingPointError, match=r"my.module:scorer.*'w4 w5'"):
        reward(batch())


def nan_scorer(prompts: list[str], completions: list[str], finished: list[bool]) -> list[float]:
    return [math.nan] * len(prompts)


def model_of_nan(tokenizer: PreTrainedTokenizerBase) -> Callable[[Completions], torch.Tensor]:
    model = classifier()
    model.config.reward_mean = math.nan
    return model_reward(model, tokenizer, tokenizer)


@pytest.mark.parametrize("kind", ["model", "function"])
def test_training_stops_at_nan(
    make_model: MakeModel, make_tokenizer: MakeTokenizer, kind: str
) -> None:
    tokenizer, policy = make_tokenizer(), make_model("llama")
    reward = (
        model_of_nan(tokenizer) if kind == "model" else text_reward(nan_scorer, tokenizer, "mine")
    )
    settings = ReinforceSettings(
        steps=1,
        batch_size=2,
        samples_per_prompt=1,
        learning_rate=1e-3,
        warmup_steps=0,
        max_grad_norm=1.0,
        temperature=1.0,
        max_new_tokens=3,
        beta=0.0,
        mu=0.1,
        anchor="ema",
        baseline="none",
        length_penalty=0.0,
        gradient_checkpointing=False,
        compute_dtype="float32",
        reset_every=1,
    )
    before = [parameter.clone() for parameter in policy.parameters()]
    with pytest.raises(FloatingPointError):
        list(
            train_policy(
                start_run(policy, policy, settings),
                reward,
                [[BOS]],
                settings,
                eos_id=EOS,
                pad_id=PAD,
                seed=0,
            )
        )
    assert all(map(torch.equal, before, policy.parameters()))


def test_functions_are_loaded_by_name() -> None:
    assert load_function("math:sqrt") is math.sqrt
    with pytest.raises(ValueError, match=r"'math\.sqrt': expected package.module:function"):
        load_function("math.sqrt")
