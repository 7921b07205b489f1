"""The synthetic language: what the generator promises and what the gold score punishes."""

import importlib.util
import random
import statistics
import sys
from pathlib import Path
from types import ModuleType

import pytest
from transformers import AutoTokenizer

from warpflow.data import toy_reviews as language
from warpflow.data.files import read_rows
from warpflow.data.tokenizers import SPECIAL_TOKENS

ROOT = Path(__file__).parents[2]
PROMPT = "review of the hotel :"
GOOD = "the room was lovely . i enjoyed the pool . we would return ."


def gold(completion: str, prompt: str = PROMPT, finished: bool = True) -> float:
    return language.gold_score([prompt], [completion], [finished])[0]


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reviews() -> list[dict[str, str]]:
    return language.sample_sft(random.Random(0), 1500)


def test_same_seed_gives_same_text() -> None:
    first, again, other = (language.sample_sft(random.Random(seed), 20) for seed in (3, 3, 4))
    assert first == again != other


def test_every_review_is_grammatical_on_topic_and_without_repeats(
    reviews: list[dict[str, str]],
) -> None:
    for row in reviews:
        topic, opening = language.parse_prompt(row["prompt"])
        assert opening == []
        assert row["completion"].endswith(" .")
        sentences = [s.split() for s in row["completion"].removesuffix(" .").split(" . ")]
        assert 2 <= len(sentences) <= 4
        assert all(language.is_grammatical(s) for s in sentences)
        assert len({" ".join(s) for s in sentences}) == len(sentences)
        foreign = set(language.NOUNS) - {topic, *sum(language.TOPICS[topic], ())}
        assert not foreign.intersection(row["completion"].split())


def test_reviews_are_balanced_varied_and_short(reviews: list[dict[str, str]]) -> None:
    scores = language.gold_score(
        [r["prompt"] for r in reviews], [r["completion"] for r in reviews], [True] * len(reviews)
    )
    lengths = [len(r["completion"].split()) for r in reviews]
    assert abs(statistics.mean(scores)) < 0.15
    assert 0.9 < statistics.stdev(scores) < 1.6
    assert min(lengths) >= 8 and max(lengths) <= 44
    assert 80 <= len(language.WORDS) <= 110
    assert len({r["completion"] for r in reviews}) > 0.99 * len(reviews)


def test_every_word_and_pattern_is_used() -> None:
    rng = random.Random(0)
    seen = {w for row in language.sample_sft(rng, 6000) for v in row.values() for w in v.split()}
    assert seen == set(language.WORDS)


@pytest.mark.parametrize("opening", ["", "the", "i loved", "the room was", "it was an", "we"])
def test_completions_go_on_from_the_opening(opening: str) -> None:
    rng = random.Random(1)
    for _ in range(30):
        words = [*opening.split(), *language.complete_review(rng, "hotel", opening.split())]
        assert words[-1] == "."
        first = words[: words.index(".")]
        assert language.is_grammatical(first)


def test_prompts_can_be_completed() -> None:
    rng = random.Random(2)
    for _ in range(200):
        prompt = language.sample_prompt(rng)
        topic, opening = language.parse_prompt(prompt)
        assert language.format_prompt(topic, opening) == prompt
        assert 1 <= len(opening) <= 6
        assert language.complete_review(rng, topic, opening)


def test_impossible_opening_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"no sentence .* 'the very'"):
        language.complete_review(random.Random(0), "hotel", ["the", "very"])


def test_gold_follows_sentiment_and_degree() -> None:
    scores = [
        gold(f"the room was {a} . i admired the pool .")
        for a in ("awful", "bad", "plain", "slightly good", "good", "very good", "superb")
    ]
    assert scores == sorted(scores)
    assert len(set(scores)) == len(scores)
    assert gold("the room was not awful . i liked the bed .") < gold(
        "the room was good . i liked the bed ."
    )


def test_gold_scores_opening_and_completion_as_one_review() -> None:
    whole = gold(GOOD)
    words = GOOD.split()
    for cut in range(1, 5):
        prompt = language.format_prompt("hotel", words[:cut])
        assert gold(" ".join(words[cut:]), prompt) == whole


@pytest.mark.parametrize(
    "worse",
    [
        "the room was lovely . the room was lovely . we would return .",  # repeated sentence
        "the room was lovely . i enjoyed the room . we would return .",  # repeated aspect
        "the plot was lovely . i enjoyed the pool . we would return .",  # another topic
        "the room lovely was . i enjoyed the pool . we would return .",  # word order
        "the room were lovely . i enjoyed the pool . we would return .",  # agreement
        "the room was very very lovely . i enjoyed the pool . we would return .",
        "the room was lovely and awful . i enjoyed the pool . we would return .",  # and for but
        "the room was lovely . i enjoyed the pool . we would",  # fragment
        "we would return .",  # too short
        "",
        "banana . i enjoyed the pool . we would return .",  # unknown word
    ],
)
def test_gold_penalises(worse: str) -> None:
    assert gold(worse) < gold(GOOD) - 0.1


def test_gold_penalises_unfinished_text() -> None:
    assert gold(GOOD, finished=False) <= gold(GOOD) - 0.5


