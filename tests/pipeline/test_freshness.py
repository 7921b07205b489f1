"""Inputs whose content changed since Snakemake recorded it are made newer, and only they."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from warpflow.pipeline.freshness import recorded_checksums, touch_changed_inputs

LONG_AGO = 1_000_000_000


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def old_file(name: str, text: str) -> str:
    Path(name).write_text(text)
    os.utime(name, (LONG_AGO, LONG_AGO))
    return name


def checksum(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def record(metadata: Path, output: str, checksums: dict[str, str] | None) -> None:
    metadata.mkdir(parents=True, exist_ok=True)
    (metadata / output).write_text(json.dumps({"rule": "r", "input_checksums": checksums}))


def was_touched(name: str) -> bool:
    return Path(name).stat().st_mtime > LONG_AGO + 1


def test_changed_content_is_touched_and_unchanged_left_alone(folder: Path) -> None:
    same, edited = old_file("same.txt", "one"), old_file("edited.txt", "two, edited")
    record(folder / "m", "out1", {same: checksum("one"), edited: checksum("two")})
    assert touch_changed_inputs(folder / "m") == [edited]
    assert was_touched(edited)
    assert not was_touched(same)


def test_times_alone_touch_nothing(folder: Path) -> None:
    """A pull or a checkout sets any times."""
    name = old_file("a", "text")
    os.utime(name)
    before = Path(name).stat().st_mtime_ns
    record(folder / "m", "out", {name: checksum("text")})
    assert touch_changed_inputs(folder / "m") == []
    assert Path(name).stat().st_mtime_ns == before


def test_one_outdated_record_of_several_is_enough(folder: Path) -> None:
    name = old_file("shared.txt", "new")
    record(folder / "m", "out1", {name: checksum("new")})
    record(folder / "m", "out2", {name: checksum("old")})
    assert touch_changed_inputs(folder / "m") == [name]


def test_records_in_subfolders_count(folder: Path) -> None:
    name = old_file("a", "new")
    record(folder / "m" / "deep", "out", {name: checksum("old")})
    assert touch_changed_inputs(folder / "m") == [name]


@pytest.mark.parametrize("broken", [b"", b'{"input_checksums": {"a": "sha', b"\xff\xfe\x00"])
def test_broken_records_are_ignored(folder: Path, broken: bytes) -> None:
    """Snakemake was killed as it wrote them."""
    name = old_file("a", "new")
    record(folder / "m", "whole", {name: checksum("old")})
    (folder / "m" / "broken").write_bytes(broken)
    assert touch_changed_inputs(folder / "m") == [name]


def test_missing_inputs_and_records_without_checksums_are_left_to_snakemake(folder: Path) -> None:
    record(folder / "m", "out1", {"gone.txt": checksum("old")})
    record(folder / "m", "out2", None)
    (folder / "m" / "out3").write_text("{}")
    assert touch_changed_inputs(folder / "m") == []
    assert not Path("gone.txt").exists()


def test_a_first_run_has_no_records(folder: Path) -> None:
    assert touch_changed_inputs(folder / "nowhere") == []
    assert recorded_checksums(folder / "nowhere") == []
