"""Pacing by requests and tokens a minute, extra request fields, and their place on the endpoint's page."""

import time
from typing import Any

import pytest
from sqlmodel import select
from starlette.testclient import TestClient

from app.checkpoints.chat import Target, chat_body
from app.checkpoints.endpoints import target_of
from app.checkpoints.models import Endpoint
from app.checkpoints.pace import Pace
from app.db import reading
from app.judging.asking import Asking
from app.judging.prompt import Guide, PairText
from tests.calls import ask_all
from tests.chat_server import ChatServer, Fault

HELLO = [{"role": "user", "content": "hello"}]


class Clock:
    """Time that stands until it is moved."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_requests_leave_evenly_and_what_was_not_used_does_not_pile_up() -> None:
    clock = Clock()
    pace = Pace(120, None, clock)
    assert [pace.take(0) for _ in range(4)] == [0, 0.5, 1.0, 1.5]
    clock.now = 600.0  # ten idle minutes give a second's burst, not twenty minutes' worth
    assert [pace.take(0) for _ in range(4)] == [0, 0, 0, 0.5]


def test_tokens_are_estimated_before_and_put_right_after() -> None:
    clock = Clock()
    pace = Pace(None, 600, clock)  # ten a second
    assert pace.take(100) == 0, "more than a second's worth leaves too, and is paid off by those after it"
    assert pace.take(10) == 10
    pace.settle(100, 30, 10)  # 60 fewer than estimated
    assert pace.take(10) == pytest.approx(5)
    pace.settle(10, 60, 50)  # 100 more
    assert pace.take(1) == pytest.approx(16)


def test_an_estimate_learns_how_long_answers_are() -> None:
    pace = Pace(None, 600)
    body = {"messages": [{"content": "x" * 400}], "max_tokens": 700}
    assert pace.estimate(body) == 300
    pace.settle(300, 100, 20)
    assert pace.estimate(body) == 120


def test_the_stricter_limit_decides() -> None:
    pace = Pace(600, 60, Clock())
    assert [pace.take(2) for _ in range(3)] == [0, 2, 4]


@pytest.mark.parametrize(
    ("limits", "seconds"),
    [({"requests_per_minute": 600}, 1.1), ({"tokens_per_minute": 6000}, 0.8)],
    ids=["requests", "tokens"],
)
def test_calls_and_their_second_tries_keep_to_the_pace(limits: dict[str, Any], seconds: float) -> None:
    """Twelve requests, two of them second tries: at ten a second they need 1.1 s; the deadline of 0.9 s waits."""
    faults = [Fault(429, {"Retry-After": "0"}), Fault(500, {"Retry-After": "0"})]
    with ChatServer(lambda _: "word " * 8, faults=faults) as server:
        target = Target(server.origin, "m", **limits)
        asked = [(i, chat_body(target, HELLO, max_tokens=9)) for i in range(10)]
        started = time.monotonic()
        found = [one for batch in ask_all(target, asked, concurrency=32, timeout_s=0.3) for one in batch]
        took = time.monotonic() - started
    assert len(server.requests) == 12 and all(not answer.failure for _, answer in found)
    assert seconds - 0.1 <= took < seconds + 2


def test_what_has_no_limit_is_not_paced() -> None:
    assert Target("http://127.0.0.1:1/v1", "m").pace is None
    limited = Target("http://127.0.0.1:1/v1", "m", requests_per_minute=5)
    assert limited.pace is Target("http://127.0.0.1:1/v1", "m", requests_per_minute=5).pace, "one for all its callers"


def test_extra_fields_go_along_and_are_part_of_the_question() -> None:
    plain = Target("http://127.0.0.1:1/v1", "m")
    more = Target("http://127.0.0.1:1/v1", "m", extra_body={"top_k": 20, "top_p": 0.5})
    body = chat_body(more, HELLO, max_tokens=3, top_p=0.9)
    assert (body["top_k"], body["top_p"], body["model"]) == (20, 0.9, "m")
    pair = PairText(HELLO, "a", "b")
    settings: dict[str, Any] = {"with_reason": True, "temperature": 0, "max_tokens": 5}
    hashes = {Asking(target, Guide(), **settings).sha256(pair, False) for target in (plain, more)}
    assert len(hashes) == 2


FORM = {"name": "mine", "origin": "http://127.0.0.1:8000/v1", "model": "m-1"}
LIMITS = {"requests_per_minute": "60", "tokens_per_minute": "90000", "extra_body": '{"top_k": 20}'}


def stored() -> Endpoint:
    with reading() as session:
        return session.exec(select(Endpoint)).one()


def test_pace_extra_fields_and_prices_are_set_and_changed_on_the_endpoints_page(client: TestClient) -> None:
    client.post("/p/demo/checkpoints/endpoints/new", data={**FORM, **LIMITS})
    row = stored()
    assert (row.requests_per_minute, row.tokens_per_minute, row.extra_body) == (60, 90000, {"top_k": 20})
    here = f"/p/demo/checkpoints/endpoints/{row.id}"
    page = client.get(here).text
    assert "at most 60 requests and 90,000 tokens a minute in each run" in page and "top_k" in page
    assert "{&#34;top_k&#34;: 20}" in client.get(f"{here}/edit").text
    client.post(f"{here}/edit", data={**FORM, "usd_per_million_in": "3", "extra_body": '{"top_k": 20}'})
    row = stored()
    assert (row.requests_per_minute, row.usd_per_million_in, row.extra_body) == (None, 3.0, {"top_k": 20})
    target = target_of(row)
    assert (target.cost_usd(1_000_000, 0), target.extra_body, target.pace) == (3.0, {"top_k": 20}, None)
    assert "as fast as it answers" in client.get(here).text


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("extra_body", '{"model": "other"}', "“model” is set by each call"),
        ("extra_body", '{"messages": []}', "“messages” is set by each call"),
        ("extra_body", '{"stream": true}', "“stream” is set by each call"),
        ("extra_body", "[1]", "write a JSON object"),
        ("extra_body", "{top_k: 1}", "no JSON"),
        ("extra_body", '{"a": NaN}', "NaN is no JSON"),
        ("extra_body", '{"a": "\\u0000"}', "NUL"),
        ("extra_body", '{"a": "\\ud800"}', "lone surrogate"),
        ("extra_body", '{"a":' * 900 + "1" + "}" * 900, "characters"),
        ("requests_per_minute", "0", "must be at least 1"),
        ("tokens_per_minute", "ten", "must be a whole number"),
    ],
)
def test_what_may_not_stand_there_is_refused_with_its_field(
    client: TestClient, field: str, value: str, said: str
) -> None:
    answer = client.post("/api/v1/p/demo/endpoints", json={**FORM, field: value})
    assert answer.status_code == 422 and said in answer.json()["fields"][field][0]
    page = client.post("/p/demo/checkpoints/endpoints/new", data={**FORM, field: value})
    assert (
        page.status_code == 422 and f'aria-describedby="f-{field.replace(".", "-")}-help f-{field}-error"' in page.text
    )


def test_the_api_takes_extra_fields_as_json(client: TestClient) -> None:
    made = client.post("/api/v1/p/demo/endpoints", json={**FORM, "extra_body": {"top_k": 4}, "tokens_per_minute": 10})
    assert made.status_code == 201 and made.json()["extra_body"] == {"top_k": 4}