def test_gold_is_not_fooled_by_more_of_the_same() -> None:
    """What a reward model may be fooled by: each addition lowers gold further."""
    longer = "the bed was great . the lobby was great . the views were great . "
    assert gold(GOOD + " " + longer) < gold(GOOD)
    repeats = [gold("the room was superb . " * n) for n in range(2, 8)]
    assert repeats == sorted(repeats, reverse=True)
    stacked = "the room was superb . the bed was superb . the pool was excellent . "
    calm = "the room was superb . the bed was superb . the pool was great . "
    assert gold(stacked) < gold(calm)
    assert gold("superb " * 20 + ".") < 0


def test_gold_rejects_foreign_prompts_and_unequal_lists() -> None:
    with pytest.raises(ValueError, match="not of the synthetic language"):
        gold("the room was lovely .", "tell me a story")
    with pytest.raises(ValueError, match="1, 2 and 1"):
        language.gold_score([PROMPT], ["a", "b"], [True])


@pytest.mark.parametrize("kind", language.CORRUPTIONS)
def test_corrupted_text_is_worse_on_average(kind: str, reviews: list[dict[str, str]]) -> None:
    rng = random.Random(0)
    differences = []
    for row in reviews[:500]:
        topic, _ = language.parse_prompt(row["prompt"])
        damaged = language.corrupt(rng, row["completion"].split(), topic, kind)
        assert damaged != row["completion"].split()
        differences.append(
            gold(" ".join(damaged), row["prompt"]) - gold(row["completion"], row["prompt"])
        )
    error = statistics.stdev(differences) / len(differences) ** 0.5
    assert statistics.mean(differences) < -3 * error


def test_unknown_corruption_is_an_error() -> None:
    with pytest.raises(ValueError, match="shuffle"):
        language.corrupt(random.Random(0), GOOD.split(), "hotel", "shuffle")


def test_labels_agree_with_gold_more_as_the_scale_grows() -> None:
    shares = []
    for scale in (0.0, 0.5, 2.0, 50.0):
        rows = language.sample_preferences(random.Random(0), 800, scale)
        prompts = [row["prompt"] for row in rows]
        chosen = language.gold_score(prompts, [r["chosen"] for r in rows], [True] * len(rows))
        rejected = language.gold_score(prompts, [r["rejected"] for r in rows], [True] * len(rows))
        untied = [(a, b) for a, b in zip(chosen, rejected, strict=True) if a != b]
        shares.append(sum(a > b for a, b in untied) / len(untied))
    assert shares == sorted(shares)
    assert abs(shares[0] - 0.5) < 0.06
    assert shares[-1] > 0.97


def test_preference_sides_differ() -> None:
    rows = language.sample_preferences(random.Random(5), 300, 1.0)
    assert all(row["chosen"] != row["rejected"] for row in rows)


def test_too_many_distinct_prompts_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language, "sample_prompt", lambda rng: "review of the hotel : the")
    with pytest.raises(ValueError, match="only 1 different prompts"):
        language.sample_distinct_prompts(random.Random(0), 3)


def test_tokenizer_round_trip_and_special_ids(
    tmp_path: Path, reviews: list[dict[str, str]]
) -> None:
    language.write_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [0, 1, 2, 3]
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert len(tokenizer) == len(language.WORDS) + 4
    for row in reviews[:100]:
        ids = tokenizer(row["completion"])["input_ids"]
        assert len(ids) == len(row["completion"].split())
        assert 3 not in ids
        assert tokenizer.decode([1, *ids, 2, 0], skip_special_tokens=True) == row["completion"]
    assert tokenizer("zebra")["input_ids"] == [3]


FLAGS = {
    "seed": 0,
    "sft_examples": 40,
    "preference_pairs": 30,
    "preference_noise_scale": 2.0,
    "train_prompts": 300,
    "eval_prompts": 60,
}


def generate(out: Path, **changes: float) -> dict[str, bytes]:
    flags = [f"--{key}={value}" for key, value in (FLAGS | changes).items()]
    load_script("generate_data").main(["--out", str(out), *flags])
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def test_script_is_deterministic_and_prompts_are_disjoint(tmp_path: Path) -> None:
    first, again = generate(tmp_path / "a"), generate(tmp_path / "b")
    assert first == again
    train = [row["prompt"] for row in read_rows(tmp_path / "a" / "train_prompts.jsonl")]
    evaluation = [row["prompt"] for row in read_rows(tmp_path / "a" / "eval_prompts.jsonl")]
    assert (len(set(train)), len(set(evaluation))) == (300, 60)
    assert not set(train) & set(evaluation)
    assert {
        row.keys() <= {"prompt", "chosen", "rejected"}
        for row in read_rows(tmp_path / "a" / "preferences.jsonl")
    } == {True}


def test_sizes_and_noise_change_their_own_file_only(tmp_path: Path) -> None:
    base = generate(tmp_path / "a")
    changed = generate(tmp_path / "b", sft_examples=50, preference_noise_scale=0.1)
    differing = {name for name in base if base[name] != changed[name]}
    assert differing == {"sft.jsonl", "preferences.jsonl"}
    assert changed["sft.jsonl"].startswith(base["sft.jsonl"])


@pytest.mark.parametrize("flag", ["sft_examples", "preference_noise_scale"])
def test_script_rejects_bad_sizes(
    tmp_path: Path, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        generate(tmp_path, **{flag: -1})
    assert f"--{flag}: got '-1', expected greater than" in capsys.readouterr().err
