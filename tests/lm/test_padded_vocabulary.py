"""Embeddings and tokenizers that do not cover one another: ids that no token has are never sampled,
and every path scores the same distribution without them."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import answer_prompts
import pytest
import torch
from conftest import BOS, EOS, LLAMA_LIKE, PAD, Enumerate, MakeModel, MakeTokenizer
from test_scripts import MODEL, flags, make_inputs
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from warpflow.data.files import read_rows, write_jsonl
from warpflow.data.prepare import PrepareArguments, prepare_data
from warpflow.evaluation.sample import kls_and_entropy
from warpflow.evaluation.task import JudgeArguments, load_judges
from warpflow.lm import log_probs
from warpflow.lm.fast import layers
from warpflow.lm.log_probs import Completions, of_known_ids, token_log_probs
from warpflow.lm.models import (
    build_policy,
    load_policy,
    load_tokenizer,
    note_known_ids_,
    require_vocabulary,
    save_checkpoint,
)
from warpflow.lm.prompts import warn_once
from warpflow.lm.sampling import draw_uniforms, pad_left, sample_completions
from warpflow.lm.scoring import can_pack, scores_by_part

GAPS, KNOWN, ROWS = [4, 6], 9, 12  # ids that no token has; ids from 9 on have none either


def tokenizer_with_gaps() -> PreTrainedTokenizerBase:
    words = {"<pad>": 0, "<bos>": 1, "<eos>": 2, "<unk>": 3, "a": 5, "b": 7, "c": 8}
    backend = Tokenizer(WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", **names)


@pytest.fixture(params=["llama", "qwen2", "gemma", "gpt2"])
def model(request: pytest.FixtureRequest, make_model: MakeModel) -> PreTrainedModel:
    """A model with our layers, and one with the library's (gpt2). Rows that no token has are the
    likeliest, so code that forgot to leave one out would sample nothing else."""
    model = make_model(request.param, words=[f"w{i}" for i in range(ROWS - 4)])
    weight = model.get_output_embeddings().weight
    with torch.no_grad():
        weight[[*GAPS, *range(KNOWN, ROWS)]] *= 3
    note_known_ids_(model.config, tokenizer_with_gaps())
    return model


def sampled(model: PreTrainedModel, rows: int = 400) -> Completions:
    ids, mask = pad_left([[BOS, 5, 7], [BOS]] * (rows // 2), PAD)
    return sample_completions(
        model, ids, mask, max_new_tokens=6, temperature=0.9, eos_ids=[EOS], pad_id=PAD,
        uniforms=draw_uniforms(rows, 6, "cpu", 0),
    )  # fmt: skip


def test_ids_that_no_token_has_are_never_sampled(model: PreTrainedModel) -> None:
    known = set(tokenizer_with_gaps().get_vocab().values())
    batch = sampled(model)
    assert set(batch.response_ids[batch.is_response].tolist()) == known
    del model.config.sampled_vocab_size, model.config.unsampled_ids
    everything = sampled(model).response_ids.unique().tolist()
    assert not set(everything) <= known  # the model would, by itself


def test_scores_are_one_distribution_over_the_tokens_that_are(
    model: PreTrainedModel, enumerate_completions: Enumerate
) -> None:
    """The sum is over all completions of two tokens, by every way to score."""
    everything = enumerate_completions([BOS, 5], vocabulary=KNOWN, limit=2)
    is_gap = torch.isin(everything.response_ids, torch.tensor(GAPS)) & everything.is_response
    can_be_said = everything.rows((~is_gap.any(1)).nonzero()[:, 0])
    with torch.no_grad():
        by_library = token_log_probs(model, can_be_said, 0.9).sum(1)
        scored = torch.empty_like(by_library)
        for part, score in scores_by_part([model], can_be_said, 0.9, each=1, size=None):
            scored[part] = score(model)
    assert by_library.exp().sum().item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(scored, by_library)


def test_both_ways_to_score_are_tried(make_model: MakeModel) -> None:
    """Otherwise the test above would compare a path with itself."""
    ids = torch.ones(1, 2, dtype=torch.int64)
    batch = Completions(ids, ids.bool(), ids, ids.bool(), ids[:, 0].bool())
    assert can_pack(make_model("llama"), batch)
    assert not can_pack(make_model("gpt2"), batch)


def test_completions_behind_one_prompt_are_scored_alike(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_probs, "reads_prompts_once", lambda *_: True)
    batch = sampled(model, 8).rows(torch.arange(0, 8, 2))
    with torch.no_grad():
        together = token_log_probs(model, batch, 0.9, together=4)
        apart = token_log_probs(model, batch, 0.9)
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-4)


def test_our_layers_are_used_and_compared_on_what_is_computed(
    make_model: MakeModel, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The constant in the gaps would hide a difference: it is far larger than any logit."""
    model = make_model("llama", words=[f"w{i}" for i in range(ROWS - 4)])
    note_known_ids_(model.config, tokenizer_with_gaps())
    sampled(model, 4)
    assert layers._agreeing[model] == {"sampling": True}
    wrong = make_model("llama", words=[f"w{i}" for i in range(ROWS - 4)], seed=1)
    note_known_ids_(wrong.config, tokenizer_with_gaps())
    logits = layers.Network.logits
    monkeypatch.setattr(
        layers.Network,
        "logits",
        lambda self, x: logits(self, x) + 0.1 * (logits(self, x) > log_probs.UNSAMPLED / 2),
    )
    sampled(wrong, 4)
    assert layers._agreeing[wrong] == {"sampling": False}


