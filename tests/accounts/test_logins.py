"""Signing in and out: passwords, one-time links, sessions, tokens, cross-site posts."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlmodel import Session, select
from starlette.testclient import TestClient

from app.accounts import logins
from app.accounts.logins import COOKIE, MOST_FAILURES, hash_secret, make_account, make_login
from app.accounts.models import Account, Login, LoginFailure
from app.db import now, reading, transaction
from app.errors import Conflict, Invalid, NotSignedIn
from app.main import create_app


@pytest.fixture
def anonymous(client: TestClient) -> TestClient:
    """The same app, nobody signed in."""
    client.cookies.clear()
    return client


def owner(session: Session) -> Account:
    return session.exec(select(Account).where(Account.name == "owner")).one()


def test_a_password_signs_in_and_logging_out_ends_the_session(anonymous: TestClient) -> None:
    wrong = anonymous.post("/login", data={"name": "owner", "password": "wrong horse"})
    assert wrong.status_code == 401 and "do not go together" in wrong.text and 'value="owner"' in wrong.text
    assert anonymous.post("/login", data={"name": "nobody", "password": "wrong horse"}).status_code == 401
    there = {"name": "owner", "password": "correct horse", "next": "/p/demo/runs"}
    right = anonymous.post("/login", data=there, follow_redirects=False)
    assert (right.status_code, right.headers["location"]) == (303, "/p/demo/runs")
    flags = right.headers["set-cookie"].lower()
    assert "httponly" in flags and "samesite=lax" in flags
    secret = anonymous.cookies[COOKIE]
    assert anonymous.get("/account").status_code == 200
    anonymous.post("/logout")
    anonymous.cookies.set(COOKIE, secret)
    again = anonymous.get("/account", follow_redirects=False)
    assert again.status_code == 303 and again.headers["location"].startswith("/login")


def wrong(client: TestClient, name: str, n: int) -> set[int]:
    """The answers to so many wrong passwords."""
    return {client.post("/login", data={"name": name, "password": "wrong horse"}).status_code for _ in range(n)}


def test_guessing_is_slowed_down_for_a_name_and_for_an_address(
    anonymous: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with transaction() as session:
        make_account(session, "other", "correct horse")
    assert wrong(anonymous, "owner", MOST_FAILURES) == {401}
    right = {"name": "owner", "password": "correct horse"}
    refused = anonymous.post("/login", data=right)
    assert refused.status_code == 429 and "wait 5 minutes" in refused.text and "one-time link" in refused.text
    assert COOKIE not in anonymous.cookies
    another_process = TestClient(create_app(), base_url="http://localhost")  # what counts is in the database
    assert another_process.post("/login", data=right).status_code == 429
    assert anonymous.post("/login", data={**right, "name": "other"}, follow_redirects=False).status_code == 303
    with transaction() as session:
        kept = session.exec(select(LoginFailure)).all()
        assert len(kept) == 2 * MOST_FAILURES, "a refused try neither counts nor lengthens the wait"
        for one in kept:
            one.at = now() - timedelta(minutes=6)
    assert anonymous.post("/login", data=right, follow_redirects=False).status_code == 303
    assert wrong(anonymous, "nobody", 1) == {401}
    with reading() as session:
        assert len(session.exec(select(LoginFailure)).all()) == 2, "old ones are forgotten"
    monkeypatch.setattr(logins, "MOST_FROM_ADDRESS", 3)
    assert wrong(anonymous, "a", 1) | wrong(anonymous, "b", 1) == {401} and wrong(anonymous, "c", 1) == {429}


@pytest.mark.parametrize("next_", ["//evil.example", "https://evil.example/", "/\\evil.example", "javascript:alert(1)"])
def test_signing_in_never_leads_to_another_site(anonymous: TestClient, next_: str) -> None:
    form = {"name": "owner", "password": "correct horse", "next": next_}
    assert anonymous.post("/login", data=form, follow_redirects=False).headers["location"] == "/"


def test_a_link_asks_for_a_press_and_works_once(anonymous: TestClient) -> None:
    with transaction() as session:
        secret = make_login(session, owner(session), "link")
    for _ in range(2):  # a preview of the link does not use it up
        assert anonymous.get(f"/login/{secret}").status_code == 200
    assert anonymous.post(f"/login/{secret}", follow_redirects=False).status_code == 303
    assert anonymous.get("/account").status_code == 200
    anonymous.cookies.clear()
    second = anonymous.post(f"/login/{secret}", follow_redirects=False)
    assert second.status_code == 401 and "used already" in second.text


def test_of_many_who_open_a_link_at_one_moment_one_gets_in(client: TestClient) -> None:
    with transaction() as session:
        secret = make_login(session, owner(session), "link")
    ready = threading.Barrier(6)

    def press(_: int) -> bool:
        with transaction() as session:
            session.exec(select(Account)).all()  # connected
            session.rollback()
            ready.wait()
            try:
                logins.use_link(session, secret)
            except NotSignedIn:
                return False
            time.sleep(0.05)  # the others come before this one is stored
            return True

    with ThreadPoolExecutor(6) as people:
        assert sum(people.map(press, range(6))) == 1


def test_a_link_runs_out(anonymous: TestClient) -> None:
    with transaction() as session:
        secret = make_login(session, owner(session), "link")
        session.flush()
        login = session.exec(select(Login).where(Login.token_sha256 == hash_secret(secret))).one()
        login.expires_at = now() - timedelta(seconds=1)
    assert anonymous.post(f"/login/{secret}").status_code == 401


def test_a_token_is_shown_once_and_ends(client: TestClient) -> None:
    made = client.post("/account/tokens", data={"label": "my script"})
    secret = made.text.split('id="secret">')[1].split("<")[0]
    assert secret.startswith("pl_") and secret not in client.get("/account").text
    with reading() as session:
        stored = session.exec(select(Login).where(Login.kind == "token")).one()
        assert secret not in stored.model_dump_json()
    client.cookies.clear()
    bearer = {"Authorization": f"Bearer {secret}"}
    assert client.get("/p/demo/runs.json", headers=bearer).status_code == 200
    assert client.get("/p/demo/runs.json", headers={"Authorization": "Bearer pl_wrong"}).status_code == 401
    client.cookies.set(COOKIE, secret)
    assert client.get("/p/demo/runs.json").status_code == 401  # a token is no session
    client.cookies.clear()
    client.post(f"/account/tokens/{stored.id}/revoke", headers=bearer)
    assert client.get("/p/demo/runs.json", headers=bearer).status_code == 401


def test_nobody_ends_anothers_token(client: TestClient) -> None:
    with transaction() as session:
        make_login(session, make_account(session, "other"), "token")
        session.flush()
        token = session.exec(select(Login).where(Login.kind == "token")).one().id
    assert client.post(f"/account/tokens/{token}/revoke").status_code == 404


def test_signing_out_everywhere(client: TestClient) -> None:
    assert client.post("/account/sessions/revoke", follow_redirects=False).status_code == 303
    assert client.get("/account", follow_redirects=False).status_code == 303


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "http://127.0.0.1"}, 200),
        ({}, 200),
    ],
)
def test_a_post_from_another_site_is_refused(client: TestClient, headers: dict[str, str], status: int) -> None:
    assert client.post("/account/tokens", data={"label": "x"}, headers=headers).status_code == status


def test_names_and_passwords_are_checked(client: TestClient) -> None:
    with transaction() as session:
        for name, password in (("", None), ("x" * 81, None), ("short", "123456789")):
            with pytest.raises(Invalid):
                make_account(session, name, password)
        with pytest.raises(Conflict):
            make_account(session, "owner")


def test_headers_keep_scripts_and_frames_out(anonymous: TestClient) -> None:
    answers = {
        "a page": (anonymous.get("/login"), 200),
        "no page": (anonymous.get("/nowhere"), 404),
        "another site's": (anonymous.post("/login", headers={"Sec-Fetch-Site": "cross-site"}), 403),
        "a NUL": (anonymous.get("/login?next=%00"), 422),
        "a file": (anonymous.get("/static/app.css"), 200),
    }
    for what, (answer, status) in answers.items():
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'self'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy, what
        assert (answer.status_code, answer.headers["X-Content-Type-Options"]) == (status, "nosniff"), what
        assert len(answer.headers["X-Request-Id"]) == 12 and answer.headers["Referrer-Policy"] == "same-origin", what
        assert (answer.headers.get("Cache-Control") == "no-store") == (what != "a file"), what
