"""Odd or broken texts in the user's files are reported by file and row, or do no harm.
docs/your_files.md has the same list."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import prepare_data as script
import pytest
from test_prepare import write
from test_prompts import make_chat_tokenizer

from warpflow.data.files import FORMATS, read_rows, write_jsonl
from warpflow.side_by_side.answers import Answer, read_answers, write_answers

HALF = "\ud83d"  # of "🙂", as JSON writes it where a text was cut between two UTF-16 units
TEXTS = ["the film was good", "the film was bad", "a dull film", "a lot of it"]

Prepare = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def prepare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Prepare:
    """Prepare a data folder from files of which `changes` gives some; the prompts it holds."""

    def run(**changes: Any) -> list[dict[str, Any]]:
        rows = [{"text": text, "good": "x", "bad": "y"} for text in TEXTS]
        path = write(tmp_path / "rows.jsonl", rows)
        settings = {
            "prompts_path": path, "prompts_column": "text", "eval_prompts": 1, "seed": 0,
            "vocab_size": 300, "max_prompt_tokens": 99, "max_text_tokens": 99,
            "sft_path": path, "sft_prompt": "text", "sft_completion": "good",
            "preferences_path": path, "preferences_prompt": "text",
            "preferences_chosen": "good", "preferences_rejected": "bad",
            **changes,
        }  # fmt: skip
        out = tmp_path / "out"
        given = {key: value for key, value in settings.items() if value is not None}
        script.main([f"--out={out}", *(f"--{key}={value}" for key, value in given.items())])
        return [
            row for part in ("train", "eval") for row in read_rows(out / f"{part}_prompts.jsonl")
        ]

    return run


def texts_of(rows: list[dict[str, Any]]) -> list[str]:
    return sorted(row["prompt"] for row in rows)


# --- half a character ---------------------------------------------------------------------------

COLUMNS = ["prompts_column", "sft_prompt", "sft_completion", "preferences_prompt",
           "preferences_chosen", "preferences_rejected"]  # fmt: skip


@pytest.mark.parametrize("key", COLUMNS)
def test_half_a_character_is_named_by_file_row_and_field(
    key: str, prepare: Prepare, tmp_path: Path
) -> None:
    rows = [{"text": f"film {n}", "good": "x", "bad": "y", "own": "good"} for n in range(5)]
    rows[3]["own"] = f"good {HALF}"
    path = write(tmp_path / "mine.jsonl", rows)
    file = {"prompts": "prompts_path", "sft": "sft_path", "preferences": "preferences_path"}
    place = rf"mine\.jsonl, row 4: column 'own' \(prepare_data: {key}\) holds half a character"
    with pytest.raises(ValueError, match=rf"{place}, '\\ud83d' .* after 'good '"):
        prepare(**{file[key.split("_")[0]]: path, key: "own"})


def test_half_a_character_in_a_message_or_a_labelled_text_is_named(
    prepare: Prepare, tmp_path: Path
) -> None:
    asked = [[{"role": "user", "content": text}] for text in (*TEXTS, HALF)]
    path = write(tmp_path / "chats.jsonl", [{"ask": messages} for messages in asked])
    with pytest.raises(ValueError, match=r"chats\.jsonl, row 5: column 'ask' .*half a character"):
        prepare(prompts_path=path, prompts_column="ask")
    rows = [{"text": text, "label": n % 2} for n, text in enumerate([*TEXTS, HALF])]
    path = write(tmp_path / "labels.jsonl", rows)
    settings: dict[str, Any] = dict.fromkeys(
        [f"preferences_{k}" for k in ("prompt", "chosen", "rejected")]
    )
    settings |= {"preferences_text": "text", "preferences_label": "label"}
    with pytest.raises(ValueError, match=r"labels\.jsonl, row 5: column 'text' .*half a character"):
        prepare(preferences_path=path, **settings)


def test_half_a_character_in_a_column_that_nobody_reads_stays_as_it_is(
    prepare: Prepare, tmp_path: Path
) -> None:
    rows = [{"text": text, "note": HALF, HALF: [HALF]} for text in TEXTS]
    found = prepare(prompts_path=write(tmp_path / "mine.jsonl", rows))
    assert texts_of(found) == sorted(TEXTS)
    assert all((row["note"], row[HALF]) == (HALF, [HALF]) for row in found)


def test_characters_beyond_the_first_plane_are_whole(prepare: Prepare, tmp_path: Path) -> None:
    """JSON writes them as two escapes."""
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(f'{{"text": "\\ud83d\\ude42 {n}"}}\n' for n in range(3)), "utf-8")
    assert texts_of(prepare(prompts_path=path)) == ["🙂 0", "🙂 1", "🙂 2"]


def test_stored_answers_are_named_or_kept_too(tmp_path: Path) -> None:
    path = tmp_path / "answers.json"
    write_answers(path, [Answer("q", "a", True, {"note": HALF})], "mine")
    assert read_answers(path)[0].columns == {"note": HALF}
    for column in ("instruction", "output"):
        row = {"instruction": "q", "output": "a"} | {column: HALF}
        path.write_text(json.dumps([row]), encoding="utf-8")
        with pytest.raises(ValueError, match=rf"answers\.json, row 1: {column} holds half"):
            read_answers(path)


# --- cells and files ----------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["text", "note"])
def test_long_cells_are_read(column: str, prepare: Prepare, tmp_path: Path) -> None:
    """Python's csv module stops at 131,072 characters unless told otherwise."""
    rows = [{"text": text, "note": "x"} for text in TEXTS]
    rows[2][column] = "long " * 60_000
    path = write(tmp_path / "mine.csv", rows)
    assert read_rows(path) == rows
    found = prepare(prompts_path=path, prompts_first_words=2)
    assert ("long long" in texts_of(found)) == (column == "text")


