"""The endpoint client against a real server that misbehaves: what is tried again, and what is not."""

import math
import time
from email.utils import formatdate

import pytest

from app.checkpoints.chat import ChatAnswer, Target, chat_body, read_retry_after
from app.errors import Invalid
from app.net import check_origin
from tests.calls import ask_all
from tests.chat_server import GARBAGE, HALF_JSON, HANG, NO_CHOICES, RESET, ChatServer, Fault, redirect, wait
from tests.servers import free_port
from worker.endpoint import EndpointCalls

HELLO = [{"role": "user", "content": "hello"}]


def ask_one(server: ChatServer, **more) -> ChatAnswer:
    target = Target(server.origin, "m", "sk-secret-0123456789", usd_per_million_in=1, usd_per_million_out=2)
    asked = [("k", chat_body(target, HELLO, max_tokens=5))]
    settings = {"concurrency": 2, "max_tries": 4, "timeout_s": 2, **more}
    (arrived,) = list(ask_all(target, asked, **settings))
    ((key, answer),) = arrived
    assert key == "k"
    return answer


@pytest.mark.parametrize(
    "fault",
    [Fault(408), Fault(409), wait(0), Fault(500), Fault(503), RESET, GARBAGE, HALF_JSON, NO_CHOICES, Fault(hang_s=3)],
    ids=["408", "409", "429", "500", "503", "reset", "garbage", "half", "no choices", "timeout"],
)
def test_a_passing_fault_is_tried_again(fault: Fault):
    with ChatServer(lambda _: "fine", faults=[fault]) as server:
        answer = ask_one(server, timeout_s=1.5)
    assert (answer.text, answer.failure, answer.tries) == ("fine", "", 2)
    assert len(server.requests) == 2


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("is_date", [False, True], ids=["seconds", "date"])
def test_retry_after_is_honoured(status: int, is_date: bool):
    asked_at = time.time()
    said = formatdate(math.ceil(asked_at) + 1, usegmt=True) if is_date else "1"  # a date knows whole seconds only
    with ChatServer(lambda _: "fine", faults=[Fault(status, {"Retry-After": said})]) as server:
        assert ask_one(server).text == "fine"
    assert 0.95 <= time.time() - asked_at < 3


def test_a_retry_after_beyond_the_deadline_gives_up_at_once():
    with ChatServer(lambda _: "fine", faults=[wait(3600)]) as server:
        started = time.monotonic()
        answer = ask_one(server)
    assert "the next try would come after the deadline" in answer.failure
    assert time.monotonic() - started < 2


def test_a_dead_endpoint_ends_by_the_deadline_with_a_reason():
    with ChatServer(lambda _: "never", faults=[HANG] * 9) as server:
        started = time.monotonic()
        answer = ask_one(server, timeout_s=0.5, max_tries=9)
    assert "no answer within" in answer.failure
    assert time.monotonic() - started < 3
    nobody = Target(f"http://127.0.0.1:{free_port()}/v1", "m")
    ((_, refused),) = next(iter(ask_all(nobody, [("k", chat_body(nobody, HELLO, max_tokens=1))],
                                        concurrency=1, max_tries=2, timeout_s=2)))  # fmt: skip
    assert refused.tries == 2
    assert "ClientConnectorError" in refused.failure


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 422])
def test_a_lasting_refusal_is_not_tried_again(status: int):
    with ChatServer(faults=[Fault(status)] * 9) as server:
        answer = ask_one(server)
    assert len(server.requests) == 1
    assert answer.failure == f"HTTP {status}: as asked"
    assert answer.is_fatal == (status in {401, 402, 403, 404})


def test_a_redirect_is_never_followed():
    with ChatServer(lambda _: "caught") as other, ChatServer() as server:
        server.faults = [redirect(f"{other.origin}/chat/completions")]
        answer = ask_one(server)
    assert other.requests == []
    assert answer.is_fatal
    assert "redirects are not followed" in answer.failure


def test_the_key_goes_to_the_endpoint_and_into_no_message():
    echo = Fault(401, {}, '{"error": {"message": "wrong key sk-secret-0123456789"}}')
    with ChatServer(faults=[echo]) as server:
        answer = ask_one(server)
    assert server.headers[0]["Authorization"] == "Bearer sk-secret-0123456789"
    assert answer.failure == "HTTP 401: wrong key [key]"
    assert "sk-secret" not in repr(Target("http://127.0.0.1/v1", "m", "sk-secret-0123456789"))


