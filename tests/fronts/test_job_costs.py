"""What jobs took, from the files that Snakemake's `benchmark` writes."""

from pathlib import Path

import pytest

from warpflow.figures.summary import cost_cells
from warpflow.fronts.costs import costs_table

HEADER = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"


def write(results: Path, result: str, seconds: float, megabytes: str = "1024") -> None:
    path = results / "logs" / f"{result}.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{HEADER}{seconds}\t0:00:01\t{megabytes}\t1\t1\t1\t0\t0\t50\t{seconds / 2}\n")


def test_jobs_add_up_by_rule_and_those_from_the_cache_count_for_nothing(tmp_path: Path) -> None:
    write(tmp_path, "train_policy/warp/replicate1/iteration1/member0", 3600)
    write(tmp_path, "train_policy/warp/replicate1/iteration1/member1", 1800, "2048")
    write(tmp_path, "train_sft", 360, "-")
    write(tmp_path, "train_policy/warp/replicate1/iteration2/member0", 7)
    restored = tmp_path / "train_policy/warp/replicate1/iteration2/member0/provenance.json"
    restored.parent.mkdir(parents=True)
    restored.write_text('{"restored": "2026-11-30"}')
    table = costs_table(tmp_path).set_index("rule")
    assert list(table.index) == ["train_policy", "train_sft"]
    assert table.loc["train_policy"].tolist() == [2, 1, 1.5, 0.75, 2.0]
    assert table.loc["train_sft", "hours"] == pytest.approx(0.1)


def test_no_files_are_no_rows_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    assert costs_table(tmp_path).empty
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/odd.tsv").write_text("a\tb\n1\t2\n")
    with pytest.raises(ValueError, match=r"odd\.tsv: expected a benchmark file .*got a, b"):
        costs_table(tmp_path)


def test_where_all_came_from_the_cache_nothing_was_taken(tmp_path: Path) -> None:
    """In a clone that pulls no job has a number, but the table still has its columns."""
    write(tmp_path, "train_sft", 7)
    (tmp_path / "train_sft").mkdir()
    (tmp_path / "train_sft/provenance.json").write_text('{"restored": true}')
    (row,) = costs_table(tmp_path).to_dict("records")
    assert (row["jobs"], row["restored"], row["hours"], row["cpu_hours"]) == (0, 1, 0, 0)
    assert cost_cells(row) == ["train_sft", "0", "1", "0.000", "0.000", ""]
