"""Columns of TRL's dataset formats are known without being named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import prepare_data
import pytest

from warpflow.data.dataset_formats import columns_of, split_common_start
from warpflow.data.files import read_rows, write_jsonl

USER, OTHER = ([{"role": "user", "content": text}] for text in ("Who are you?", "And she?"))
TEMPLATE = "{% for m in messages %}{{ m.role + ' ' + m.content + ' ' }}{% endfor %}"


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize(
    ("kind", "row", "found"),
    [
        ("prompts", {"prompt": "a", "id": 1}, ["prompt"]),
        ("prompts", {"messages": USER}, ["messages"]),
        ("sft", {"prompt": "a", "completion": "b", "text": "c"}, ["prompt", "completion"]),
        ("sft", {"messages": USER + said("b")}, [None, "messages"]),
        ("sft", {"text": "a"}, [None, "text"]),
        ("preferences", {"prompt": "a", "chosen": "b", "rejected": "c"}, ["prompt"]),
        ("preferences", {"chosen": "a b", "rejected": "a c"}, [None]),
        (
            "preferences",  # UltraFeedback's columns
            {"prompt": "a", "chosen": USER + said("b"), "rejected": USER + said("c")},
            [None],
        ),
        ("preferences", {"prompt": "a", "chosen": said("b"), "rejected": said("c")}, ["prompt"]),
    ],
)
def test_formats(kind: str, row: dict[str, Any], found: list[str | None]) -> None:
    pairs = ["chosen", "rejected", None, None] if kind == "preferences" else []
    assert list(columns_of({}, kind, row, "x").values()) == found + pairs


def test_columns_that_are_named_decide() -> None:
    row = {"prompt": "a", "completion": "b", "text": "c"}
    named = {"sft_completion": "text"}
    assert columns_of(named, "sft", row, "x") == {"sft_prompt": None, "sft_completion": "text"}


@pytest.mark.parametrize("kind", ["sft", "preferences", "prompts"])
def test_other_columns_are_listed_with_the_keys_that_name_them(kind: str) -> None:
    with pytest.raises(ValueError) as error:
        columns_of({}, kind, {"question": "a", "best": "b"}, "mine.csv")
    for part in ("mine.csv: its columns are question, best", f"prepare_data.{kind}_", "TRL's"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("chosen", "rejected", "parts"),
    [
        ("Q: Who?\nA: Me", "Q: Who?\nA: You", ("Q: Who?\nA:", " Me", " You")),
        ("the unlucky", "the unhappy", ("the", " unlucky", " unhappy")),
        ("a b", "a b c", ("a", " b", " b c")),
        ("one", "two", ("", "one", "two")),
    ],
)
def test_the_prompt_that_two_texts_begin_with(
    chosen: str, rejected: str, parts: tuple[str, str, str]
) -> None:
    assert split_common_start(chosen, rejected) == parts
    prompt, yes, no = parts
    assert (prompt + yes, prompt + no) == (chosen, rejected)


def prepare(tmp_path: Path, make_tokenizer: Any, rows: dict[str, list[dict[str, Any]]]) -> Path:
    """Return the data folder from files of such rows, where no column is named."""
    words = "user assistant Who are you? And she? Me. You. Q: A: me you"
    tokenizer = make_tokenizer(words.split())
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path / "policy")
    flags = [f"--out={tmp_path / 'out'}", f"--tokenizer_path={tmp_path / 'policy'}", "--seed=0"]
    for kind, those in rows.items():
        write_jsonl(tmp_path / f"{kind}.jsonl", those)
        flags.append(f"--{kind}_path={tmp_path / kind}.jsonl")
    limits = ["--eval_prompts=1", "--max_text_tokens=50", "--max_prompt_tokens=40"]
    prepare_data.main(flags + limits)
    return tmp_path / "out"


def test_messages_without_named_columns(tmp_path: Path, make_tokenizer: Any) -> None:
    pair = {"prompt": "Who are you?", "chosen": USER + said("Me."), "rejected": USER + said("You.")}
    out = prepare(
        tmp_path,
        make_tokenizer,
        {
            "sft": [{"prompt": USER, "completion": said("Me.")}],
            "preferences": [pair],
            "prompts": [{"prompt": USER, "id": 1}, {"prompt": OTHER, "id": 2}],
        },
    )
    assert read_rows(out / "sft.jsonl") == [{"prompt": USER, "completion": "Me."}]
    assert read_rows(out / "preferences.jsonl") == [
        {"prompt": USER, "chosen": "Me.", "rejected": "You."}
    ]
    prompts = [r for part in ("train", "eval") for r in read_rows(out / f"{part}_prompts.jsonl")]
    assert sorted(row["id"] for row in prompts) == [1, 2]


@pytest.mark.parametrize(
    ("prompts", "shown"),
    [
        ([USER, [{"role": "user", "content": "Who are me"}]], "4 tokens: 'user Who are "),
        (["Who are you?", "Who are me"], "4 tokens: '<bos> Who are "),
    ],
    ids=["messages", "text"],
)
def test_the_log_shows_a_prompt_as_the_policy_reads_it(
    tmp_path: Path,
    make_tokenizer: Any,
    capsys: pytest.CaptureFixture[str],
    prompts: list[Any],
    shown: str,
) -> None:
    rows = [{"prompt": prompt, "id": number} for number, prompt in enumerate(prompts)]
    prepare(tmp_path, make_tokenizer, {"prompts": rows})
    printed = capsys.readouterr().out
    assert "BOS is <bos> (1), EOS is <eos> (2), pad is <pad> (0)" in printed
    assert f"as the policy reads it, {shown}" in printed


def test_texts_without_named_columns(tmp_path: Path, make_tokenizer: Any) -> None:
    out = prepare(
        tmp_path,
        make_tokenizer,
        {
            "sft": [{"text": "Who are you?"}],
            "preferences": [{"chosen": "Q: Who A: me", "rejected": "Q: Who A: you"}],
            "prompts": [{"prompt": "Who"}, {"prompt": "And"}],
        },
    )
    assert read_rows(out / "preferences.jsonl") == [
        {"prompt": "Q: Who A:", "chosen": " me", "rejected": " you"}
    ]
    assert read_rows(out / "sft.jsonl") == [{"prompt": "", "completion": "Who are you?"}]
