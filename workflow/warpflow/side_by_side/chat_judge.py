"""A judge behind an OpenAI-compatible chat endpoint, whose verdicts on pairs are paid for once.

Every reply is appended to a JSONL file as it comes, under a hash of the whole request. So a job
that was killed, or whose endpoint broke down, goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from openai import APIConnectionError, APIError, APIStatusError, OpenAI, omit

from warpflow.lm.prompts import is_messages
from warpflow.settings.compare_answers import ChatSettings
from warpflow.side_by_side.answers import Answer

FIELDS = ("instruction", "first", "second")  # a template is filled with these
STOPPING = {401, 403, 404}  # statuses that every other request would get too
PASSING = {408, 409, 429}  # statuses that may pass, like those from 500 on
# A document of another form raises one of these.
NO_REPLY = (APIError, ValueError, LookupError, TypeError, AttributeError)
NO_KEY = "none"  # the client needs one, but does not send it
BROKEN_DOWN = 10  # so many failures in a row, without a reply in between, end a job

Body = dict[str, Any]
Reply = dict[str, Any]  # "text" and "usage" (numbers of tokens)


class RefusedError(Exception):
    """The endpoint refuses this request, however often it is sent."""


class UnreachableError(Exception):
    """There was no reply after all retries."""


# --- question and verdict ----------------------------------------------------------------------


def read_template(path: str | Path) -> str:
    """Return the question to a judge. Raises ValueError where it lacks one of the fields."""
    text = Path(path).read_text(encoding="utf-8")
    missing = [name for name in FIELDS if f"{{{name}}}" not in text]
    if missing:
        raise ValueError(
            f"{path}: no {{{missing[0]}}} in it; expected {{instruction}}, {{first}} and {{second}}"
        )
    return text


def fill_template(template: str, prompt: Any, first: str, second: str) -> str:
    """Fill all fields in one pass, so that braces in an answer stay what they are."""
    values = dict(zip(FIELDS, (prompt_text(prompt), first, second), strict=True))
    return re.sub(r"\{(" + "|".join(FIELDS) + r")\}", lambda found: values[found[1]], template)


def prompt_text(prompt: Any) -> str:
    """Return a prompt to read, with messages one below the other."""
    if is_messages(prompt):
        return "\n\n".join(f"{m['role'].capitalize()}: {m['content']}" for m in prompt)
    return str(prompt)


VERDICT = re.compile(
    r"^\W*verdict\W+(?:(tie)|(first|second) (?:is )?(?:(much|slightly) )?better)\W*$",
    re.IGNORECASE | re.MULTILINE,
)
STRENGTH = {"slightly": 0.5, None: 1.0, "much": 1.5}


def read_verdict(text: str) -> float | None:
    """Return the graded score of the answer that was shown first, from the last line of the form
    ``Verdict: first much better`` (or second; slightly; tie). Return None where there is no such
    line."""
    found = list(VERDICT.finditer(text))
    if not found:
        return None
    tie, better, strength = found[-1].groups()
    if tie:
        return 0.0
    grade = STRENGTH[strength.lower() if strength else None]
    return grade if better.lower() == "first" else -grade


# --- endpoint ----------------------------------------------------------------------------------


def make_body(settings: ChatSettings, question: str) -> Body:
    messages = [{"role": "user", "content": question}]
    return {"model": settings.model, "messages": messages, **settings.parameters}


def body_key(settings: ChatSettings, body: Body) -> str:
    """Return the hash of a request: whom it asks, and what."""
    text = json.dumps([settings.base_url, body], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_api_key(settings: ChatSettings) -> str | None:
    """Return the key from the environment. Raises ValueError where its variable is not set."""
    name = settings.api_key_env
    if name is not None and not os.environ.get(name):
        raise ValueError(f"the environment variable {name}, which api_key_env names, is not set")
    return os.environ[name] if name else None


def open_client(settings: ChatSettings, api_key: str | None) -> OpenAI:
    """Return a client that repeats a request after an error that may pass (no connection, a
    time-out, 408, 409, 429, 5xx). It waits longer each time, or as long as Retry-After says."""
    return OpenAI(
        base_url=settings.base_url,
        api_key=api_key or NO_KEY,
        max_retries=settings.retries,
        timeout=settings.timeout,
    )


def ask(settings: ChatSettings, client: OpenAI, body: Body) -> Reply:
    """Send a request until there is a reply.

    Raises:
        RefusedError, UnreachableError; ValueError where key, model or address are wrong.
    """
    try:
        reply = client.chat.completions.create(
            model=body["model"],
            messages=body["messages"],
            extra_body=body,
            extra_headers={"Authorization": omit} if client.api_key == NO_KEY else None,
        )
        text = reply.choices[0].message.content
        return {"text": text or "", "usage": reply.usage.model_dump() if reply.usage else {}}
    except APIStatusError as error:
        said = f"HTTP {error.status_code}: {error.response.text[:300]}"
        if error.status_code in STOPPING:
            raise ValueError(
                f"{settings.base_url} with model {settings.model!r} says {said}; correct "
                "base_url, model or the key"
            ) from None
        if error.status_code not in PASSING and error.status_code < 500:
            raise RefusedError(said) from None
    except APIConnectionError as error:
        said = f"{type(error).__name__}: {error} {error.__cause__ or ''}"
    except NO_REPLY as error:
        said = f"what came is no chat reply ({type(error).__name__}: {error})"
    raise UnreachableError(f"{said} (of up to {settings.retries + 1} attempts)")


# --- many questions ----------------------------------------------------------------------------


def read_replies(folder: Path) -> dict[str, Reply]:
    """Return the replies of every file in the folder, by key. Where a writer was killed, the broken
    end of its file is skipped."""
    replies = {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            replies[row["key"]] = row["reply"]
    return replies


def ask_all(
    settings: ChatSettings, questions: Iterable[str], cache: Path
) -> tuple[dict[str, Reply], dict[str, str]]:
    """Return the replies to questions, and why others have none, by question.

    Args:
        cache: the JSONL file for the replies. Replies in its folder are not asked for again.

    Raises:
        SystemExit: the endpoint failed on some questions, in a way that may pass. Other replies are
            kept.
    """
    bodies = {question: make_body(settings, question) for question in dict.fromkeys(questions)}
    keys = {question: body_key(settings, body) for question, body in bodies.items()}
    cache.parent.mkdir(parents=True, exist_ok=True)
    known = read_replies(cache.parent)
    replies = {question: known[key] for question, key in keys.items() if key in known}
    pending = [question for question in bodies if question not in replies]
    logging.info("%d questions, %d answered before", len(bodies), len(replies))
    refused, unreachable = ask_pending(settings, pending, bodies, keys, cache, replies)
    left = len(pending) - len(refused) - sum(question in replies for question in pending)
    if left:
        raise SystemExit(
            f"the judge {settings.model} at {settings.base_url} left {left} of {len(bodies)} "
            f"questions unanswered, first: {unreachable[0]}. The {len(replies)} replies so far are "
            f"kept in {cache.parent}/: run again to ask for the others only"
        )
    if refused and not replies:
        raise SystemExit(
            f"the judge {settings.model} at {settings.base_url} refused all {len(refused)} "
            f"questions, first: {next(iter(refused.values()))}"
        )
    return replies, refused


def ask_pending(
    settings: ChatSettings,
    pending: Sequence[str],
    bodies: Mapping[str, Body],
    keys: Mapping[str, str],
    cache: Path,
    replies: dict[str, Reply],
) -> tuple[dict[str, str], list[str]]:
    """Ask the pending questions, `settings.requests` at once, and add to `replies` and `cache`.
    Return the refused questions with the reason, and why others got no reply."""
    client = open_client(settings, read_api_key(settings) if pending else None)
    refused: dict[str, str] = {}
    unreachable: list[str] = []
    in_a_row = 0
    lock = threading.Lock()

    def work(question: str) -> None:
        nonlocal in_a_row
        if in_a_row >= BROKEN_DOWN:
            return
        try:
            reply = ask(settings, client, bodies[question])
        except RefusedError as error:
            with lock:
                refused[question] = str(error)
                return
        except UnreachableError as error:
            with lock:
                unreachable.append(str(error))
                in_a_row += 1
                return
        except BaseException:
            in_a_row = BROKEN_DOWN  # no other request would do better
            raise
        with lock:
            in_a_row = 0
            append_line(cache, {"key": keys[question], "model": settings.model, "reply": reply})
            replies[question] = reply

    with client, ThreadPoolExecutor(settings.requests) as pool:
        futures = [pool.submit(work, question) for question in pending]
        try:
            for number, future in enumerate(futures, start=1):
                future.result()
                if number % 100 == 0:
                    logging.info("%d of %d asked", number, len(pending))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return refused, unreachable


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Append a row and wait until it is on disk. It starts on a new line after the broken end that
    a killed writer left."""
    line = json.dumps(row, sort_keys=True) + "\n"
    with open(path, "ab+") as file:
        if file.tell() and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n":
            line = "\n" + line
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def judge_pairs(
    settings: ChatSettings,
    answers: Mapping[str, Sequence[Answer]],
    pairs: Sequence[tuple[str, str]],
    cache: Path,
) -> dict[str, Any]:
    """Return verdicts on every prompt of every pair, each asked for in both orders.

    The result has `verdicts` (for each pair, with A shown `first` and `swapped`, A's graded score
    by prompt, None where it failed), `failed` (each failure with the reason) and `usage` (requests,
    tokens and their cost, also those of replies that were paid for earlier).
    """
    template = read_template(settings.template)

    def question(a: str, b: str, index: int) -> str:
        first, second = answers[a][index], answers[b][index]
        return fill_template(template, first.prompt, first.text, second.text)

    count = len(next(iter(answers.values())))
    asked = [
        question(*pair, index)
        for a, b in pairs
        for pair in ((a, b), (b, a))
        for index in range(count)
    ]
    replies, refused = ask_all(settings, asked, cache)
    verdicts, failed = [], []
    for a, b in pairs:
        found: dict[str, Any] = {"a": a, "b": b}
        for order, pair, sign in (("first", (a, b), 1), ("swapped", (b, a), -1)):
            grades: list[float | None] = []
            for index in range(count):
                text = question(*pair, index)
                grade = read_verdict(replies[text]["text"]) if text in replies else None
                grades.append(None if grade is None else sign * grade + 0.0)
                if grade is None:
                    why = refused.get(text) or f"no verdict in {replies[text]['text'][-300:]!r}"
                    failed.append({"a": a, "b": b, "order": order, "prompt": index, "why": why})
            found[order] = grades
        verdicts.append(found)
    if failed:
        logging.warning(
            "WARNING: %d of %d judgements failed, first: %s",
            len(failed),
            len(asked),
            failed[0]["why"],
        )
    return {
        "verdicts": verdicts,
        "failed": failed,
        "usage": count_usage(settings, replies.values()),
    }


def count_usage(settings: ChatSettings, replies: Iterable[Reply]) -> dict[str, float]:
    """Return requests, tokens and cost of replies."""
    usages = [reply["usage"] for reply in replies]
    read, written = (
        sum(int(usage.get(name) or 0) for usage in usages)
        for name in ("prompt_tokens", "completion_tokens")
    )
    cost = (read * settings.price_input + written * settings.price_output) / 1e6
    return {
        "requests": len(usages),
        "prompt_tokens": read,
        "completion_tokens": written,
        "cost": round(cost, 6),
    }
