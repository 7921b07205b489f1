"""Reading the user's files and preparing the data folder."""

import csv
import gzip
import importlib.util
import json
import random
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from warpflow.data.files import FORMATS, read_rows, read_texts, require_columns, write_jsonl
from warpflow.data.tokenizers import SPECIAL_TOKENS, train_tokenizer
from warpflow.data.toy_reviews import write_tokenizer

ROOT = Path(__file__).parents[2]
MOVIES = ROOT.parent / "shared" / "data" / "movie_sentences.jsonl.gz"
ROWS = [{"text": "a b", "label": "1"}, {"text": 'c, "d"\ne\u2028 é', "label": "0"}]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write rows in the format of the extension."""
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8", newline="") as handle:
        if ".csv" in path.suffixes:
            writer = csv.DictWriter(handle, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        elif ".json" in path.suffixes:
            json.dump(rows, handle)
        else:
            handle.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def run_script(settings: dict[str, Any]) -> None:
    """Call scripts/prepare_data.py; None stands for a flag that is left out."""
    spec = importlib.util.spec_from_file_location("prepare_data", ROOT / "scripts/prepare_data.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = script  # dataclasses look their module up
    spec.loader.exec_module(script)
    script.main([f"--{key}={value}" for key, value in settings.items() if value is not None])


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """A small set of files and the settings that prepare them into tmp_path/out."""
    rng = random.Random(0)
    words = ["the", "film", "was", "good", "bad", "dull", "and", "i", "liked", "it", "a", "lot"]
    texts = [" ".join(rng.choices(words, k=rng.randint(3, 12))) for _ in range(80)]
    rows = [{"text": text, "label": i % 2, "id": i} for i, text in enumerate(texts)]
    path = write(tmp_path / "texts.jsonl", rows)
    return {
        "out": tmp_path / "out",
        "sft_path": path,
        "sft_completion": "text",
        "preferences_path": path,
        "preferences_text": "text",
        "preferences_label": "label",
        "prompts_path": path,
        "prompts_column": "text",
        "prompts_first_words": 3,
        "train_prompts": 20,
        "eval_prompts": 10,
        "seed": 0,
        "vocab_size": 300,
        "max_text_tokens": 100,
        "max_prompt_tokens": 40,
    }


# ---------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("extension", FORMATS)
def test_every_format_reads_the_same_rows(tmp_path: Path, extension: str) -> None:
    path = write(tmp_path / f"my.rows{extension}", ROWS)
    assert read_rows(path) == ROWS
    assert read_rows(str(path)) == ROWS


def test_written_rows_read_back_with_sorted_keys(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    write_jsonl(path, ROWS)
    assert read_rows(path) == ROWS
    assert path.read_bytes().startswith(b'{"label": "1", "text": "a b"}\n')
    assert "é" in path.read_text(encoding="utf-8")


def test_missing_file_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.csv.*no such file"):
        read_rows(tmp_path / "absent.csv")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("e.jsonl", "", "empty"),
        ("e.csv", "text,label\n", "empty"),
        ("e.json", "[]", "empty"),
        ("b.jsonl", '{"a": 1}\n\n{"a": \n', "line 3: not valid JSON"),
        ("b.jsonl", '{"a": 1}\n[1]\n', "line 2: expected a JSON object, got list"),
        ("b.json", '{"a": 1}', "expected a JSON list"),
        ("b.json", "[{]", "not valid JSON"),
        ("b.json", "[3]", "row 1: expected a JSON object"),
        ("b.csv", "a,b\n1,2\n3\n", "line 3: expected 2 fields"),
        ("b.csv", "a,b\n1,2,3\n", "line 2: expected 2 fields"),
        ("b.csv", 'a,b\n1,"2', "not valid CSV"),
        ("b.parquet", "x", r"unknown extension; expected one of \.jsonl"),
        ("b.jsonl.gz", "not gzip", "broken gzip"),
    ],
)
def test_broken_files_are_clear_errors(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as error:
        read_rows(path)
    assert name in str(error.value)


def test_other_encodings_are_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "latin.csv"
    path.write_bytes("text\ncafé\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.csv, line 2: not UTF-8"):
        read_rows(path)


def test_byte_order_mark_is_not_part_of_the_first_column(tmp_path: Path) -> None:
    path = tmp_path / "excel.csv"
    path.write_text("text,label\na,1\n", encoding="utf-8-sig")
    assert read_rows(path) == [{"text": "a", "label": "1"}]


def test_missing_column_names_everything_to_fix_it() -> None:
    with pytest.raises(ValueError) as error:
        require_columns(
            ROWS, ["text", "lable"], Path("mine.csv"), "prepare_data: preferences_label"
        )
    message = str(error.value)
    for part in ("mine.csv", "preferences_label", "'lable'", "text, label", "mean 'label'"):
        assert part in message


def test_column_missing_in_a_later_row_names_the_row() -> None:
    with pytest.raises(ValueError, match=r"row 2: no column 'b'"):
        require_columns([{"b": 1}, {"a": 1}], ["b"], Path("x.jsonl"), "key")


def test_text_columns_must_hold_text() -> None:
    with pytest.raises(ValueError, match=r"row 2.*'a'.*must be text, got None"):
        read_texts([{"a": "x"}, {"a": None}], "a", Path("x.jsonl"), "key")


# ------------------------------------------------------------------------------- preparation


def test_folder_holds_what_later_stages_read(settings: dict[str, Any]) -> None:
    run_script(settings)
    out = settings["out"]
    source = {row["text"] for row in read_rows(settings["sft_path"])}
    assert {(r["prompt"], r["completion"]) for r in read_rows(out / "sft.jsonl")} == {
        ("", text) for text in source
    }
    train = read_rows(out / "train_prompts.jsonl")
    evaluation = read_rows(out / "eval_prompts.jsonl")
    assert (len(train), len(evaluation)) == (20, 10)
    prompts = [row["prompt"] for row in train + evaluation]
    assert len(set(prompts)) == 30
    assert all(len(prompt.split()) == 3 for prompt in prompts)
    assert all({"id", "label"} <= row.keys() and "text" not in row for row in train)
    assert AutoTokenizer.from_pretrained(out / "tokenizer").eos_token_id == 2


def test_same_settings_give_the_same_bytes(settings: dict[str, Any], tmp_path: Path) -> None:
    def folder(out: Path, **changes: Any) -> dict[str, bytes]:
        run_script(settings | {"out": out} | changes)
        files = sorted(p for p in out.rglob("*") if p.is_file())
        return {str(p.relative_to(out)): p.read_bytes() for p in files}

    first = folder(tmp_path / "a")
    assert first == folder(tmp_path / "b")
    reseeded = folder(tmp_path / "c", seed=1)
    changed = {name for name in first if first[name] != reseeded[name]}
    # Not the tokenizer: whatever the pairs, they hold all texts.
    assert changed == {"preferences.jsonl", "train_prompts.jsonl", "eval_prompts.jsonl"}
    uncapped = folder(tmp_path / "d", train_prompts=None)
    assert uncapped["eval_prompts.jsonl"] == first["eval_prompts.jsonl"]
    assert uncapped["train_prompts.jsonl"].startswith(first["train_prompts.jsonl"])


def test_texts_become_messages_and_long_prompts_are_dropped_where_asked(
    settings: dict[str, Any], tmp_path: Path, make_tokenizer: Any
) -> None:
    tokenizer = make_tokenizer([f"w{i}" for i in range(16)])
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    tokenizer.save_pretrained(tmp_path / "policy")
    texts = ["w1 " * n for n in (2, 3, 4, 30)]
    path = write(tmp_path / "p.jsonl", [{"instruction": text.strip()} for text in texts])
    given = {key: None for key in settings if key.startswith(("sft", "pref"))}
    given |= {"prompts_path": path, "prompts_column": "instruction", "prompts_first_words": None}
    given |= {"vocab_size": None, "tokenizer_path": tmp_path / "policy", "eval_prompts": 1}
    given |= {"max_prompt_tokens": 8, "prompts_as_messages": True, "max_text_tokens": None}
    with pytest.raises(ValueError, match=r"1 prompts are longer than .*_tokens = 8"):
        run_script(settings | given)
    run_script(settings | given | {"drop_long_prompts": True})
    rows = [
        row
        for part in ("train", "eval")
        for row in read_rows(settings["out"] / f"{part}_prompts.jsonl")
    ]
    prompts = sorted(row["prompt"][0]["content"] for row in rows)
    assert prompts == ["w1 w1", "w1 w1 w1", "w1 w1 w1 w1"]
    assert {row["prompt"][0]["role"] for row in rows} == {"user"}


def test_labels_pair_each_preferred_text_with_one_that_is_not(settings: dict[str, Any]) -> None:
    run_script(settings)
    rows = read_rows(settings["sft_path"])
    preferred = [row["text"] for row in rows if row["label"] == 1]
    others = {row["text"] for row in rows if row["label"] == 0}
    pairs = read_rows(settings["out"] / "preferences.jsonl")
    assert [pair["chosen"] for pair in pairs] == preferred
    assert all(pair["rejected"] in others and pair["prompt"] == "" for pair in pairs)
    assert len({pair["rejected"] for pair in pairs}) > 10


@pytest.mark.parametrize("label", [2, None, "good", -1])
def test_other_labels_are_an_error(settings: dict[str, Any], tmp_path: Path, label: Any) -> None:
    path = write(tmp_path / "p.jsonl", [{"text": "a", "label": 1}, {"text": "b", "label": label}])
    with pytest.raises(ValueError, match=r"row 2: column 'label' must be 1 .* or 0"):
        run_script(settings | {"preferences_path": path})


def test_one_sided_labels_are_an_error(settings: dict[str, Any], tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", [{"text": "a", "label": 1}])
    with pytest.raises(ValueError, match=r"p\.csv, column 'label'.*both 1 and 0"):
        run_script(settings | {"preferences_path": path})


def test_pairs_from_columns_carry_their_space(settings: dict[str, Any], tmp_path: Path) -> None:
    rows = [
        {"q": "Who?", "yes": "Me.", "no": " You."},
        {"q": "Human: hi\nAssistant: ", "yes": "Hello", "no": "\nNo"},
        {"q": "", "yes": "free", "no": "text"},
    ]
    path = write(tmp_path / "pairs.csv.gz", rows)
    columns = {
        "preferences_path": path, "preferences_prompt": "q", "preferences_chosen": "yes",
        "preferences_rejected": "no", "preferences_text": None, "preferences_label": None,
    }  # fmt: skip
    run_script(settings | columns | {"sft_path": path, "sft_prompt": "q", "sft_completion": "yes"})
    pairs = read_rows(settings["out"] / "preferences.jsonl")
    assert [(p["chosen"], p["rejected"]) for p in pairs] == [
        (" Me.", " You."), ("Hello", "\nNo"), ("free", "text"),
    ]  # fmt: skip
    assert [row["completion"] for row in read_rows(settings["out"] / "sft.jsonl")] == [
        " Me.", "Hello", "free",
    ]  # fmt: skip


def test_blank_and_long_texts_are_dropped_and_counted(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"text": text, "label": 1} for text in ("short text", "word " * 300, "  ", "word " * 9)]
    path = write(tmp_path / "sft.jsonl", rows)
    run_script(settings | {"sft_path": path, "max_text_tokens": 60})
    assert [row["completion"] for row in read_rows(settings["out"] / "sft.jsonl")] == [
        "short text", "word " * 9,
    ]  # fmt: skip
    assert "sft.jsonl: 2 rows; dropped 1 blank and 1 longer" in capsys.readouterr().out


def test_nothing_left_is_an_error(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="all 80 rows are blank or longer than max_text_tokens"):
        run_script(settings | {"max_text_tokens": 2, "max_prompt_tokens": 100})


def test_rows_too_short_for_a_prompt_are_counted(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["a b c", "a b c d", "x y z  w v", "x y z u", "p q r s"]
    path = write(tmp_path / "prompts.csv", [{"text": text} for text in texts])
    run_script(settings | {"prompts_path": path, "eval_prompts": 1})
    found = [
        row["prompt"]
        for part in ("train", "eval")
        for row in read_rows(settings["out"] / f"{part}_prompts.jsonl")
    ]
    assert sorted(found) == ["a b c", "p q r", "x y z"]
    assert "dropped 1 rows too short" in capsys.readouterr().out


def test_long_prompts_are_an_error(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"texts\.jsonl: \d+ prompts are longer than policy"):
        run_script(settings | {"max_prompt_tokens": 2})


def test_too_few_prompts_to_split_is_an_error(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="eval_prompts is 1000, but there are only"):
        run_script(settings | {"eval_prompts": 1000})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preferences_text": None}, "set either preferences_chosen"),
        ({"preferences_chosen": "text"}, "set either preferences_chosen"),
        ({"preferences_prompt": "text"}, "preferences_prompt must be null"),
        ({"vocab_size": None}, "either vocab_size .* or tokenizer_path"),
        ({"vocab_size": 100}, "vocab_size: got '100', expected greater than or equal to 260"),
        ({"eval_prompts": 0}, "eval_prompts: got '0', expected greater than or equal to 1"),
        ({"vocab_size": 300, "tokenizer_path": "x"}, "either vocab_size .* or tokenizer_path"),
        ({"sft_completion": "txt"}, "prepare_data: sft_completion.*Did you mean 'text'"),
        ({"prompts_column": "texts"}, "prepare_data: prompts_column.*Did you mean 'text'"),
        ({"preferences_label": "lable"}, "prepare_data: preferences_label.*Did you mean 'label'"),
    ],
)
def test_settings_that_cannot_work(
    settings: dict[str, Any],
    changes: dict[str, Any],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises((ValueError, SystemExit)) as error:
        run_script(settings | changes)
    assert re.search(message, f"{error.value} {capsys.readouterr().err}")


# --------------------------------------------------------------------------------- tokenizers


def test_trained_tokenizer_splits_at_the_prompt_without_a_seam(tmp_path: Path) -> None:
    texts = ["the film was good .", "a film that i liked , très bien !"] * 5
    train_tokenizer(texts, 320, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [0, 1, 2, 3]
    for text in (*texts, "unseen: 漢字 🙂  two spaces\n"):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode([1, *ids, 2], skip_special_tokens=True) == text
    prompt, completion = "the film", " was good ."
    parts = [tokenizer(part)["input_ids"] for part in (prompt, completion)]
    assert [*parts[0], *parts[1]] == tokenizer(prompt + completion)["input_ids"]


def test_given_tokenizer_is_copied_without_weights(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    source = tmp_path / "model"
    write_tokenizer(source)
    (source / "model.safetensors").write_bytes(b"weights")
    run_script(settings | {"vocab_size": None, "tokenizer_path": source})
    copied = settings["out"] / "tokenizer"
    assert sorted(p.name for p in copied.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    for path in copied.iterdir():
        assert path.read_bytes() == (source / path.name).read_bytes()


def test_folder_without_tokenizer_is_an_error(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(ValueError, match=r"model .* holds no tokenizer file"):
        run_script(settings | {"vocab_size": None, "tokenizer_path": tmp_path / "model"})


@pytest.mark.skipif(not MOVIES.is_file(), reason="the shared movie sentences are not here")
def test_movie_sentences(settings: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    paths = dict.fromkeys(("sft_path", "preferences_path", "prompts_path"), MOVIES)
    changes = {"vocab_size": 1024, "eval_prompts": 200, "train_prompts": 2000,
               "prompts_first_words": 4, "max_text_tokens": 64}  # fmt: skip
    run_script(settings | paths | changes)
    out = settings["out"]
    pairs = read_rows(out / "preferences.jsonl")
    positive = {row["text"] for row in read_rows(MOVIES) if row["label"] == 1}
    assert len(pairs) > 3000
    assert {pair["chosen"] for pair in pairs} <= positive
    train = {row["prompt"] for row in read_rows(out / "train_prompts.jsonl")}
    evaluation = {row["prompt"] for row in read_rows(out / "eval_prompts.jsonl")}
    assert (len(train), len(evaluation)) == (2000, 200)
    assert not train & evaluation
    assert len(AutoTokenizer.from_pretrained(out / "tokenizer")) == 1024
    assert "dropped 0 blank and" in capsys.readouterr().out
