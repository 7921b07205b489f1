"""Prompts of text and of messages: their tokens, what closes an answer, and a run on messages."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import evaluate_front
import prepare_data
import pytest
import torch
import train_policy
import train_reward_model
import train_sft
from conftest import BOS, EOS, LLAMA_LIKE, PAD, MakeTokenizer
from test_rewards import classifier
from test_scripts import MODEL, REINFORCE, SAMPLING, flags, supervised
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from warpflow.data.files import read_rows, write_jsonl
from warpflow.data.tokenizers import train_tokenizer
from warpflow.evaluation.rewards import index_rows, model_reward
from warpflow.lm.log_probs import Completions
from warpflow.lm.models import build_policy, ending_ids, load_tokenizer
from warpflow.lm.prompts import (
    dialogue_tokens,
    encode_example,
    encode_prompts,
    end_of_turn,
    warn_once,
)
from warpflow.lm.reward_models import sequence_scores
from warpflow.lm.sampling import pad_left
from warpflow.training.supervised import language_model_collator

LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ALTERNATING = (
    "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}" + CHATML
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>"
    "{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
# Template, what it opens a message with, what it closes one with.
TEMPLATES = {
    "llama": (LLAMA, "<|start_header_id|>", "<|eot_id|>"),
    "chatml": (CHATML, "<|im_start|>", "<|im_end|>"),
    "gemma": (GEMMA, "<start_of_turn>", "<end_of_turn>"),
}
USER = [{"role": "user", "content": "How was the film? "}]
DIALOGUE = [
    {"role": "system", "content": "Be brief."},
    *USER,
    {"role": "assistant", "content": "good"},
    {"role": "user", "content": "And the book?"},
]


@pytest.fixture(params=TEMPLATES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def make_chat_tokenizer(name: str, folder: Path) -> PreTrainedTokenizerBase:
    """A byte-level tokenizer with BOS and EOS, and the template's own tokens."""
    texts = ["How was the film? The film was good.", "And the book? bad."] * 3
    tokenizer = train_tokenizer(texts, 300, folder)
    extra = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|im_start|>", "<|im_end|>"]
    extra += ["<start_of_turn>", "<end_of_turn>"]
    tokenizer.add_special_tokens({"additional_special_tokens": extra})
    tokenizer.chat_template = TEMPLATES[name][0]
    tokenizer.save_pretrained(folder)
    return load_tokenizer(folder)


@pytest.fixture
def tokenizer(name: str, tmp_path: Path) -> PreTrainedTokenizerBase:
    return make_chat_tokenizer(name, tmp_path / "tokenizer")


