"""Benchmarks: which policies, what lm-eval says of a small task, the table and its figure."""

import json
from pathlib import Path
from typing import Any

import benchmark_policy
import collect_benchmarks
import pandas as pd
import plot_benchmarks
import pytest
from conftest import BOS, MakeModel, MakeTokenizer
from test_grades import plan_of
from test_scripts import flags

from warpflow.evaluation.benchmark_points import benchmark_points, check_benchmarks
from warpflow.evaluation.lm_eval import require_tasks, result_rows
from warpflow.lm.models import save_checkpoint

SECTION: dict[str, Any] = {
    "tasks": ["tiny"],
    "task_folder": None,
    "experiments": ["warp"],
    "iterations": None,
    "etas": [0, 0.5],
}
RESULTS = {
    "results": {
        "tiny": {
            "alias": "tiny",
            "acc,none": 0.75,
            "acc_stderr,none": 0.1,
            "exact_match,strict-match": 0.5,
            "exact_match_stderr,strict-match": "N/A",
        }
    },
    "n-samples": {"tiny": {"original": 8, "effective": 4}},
}


def test_points_are_of_the_last_iteration_or_of_those_asked_for() -> None:
    plan = plan_of()
    rows = benchmark_points(plan, SECTION)
    assert [(row["iteration"], row["eta"]) for row in rows] == [(2, 0), (2, 0.5)]
    assert rows[1]["policy"] == plan.points["warp", 1, 2, "sft", "0.5"]
    both = benchmark_points(plan, SECTION | {"iterations": [1, 2]})
    assert [row["iteration"] for row in both] == [1, 1, 2, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"etas": [0.7]}, r"no point η = 0\.7 in iteration 2; .*η \[0, 0\.5\]"),
        ({"iterations": [3]}, "in iteration 3; it has iterations 1 to 2"),
        ({"experiments": ["wrap"]}, "got wrap, expected some of warp"),
    ],
)
def test_points_that_the_run_has_not_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        benchmark_points(plan_of(), SECTION | change)


def test_nothing_is_needed_where_no_task_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing lm-eval and a wrong η matter only to those who benchmark."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert list(check_benchmarks(plan_of(), SECTION | {"tasks": [], "etas": [9]})) == []
    problems = list(check_benchmarks(plan_of(), SECTION | {"task_folder": "no/such", "etas": [9]}))
    assert [p.split(":")[0] for p in problems] == [
        "- benchmark_policy.tasks",
        "- benchmark_policy.task_folder",
        "- benchmark_policy",
    ]
    assert "pip install" in problems[0]


def test_a_misspelt_task_is_an_error() -> None:
    with pytest.raises(ValueError, match="no task 'gsmk'; did you mean gsm8k"):
        require_tasks(["gsmk"], ["gsm8k", "mmlu"])


def test_every_metric_of_a_task_is_a_row() -> None:
    assert result_rows(RESULTS) == [
        {"task": "tiny", "metric": "acc", "filter": "none", "value": 0.75, "value_se": 0.1, "n": 4},
        {
            "task": "tiny",
            "metric": "exact_match",
            "filter": "strict-match",
            "value": 0.5,
            "value_se": None,
            "n": 4,
        },
    ]


def test_the_table_has_each_point_with_its_kl_and_the_figure_a_panel_each(tmp_path: Path) -> None:
    points = benchmark_points(plan_of(), SECTION)
    for kl, point in enumerate(points):
        for stage, name, document in (
            ("benchmark_policy", "benchmarks", {"rows": result_rows(RESULTS)}),
            (
                "evaluate_policy",
                "evaluation",
                {"metrics": {"kl_exact": kl, "kl_exact_se": 0.1, "reward": 1, "reward_se": 0.1}},
            ),
        ):
            file = tmp_path / stage / point["policy"] / f"{name}.json"
            file.parent.mkdir(parents=True)
            file.write_text(json.dumps(document))
    out = tmp_path / "tables" / "benchmarks.csv"
    collect_benchmarks.main(flags(results=tmp_path, points=json.dumps(points), out=out))
    table = pd.read_csv(out)
    assert table.kl_exact.tolist() == [0, 0, 1, 1]
    assert table.eta.tolist() == [0, 0, 0.5, 0.5]
    assert table.value.tolist() == [0.75, 0.5] * 2
    arguments = ["--tables", str(tmp_path / "tables"), "--out", str(tmp_path / "figures")]
    plot_benchmarks.main(arguments)
    svg = (tmp_path / "figures/benchmarks.svg").read_text()
    assert "exact_match (strict-match)" in svg and "tiny" in svg


def test_texts_begin_with_bos_as_the_policies_read_them(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()
    assert tokenizer("w0")["input_ids"][0] != BOS
    ids = benchmark_policy.begin_with_bos(tokenizer)("w0 w1")["input_ids"]
    assert ids == [BOS, *make_tokenizer()("w0 w1", add_special_tokens=False)["input_ids"]]


# ------------------------------------------------------------------------- with lm-eval itself

TASK = """
task: tiny
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: label
doc_to_choice: ["w1", "w2"]
metric_list: [{metric: acc}]
"""


@pytest.fixture
def task_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One task in lm-eval's own format, on a local file; nothing is downloaded."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [{"question": f"w{n} w{n % 3}", "label": n % 2} for n in range(12)]
    file = tmp_path / "tiny.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "tiny.yaml").write_text(TASK.replace("FILE", str(file)))
    return folder


def test_a_task_in_lm_evals_format(
    task_folder: Path, tmp_path: Path, make_model: MakeModel, make_tokenizer: MakeTokenizer
) -> None:
    """Accuracy is that of the choice which the policy itself finds more likely."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    import torch

    model, tokenizer = make_model("llama"), make_tokenizer()
    save_checkpoint(model, tokenizer, tmp_path / "policy")
    given = {"policy": tmp_path / "policy", "out": tmp_path / "b.json", "batch_size": 4}
    benchmark_policy.main(flags(**given, tasks="tiny", task_folder=task_folder))
    [row] = json.loads((tmp_path / "b.json").read_text())["rows"]
    choices = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ("w1", "w2")]
    right = 0
    for line in (tmp_path / "tiny.jsonl").read_text().splitlines():
        doc = json.loads(line)
        ids = [BOS, *tokenizer(doc["question"], add_special_tokens=False)["input_ids"]]
        logits = model(torch.tensor([ids])).logits[0, -1, choices]
        right += int(logits.argmax()) == doc["label"]
    assert (row["task"], row["metric"], row["n"]) == ("tiny", "acc", 12)
    assert row["value"] == pytest.approx(right / 12)
    assert row["value_se"] > 0
