"""Answers side by side: files of answers, graded scores, rates, intervals, judges that score."""

import json
import math
from pathlib import Path
from typing import Any

import answer_prompts
import grade_answers
import judge_answers
import numpy as np
import pandas as pd
import plot_side_by_side
import pytest
from conftest import MakeModel, MakeTokenizer
from project import ROOT
from test_rewards import classifier
from test_scripts import flags

from warpflow.experiments import make_plan
from warpflow.lm.models import save_checkpoint
from warpflow.side_by_side.answers import Answer, list_pairs, match_answers, read_answers
from warpflow.side_by_side.example_judges import overlap, structure
from warpflow.side_by_side.grades import (
    bootstrap_interval,
    combine_orders,
    compare_pair,
    grade_differences,
    is_contradicting,
    side_by_side_table,
    wilson_interval,
)
from warpflow.side_by_side.scores import function_scores, model_scores
from warpflow.side_by_side.settings import policy_result

THRESHOLDS = (0.1, 0.5, 1.0)
ALPACA = {
    name: ROOT.parent / "shared" / "data" / f"alpaca_eval.{name}.json.gz"
    for name in ("gemma-7b-it", "Mistral-7B-Instruct-v0.2", "Mixtral-8x7B-Instruct-v0.1")
}


def answers(*texts: str) -> list[Answer]:
    return [Answer(f"q{i}", text, True, {}) for i, text in enumerate(texts)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(rows))
    return path


def row(instruction: str, output: Any = "an answer") -> dict[str, Any]:
    return {"instruction": instruction, "output": output, "generator": "x", "dataset": "d"}


# ------------------------------------------------------------------------------------ files


