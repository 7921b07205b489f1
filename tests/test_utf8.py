"""All text is UTF-8, whatever the locale: in the source, and in a run under Latin-1."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import MakeModel, MakeTokenizer
from project import ROOT, SMOKE, copy_project

from warpflow.data.files import write_jsonl
from warpflow.side_by_side.answers import read_answers

TEXT_FILES = ("open", "read_text", "write_text", "fdopen")
PROCESSES = ("run", "Popen", "check_output", "check_call", "call")
LOCALE = "en_US.ISO-8859-1"
# Latin-1 has a character for the first of these only.
WORDS = ["é", "“", "ő", "字", "🙂"]


def source_files() -> list[Path]:
    return [p for f in ("workflow", "scripts", "benchmarks") for p in (ROOT / f).rglob("*.py")]


def calls_by_locale(path: Path) -> Iterator[str]:
    """Yield calls that read or write text in the locale's encoding, because they name none."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        values = [*node.args, given.get("mode")]
        texts = [value.value for value in values if isinstance(value, ast.Constant)]
        is_binary = any(re.fullmatch(r"[rwax+]*b[rwax+]*", str(text)) for text in texts)
        name = called.rpartition(".")[2]
        opens = name in TEXT_FILES and called != "os.open" and not is_binary
        decodes = name in PROCESSES and {"text", "universal_newlines"} & given.keys()
        if (opens or decodes) and "encoding" not in given:
            yield f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node):.80}"


def test_every_text_is_opened_as_utf8() -> None:
    """Add encoding="utf-8" to what this lists."""
    assert len(source_files()) > 100
    assert [call for path in sorted(source_files()) for call in calls_by_locale(path)] == []
    for path in [ROOT / "Snakefile", *(ROOT / "rules").iterdir()]:
        if path.suffix in ("", ".smk") and path.is_file():
            assert not re.search(r"\b(read_text|open)\(\)", path.read_text(encoding="utf-8")), path


