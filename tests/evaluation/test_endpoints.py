"""Rewards behind an HTTP endpoint: what is sent, and what is said when it goes wrong."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from test_rewards import PROMPT_ROWS, batch

from warpflow.evaluation import endpoints
from warpflow.evaluation.endpoints import call_endpoint
from warpflow.evaluation.rewards import called_reward, index_rows
from warpflow.lm.texts import tokens_of_prompts
from warpflow.settings.rewards import Calls

Body = dict[str, list[Any]]
KEY = "rewards.mine"


@dataclass
class Served:
    """A stub: its address, the bodies and headers that came, and what it answers."""

    answer: Callable[[Body], tuple[int, Any]]
    address: str = ""
    bodies: list[Body] = field(default_factory=list)
    headers: list[Any] = field(default_factory=list)


@contextmanager
def served(answer: Callable[[Body], tuple[int, Any]]) -> Iterator[Served]:
    stub = Served(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            stub.bodies.append(body)
            stub.headers.append(self.headers)
            status, said = stub.answer(body)
            content = said.encode() if isinstance(said, str) else json.dumps(said).encode()
            try:
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
            except BrokenPipeError:  # who asked has gone
                pass

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    stub.address = f"http://127.0.0.1:{server.server_port}/score"
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def lengths(body: Body) -> tuple[int, Any]:
    """The number of words; none for an empty completion."""
    return 200, {"scores": [len(text.split()) or None for text in body["completions"]]}


EXAMPLES: Body = {
    "prompts": ["a", "b", "c"],
    "completions": ["one", "one two", ""],
    "finished": [True, False, True],
    "columns": [{"answer": 1}, {}, {}],
}


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "PAUSE", 0)


def test_completions_are_sent_in_batches_with_all_that_functions_get() -> None:
    with served(lengths) as stub:
        call = call_endpoint("mine", stub.address, Calls(batch_size=2), KEY)
        assert call(EXAMPLES) == [1.0, 2.0, None]
    empty, *sent = stub.bodies
    assert empty == {key: [] for key in EXAMPLES}
    assert sent == [
        {k: v[:2] for k, v in EXAMPLES.items()},
        {k: v[2:] for k, v in EXAMPLES.items()},
    ]


def test_variables_and_a_key_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(lengths) as stub:
        monkeypatch.setenv("REWARD_URL", stub.address)
        monkeypatch.setenv("REWARD_KEY", "secret")
        call_endpoint("mine", "$REWARD_URL", Calls(api_key_env="REWARD_KEY"), KEY)
        assert stub.headers[0]["Authorization"] == "Bearer secret"
        monkeypatch.delenv("REWARD_KEY")
        with pytest.raises(ValueError, match=r"REWARD_KEY, which rewards\.mine\.api_key_env"):
            call_endpoint("mine", stub.address, Calls(api_key_env="REWARD_KEY"), KEY)
    with pytest.raises(ValueError, match=r"rewards\.mine\.url: .* no variable for \$NOT_HERE"):
        call_endpoint("mine", "$NOT_HERE", Calls(), KEY)


def test_what_may_pass_is_tried_again() -> None:
    failures = [503, 429]

    def busy(body: Body) -> tuple[int, Any]:
        if body["completions"] and failures:
            return failures.pop(), "busy"
        return lengths(body)

    with served(busy) as stub:
        call = call_endpoint("mine", stub.address, Calls(retries=2), KEY)
        assert call(EXAMPLES) == [1.0, 2.0, None]


def test_an_endpoint_that_is_down_is_an_error_before_any_completion() -> None:
    with served(lengths) as stub:
        pass
    with pytest.raises(ConnectionError, match=r"mine at .*/score did not answer, in 2 attempts"):
        call_endpoint("mine", stub.address, Calls(retries=1), KEY)


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        ((200, {"scores": [1]}), ValueError, "returned 1 scores for 3 completions"),
        ((200, {"scores": [1, 2, "x"]}), ValueError, "expected .* a number or null for each"),
        ((200, [1, 2, 3]), ValueError, 'expected {"scores"'),
        ((200, "<html>"), ValueError, "sent '<html>', expected"),
        ((404, "no such page"), ConnectionError, "says HTTP 404: no such page"),
        ((503, "loading"), ConnectionError, "did not answer, in 2 attempts .*503"),
    ],
)
def test_wrong_answers_show_the_completion(
    answer: tuple[int, Any], kind: type[Exception], said: str
) -> None:
    with served(lambda body: answer if body["completions"] else lengths(body)) as stub:
        call = call_endpoint("mine", stub.address, Calls(retries=1), KEY)
        with pytest.raises(kind, match=said) as error:
            call(EXAMPLES)
    assert error.value.__notes__ == [
        "Raised by the reward mine, on prompt 'a', completion 'one'; 2 more were scored with it"
    ]


def test_a_slow_endpoint_stops_with_what_to_do() -> None:
    def slow(body: Body) -> tuple[int, Any]:
        time.sleep(0.5 if body["completions"] else 0)
        return lengths(body)

    with served(slow) as stub:
        call = call_endpoint("mine", stub.address, Calls(retries=1, timeout=0.1), KEY)
        with pytest.raises(ConnectionError, match=r"of up to 0\.1 s each .*batch_size") as error:
            call(EXAMPLES)
    assert "completion 'one'" in error.value.__notes__[0]


def test_nan_of_an_endpoint_is_refused(make_tokenizer: Any) -> None:
    """JSON has no NaN, but Python's and others' writers send it."""
    with served(lambda body: (200, {"scores": [float("nan")] * len(body["prompts"])})) as stub:
        call = call_endpoint("mine", stub.address, Calls(), KEY)
        rows = index_rows(tokens_of_prompts(batch()), PROMPT_ROWS)
        with pytest.raises(FloatingPointError, match="mine returned nan for prompt 'w0'"):
            called_reward(call, make_tokenizer(), "mine", rows)(batch())


@pytest.mark.parametrize("key", ["rewards.mine", "evaluate_policy.gold.mine"])
def test_errors_name_the_key_of_the_config(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_HERE", raising=False)
    with pytest.raises(ValueError, match=rf"^{key}\.url: .* no variable for \$NOT_HERE"):
        call_endpoint("mine", "$NOT_HERE", Calls(), key)
    with pytest.raises(ValueError, match=rf"which {key}\.api_key_env names, is not set"):
        call_endpoint("mine", "http://a", Calls(api_key_env="NOT_HERE"), key)
    with served(lengths) as stub:
        pass
    with pytest.raises(ConnectionError, match=rf"a lower {key}\.batch_size"):
        call_endpoint("mine", stub.address, Calls(retries=0), key)