def test_texts_start_with_bos_where_there_is_one(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(["a", "b"])
    assert encode_prompts(tokenizer, ["a b", ""]) == [[BOS, 4, 5], [BOS]]
    tokenizer.bos_token = None
    assert encode_prompts(tokenizer, ["a b"]) == [[4, 5]]
    with pytest.raises(ValueError, match="'' has no tokens"):
        encode_prompts(tokenizer, ["a", ""])


def test_a_rendered_text_has_the_messages_tokens_and_it_is_said_once(
    tokenizer: PreTrainedTokenizerBase, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """No second BOS where the template has one, and none where it has none (ChatML)."""
    warn_once.cache_clear()
    rendered = str(tokenizer.apply_chat_template(USER, tokenize=False, add_generation_prompt=True))
    [by_messages] = encode_prompts(tokenizer, [USER])
    for _ in range(2):
        [by_text] = encode_prompts(tokenizer, [rendered])
        assert by_text == by_messages
    said = [record for record in caplog.records if "rendered by the chat" in record.message]
    assert len(said) == 1
    first = TEMPLATES[name][1] if name == "chatml" else "<bos>"
    assert f"start with {first} already" in said[0].message


def test_messages_have_the_tokens_that_their_template_says(
    tokenizer: PreTrainedTokenizerBase, name: str
) -> None:
    """One BOS where the template has it (Llama), none where it has none (ChatML, though this
    tokenizer has a BOS), and special tokens as such."""
    prompts = [USER, "The film", DIALOGUE]
    user, text, dialogue = encode_prompts(tokenizer, prompts)
    for ids, messages in ((user, USER), (dialogue, DIALOGUE)):
        given = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        assert ids == given["input_ids"]
        assert ids.count(BOS) == (name != "chatml")
        opening = tokenizer.convert_tokens_to_ids(TEMPLATES[name][1])
        assert ids.count(opening) == len(messages) + 1
    assert text == encode_prompts(tokenizer, ["The film"])[0]


def test_what_closes_an_answer_is_read_from_the_template(
    tokenizer: PreTrainedTokenizerBase, name: str
) -> None:
    assert end_of_turn(tokenizer, DIALOGUE) == TEMPLATES[name][2]
    tokenizer.chat_template = PLAIN
    assert end_of_turn(tokenizer, DIALOGUE) is None


def test_a_cut_answer_lacks_the_templates_closing(
    tokenizer: PreTrainedTokenizerBase, name: str
) -> None:
    finished = dialogue_tokens(tokenizer, USER, "The film was")
    cut = dialogue_tokens(tokenizer, USER, "The film was", finished=False)
    assert finished[: len(cut)] == cut
    closing = tokenizer.get_vocab()[TEMPLATES[name][2]]
    assert finished[len(cut)] == closing
    assert tokenizer.decode(cut).endswith("The film was")
    assert closing not in dialogue_tokens(tokenizer, USER, "", finished=False)[-1:]


def write_ends(folder: Path, tokenizer: PreTrainedTokenizerBase, ends: object) -> Path:
    model = build_policy({**LLAMA_LIKE, "model_type": "llama"}, tokenizer, 0)
    model.generation_config.eos_token_id = ends
    model.save_pretrained(folder)
    return folder


def test_every_id_of_the_generation_config_ends_a_completion(
    tokenizer: PreTrainedTokenizerBase, name: str, tmp_path: Path
) -> None:
    """So do the tokenizer's EOS token, and the token that closes an answer in the chat template."""
    closing = tokenizer.get_vocab()[TEMPLATES[name][2]]
    folder = write_ends(tmp_path / "several", tokenizer, [7, 9])
    assert ending_ids(folder, tokenizer) == sorted([EOS, 7, 9, closing])
    folder = write_ends(tmp_path / "one", tokenizer, 8)
    assert ending_ids(folder, tokenizer) == sorted([EOS, 8, closing])
    tokenizer.chat_template = "{{ raise_exception('tools only') }}"
    assert ending_ids(folder, tokenizer) == [EOS, 8]
    (folder / "generation_config.json").unlink()
    tokenizer.chat_template = None
    assert ending_ids(folder, tokenizer) == [EOS]


def test_an_example_is_the_templates_own_dialogue_with_the_loss_on_the_answer(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    closing = end_of_turn(tokenizer, USER)
    tokenizer.eos_token = closing
    ids, length = encode_example(tokenizer, USER, "The film was good.")
    whole = dialogue_tokens(tokenizer, USER, "The film was good.")
    assert ids == whole[: len(ids)]
    assert length == len(encode_prompts(tokenizer, [USER])[0])
    labels = language_model_collator(PAD)([{"ids": ids, "prompt_length": length}])["labels"][0]
    assert tokenizer.decode(labels[labels >= 0]) == f"The film was good.{closing}"


def test_no_prompt_depends_on_the_day(tokenizer: PreTrainedTokenizerBase) -> None:
    """Llama 3.1's template tells the model today's date, so at midnight all prompts would
    change."""
    plain = dialogue_tokens(tokenizer, USER)
    clock = "{%- set today = strftime_now('%d %b %Y') %}{{ today + strftime_now(\"%Y\") }}"
    tokenizer.chat_template = clock + tokenizer.chat_template
    assert dialogue_tokens(tokenizer, USER) == tokenizer("26 Jul 20242024")["input_ids"] + plain


def test_messages_that_the_template_refuses_are_shown(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = ALTERNATING
    with pytest.raises(ValueError, match=r"template refuses .*Be brief.*: user first"):
        encode_prompts(tokenizer, [USER, DIALOGUE])


def test_a_reward_model_of_another_family_reads_messages_in_its_own_template(
    tmp_path: Path,
) -> None:
    policy, own = (make_chat_tokenizer(name, tmp_path / name) for name in ("llama", "chatml"))
    model = classifier(vocab_size=len(own))
    prompts = encode_prompts(policy, [USER, DIALOGUE])
    ids, is_prompt = pad_left(prompts, PAD)
    answer = policy("good")["input_ids"]
    batch = completions(ids, is_prompt, [answer, answer])
    rows = index_rows(prompts, [{"prompt": USER}, {"prompt": DIALOGUE}])
    scores = model_reward(model, own, policy, rows)(batch)
    expected = [dialogue_tokens(own, messages, "good") for messages in (USER, DIALOGUE)]
    assert torch.equal(scores, sequence_scores(model, expected))
    cut = replace(batch, finished=torch.tensor([True, False]))
    expected[1] = dialogue_tokens(own, DIALOGUE, "good", finished=False)
    assert torch.equal(
        model_reward(model, own, policy, rows)(cut), sequence_scores(model, expected)
    )
    model.config.reward_std = 1.0  # trained by the pipeline: on the tokens that are sampled
    scores = model_reward(model, policy, policy, rows)(batch)
    sampled = [prompt + answer for prompt in prompts]
    assert torch.equal(scores, sequence_scores(model, sampled))


def completions(
    ids: torch.Tensor, is_prompt: torch.Tensor, responses: list[list[int]]
) -> Completions:
    response = torch.tensor(responses)
    ones = torch.ones_like(response, dtype=torch.bool)
    return Completions(ids, is_prompt, response, ones, ones[:, 0])


# --- a run on messages -------------------------------------------------------------------------


def write_policy(folder: Path, name: str, **changes: Any) -> Path:
    """A tiny random Llama with a chat tokenizer."""
    tokenizer = make_chat_tokenizer(name, folder)
    model = build_policy({**LLAMA_LIKE, "model_type": "llama", **changes}, tokenizer, 0)
    model.save_pretrained(folder)
    return folder


def write_dialogues(folder: Path) -> dict[str, Any]:
    """Files of messages in the usual forms, and the settings that read them."""
    asked = [[{"role": "user", "content": f"How was film {n}?"}] for n in range(24)]

    def said(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    write_jsonl(folder / "sft.jsonl", [{"messages": q + said("The film was good.")} for q in asked])
    pairs = [{"chosen": q + said("good"), "rejected": q + said("bad")} for q in asked]
    write_jsonl(folder / "pairs.jsonl", pairs)
    write_jsonl(folder / "prompts.jsonl", [{"ask": q, "n": n} for n, q in enumerate(asked)])
    return {
        "sft_path": folder / "sft.jsonl",
        "sft_completion": "messages",
        "preferences_path": folder / "pairs.jsonl",
        "preferences_chosen": "chosen",
        "preferences_rejected": "rejected",
        "prompts_path": folder / "prompts.jsonl",
        "prompts_column": "ask",
        "eval_prompts": 8,
        "seed": 0,
        "max_text_tokens": 100,
        "max_prompt_tokens": 80,
    }


def test_a_run_on_messages(name: str, tmp_path: Path) -> None:
    """The run goes from files to an evaluated policy, and completions end with the template's
    token."""
    policy, settings = write_policy(tmp_path / "policy", name), write_dialogues(tmp_path)
    folder = {key: tmp_path / key for key in ("data", "sft", "reward_model")}
    prepare_data.main(flags(out=folder["data"], tokenizer_path=policy, **settings))
    rows = read_rows(folder["data"] / "sft.jsonl")
    assert rows[0]["completion"] == "The film was good."
    assert [message["role"] for message in rows[0]["prompt"]] == ["user"]
    pair = read_rows(folder["data"] / "preferences.jsonl")[0]
    assert (pair["prompt"], pair["chosen"], pair["rejected"]) == (rows[0]["prompt"], "good", "bad")
    given = {"data": folder["data"], "seed": 0}
    train_sft.main(supervised(**given, out=folder["sft"], policy=policy))
    closing = TEMPLATES[name][2]
    stored = AutoTokenizer.from_pretrained(folder["sft"])
    assert stored.eos_token == closing
    generation = AutoModelForCausalLM.from_pretrained(folder["sft"]).generation_config
    assert generation.eos_token_id == [EOS, stored.eos_token_id]  # all that ended it before, too
    train_reward_model.main(
        supervised(**given, sft=folder["sft"], out=folder["reward_model"], held_out=8)
    )
    judging = {**folder, **SAMPLING, "max_prompt_tokens": 80, "rewards": MODEL, "seed": 0}
    run = {**REINFORCE, **judging, "replicate": 1, "iteration": 1, "member": 0}
    train_policy.main(
        flags(**run, init=folder["sft"], out=tmp_path / "trained", tables=tmp_path / "tables")
    )
    evaluate_front.main(
        flags(policy=tmp_path / "trained", out=tmp_path / "e.json", prompts=8, **judging)
        + flags(samples_per_prompt=1, batch_size=4, completions=8)
    )
    document = json.loads((tmp_path / "e.json").read_text())
    assert document["metrics"]["kl_exact"] > 0
    assert all("How was film" in row["prompt"] for row in document["completions"])


def test_zero_steps_of_sft_end_answers_as_the_template_too(tmp_path: Path) -> None:
    policy = write_policy(tmp_path / "policy", "llama")
    write_jsonl(tmp_path / "data/train_prompts.jsonl", [{"prompt": USER}])
    settings = {"batch_size": 1, "learning_rate": 1e-3, "warmup_steps": 0, "weight_decay": 0.0}
    paths = {"data": tmp_path / "data", "out": tmp_path / "sft", "policy": policy}
    train_sft.main(flags(**paths, seed=0, steps=0, **settings))
    assert load_tokenizer(tmp_path / "sft").eos_token == "<|eot_id|>"


@pytest.mark.parametrize("rendered", [False, True])
def test_sft_ends_rendered_prompts_as_the_template_does(
    tokenizer: PreTrainedTokenizerBase, name: str, tmp_path: Path, rendered: bool
) -> None:
    """A text that was rendered beforehand counts as messages; another text does not."""
    prompt = str(tokenizer.apply_chat_template(USER, tokenize=False, add_generation_prompt=True))
    rows = [{"prompt": prompt if rendered else "How was the film?"}]
    write_jsonl(tmp_path / "data/train_prompts.jsonl", rows)
    settings = {"batch_size": 1, "learning_rate": 1e-3, "warmup_steps": 0, "weight_decay": 0.0}
    policy = write_policy(tmp_path / "policy", name)
    paths = {"data": tmp_path / "data", "out": tmp_path / "sft", "policy": policy}
    train_sft.main(flags(**paths, seed=0, steps=0, **settings))
    stored = load_tokenizer(tmp_path / "sft")
    assert stored.eos_token == (TEMPLATES[name][2] if rendered else "<eos>")
    ends = {EOS, stored.get_vocab()[TEMPLATES[name][2]]}
    assert set(ending_ids(tmp_path / "sft", stored)) == ends


def test_the_templates_closing_ends_a_completion_though_no_file_lists_it(
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is said once, and not where the generation config lists it."""
    closing = tokenizer.get_vocab()[TEMPLATES[name][2]]
    folder = write_ends(tmp_path / "listed", tokenizer, [EOS, closing])
    assert ending_ids(folder, tokenizer) == [EOS, closing]
    assert "completions end with" not in caplog.text
    folder = write_ends(tmp_path / "unlisted", tokenizer, EOS)
    for _ in range(2):
        assert ending_ids(folder, tokenizer) == [EOS, closing]
    assert caplog.text.count(f"completions end with {TEMPLATES[name][2]} too") == 1


def test_a_closing_that_is_no_special_token_ends_a_completion_and_is_not_in_its_text(
    tmp_path: Path,
) -> None:
    """Some fine-tunes have added <|im_end|> as an ordinary token."""
    tokenizer = train_tokenizer(["How was the film?"], 300, tmp_path)
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>", "  "])
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    closing = tokenizer.get_vocab()["<|im_end|>"]
    folder = write_ends(tmp_path / "policy", tokenizer, EOS)
    assert ending_ids(folder, tokenizer) == [EOS, closing]
    assert tokenizer.decode([*tokenizer("good")["input_ids"], closing], True) == "good"
    rendered = str(tokenizer.apply_chat_template(USER, tokenize=False, add_generation_prompt=True))
    assert encode_prompts(tokenizer, [rendered]) == encode_prompts(tokenizer, [USER])


@pytest.mark.parametrize("after", ["", "{closing}", "{closing}\n"])
def test_an_example_ends_once(tokenizer: PreTrainedTokenizerBase, name: str, after: str) -> None:
    """Completions that were rendered beforehand end with the closing token already."""
    closing = TEMPLATES[name][2]
    tokenizer.eos_token = closing
    expected = encode_example(tokenizer, "Q", " good")
    assert encode_example(tokenizer, "Q", " good" + after.format(closing=closing)) == expected
    ids, _ = encode_example(tokenizer, "Q", f" good{closing} bad")
    assert ids.count(tokenizer.eos_token_id) == 2


# --- files of messages -------------------------------------------------------------------------


def prepare(tmp_path: Path, **changes: Any) -> Path:
    make_chat_tokenizer("chatml", tmp_path / "tokenizer")
    settings = {"tokenizer_path": tmp_path / "tokenizer", **write_dialogues(tmp_path), **changes}
    out = tmp_path / "out"
    prepare_data.main(flags(out=out, **{k: v for k, v in settings.items() if v is not None}))
    return out


def test_prompts_keep_their_columns_and_lose_a_last_answer(tmp_path: Path) -> None:
    path = tmp_path / "whole.jsonl"
    answers = [{"role": "assistant", "content": text} for text in ("good", "bad")]
    rows = [{"m": [*DIALOGUE, answer], "n": n} for n, answer in enumerate(answers)]
    write_jsonl(path, [*rows, {"m": USER, "n": 2}])
    out = prepare(tmp_path, prompts_path=path, prompts_column="m", eval_prompts=1)
    found = [row for part in ("train", "eval") for row in read_rows(out / f"{part}_prompts.jsonl")]
    assert sorted(found, key=lambda row: row["n"]) == [
        {"prompt": DIALOGUE, "n": 0},
        {"prompt": USER, "n": 2},
    ]


def test_files_of_stages_that_are_left_out_are_not_needed(tmp_path: Path) -> None:
    absent = dict.fromkeys(
        ("sft_path", "sft_completion", "preferences_path", "preferences_chosen",
         "preferences_rejected")
    )  # fmt: skip
    out = prepare(tmp_path, **absent)
    assert {path.name for path in out.iterdir()} == {
        "train_prompts.jsonl", "eval_prompts.jsonl", "tokenizer",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([USER, "text"], "row 2: column 'ask' .* must be text in every row, or messages"),
        ([USER, []], "row 2: column 'ask'"),
        ([USER, [{"role": "user", "content": None}]], "row 2: column 'ask'"),
        ([USER, [{"role": "assistant", "content": "a"}]], "row 2: expected messages that end"),
    ],
)
def test_other_cells_are_refused(tmp_path: Path, cells: list[Any], message: str) -> None:
    path = tmp_path / "cells.jsonl"
    write_jsonl(path, [{"ask": cell} for cell in cells])
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path, prompts_path=path)


def test_pairs_that_differ_before_their_answers_are_refused(tmp_path: Path) -> None:
    path, end = tmp_path / "p.jsonl", [{"role": "assistant", "content": "a"}]
    write_jsonl(path, [{"chosen": USER + end, "rejected": DIALOGUE + end}])
    with pytest.raises(ValueError, match=r"p\.jsonl, row 1: the chosen and the rejected dialogue"):
        prepare(tmp_path, preferences_path=path)


def test_first_words_of_messages_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="prompts_first_words is for texts"):
        prepare(tmp_path, prompts_first_words=3)


@pytest.mark.parametrize("trained", [True, False])
def test_messages_need_a_template(tmp_path: Path, trained: bool) -> None:
    make_chat_tokenizer("chatml", tmp_path / "plain")
    (tmp_path / "plain/chat_template.jinja").unlink()
    changes: dict[str, Any] = {"tokenizer_path": tmp_path / "plain"}
    if trained:
        changes = {"tokenizer_path": None, "vocab_size": 300}
    with pytest.raises(ValueError, match=r"sft\.jsonl has prompts of messages, but .* template"):
        prepare(tmp_path, **changes)
