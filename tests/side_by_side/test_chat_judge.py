"""A chat judge: its question, its verdicts, and an endpoint that fails in all the usual ways."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from project import ROOT

from warpflow.side_by_side import chat_judge
from warpflow.side_by_side.answers import Answer
from warpflow.side_by_side.chat_judge import (
    ChatSettings,
    fill_template,
    judge_pairs,
    read_template,
    read_verdict,
)

TEMPLATE = str(ROOT / "config/judge_prompt.txt")
ANSWERS = {
    "long": [Answer(f"q{i}", f"a long answer {i}", True, {}) for i in range(3)],
    "short": [Answer(f"q{i}", f"short {i}", True, {}) for i in range(3)],
}
PAIRS = [("long", "short")]
Handler = Callable[[str], str | tuple[int, dict[str, str]]]


class Endpoint:
    """An OpenAI-compatible endpoint on this machine. `reply` gives the text for a question, or a
    status with headers."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.reply: Handler = lambda question: "Verdict: tie"
        self.document = ""  # sent in place of a reply
        endpoint = self

        class Requests(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.asked.append(body)
                endpoint.keys.append(self.headers.get("Authorization"))
                text = endpoint.reply(body["messages"][0]["content"])
                status, headers = text if isinstance(text, tuple) else (200, {})
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                usage = {"prompt_tokens": 1000, "completion_tokens": 10}
                choices = [{"message": {"content": text}}]
                document = json.dumps({"choices": choices, "usage": usage})
                self.wfile.write((endpoint.document or document).encode())

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Requests)
        threading.Thread(target=self.server.serve_forever, args=[0.01], daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    found = Endpoint()
    yield found
    found.server.shutdown()
    found.server.server_close()


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that would have been waited."""
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)  # the client's
    return waited


def settings(endpoint: Endpoint, **changes: Any) -> ChatSettings:
    given = {"model": "judge", "template": TEMPLATE, "retries": 2, "requests": 1, **changes}
    return ChatSettings(base_url=endpoint.url, **given)


def judge(endpoint: Endpoint, folder: Path, **changes: Any) -> dict[str, Any]:
    return judge_pairs(settings(endpoint, **changes), ANSWERS, PAIRS, folder / "cache" / "a.jsonl")


def prefer_long(question: str) -> str:
    first = re.search(r"<first_answer>\n(.*)\n", question)
    assert first
    return f"Longer is better.\n\nVerdict: {'first' if 'long' in first[1] else 'second'} better"


# ----------------------------------------------------------------------- question and verdict


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ("Verdict: first much better", 1.5),
        ("so\n**Verdict: second slightly better.**", -0.5),
        ("verdict: First is better\n", 1.0),
        ("Verdict: tie", 0.0),
        ("Verdict: tie\nOn reflection:\nVerdict: second better", -1.0),
        ("The first is better.", None),
        ("Verdict: first better, or a tie", None),
        ("Verdict: third better", None),
        ("", None),
    ],
)
def test_verdicts(text: str, grade: float | None) -> None:
    assert read_verdict(text) == grade


def test_every_verdict_that_the_shipped_question_offers_is_read() -> None:
    offered = [line for line in read_template(TEMPLATE).splitlines() if "Verdict:" in line]
    assert sorted(map(read_verdict, offered)) == [-1.5, -1, -0.5, 0, 0.5, 1, 1.5]


def test_braces_in_answers_stay() -> None:
    messages = [{"role": "user", "content": "{first}"}]
    filled = fill_template("{instruction}|{first}|{second}|{x}", messages, "{second}", "b")
    assert filled == "User: {first}|{second}|b|{x}"


def test_a_template_without_a_field_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("{instruction} {first}")
    with pytest.raises(ValueError, match=r"no \{second\} in it"):
        read_template(tmp_path / "t.txt")


# ------------------------------------------------------------------------------------ endpoint


def test_each_pair_is_asked_in_both_orders(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.reply = prefer_long
    found = judge(endpoint, tmp_path, parameters={"temperature": 0, "seed": 7}, requests=3)
    [verdict] = found["verdicts"]
    assert verdict["first"] == verdict["swapped"] == [1, 1, 1], "both of the first one's side"
    assert len(endpoint.asked) == 6
    assert endpoint.asked[0]["seed"] == 7
    assert endpoint.asked[0].keys() == {"model", "messages", "temperature", "seed"}
    assert set(endpoint.keys) == {None}, "no key was named, so none is sent"
    endpoint.reply = lambda question: "Verdict: first better"
    [biased] = judge(endpoint, tmp_path, parameters={"seed": 8})["verdicts"]
    assert (biased["first"], biased["swapped"]) == ([1, 1, 1], [-1, -1, -1])


def test_cost_is_counted_from_tokens(endpoint: Endpoint, tmp_path: Path) -> None:
    usage = judge(endpoint, tmp_path, price_input=2.0, price_output=100.0)["usage"]
    assert usage == {
        "requests": 6,
        "prompt_tokens": 6000,
        "completion_tokens": 60,
        "cost": pytest.approx(6 * (1000 * 2 + 10 * 100) / 1e6),
    }


def test_nonsense_is_counted_and_shown_and_never_a_tie(endpoint: Endpoint, tmp_path: Path) -> None:
    def reply(question: str) -> str:
        return "Both are lovely." if "q1" in question else "Verdict: tie"

    endpoint.reply = reply
    found = judge(endpoint, tmp_path)
    assert found["verdicts"][0]["first"] == [0, None, 0]
    assert len(found["failed"]) == 2
    assert "Both are lovely." in found["failed"][0]["why"]


def test_refused_questions_are_counted_with_the_reason(endpoint: Endpoint, tmp_path: Path) -> None:
    def reply(question: str) -> str | tuple[int, dict[str, str]]:
        return (400, {}) if "q2" in question else "Verdict: tie"

    endpoint.reply = reply
    found = judge(endpoint, tmp_path)
    assert [(f["prompt"], f["order"]) for f in found["failed"]] == [(2, "first"), (2, "swapped")]
    assert "HTTP 400" in found["failed"][0]["why"]
    assert len(endpoint.asked) == 6, "a refusal is not asked again"
    endpoint.reply = lambda question: (400, {})
    with pytest.raises(SystemExit, match="refused all 6 questions, first: HTTP 400"):
        judge(endpoint, tmp_path / "other")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_may_pass_is_tried_again(
    endpoint: Endpoint, tmp_path: Path, waits: list[float], status: int
) -> None:
    endpoint.reply = lambda q: (status, {}) if len(endpoint.asked) % 3 else "Verdict: first better"
    found = judge(endpoint, tmp_path)
    assert found["verdicts"][0]["first"] == [1, 1, 1]
    assert len(endpoint.asked) == 3 * 6
    assert len(waits) == 2 * 6
    assert waits[0] < 1 < waits[1] * 2, "longer each time"


def test_retry_after_is_followed(endpoint: Endpoint, tmp_path: Path, waits: list[float]) -> None:
    endpoint.reply = lambda q: (
        "Verdict: tie"
        if len(endpoint.asked) > 1
        else (
            429,
            {"Retry-After": "17"},
        )
    )
    judge(endpoint, tmp_path)
    assert waits == [17]


@pytest.mark.parametrize("document", ["{}", '{"choices": []}', "<html>", "[]", '{"choices": [{}]}'])
def test_what_is_no_chat_reply_is_no_verdict(
    endpoint: Endpoint, tmp_path: Path, document: str
) -> None:
    endpoint.document = document
    with pytest.raises(SystemExit, match=r"left 6 of 6 questions unanswered, .* no chat reply"):
        judge(endpoint, tmp_path)


def test_a_time_out_is_tried_again_and_named(endpoint: Endpoint, tmp_path: Path) -> None:
    gate = threading.Event()
    endpoint.reply = lambda question: "Verdict: tie" if gate.wait(2) else ""
    with pytest.raises(SystemExit, match="questions unanswered, first: APITimeoutError"):
        judge(endpoint, tmp_path, timeout=0.05, retries=1)
    gate.set()
    assert len(endpoint.asked) == 2 * 6


def test_a_wrong_key_stops_at_once(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret")
    endpoint.reply = lambda question: (401, {})
    with pytest.raises(ValueError, match="with model 'judge' says HTTP 401"):
        judge(endpoint, tmp_path, api_key_env="JUDGE_KEY")
    assert endpoint.keys == ["Bearer secret"]
    with pytest.raises(ValueError, match="variable NO_KEY, which api_key_env names, is not set"):
        judge(endpoint, tmp_path, api_key_env="NO_KEY")


def test_an_interrupted_judge_goes_on_without_paying_twice(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    """It breaks down after four replies, and its last line is torn, as by a kill."""

    def fragile(question: str) -> str | tuple[int, dict[str, str]]:
        return prefer_long(question) if len(endpoint.asked) <= 4 else (500, {})

    endpoint.reply = fragile
    with pytest.raises(SystemExit, match="left 2 of 6 questions unanswered, first: HTTP 500"):
        judge(endpoint, tmp_path)
    cache = tmp_path / "cache" / "a.jsonl"
    cache.write_text(cache.read_text()[:-30])
    endpoint.asked.clear()
    endpoint.reply = prefer_long
    found = judge(endpoint, tmp_path)
    assert len(endpoint.asked) == 3, "the torn one and the two left"
    assert found["verdicts"][0]["swapped"] == [1, 1, 1]
    assert found["usage"]["requests"] == 6
    endpoint.asked.clear()
    assert judge(endpoint, tmp_path) == found
    assert endpoint.asked == []


def test_another_question_model_or_parameter_is_paid_for(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    judge(endpoint, tmp_path)
    judge(endpoint, tmp_path, model="another")
    judge(endpoint, tmp_path, parameters={"temperature": 1})
    assert len(endpoint.asked) == 18


def test_an_endpoint_that_is_down_is_given_up_soon(tmp_path: Path, endpoint: Endpoint) -> None:
    endpoint.reply = lambda question: (503, {})
    many = {name: [Answer(f"q{i}", name, True, {}) for i in range(50)] for name in ("a", "b")}
    with pytest.raises(SystemExit, match="left 100 of 100 questions unanswered"):
        judge_pairs(settings(endpoint, retries=0), many, [("a", "b")], tmp_path / "c" / "a.jsonl")
    assert len(endpoint.asked) == chat_judge.BROKEN_DOWN
