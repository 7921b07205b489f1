"""Tables of a run."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import write_results

from warpflow.fronts.tables import KEYS, mean_of_replicates


def make_evaluations(rewards: list[float], error: float) -> pd.DataFrame:
    rows = [
        {"experiment": name, "replicate": r, "stage": "interpolate_policy", "iteration": 1}
        | {"towards": "sft", "eta": eta, "members": 2, "policy": f"{name}/{r}/{eta}"}
        | {"reward": reward + eta + (name == "lerp"), "reward_se": error, "gold": np.nan}
        for name in ("warp", "lerp")
        for eta in (0.5, 1.0)
        for r, reward in enumerate(rewards, start=1)
    ]
    return pd.DataFrame(rows).reindex(columns=[*KEYS, "reward", "reward_se", "gold"])


def test_replicates_become_one_row_each_with_their_mean() -> None:
    table = mean_of_replicates(make_evaluations([1.0, 2.0, 6.0], 0.1))
    assert table["experiment"].tolist() == ["warp", "warp", "lerp", "lerp"]
    assert table["reward"].tolist() == pytest.approx([3.5, 4.0, 4.5, 5.0])
    assert table["policy"].tolist()[0] == "warp/1/0.5"
    assert table["gold"].isna().all()


def test_their_error_holds_the_prompts_and_the_spread_of_replicates() -> None:
    table = mean_of_replicates(make_evaluations([1.0, 2.0, 6.0], 0.3))
    expected = (0.3**2 + np.var([1, 2, 6], ddof=1) / 3) ** 0.5
    assert table["reward_se"].tolist() == pytest.approx([expected] * 4)


def test_a_single_replicate_stays_as_it_is() -> None:
    table = make_evaluations([1.0], 0.3)
    pd.testing.assert_frame_equal(mean_of_replicates(table), table)


PAGE = """# Results
Prose stays.
<!-- run/t.csv: claim, estimate; estimate > 0 -->
old
<!-- end -->
More prose.
"""


def test_results_page_renews_its_tables_and_keeps_its_prose(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    rows = {"claim": ["a|b", "c", "d\ne"], "estimate": [0.12345, -1.0, 2.0], "other": [1, 2, 3]}
    pd.DataFrame(rows).to_csv(tmp_path / "run/t.csv", index=False)
    page = tmp_path / "results.md"
    page.write_text(PAGE)
    for _ in range(2):  # once more changes nothing
        write_results.main([str(page), "--root", str(tmp_path)])
        assert page.read_text() == PAGE.replace(
            "old\n", "| claim | estimate |\n| --- | --- |\n| a\\|b | 0.123 |\n| d<br>e | 2 |\n"
        )


def test_results_page_names_what_is_missing(tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    page.write_text(PAGE)
    with pytest.raises(FileNotFoundError, match=r"run/t\.csv"):
        write_results.main([str(page), "--root", str(tmp_path)])
    (tmp_path / "run").mkdir()
    pd.DataFrame({"claim": ["a"]}).to_csv(tmp_path / "run/t.csv", index=False)
    page.write_text(PAGE.replace("; estimate > 0", ""))
    with pytest.raises(ValueError, match="no column estimate; it has claim"):
        write_results.main([str(page), "--root", str(tmp_path)])
    assert "old" in page.read_text()
