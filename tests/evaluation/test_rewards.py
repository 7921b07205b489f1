"""Rewards: sequence classifiers, functions named in the config, and their sum."""

import asyncio
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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

from warpflow.evaluation.rewards import (
    Reading,
    Reward,
    Scorer,
    applying,
    function_reward,
    index_rows,
    load_function,
    model_reward,
    weighted_sum,
)
from warpflow.lm.log_probs import Completions
from warpflow.lm.models import load_policy, load_reward_model, load_tokenizer, save_checkpoint
from warpflow.lm.reward_models import sequence_scores
from warpflow.lm.texts import prompt_texts, response_texts, tokens_of_prompts
from warpflow.training.reinforce import ReinforceSettings, start_run, train_policy


def batch() -> Completions:
    """Three finished completions of prompts of different lengths; w0 has id 4."""
    return Completions(
        prompt_ids=torch.tensor([[PAD, BOS, 4], [BOS, 5, 6], [PAD, PAD, BOS]]),
        is_prompt=torch.tensor([[False, True, True], [True, True, True], [False, False, True]]),
        response_ids=torch.tensor([[7, EOS, PAD], [8, 9, EOS], [EOS, PAD, PAD]]),
        is_response=torch.tensor([[True, True, False], [True, True, True], [True, False, False]]),
        finished=torch.tensor([True, True, True]),
    )


PROMPT_ROWS = [{"prompt": "w0", "answer": 1}, {"prompt": "w1  w2", "answer": 2}, {"prompt": ""}]
ROWS = [[BOS, 4, 7, EOS], [BOS, 5, 6, 8, 9, EOS], [BOS, EOS]]


def classifier(labels: int = 1, name: str = "llama", vocab_size: int = 21) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        **ARCHITECTURES[name], vocab_size=vocab_size, pad_token_id=PAD, num_labels=labels
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
    by_ids = model_reward(model, make_tokenizer(), policy_tokenizer, {})(batch())
    by_text = model_reward(model, foreign_tokenizer, policy_tokenizer, {})(batch())
    torch.testing.assert_close(by_ids, by_text)
    alone = torch.cat([model(torch.tensor([row])).logits[0] for row in ROWS])
    torch.testing.assert_close(by_ids, alone, atol=1e-5, rtol=1e-5)
    assert by_ids.unique().numel() == 3


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma"])
def test_batching_and_padding_do_not_change_scores(
    name: str, make_tokenizer: MakeTokenizer
) -> None:
    model, tokenizer = classifier(name=name), make_tokenizer()
    whole = model_reward(model, tokenizer, tokenizer, {})(batch())
    in_twos = model_reward(model, tokenizer, tokenizer, {}, Reading(rows=2))(batch())
    torch.testing.assert_close(whole, in_twos, atol=1e-5, rtol=1e-5)
    alone = torch.cat([sequence_scores(model, [row]) for row in ROWS])
    torch.testing.assert_close(whole, alone, atol=1e-5, rtol=1e-5)
    assert not whole.requires_grad


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma"])
def test_a_model_rounded_or_in_host_memory_scores_as_autocast_does(
    name: str, make_tokenizer: MakeTokenizer
) -> None:
    """Scores agree to the bit, in half the memory or with weights elsewhere between uses."""
    tokenizer, model = make_tokenizer(), classifier(name=name)
    with torch.autocast("cpu", torch.bfloat16):
        expected = sequence_scores(model, ROWS)
    device = model_reward(model, tokenizer, tokenizer, {}, Reading(256, "bfloat16"))
    assert torch.equal(device(batch()), expected)
    assert {p.dtype for p in model.parameters()} == {torch.float32, torch.bfloat16}
    other = classifier(name=name)
    host = model_reward(other, tokenizer, tokenizer, {}, Reading(256, "bfloat16", "host"))
    kept = [p.data_ptr() for p in other.parameters()]
    assert torch.equal(host(batch()), expected)
    assert [p.data_ptr() for p in other.parameters()] == kept


def test_a_model_reads_so_many_rows_at_once(make_tokenizer: MakeTokenizer) -> None:
    tokenizer, model, rows = make_tokenizer(), classifier(), []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    model_reward(model, tokenizer, tokenizer, {}, Reading(rows=2))(batch())
    assert rows == [2, 1]


