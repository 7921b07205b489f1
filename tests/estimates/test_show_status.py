"""`make status` says what is made, what is left, and the fronts so far."""

import json
from pathlib import Path

import pytest
import show_status
import yaml

ROOT = Path(__file__).parents[2]
FRONT = "interpolate_policy/warp/replicate1/iteration1/sft"


@pytest.fixture
def overlay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(ROOT)
    default = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    changes = {"results": str(tmp_path / "results"), "iterations": 1, "members": 2}
    changes |= {"experiments": dict.fromkeys(default["experiments"])}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(changes))
    return ["--configfile", str(tmp_path / "mine.yaml")]


def make(results: Path, result: str, seconds: float) -> None:
    (results / result).mkdir(parents=True)
    (results / result / "provenance.json").write_text("{}")
    log = results / "logs" / f"{result}.tsv"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(f"s\tmax_rss\tcpu_time\n{seconds}\t100\t1\n")


def test_jobs_hours_and_fronts(tmp_path, overlay, capsys) -> None:
    show_status.main(overlay)
    before = capsys.readouterr().out
    assert "[..............................] 0 of" in before
    assert "No point of a front is evaluated yet." in before
    results = tmp_path / "results"
    make(results, "train_policy/warp/replicate1/iteration1/member0", 7200)
    for eta, reward in ((0.5, 1.25), (1, 2.5)):
        file = results / "evaluate_policy" / FRONT / f"eta{eta}" / "evaluation.json"
        file.parent.mkdir(parents=True)
        metrics = {"reward": reward, "gold": None, "kl_exact": 3.0, "length": 9.0}
        file.write_text(json.dumps({"metrics": metrics, "completions": []}))
    show_status.main(overlay)
    text = capsys.readouterr().out
    assert "1 of" in text and "about 2.00 h to go" in text  # the other member, by the first
    assert " ".join(["train_policy", "1", "of", "2"]) in " ".join(text.split())
    rows = [line.split() for line in text.splitlines() if line.strip().startswith("warp")]
    assert rows == [
        ["warp", "1", "1", "0.5", "1.25", "3", "9"],
        ["warp", "1", "1", "1", "2.5", "3", "9"],
    ]
    assert "gold" not in text


def test_an_unknown_group_lists_those_that_there_are(overlay, capsys) -> None:
    with pytest.raises(SystemExit):
        show_status.main([*overlay, "--group", "mine"])
    assert "--group mine: expected one of main, " in capsys.readouterr().err