def test_the_walk_sees_calls_without_an_encoding(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "source.py"
    path.write_text(
        "open(a)\nopen(a, 'w')\np.read_text()\nsubprocess.run(c, text=True)\n"
        "open(a, 'rb')\nopen(a, mode='wb')\nopen(a, encoding='utf-8')\nsubprocess.run(c)\n"
        "os.open(a, 0)\np.write_text(t, encoding='utf-8')\n",
        encoding="utf-8",
    )
    lines = [int(call.split(":")[1]) for call in calls_by_locale(path)]
    assert lines == [1, 2, 3, 4]


@pytest.fixture(scope="module")
def latin1(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment variables of a Latin-1 locale, in which Python's text is Latin-1 too."""
    folder = tmp_path_factory.mktemp("locales")
    make = ["localedef", "-f", "ISO-8859-1", "-i", "en_US", str(folder / LOCALE)]
    if shutil.which("localedef") is None or subprocess.run(make, capture_output=True).returncode:
        pytest.skip("localedef cannot make a Latin-1 locale here")
    dropped = ("LANG", "LANGUAGE", "PYTHONUTF8", "PYTHONIOENCODING")
    kept = {k: v for k, v in os.environ.items() if k not in dropped and not k.startswith("LC_")}
    variables = kept | {"LOCPATH": str(folder), "LC_ALL": LOCALE, "HF_HUB_OFFLINE": "1"}
    code = "import locale, sys; print(locale.getencoding(), sys.stdout.encoding)"
    told = subprocess.check_output([sys.executable, "-c", code], env=variables, encoding="utf-8")
    assert told.split() == ["ISO-8859-1", "iso8859-1"]
    return variables


@pytest.mark.slow
def test_a_script_reads_writes_and_prints_utf8(tmp_path: Path, latin1: dict[str, str]) -> None:
    """Prompts, a further column, and a path with characters that Latin-1 lacks; the error that
    names the path is whole."""
    rows = [{"text": f"{word} prompt {word}", "note": word} for word in WORDS]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    flags = {"prompts_path": file, "prompts_column": "text", "eval_prompts": 1, "seed": 0}
    flags |= {"vocab_size": 300, "max_prompt_tokens": 99, "out": tmp_path / "out"}
    script = [sys.executable, str(ROOT / "scripts/prepare_data.py")]
    command = [*script, *(f"--{key}={value}" for key, value in flags.items())]
    variables = latin1 | {"PYTHONPATH": str(ROOT / "workflow")}
    subprocess.run(command, env=variables, check=True)
    read = []
    for part in ("train", "eval"):
        text = (tmp_path / f"out/{part}_prompts.jsonl").read_text(encoding="utf-8")
        read += [json.loads(line) for line in text.splitlines()]
    assert sorted(row["note"] for row in read) == sorted(WORDS)
    assert all(row["prompt"] == f"{row['note']} prompt {row['note']}" for row in read)

    file.write_text(json.dumps({"text": "“ 🙂"}) + "\n" + '{"text": 1, "“": 0}', encoding="utf-8")
    failed = subprocess.run(command, env=variables, capture_output=True)
    assert failed.returncode
    assert "prompts.jsonl, row 2: column 'text'" in failed.stderr.decode("utf-8")


@pytest.mark.slow
def test_answers_are_utf8(
    tmp_path: Path, latin1: dict[str, str], make_model: MakeModel, make_tokenizer: MakeTokenizer
) -> None:
    make_model().save_pretrained(tmp_path / "policy")
    make_tokenizer().save_pretrained(tmp_path / "policy")
    rows = [{"prompt": word, "note": word} for word in WORDS]
    write_jsonl(tmp_path / "data/eval_prompts.jsonl", rows)
    flags = {"policy": tmp_path / "policy", "data": tmp_path / "data", "out": tmp_path / "a.json"}
    flags |= {"name": "“é”", "seed": 0, "max_prompt_tokens": 9, "batch_size": 5}
    flags |= {"max_new_tokens": 3, "temperature": 1.0}
    script = [sys.executable, str(ROOT / "scripts/answer_prompts.py")]
    variables = latin1 | {"PYTHONPATH": str(ROOT / "workflow"), "PYTHONUTF8": "1"}
    # As jobs get them, which Snakemake starts in UTF-8 mode; and without it, by hand.
    for name, mode in (("“é”", {}), ("é", {"PYTHONUTF8": "0"})):
        command = [*script, *(f"--{k}={v}" for k, v in (flags | {"name": name}).items())]
        words = [os.fsencode(word) if mode == {} else word.encode("latin-1") for word in command]
        subprocess.run(words, env=variables | mode, check=True)
        read = read_answers(tmp_path / "a.json")
        assert [answer.prompt for answer in read] == WORDS
        assert [answer.columns for answer in read] == [{"note": word} for word in WORDS]
        text = (tmp_path / "a.json").read_text(encoding="utf-8")
        assert {row["generator"] for row in json.loads(text)} == {name}


@pytest.mark.parametrize("text", WORDS)
def test_what_a_job_says_is_utf8(text: str, latin1: dict[str, str]) -> None:
    code = (
        "import logging; from warpflow.cli import parse_arguments; parse_arguments('', []);"
        f"logging.info({text!a}); print({text!a})"
    )
    variables = latin1 | {"PYTHONPATH": str(ROOT / "workflow")}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode("utf-8").split() == [text, text]


@pytest.mark.workflow
def test_a_config_with_other_characters_runs_under_latin1(
    tmp_path: Path, latin1: dict[str, str]
) -> None:
    """Column names go from the config to the job's command line, through Snakemake."""
    folder = copy_project(tmp_path / "project")
    column, path = "“kérdés” 字", "szövegek.jsonl"
    rows = [
        {column: f"{word} prompt {n}", "jó": "é", "rossz": "ő"} for n in range(9) for word in WORDS
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / path).write_text(text, encoding="utf-8")
    settings = {
        "prompts_path": path, "prompts_column": column, "eval_prompts": 20,
        "sft_path": path, "sft_prompt": column, "sft_completion": "jó",
        "preferences_path": path, "preferences_prompt": column, "preferences_chosen": "jó",
        "preferences_rejected": "rossz", "vocab_size": 300, "max_text_tokens": 99,
    }  # fmt: skip
    changes = yaml.safe_dump(
        {
            "data": "prepare_data",
            "prepare_data": settings,
            "train_reward_model": {"held_out": 4},
            "policy": {"max_prompt_tokens": 64},
        },
        allow_unicode=True,
    )
    (folder / "changes.yaml").write_text(changes, encoding="utf-8")
    made = "results/prepare_data/provenance.json"
    command = ["snakemake", "--cores", "1", made, *SMOKE, "changes.yaml"]
    variables = latin1 | {"PYTHONPATH": str(folder / "workflow")}
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True)
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")[-3000:]
    text = (folder / "results/prepare_data/data/train_prompts.jsonl").read_text(encoding="utf-8")
    prompts = [json.loads(line)["prompt"] for line in text.splitlines()]
    assert prompts and set(prompts) <= {row[column] for row in rows}