def test_kl_and_entropy_are_numbers_over_the_tokens_that_are(
    model: PreTrainedModel, perturb: Callable[..., PreTrainedModel]
) -> None:
    """0 · log 0 is no NaN, and the exact KL is that of the distributions without these ids."""
    other = perturb(model, 1, 0.2)
    batch = sampled(model, 8)
    kl, exact, entropy = kls_and_entropy(model, other, batch, 0.9)
    known = sorted(tokenizer_with_gaps().get_vocab().values())
    with torch.no_grad():
        p, q = (
            log_probs.response_logits(m, batch, 0.9)[..., known].log_softmax(-1)
            for m in (model, other)
        )
    terms = (p.exp() * (p - q)).sum(-1).masked_fill(~batch.is_response, 0)
    torch.testing.assert_close(exact, terms.sum(1), atol=1e-4, rtol=1e-4)
    assert (exact > 0).all() and kl.isfinite().all()
    assert (entropy < len(known) * batch.lengths).all() and (entropy > 0).all()


def test_gradients_are_numbers_and_none_goes_to_rows_that_nobody_has(
    make_model: MakeModel,
) -> None:
    model = make_model("llama", words=[f"w{i}" for i in range(ROWS - 4)])  # untied
    note_known_ids_(model.config, tokenizer_with_gaps())
    batch = sampled(model, 8)
    for _, score in scores_by_part([model], batch, 0.9, each=1, size=None):
        (-score(model).mean()).backward()
    gradient = model.get_output_embeddings().weight.grad
    assert gradient is not None and gradient.isfinite().all()
    nobody = [*GAPS, *range(KNOWN, ROWS)]
    assert gradient[nobody].abs().max() == 0
    assert gradient[[i for i in range(ROWS) if i not in nobody]].abs().min() > 0


def test_a_model_without_padding_is_left_as_it_is(make_model: MakeModel, make_tokenizer) -> None:
    """No number changes at no cost: the same logits, and a config as it was."""
    model = make_model("llama")
    before = model.config.to_dict()
    note_known_ids_(model.config, make_tokenizer())
    assert model.config.to_dict() == before
    logits = torch.randn(2, 3, 20)
    known = of_known_ids(logits, model)
    assert known.data_ptr() == logits.data_ptr() and known.shape == logits.shape


