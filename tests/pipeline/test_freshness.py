"""A rule's parameter `inputs` changes where the content of an input did, and only there."""

import base64
import hashlib
import itertools
import json
import os
from pathlib import Path

import pytest

from warpflow.pipeline.freshness import FORMAT, METADATA, Records, results_without_records


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def checksum(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def record(output: str, checksums: dict[str, str] | None, *params: str, **fields: object) -> Path:
    """Write a record as Snakemake does."""
    path = METADATA / base64.urlsafe_b64encode(output.encode()).decode()
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"rule": "r", "input_checksums": checksums, "params": [repr(p) for p in params]}
    path.write_text(json.dumps(document | fields))
    return path


def test_unchanged_contents_give_the_recorded_parameter(folder: Path) -> None:
    Path("a.txt").write_text("one")
    record("out", {"a.txt": checksum("one")}, "--beta 0.1", "inputs: a.txt 123 → 456")
    assert Records().inputs_of("out") == "inputs: a.txt 123 → 456"


def test_a_changed_content_gives_another_that_names_it(folder: Path) -> None:
    Path("same.txt").write_text("one")
    Path("edited.txt").write_text("two, edited")
    contents = {"same.txt": checksum("one"), "edited.txt": checksum("two")}
    record("out", contents, "inputs: made first")
    found = Records().inputs_of("out")
    assert found != "inputs: made first"
    assert "edited.txt" in found
    assert "same.txt" not in found


def test_back_and_forth_are_changes_each(folder: Path) -> None:
    """The record after a run has the parameter of before the run and the contents of after it."""
    seen = ["inputs: made first"]
    for before, after in (("one", "two"), ("two", "one"), ("one", "two")):
        record("out", {"a.txt": checksum(before)}, seen[-1])
        Path("a.txt").write_text(after)
        seen.append(Records().inputs_of("out"))
        record("out", {"a.txt": checksum(after)}, seen[-1])
        assert Records().inputs_of("out") == seen[-1]
    assert all(a != b for a, b in itertools.pairwise(seen))


def test_no_file_is_touched_and_times_mean_nothing(folder: Path) -> None:
    for name, text in (("old.txt", "new content"), ("young.txt", "same")):
        Path(name).write_text(text)
    os.utime("old.txt", (1_000_000_000, 1_000_000_000))
    record("one", {"old.txt": checksum("content")}, "inputs: made first")
    record("two", {"young.txt": checksum("same")}, "inputs: made first")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    records = Records()
    assert "old.txt" in records.inputs_of("one")
    assert records.inputs_of("two") == "inputs: made first"
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_long_names_lie_in_folders_as_snakemake_has_them(folder: Path) -> None:
    output = "results/" + "x" * 400
    name = base64.urlsafe_b64encode(output.encode()).decode()
    path = METADATA / f"@{name[:254]}" / f"@{name[254:508]}" / name[508:]
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"input_checksums": {}, "params": ["'inputs: 7'"]}))
    assert Records().inputs_of(output) == "inputs: 7"


@pytest.mark.parametrize("broken", [b"", b'{"input_checksums": {"a": "sha', b"\xff\xfe\x00"])
def test_broken_records_are_no_records(folder: Path, broken: bytes) -> None:
    """Snakemake was killed as it wrote them."""
    record("out", {}).write_bytes(broken)
    assert Records().inputs_of("out") == "inputs: made first"
    assert Records().problem is None


def test_missing_inputs_and_records_without_checksums_are_left_to_snakemake(folder: Path) -> None:
    record("one", {"gone.txt": checksum("old")}, "inputs: 1")
    record("two", None, "inputs: 2")
    assert [Records().inputs_of(name) for name in ("one", "two")] == ["inputs: 1", "inputs: 2"]


def test_records_of_a_newer_snakemake_are_said_and_not_guessed(folder: Path) -> None:
    record("out", {}, record_format_version=FORMAT)
    assert Records().problem is None
    record("out", {}, record_format_version=FORMAT + 1)
    assert "a newer Snakemake wrote it" in str(Records().problem)


def test_results_without_records_are_explained(folder: Path) -> None:
    made = Path("results/train_sft/provenance.json")
    assert results_without_records("results", Records()) is None
    made.parent.mkdir(parents=True)
    made.write_text("{}")
    message = str(results_without_records("results", Records()))
    assert all(part in message for part in (str(made), "git checkout", "--persistence-backend"))
    record(str(made), {})
    assert results_without_records("results", Records()) is None