@pytest.mark.parametrize("value", [None, 3, 2.5, True, {"a": 1}, [1]])
@pytest.mark.parametrize("key", COLUMNS)
def test_cells_that_are_no_text_are_named(
    key: str, value: Any, prepare: Prepare, tmp_path: Path
) -> None:
    rows: list[dict[str, Any]] = [
        {"text": text, "good": "x", "bad": "y", "own": "x"} for text in TEXTS
    ]
    rows[1]["own"] = value
    path = write(tmp_path / "mine.jsonl", rows)
    file = f"{key.split('_')[0]}_path"
    with pytest.raises(ValueError, match=rf"mine\.jsonl, row 2: column 'own' .*{key}.* text"):
        prepare(**{file: path, key: "own"})


def test_a_column_of_null_alone_is_named(prepare: Prepare, tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", [{"text": None} for _ in TEXTS])
    with pytest.raises(ValueError, match=r"mine\.jsonl, row 1: column 'text' .*got None"):
        prepare(prompts_path=path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.jsonl", b'{"text": "a"}\n{"text": \n', "line 2: not valid JSON"),
        ("m.jsonl", b'{"text": ' + b"9" * 5000 + b"}\n", "line 1: not valid JSON"),
        ("m.jsonl", b'{"text": "a"}\n' + b"[" * 99_999, "line 2: not valid JSON"),
        ("m.json", b'[{"text": "a"}, {"text": ]', "not valid JSON.*line 1 column 26"),
        ("m.jsonl", '{"text": "a"}\n{"text": "café"}\n'.encode("latin-1"), "line 2: not UTF-8"),
        (
            "m.csv",
            "text\na\ncafé\n".encode("latin-1"),
            "line 3: not UTF-8 .*save the file as UTF-8",
        ),
        ("m.csv", "text\na\n".encode("utf-16"), "line 1: not UTF-8"),
        ("m.csv", b"text,text\na,b\n", "line 1: two columns are named 'text'"),
        ("m.csv", b'text,note\na,"b\nc,d\n', "not valid CSV"),
        ("m.csv", b"text,note\na,b\nc\n", "line 3: expected 2 fields"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_broken_files_are_named_with_their_line(
    name: str, content: bytes, message: str, zipped: bool, prepare: Prepare, tmp_path: Path
) -> None:
    path = tmp_path / (f"{name}.gz" if zipped else name)
    path.write_bytes(gzip.compress(content) if zipped else content)
    with pytest.raises(ValueError, match=message) as error:
        prepare(prompts_path=path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("extension", [name for name in FORMATS if name.endswith(".gz")])
@pytest.mark.parametrize("how", ["truncated", "changed"])
def test_a_broken_gzip_file_is_named(
    extension: str, how: str, prepare: Prepare, tmp_path: Path
) -> None:
    path = write(tmp_path / f"mine{extension}", [{"text": f"film {n}"} for n in range(999)])
    whole = path.read_bytes()
    middle = len(whole) // 2
    broken = whole[:middle] if how == "truncated" else whole[:middle] + b"\xff" * 9 + whole[-300:]
    path.write_bytes(broken)
    with pytest.raises(ValueError, match=r"mine\..*: broken gzip file .* copy it again"):
        prepare(prompts_path=path)


def test_columns_without_a_name_do_no_harm(prepare: Prepare, tmp_path: Path) -> None:
    """Spreadsheets write such columns."""
    path = tmp_path / "mine.csv"
    path.write_text("text,,\n" + "".join(f"{text},,\n" for text in TEXTS), encoding="utf-8")
    assert texts_of(prepare(prompts_path=path)) == sorted(TEXTS)


# --- prompts that are alike ---------------------------------------------------------------------


def test_prompts_that_stand_twice_are_one(prepare: Prepare, tmp_path: Path) -> None:
    rows = [{"text": text, "n": n} for n, text in enumerate(TEXTS * 2)]
    found = prepare(prompts_path=write(tmp_path / "mine.jsonl", rows))
    assert sorted(row["n"] for row in found) == [0, 1, 2, 3]


def test_prompts_that_the_template_makes_alike_are_decided_here(
    prepare: Prepare, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Gemma's and Llama's templates trim spaces. The first row stays, as with equal prompts, and
    the other is named. Otherwise a reward function, which could not tell them apart, would stop in
    training."""
    make_chat_tokenizer("gemma", tmp_path / "tokenizer")
    asked = [f"How was film {n}?" for n in range(4)] + ["How was film 1? ", "How was film 1?"]
    rows = [{"ask": [{"role": "user", "content": q}], "n": n} for n, q in enumerate(asked)]
    path = write(tmp_path / "mine.jsonl", rows)
    settings = {"vocab_size": None, "tokenizer_path": tmp_path / "tokenizer"}
    found = prepare(prompts_path=path, prompts_column="ask", **settings)
    assert sorted(row["n"] for row in found) == [0, 1, 2, 3]
    said = capsys.readouterr().out
    assert (
        f"{path}, row 5: left out, because its prompt has the same tokens as that of row 2" in said
    )
    assert said.count("left out") == 1


def test_messages_that_the_template_refuses_are_named_by_row(
    prepare: Prepare, tmp_path: Path
) -> None:
    tokenizer = make_chat_tokenizer("chatml", tmp_path / "tokenizer")
    refuse = "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}"
    tokenizer.chat_template = refuse + tokenizer.chat_template
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    user, system = ({"role": role, "content": "Hi"} for role in ("user", "system"))
    answer = {"role": "assistant", "content": "Yes"}
    settings = {"vocab_size": None, "tokenizer_path": tmp_path / "tokenizer"}
    asked = [{"ask": [user]}, {"ask": [system, user]}, {"ask": [user, answer, user]}]
    path = write(tmp_path / "mine.jsonl", asked)
    with pytest.raises(ValueError, match=r"mine\.jsonl, row 2: the chat template refuses"):
        prepare(prompts_path=path, prompts_column="ask", **settings)
    chats = [{"chat": [*row["ask"], answer]} for row in asked]
    path = write(tmp_path / "sft.jsonl", chats)
    settings |= {"sft_prompt": None, "sft_completion": "chat"}
    with pytest.raises(ValueError, match=r"sft\.jsonl, row 2: the chat template refuses"):
        prepare(sft_path=path, **settings)


def test_rows_with_any_characters_read_back(tmp_path: Path) -> None:
    rows = [{"text": "a\u2028b\x00\r\n\u0085\ufeff" + HALF}]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    assert read_rows(tmp_path / "rows.jsonl") == rows
