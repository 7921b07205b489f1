"""Rows of Parquet files and of datasets of the hub."""

from __future__ import annotations

import datetime
import io
import json
import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from stub_hub import COMMIT, stub_hub

from warpflow.data.hub import HubDataset, hub_problem, parse_hub
from warpflow.data.sources import FORMATS, iterate_rows, read_rows
from warpflow.pipeline.jobs import make_record
from warpflow.pipeline.model_contents import model_content

pyarrow = pytest.importorskip("pyarrow")
from pyarrow import parquet  # noqa: E402

ROOT = Path(__file__).parents[2]
CARD = b"""---
configs:
- config_name: default
  data_files:
  - {split: train, path: data/train-*}
  - {split: test, path: data/test-*}
---
# Questions
"""
READ = """
import json, sys
from warpflow.data.sources import read_rows
from warpflow.pipeline.model_contents import model_content
before = model_content(sys.argv[1])
rows = read_rows(sys.argv[1])
print(json.dumps([before, rows, model_content(sys.argv[1])]))
"""


def table(rows: list[dict[str, Any]]) -> bytes:
    """A Parquet file's content."""
    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


FILES = {
    "README.md": CARD,
    "data/train-00000.parquet": table([{"prompt": f"p{n}", "n": n} for n in range(5)]),
    "data/test-00000.parquet": table([{"prompt": "é", "n": 9}]),
}


def write_cache(hub: Path, name: str = "org/name") -> None:
    """A dataset in the cache of Hugging Face as a download leaves it."""
    repository = hub / f"datasets--{name.replace('/', '--')}"
    for file, content in FILES.items():
        path = repository / "snapshots" / COMMIT / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(COMMIT)
    entry = {"blob_id": "0" * 40, "lfs_sha256": None, "lfs_size": None, "xet_hash": None}
    (repository / "trees").mkdir()
    listed = {file: entry | {"size": len(content)} for file, content in FILES.items()}
    (repository / "trees" / f"{COMMIT}.json").write_text(json.dumps(listed))


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of Hugging Face with org/name in it, and no network."""
    datasets = pytest.importorskip("datasets")
    write_cache(tmp_path / "hub")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    return tmp_path


# -------------------------------------------------------------------------------------- Parquet


def test_parquet_reads_as_json_would(tmp_path: Path) -> None:
    row = {
        "prompt": [{"role": "user", "content": "hi"}],
        "answer": None,
        "share": 0.5,
        "day": datetime.date(2026, 1, 2),
        "price": Decimal("1.10"),
        "image": {"bytes": b"\x00", "path": None},
    }
    other = {**row, "prompt": [{"role": "user", "content": "ho", "name": "Ada"}]}
    path = tmp_path / "rows.parquet"
    path.write_bytes(table([row, other]))
    first, second = read_rows(str(path))
    plain = {"answer": None, "share": 0.5, "day": "2026-01-02", "price": "1.10"}
    # Arrow has a name in each message; the first has none that was said
    assert first == {"prompt": row["prompt"], **plain}
    assert second == {"prompt": other["prompt"], **plain}
    assert json.loads(json.dumps(first)) == first


def test_other_files_are_read_as_ever(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a\n1\n")
    assert read_rows(str(tmp_path / "a.csv")) == [{"a": "1"}]
    assert ".parquet" in FORMATS
    with pytest.raises(ValueError, match=r"a\.txt: unknown extension; expected .*\.parquet"):
        iterate_rows(str(tmp_path / "a.txt"))


def test_parquet_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.parquet"
    with pytest.raises(FileNotFoundError, match=r"cut\.parquet: no such file"):
        read_rows(str(path))
    path.write_bytes(table([{"a": 1}])[:-4])
    with pytest.raises(ValueError, match=r"cut\.parquet: not a whole Parquet file"):
        read_rows(str(path))
    path.write_bytes(table([{"a": 1}][:0]))
    with pytest.raises(ValueError, match=r"cut\.parquet: the dataset is empty"):
        read_rows(str(path))


# -------------------------------------------------------------------------------------- the hub


def test_what_a_path_of_the_hub_names() -> None:
    assert parse_hub("hub:org/name") == HubDataset("org/name", None, "main", "train")
    assert parse_hub("hub:imdb?split=test&revision=v1&config=plain") == HubDataset(
        "imdb", "plain", "v1", "test"
    )


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("hub:", "got '' for the name of a dataset"),
        ("hub:a/b/c", "got 'a/b/c' for the name"),
        ("hub:a/b?split", "'split' is no list of key=value"),
        ("hub:a/b?splt=train", "got splt=train; expected each of config, revision, split once"),
        ("hub:a/b?split=", "got split=; expected"),
        ("hub:a/b?split=a&split=b", "got split=a; expected each"),
    ],
)
def test_other_paths_of_the_hub_are_refused(path: str, said: str) -> None:
    assert said in str(hub_problem(path))


def test_a_dataset_is_read_from_a_mirror_and_then_without_it(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    paths = {**os.environ, "PYTHONPATH": str(ROOT / "workflow"), "HF_HOME": str(tmp_path / "hf")}
    environment = {**paths, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}

    def read(path: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-c", READ, path], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    with stub_hub("org/name", FILES) as (address, asked):
        environment["HF_ENDPOINT"] = address
        first = read("hub:org/name?split=test")
        assert first == [None, [{"prompt": "é", "n": 9}], COMMIT]
    assert "/api/datasets/org/name/revision/main" in asked
    before, rows, _ = read("hub:org/name?split=train[1:3]")  # nobody answers now
    assert (before, [row["n"] for row in rows]) == (COMMIT, [1, 2])
    environment["HF_HUB_OFFLINE"] = "1"
    assert read(f"hub:org/name?revision={COMMIT}")[1][4] == {"prompt": "p4", "n": 4}


def test_a_dataset_of_the_cache_is_read_offline(cached: Path) -> None:
    assert [row["n"] for row in read_rows("hub:org/name")] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("hub:org/name?split=tset", r"split=tset: Unknown split .*\['train', 'test'\]"),
        ("hub:org/name?config=german", r"config=german: .*'german' not found.*\['default'\]"),
    ],
)
def test_splits_and_configs_that_are_not_there_are_listed(
    cached: Path, path: str, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        read_rows(path)


def test_a_dataset_that_cannot_be_had_says_what_to_do(cached: Path) -> None:
    with pytest.raises(OSError, match=r"hub:org/other: the dataset is neither.*copy HF_HOME"):
        read_rows("hub:org/other")


def test_the_commit_is_in_key_and_provenance(cached: Path) -> None:
    path, made = "hub:org/name?split=test", [Path("data")]

    def record() -> dict[str, Any]:
        return make_record(made, [], ["--prompts_path", path], code={}, models=[path])

    first = record()
    assert first["models"] == {path: COMMIT}
    reference = cached / "hub/datasets--org--name/refs/main"
    reference.write_text("1" * 40)
    assert model_content(path) == "1" * 40
    assert record()["key"] != first["key"]
    reference.unlink()
    assert model_content(path) is None
    assert model_content(f"hub:org/name?revision={COMMIT}") == COMMIT


def test_a_missing_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"hub:a/b: .*pip install datasets"):
        next(iterate_rows("hub:a/b"))