def test_tokens_and_cost_come_from_usage_else_from_lengths():
    with ChatServer(lambda _: "one two three") as server:
        counted = ask_one(server)
    assert (counted.tokens_in, counted.tokens_out, counted.are_tokens_estimated) == (1, 3, False)
    assert counted.cost_usd == pytest.approx(7e-6)
    with ChatServer(lambda _: "one two three", has_usage=False) as server:
        assert ask_one(server).are_tokens_estimated


def test_calls_in_flight_fill_what_is_allowed_and_never_exceed_it():
    target_tokens = 5
    with ChatServer(lambda _: "fine", delay_s=0.05) as server:
        target = Target(server.origin, "m")
        asked = ((i, chat_body(target, HELLO, max_tokens=target_tokens)) for i in range(120))
        started = time.monotonic()
        found = [one for arrived in ask_all(target, asked, concurrency=16, timeout_s=5) for one in arrived]
        seconds = time.monotonic() - started
    assert sorted(key for key, _ in found) == list(range(120))
    assert all(answer.text == "fine" for _, answer in found)
    assert server.most_in_flight == 16
    assert seconds < 120 * 0.05 / 16 * 4


def test_leaving_early_drops_what_is_in_flight():
    with ChatServer(lambda _: "late", delay_s=5) as server:
        target = Target(server.origin, "m")
        started = time.monotonic()
        with EndpointCalls(target, concurrency=4, max_tries=1, timeout_s=9) as calls:
            calls.send([(i, chat_body(target, HELLO, max_tokens=1)) for i in range(8)])
            assert calls.arrived(0.3) == []
        assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000/v1"),
        ("https://api.example.com", "https://api.example.com"),
        ("http://[::1]:9/v1", "http://[::1]:9/v1"),
    ],
)
def test_an_origin_has_one_spelling(url: str, wanted: str):
    assert check_origin(url, are_private_allowed=True) == wanted


@pytest.mark.parametrize(
    "url",
    ["ftp://host/v1", "file:///etc/passwd", "http://", "http://me:pw@host/v1", "http://host/v1?x=1", "http://h:99999/",
     "http://169.254.169.254/latest", "http://0.0.0.0/", "http://224.0.0.1/", "http://１６９.254.169.254/latest",
     "http://169。254。169。254/", "http://[::ffff:169.254.169.254]/", "http://[64:ff9b::a9fe:a9fe]/",
     "http://[2002:a9fe:a9fe::]/", "http://[fe80::1%25eth0]/", "http://a\\@127.0.0.1/"],
)  # fmt: skip
def test_what_is_no_endpoint_is_refused(url: str):
    with pytest.raises(Invalid) as refused:
        check_origin(url, are_private_allowed=True)
    assert "origin" in refused.value.fields


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1/v1", "http://10.1.2.3/", "http://[::ffff:127.0.0.1]/", "http://[::1]/",
     "http://[::127.0.0.1]/", "http://[64:ff9b::7f00:1]/", "http://[64:ff9b:1::1]/", "http://[2002:7f00:1::]/",
     "http://[::ffff:0:7f00:1]/", "http://[fec0::1]/", "http://192.0.0.192/", "http://100.64.0.1/"],
)  # fmt: skip
def test_private_addresses_are_refused_where_the_server_says_so(url: str):
    with pytest.raises(Invalid, match="PREFLAB_PRIVATE_ENDPOINTS"):
        check_origin(url, are_private_allowed=False)


@pytest.mark.parametrize("name", ["localhost", "2130706433", "0x7f.1", "0177.0.0.1", "127.0.0.1."])
def test_a_name_that_resolves_to_a_private_address_is_refused_too(name: str):
    with ChatServer(lambda _: "reached") as server:
        target = Target(server.origin.replace("127.0.0.1", name), "m", are_private_allowed=False)
        asked = [("k", chat_body(target, HELLO, max_tokens=1))]
        ((_, answer),) = next(iter(ask_all(target, asked, concurrency=1, max_tries=1, timeout_s=2)))
    assert server.requests == []
    assert "is private" in answer.failure or "not a canonical" in answer.failure or "no address" in answer.failure


@pytest.mark.parametrize(("said", "seconds"), [("", None), ("2", 2), ("0.5", 0.5), ("-3", 0), ("soon", None)])
def test_retry_after_is_read(said: str, seconds: float | None):
    assert read_retry_after({"Retry-After": said}) == seconds


def test_retry_after_may_be_a_date():
    assert read_retry_after({"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}) == 0