def test_what_is_left_out_is_said_once_and_kept_with_the_checkpoint(
    make_model: MakeModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    model, tokenizer = make_model("llama", words=list("abcdefgh")), tokenizer_with_gaps()
    for number in range(2):
        save_checkpoint(model, tokenizer, tmp_path / str(number))
        model = load_policy(tmp_path / str(number))
    assert model.config.sampled_vocab_size == KNOWN
    assert model.config.unsampled_ids == GAPS
    said = [message for message in caplog.messages if "never sampled" in message]
    assert said == [
        "the embedding has 12 rows, the tokenizer ids up to 8: those beyond are never sampled",
        "the tokenizer lacks 2 ids below: they are never sampled",
    ]


def test_a_policy_for_a_tokenizer_with_gaps_has_a_row_for_every_id() -> None:
    model = build_policy({**LLAMA_LIKE, "model_type": "llama"}, tokenizer_with_gaps(), 0)
    assert model.config.vocab_size == KNOWN


def test_answers_of_a_policy_from_elsewhere_leave_them_out_too(
    make_model: MakeModel, make_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    """Its config says nothing about them, and neither does any config of a model on the hub."""
    model, tokenizer = make_model("llama"), make_tokenizer()
    model.resize_token_embeddings(64, mean_resizing=False)
    with torch.no_grad():
        model.get_output_embeddings().weight[20:] = 3 * torch.randn(44, 16)
    model.save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    write_jsonl(tmp_path / "data/eval_prompts.jsonl", [{"prompt": f"w{i}"} for i in range(8)])
    answer_prompts.main(
        flags(policy=tmp_path / "policy", out=tmp_path / "a.json", name="p", seed=0,
              max_prompt_tokens=9, batch_size=8, data=tmp_path / "data",
              max_new_tokens=24, temperature=1.0)
    )  # fmt: skip
    rows = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    words = [len(row["output"].split()) for row in rows if not row["finished"]]
    assert words and min(words) > 12  # ids without a token decode to nothing


# --- ids that have a token, and no row ----------------------------------------------------------


@pytest.fixture
def smaller(make_model: MakeModel, make_tokenizer: MakeTokenizer, tmp_path: Path) -> Path:
    """A policy as Gemma 3 of 1B: its tokenizer has a special token for images, and its embedding
    has no row for it."""
    warn_once.cache_clear()
    make_model("llama").save_pretrained(tmp_path / "policy")
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(tmp_path / "policy")
    return tmp_path / "policy"


def settings(folder: Path, rows: list[dict[str, str]]) -> PrepareArguments:
    path = str(folder / "mine.jsonl")
    write_jsonl(path, rows)
    return PrepareArguments(
        prompts_path=path, prompts_column="text", sft_path=path, sft_completion="more",
        eval_prompts=1, seed=0, max_text_tokens=9, max_prompt_tokens=9,
        tokenizer_path=str(folder / "policy"),
    )  # fmt: skip


def test_a_special_token_without_a_row_does_no_harm(
    smaller: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"text": f"w{i}", "more": "w1"} for i in range(4)]
    for _ in range(2):
        prepare_data(settings(tmp_path, rows), tmp_path / "data")
    assert len(read_rows(tmp_path / "data/train_prompts.jsonl")) == 3
    assert caplog.text.count("no row for <image>, 1 special tokens") == 1


@pytest.mark.parametrize("column", ["text", "more"])
def test_a_text_that_has_it_is_named(smaller: Path, tmp_path: Path, column: str) -> None:
    rows = [{"text": f"w{i}", "more": "w1"} for i in range(4)]
    rows[2][column] = "w3 <image>"
    with pytest.raises(ValueError, match=r"mine\.jsonl, row 3: a text holds <image>"):
        prepare_data(settings(tmp_path, rows), tmp_path / "data")


@pytest.mark.parametrize("name", ["pad_token", "bos_token", "eos_token"])
def test_tokens_of_every_batch_need_a_row(smaller: Path, make_model: MakeModel, name: str) -> None:
    """The trainer of a fine-tune may have added a pad token and forgotten the embedding."""
    tokenizer = load_tokenizer(smaller)
    setattr(tokenizer, name, "<image>")
    with pytest.raises(ValueError, match="ids up to 20, but the model's embedding has 20 rows"):
        require_vocabulary(tokenizer, make_model("llama").config, "mine")


def test_a_reward_model_needs_a_row_for_all_that_the_policy_can_sample(tmp_path: Path) -> None:
    """Equal tokenizers, so that it reads the sampled ids: the policy has a row for the special
    token, the reward model has none."""
    folder = make_inputs(tmp_path)
    sft, reward = folder / "sft", folder / "reward_model"
    tokenizer = load_tokenizer(reward)
    rows = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    for path in (sft, reward):
        tokenizer.save_pretrained(path)
    given = JudgeArguments(str(sft), str(folder / "data"), 16, MODEL, str(reward))
    load_judges(given, 6)  # neither has a row: it is never sampled
    policy = load_policy(sft)
    policy.resize_token_embeddings(rows + 1, mean_resizing=False)
    policy.save_pretrained(sft)
    with pytest.raises(ValueError, match=rf"reward_model: .* ids up to {rows}, .* has {rows} rows"):
        load_judges(given, 6)