def test_columns_of_a_file_reach_the_judges(tmp_path: Path) -> None:
    [answer] = read_answers(write(tmp_path / "a.json", [row("q")]))
    assert answer == Answer("q", "an answer", True, {"generator": "x", "dataset": "d"})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row("q"), row("p"), row("q")], "rows 1 and 3 answer the same instruction, 'q'"),
        ([row("q", None)], "row 1: output must be text, got None"),
        ([{"instruction": "q", "answer": "a"}], "row 1: no column 'output'"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_answers(write(tmp_path / "a.json", rows))


def test_sets_are_brought_into_the_first_ones_order() -> None:
    first, second = answers("a", "b", "c"), answers("d", "e", "f")
    matched = match_answers({"one": first, "two": second[::-1]})
    assert matched == {"one": first, "two": second}
    assert match_answers({"one": first, "two": second[:2]}, 2)["two"] == second[:2]


def test_prompts_that_do_not_match_are_counted_and_shown() -> None:
    first, second = answers("a", "b", "c"), answers("d", "e")
    other = [*second, Answer("else", "f", True, {})]
    with pytest.raises(ValueError, match=r"1 of 3 have no answer in two, first 'q2'; 1 are only"):
        match_answers({"one": first, "two": other})
    with pytest.raises(ValueError, match="1 are only in two, first 'else'"):
        match_answers({"one": second, "two": other})
    with pytest.raises(ValueError, match="one has 2 answers, but 3 prompts"):
        match_answers({"one": second, "two": other}, 3)


# ----------------------------------------------------------------------------------- grades


def test_differences_are_graded_in_units_of_the_scores() -> None:
    differences = np.array([0.0, 0.2, -0.21, 1.0, -1.01, 2.0, -2.01])
    grades = grade_differences(differences, 2.0, THRESHOLDS)
    assert grades.tolist() == [0, 0, -0.5, 0.5, -1, 1, -1.5]
    assert np.array_equal(grade_differences(-differences, 2.0, THRESHOLDS), -grades)
    assert np.array_equal(grade_differences(differences / 2, 1.0, THRESHOLDS), grades)
    assert not grade_differences(np.zeros(3), 0.0, THRESHOLDS).any()


def test_both_orders_cancel_a_liking_for_the_first_place() -> None:
    """The verdicts of a judge who always prefers what it reads first, seen from A."""
    first, swapped = [1.0, 1.0, None, 1.5], [-1.0, 0.5, 1.0, 1.5]
    grades = combine_orders(first, swapped)
    assert grades[[0, 1, 3]].tolist() == [0, 0.75, 1.5]
    assert math.isnan(grades[2]), "half a judgement is none"
    assert is_contradicting(first, swapped).tolist() == [True, False, False, False]


def test_pairs() -> None:
    assert list_pairs(["a", "b", "c"], "all") == [("a", "b"), ("a", "c"), ("b", "c")]
    assert list_pairs(["a", "b", "c"], "first") == [("a", "b"), ("a", "c")]


def test_rates_leave_out_failed_judgements() -> None:
    grades = np.array([1.0, 0.0, np.nan, -0.5, 1.5])
    lengths = np.array([1, 1, 100, 1, 1])
    found = compare_pair(grades, lengths, 2 * lengths, 0.95, 0)
    assert (found["n"], found["failed"]) == (4, 1)
    assert (found["win_rate"], found["tie_rate"], found["score"]) == (0.5, 0.25, 0.5)
    assert (found["length_a"], found["length_b"]) == (1, 2)
    assert compare_pair(np.full(2, np.nan), lengths[:2], lengths[:2], 0.95, 0) == {
        "n": 0,
        "failed": 2,
        "note": "no judgement",
    }


def test_too_few_prompts_give_no_interval_and_say_so() -> None:
    few, enough = (
        compare_pair(np.array([1.0, -1.0] * 9)[:n], np.ones(n), np.ones(n), 0.95, 0)
        for n in (9, 10)
    )
    assert not {"score_low", "win_rate_high"} & set(few)
    assert few["note"] == "no interval: 9 prompts, needs 10"
    assert enough["score_low"] < enough["score"] < enough["score_high"]
    assert "note" not in enough


def test_prompts_that_all_agree_give_a_rate_but_no_score_an_interval() -> None:
    """The bootstrap of equal values has no width: it would say that ten prompts settle it."""
    found = compare_pair(np.ones(10), np.ones(10), np.ones(10), 0.95, 0)
    assert found["note"] == "no interval of the score: all 10 are the same"
    assert found["win_rate"] == 1
    assert 0.5 < found["win_rate_low"] < 0.9


def test_intervals_hold_the_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    values, chances = np.array([-1, 0, 0.5, 1]), [0.1, 0.2, 0.3, 0.4]
    held = np.zeros(2)
    for seed in range(300):
        drawn = rng.choice(values, 60, p=chances)
        low, high = bootstrap_interval(drawn, 0.8, seed)
        held[0] += low <= np.dot(values, chances) <= high
        low, high = wilson_interval((drawn > 0).mean(), 60, 0.8)
        held[1] += low <= 0.7 <= high
    assert ((held / 300 > 0.72) & (held / 300 < 0.88)).all()


def test_the_table_has_a_row_for_each_pair_and_judge() -> None:
    sets = {"a": answers(*["xx"] * 12), "b": answers(*["x"] * 12), "c": answers(*["x"] * 12)}
    scored = {"scores": {"a": [2.0] * 12, "b": [0.0] * 12, "c": [0.0] * 12}}
    pairs = list_pairs(list(sets), "all")
    verdicts = [{"a": a, "b": b, "first": [1.0] * 12, "swapped": [-1.0] * 12} for a, b in pairs]
    table = side_by_side_table(
        {"scorer": scored, "chat": {"verdicts": verdicts}},
        sets,
        pairs=pairs,
        thresholds=THRESHOLDS,
        confidence=0.9,
        seed=0,
    )
    assert table[["a", "b", "judge"]].to_numpy().tolist() == [
        [a, b, judge] for judge in ("scorer", "chat") for a, b in pairs
    ]
    assert table.score.tolist() == [1.5, 1.5, 0, 0, 0, 0]
    assert table.tie_rate.tolist() == [0, 0, 1, 1, 1, 1]
    assert table.length_a.tolist() == [2, 2, 1] * 2
    assert table.contradicting.tolist()[3:] == [12] * 3
    assert table.unit[0] == pytest.approx(np.std([2, 0, 0]))


# --------------------------------------------------------------------------------- policies


def plan_of(**changes: Any) -> Any:
    config = {
        "iterations": 2,
        "members": 1,
        "rewards": {"reward_model": 1.0},
        "member_rewards": [],
        "train_policy": {"steps": 1, "anchor": "ema", "beta": 0, "mu": 0},
        "merge_policies": {"method": "slerp", "weight": None, "dtype": None},
        "interpolate_policy": {"etas": [0, 0.5], "towards": "sft", "next_eta": 0.3},
        "experiments": {},
    }
    return make_plan(config | changes)


def test_a_policy_has_a_short_name() -> None:
    plan = plan_of()
    point = "interpolate_policy/warp/replicate1/iteration2/sft/eta0.5"
    assert policy_result(plan, "warp/2/0.5") == policy_result(plan, "warp/2/.50") == point
    assert policy_result(plan, point) == point
    assert policy_result(plan, "train_sft") == "train_sft"
    with pytest.raises(ValueError, match=r"'warp/2/0.7'; expected one of warp/1/0, warp/1/0.5, w"):
        policy_result(plan, "warp/2/0.7")
    with pytest.raises(ValueError, match=r"'wrap/2/0.5': expected .*say warp/1/1"):
        policy_result(plan, "wrap/2/0.5")


# ---------------------------------------------------------------------------------- scorers


def test_functions_score_answers_as_they_do_rewards() -> None:
    def scorer(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        return [
            len(text) - int(prompt[1:]) for prompt, text in zip(prompts, completions, strict=True)
        ]

    assert function_scores(scorer, "mine:scorer", answers("a", "bb", "")) == [1, 1, -2]
    with pytest.raises(FloatingPointError, match="mine:nan returned nan for prompt 'q0'"):
        function_scores(lambda **_: [math.nan], "mine:nan", answers("a"))


def test_a_reward_model_scores_what_a_policy_sampled_as_the_run_does(
    make_tokenizer: MakeTokenizer,
) -> None:
    """It reads ids: those of prompt, answer, and EOS where the answer ended."""
    from test_rewards import batch

    from warpflow.evaluation.rewards import model_reward

    model, tokenizer = classifier(), make_tokenizer()
    model.config.reward_mean, model.config.reward_std = 0.5, 2.0
    given = [Answer(p, a, True, {}) for p, a in (("w0", "w3"), ("w1 w2", "w4 w5"), ("", ""))]

    def scores(rows: list[Answer]) -> list[float]:
        return model_scores(
            model, tokenizer, rows, reads_policy_ids=True, as_messages=False, batch_size=2
        )

    expected = model_reward(model, tokenizer, tokenizer, {})(batch())
    assert scores(given) == pytest.approx(expected.tolist(), abs=1e-5)
    unfinished = Answer("w0", "w3", False, {})
    assert scores([unfinished]) != pytest.approx(scores(given[:1]), abs=1e-3)


# ---------------------------------------------------------------------------------- scripts


@pytest.fixture
def policy(make_model: MakeModel, make_tokenizer: MakeTokenizer, tmp_path: Path) -> Path:
    save_checkpoint(make_model("llama"), make_tokenizer(), tmp_path / "policy")
    return tmp_path / "policy"


def answer(policy: Path, out: Path, **changes: Any) -> list[Answer]:
    settings = {"max_prompt_tokens": 8, "max_new_tokens": 6, "temperature": 1.0, "batch_size": 2}
    answer_prompts.main(flags(policy=policy, out=out, name="me", seed=0, **settings, **changes))
    return read_answers(out)


def test_policies_answer_the_instructions_of_a_stored_file(policy: Path, tmp_path: Path) -> None:
    stored = write(tmp_path / "stored.json", [row(f"w{i} w{i + 1}") for i in range(5)])
    found = answer(policy, tmp_path / "a.json", instructions=stored, prompts=3)
    assert [a.prompt for a in found] == [f"w{i} w{i + 1}" for i in range(3)]
    assert found[0].columns == {"generator": "x", "dataset": "d"}
    assert json.loads((tmp_path / "a.json").read_text())[0]["generator"] == "me"
    assert answer(policy, tmp_path / "b.json", instructions=stored, prompts=3) == found
    with pytest.raises(ValueError, match="has 5 prompts, expected 9"):
        answer(policy, tmp_path / "c.json", instructions=stored, prompts=9)


def test_a_chat_policy_gets_instructions_through_its_template(tmp_path: Path) -> None:
    from test_prompts import write_policy

    policy = write_policy(tmp_path / "policy", "chatml")
    stored = write(tmp_path / "stored.json", [row("How was film 1?")])
    with pytest.raises(ValueError, match=r"a prompt of .* tokens, expected at most 8") as error:
        answer(policy, tmp_path / "a.json", instructions=stored)
    assert "'role': 'user'" in str(error.value)


def test_scripts_from_answers_to_matrices(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_judges.py").write_text(
        "def length(completions, **_): return [len(text) for text in completions]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    stored = write(tmp_path / "stored.json", [row(f"w{i} w{i + 1}", "w1 " * 30) for i in range(12)])
    answer(policy, tmp_path / "a.json", instructions=stored)
    contestants = ["--names", "policy", "stored", "--answers", "a.json", str(stored)]
    given = json.dumps({"function": "my_judges:length"})
    judge_answers.main([*contestants, *flags(judge=given, out="j.json")])
    more = flags(judges="length", judgements="j.json", out="tables", seed=0, confidence=0.9)
    grade_answers.main([*contestants, *more, "--thresholds", "0.1", "0.5", "1"])
    table = pd.read_csv("tables/side_by_side.csv")
    assert (table.win_rate[0], table.score[0], table.n[0]) == (0, -1.5, 12)
    assert table.length_b[0] == 90
    plot_side_by_side.main(["--tables", "tables", "--out", "figures"])
    svg = (tmp_path / "figures/side_by_side.svg").read_text()
    assert "judge: length" in svg and "<svg" in svg


@pytest.mark.skipif(
    not all(path.is_file() for path in ALPACA.values()), reason="AlpacaEval's answers are not here"
)
def test_the_papers_competitors(tmp_path: Path) -> None:
    """Answers as they are stored, matched without change; judged by a function of the texts."""
    names = ["--names", *ALPACA, "--answers", *map(str, ALPACA.values())]
    given = json.dumps({"function": f"{__name__}:distinct_words"})
    judge_answers.main([*names, *flags(judge=given, out=tmp_path / "j.json", prompts=200)])
    scores = json.loads((tmp_path / "j.json").read_text())["scores"]
    assert {name: len(values) for name, values in scores.items()} == dict.fromkeys(ALPACA, 200)
    sets = match_answers({name: read_answers(path) for name, path in ALPACA.items()})
    assert {len(rows) for rows in sets.values()} == {805}
    prompts = [[a.prompt for a in rows] for rows in sets.values()]
    assert prompts[0] == prompts[1] == prompts[2]


def distinct_words(completions: list[str], **_: Any) -> list[float]:
    return [len(set(text.split())) for text in completions]


def test_the_example_judges_count_what_they_say() -> None:
    prompts = ["Name two colours", "Name two colours"]
    answers = ["\n- red\n- **blue**", "Two colours: red, blue"]
    assert structure(completions=answers, prompts=prompts, finished=[True] * 2) == [3.0, 0.0]
    assert overlap(prompts=prompts, completions=answers) == [0.0, pytest.approx(1 / 3)]
    assert structure(completions=["\n- x" * 50]) == [10.0]