def test_scores_come_in_the_units_stored_with_the_model(
    make_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    model, tokenizer = classifier(), make_tokenizer()
    raw = model_reward(model, tokenizer, tokenizer, {})(batch())
    model.config.reward_mean, model.config.reward_std = 2.0, 4.0
    save_checkpoint(model, tokenizer, tmp_path)
    stored = load_reward_model(tmp_path)
    scores = model_reward(stored, load_tokenizer(tmp_path), tokenizer, {})(batch())
    torch.testing.assert_close(scores, (raw - 2) / 4)


def test_more_than_one_label_is_refused(make_tokenizer: MakeTokenizer, tmp_path: Path) -> None:
    save_checkpoint(classifier(labels=3), make_tokenizer(), tmp_path)
    with pytest.raises(ValueError, match="3 labels, expected 1"):
        load_reward_model(tmp_path)


def test_a_policy_without_pad_token_becomes_a_reward_model(
    make_model: MakeModel, make_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    """Neither the config nor the tokenizer of GPT-2 on the hub has a pad token. Without one Hugging
    Face's classifiers score only one row at a time."""
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


def reward_of(scorer: Scorer, tokenizer: PreTrainedTokenizerBase) -> Reward:
    rows = index_rows(tokens_of_prompts(batch()), PROMPT_ROWS)
    return function_reward(scorer, tokenizer, "mine:scorer", rows)


def test_functions_get_all_by_name_and_the_rows_as_they_stand_in_the_file(
    make_tokenizer: MakeTokenizer,
) -> None:
    seen: dict[str, Any] = {}

    def scorer(**given: Any) -> list[float]:
        seen.update(given)
        return [1, 2.5, -3]

    scores = reward_of(scorer, make_tokenizer())(batch())
    assert scores.tolist() == [1.0, 2.5, -3.0]
    assert scores.dtype == torch.float32
    assert seen == {
        "prompts": ["w0", "w1  w2", ""],
        "completions": ["w3", "w4 w5", ""],
        "finished": [True, True, True],
        "columns": [{"answer": 1}, {"answer": 2}, {}],
    }


def test_rows_follow_their_completions_in_any_batch(make_tokenizer: MakeTokenizer) -> None:
    def answer(columns: list[dict[str, Any]], **_: Any) -> list[float]:
        return [row.get("answer", 0) for row in columns]

    reward = reward_of(answer, make_tokenizer())
    assert reward(batch().rows(torch.tensor([2, 1, 1, 0]))).tolist() == [0, 2, 2, 1]


def test_prompts_that_look_alike_but_differ_are_refused() -> None:
    """This happens, for example, with a tokenizer that knows neither word."""
    same = [[BOS, 3], [BOS, 3]]
    assert len(index_rows(same, [{"prompt": "x"}, {"prompt": "x"}])) == 1
    with pytest.raises(ValueError, match=r"'x'.*'y'.*leave one of them out"):
        index_rows(same, [{"prompt": "x"}, {"prompt": "y"}])


def test_terms_are_weighted_and_summed(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()
    model = model_reward(classifier(), tokenizer, tokenizer, {})
    function = reward_of(lambda **_: [1, 2, 3], tokenizer)
    both = weighted_sum([(1.0, model), (-0.5, function)], tokenizer)(batch())
    torch.testing.assert_close(both, model(batch()) - 0.5 * torch.tensor([1.0, 2.0, 3.0]))
    assert torch.equal(weighted_sum([(1.0, model)], tokenizer)(batch()), model(batch()))


def test_texts_leave_out_special_tokens(make_tokenizer: MakeTokenizer) -> None:
    assert prompt_texts(batch(), make_tokenizer()) == ["w0", "w1 w2", ""]
    assert response_texts(batch(), make_tokenizer()) == ["w3", "w4 w5", ""]


@pytest.mark.parametrize("count", [0, 2, 4])
def test_a_wrong_count_of_scores_is_refused(make_tokenizer: MakeTokenizer, count: int) -> None:
    reward = reward_of(lambda **_: [0.0] * count, make_tokenizer())
    with pytest.raises(ValueError, match=f"mine:scorer returned {count} scores for") as error:
        reward(batch())
    assert "prompt 'w0', completion 'w3'" in error.value.__notes__[0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_refused(make_tokenizer: MakeTokenizer, value: float) -> None:
    """A reward of NaN replaced by 0 corrupts the training silently; in an evaluation nothing
    else would notice it."""
    reward = reward_of(lambda **_: [0.0, value, 0.0], make_tokenizer())
    with pytest.raises(FloatingPointError, match=r"mine:scorer.*'w1  w2', completion 'w4 w5'"):
        reward(batch())


def test_a_function_that_raises_stops_with_its_own_error_and_the_example(
    make_tokenizer: MakeTokenizer,
) -> None:
    def fails_on_two_words(completions: list[str], **_: Any) -> list[float]:
        return [1 / (2 - len(completion.split())) for completion in completions]

    with pytest.raises(ZeroDivisionError) as error:
        reward_of(fails_on_two_words, make_tokenizer())(batch())
    assert error.value.__notes__ == [
        "Raised by the reward mine:scorer, on prompt 'w1  w2', completion 'w4 w5'"
    ]


def test_a_model_that_fails_stops_with_the_example(make_tokenizer: MakeTokenizer) -> None:
    model, tokenizer = classifier(), make_tokenizer()
    model.config.max_position_embeddings = 5
    with pytest.raises(ValueError, match="6 tokens, but the reward model reads at most 5") as error:
        model_reward(model, tokenizer, tokenizer, {})(batch())
    assert "prompt 'w0', completion 'w3'; 2 more" in error.value.__notes__[0]
    model.config.max_position_embeddings = 256
    model.config.reward_mean = math.nan
    with pytest.raises(FloatingPointError, match="reward_model returned nan for prompt 'w0'"):
        model_reward(model, tokenizer, tokenizer, {})(batch())


def nan_scorer(prompts: Sequence[str], **_: Any) -> list[float]:
    return [math.nan] * len(prompts)


def model_of_nan(tokenizer: PreTrainedTokenizerBase) -> Callable[[Completions], torch.Tensor]:
    model = classifier()
    model.config.reward_mean = math.nan
    return model_reward(model, tokenizer, tokenizer, {})


@pytest.mark.parametrize("kind", ["model", "function"])
def test_training_stops_at_nan(
    make_model: MakeModel, make_tokenizer: MakeTokenizer, kind: str
) -> None:
    tokenizer, policy = make_tokenizer(), make_model("llama")
    rows = index_rows([[BOS]], [{"prompt": ""}])
    reward = (
        model_of_nan(tokenizer)
        if kind == "model"
        else function_reward(nan_scorer, tokenizer, "mine", rows)
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
                eos_ids=[EOS],
                pad_id=PAD,
                seed=0,
            )
        )
    assert all(map(torch.equal, before, policy.parameters()))


def test_functions_are_loaded_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are in the library, or in a file in the folder that a job runs in."""
    (tmp_path / "in_this_folder.py").write_text("def short(completions, **_): return []\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))  # what is appended goes with the test
    assert load_function("in_this_folder:short")(completions=[], prompts=[]) == []
    assert load_function("warpflow.data.toy_reviews:gold_score").__name__ == "gold_score"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("math.sqrt", r"'math\.sqrt': expected package.module:function"),
        ("math:sqrt", r"math:sqrt cannot be called as sqrt\(prompts=…, .*\*\*_ for those"),
    ],
)
def test_a_function_of_another_form_is_refused_before_it_is_called(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_function(name)


# --- async, and rewards that do not apply to all ------------------------------------------------


def test_an_async_function_is_a_reward(make_tokenizer: MakeTokenizer) -> None:
    """All calls share one event loop: connections that it keeps open would not work in another."""
    loops = []

    async def scorer(completions: list[str], **_: Any) -> list[float]:
        loops.append(asyncio.get_running_loop())
        return list(await asyncio.gather(*(count_words(text) for text in completions)))

    async def count_words(text: str) -> float:
        await asyncio.sleep(0)
        return len(text.split())

    reward = reward_of(scorer, make_tokenizer())
    assert reward(batch()).tolist() == reward(batch()).tolist() == [1.0, 2.0, 0.0]
    assert loops[0] is loops[1]


def test_an_async_function_that_raises_shows_the_example(make_tokenizer: MakeTokenizer) -> None:
    async def scorer(completions: list[str], **_: Any) -> list[float]:
        return [1 / (2 - len(text.split())) for text in completions]

    with pytest.raises(ZeroDivisionError) as error:
        reward_of(scorer, make_tokenizer())(batch())
    assert "completion 'w4 w5'" in error.value.__notes__[0]


def test_none_leaves_a_term_out_and_is_counted(
    make_tokenizer: MakeTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    tokenizer = make_tokenizer()
    some = reward_of(lambda **_: [1.0, None, 3.0], tokenizer)
    assert some(batch()).isnan().tolist() == [False, True, False]
    always = reward_of(lambda **_: [10.0, 20.0, 30.0], tokenizer)
    both = weighted_sum([(2.0, some), (0.5, always)], tokenizer)
    for _ in range(20):
        assert both(batch()).tolist() == [7.0, 10.0, 21.0]
    said = [record.message for record in caplog.records if "did not apply" in record.message]
    assert said == [
        "mine:scorer did not apply to 1 of 3 completions so far",
        "mine:scorer did not apply to 10 of 30 completions so far",
    ]


def test_a_completion_without_any_term_is_an_error(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()
    some = reward_of(lambda **_: [1.0, None, 3.0], tokenizer)
    with pytest.raises(ValueError, match=r"no term .* completion 'w4 w5' of prompt 'w1 w2'"):
        weighted_sum([(1.0, some), (1.0, some)], tokenizer)(batch())


def test_what_is_measured_applies_to_every_completion(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()
    always = reward_of(lambda **_: [1.0, 2.0, 3.0], tokenizer)
    assert applying(always, "gold", tokenizer)(batch()).tolist() == [1.0, 2.0, 3.0]
    some = reward_of(lambda **_: [1.0, 2.0, None], tokenizer)
    with pytest.raises(ValueError, match="gold returned None for prompt '', completion ''"):
        applying(some, "gold", tokenizer)(batch())
