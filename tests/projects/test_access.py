"""Who may do what: every route of the app, asked by everybody."""

import re
from collections.abc import Iterator

import pytest
from fastapi import APIRouter, FastAPI
from sqlmodel import select
from starlette.testclient import TestClient

from app.accounts.logins import COOKIE, make_account, make_login
from app.accounts.models import ROLES, Account
from app.db import transaction
from app.main import create_app
from app.projects.access import ALLOWED, check_policies, declared_policies
from app.projects.models import Project
from app.projects.projects import make_project, set_role


@pytest.fixture
def cookies(sqlite_database: str) -> dict[str, str]:
    """A session of one account a role in `demo`, and of a stranger who owns another project."""
    secrets = {}
    with transaction() as session:
        project = make_project(session, "demo", "Demo", make_account(session, "owner"))
        make_project(session, "other", "Other", make_account(session, "stranger"))
        for name in (*ROLES, "stranger"):
            account = session.exec(select(Account).where(Account.name == name)).first() or make_account(session, name)
            if name != "stranger":
                set_role(session, project, account, name)
            secrets[name] = make_login(session, account, "session")
    return secrets


@pytest.fixture
def app(sqlite_database: str) -> FastAPI:
    return create_app()


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


def fill(path: str) -> str:
    """A path with something in place of its parameters; no such row exists, which is all that a policy may see."""
    path = path.replace("{project}", "demo").replace("{kind}", "import_prompts")
    return re.sub(r"\{[a-z_]+(:[a-z]+)?\}", "999", path)


def ask(client: TestClient, method: str, path: str, cookie: str | None) -> int:
    client.cookies.clear()
    if cookie:
        client.cookies.set(COOKIE, cookie)
    return client.request(method, fill(path), follow_redirects=False).status_code


def test_every_route_keeps_out_whom_its_policy_keeps_out(
    app: FastAPI, client: TestClient, cookies: dict[str, str]
) -> None:
    wrong, n = [], 0
    for method, path, policy in declared_policies(app):
        assert policy is not None
        who = policy.name
        if who == "public" or path == "/account/sessions/revoke":  # the latter would sign the testers out
            continue
        expected = {None: {401, 303}, "stranger": {404}} if who in ALLOWED else {None: {401, 303}}
        expected |= {role: {403} for role in ROLES if who in ALLOWED and role not in ALLOWED[who]}
        for name, codes in expected.items():
            status = ask(client, method, path, cookies.get(name) if name else None)
            n += 1
            if status not in codes:
                wrong.append(f"{method} {path} ({who}) answered {name or 'anonymous'} with {status}")
    assert wrong == [] and n > 300


def test_every_page_lets_in_whom_its_policy_lets_in(app: FastAPI, client: TestClient, cookies: dict[str, str]) -> None:
    wrong = []
    for method, path, policy in declared_policies(app):
        if method != "GET" or policy is None or policy.name not in ALLOWED:
            continue
        for role in sorted(ALLOWED[policy.name]):
            status = ask(client, method, path, cookies[role])
            if status in {401, 403} or status >= 500:
                wrong.append(f"{path} ({policy.name}) answered {role} with {status}")
    assert wrong == []


def test_an_undeclared_route_stops_the_start() -> None:
    bare = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    router = APIRouter()

    @router.get("/p/{project}/secret")
    def secret() -> str:
        return "everything"

    bare.include_router(router)
    with pytest.raises(RuntimeError, match=r"GET /p/\{project\}/secret"):
        check_policies(bare)


def test_a_project_keeps_an_owner(client: TestClient, cookies: dict[str, str]) -> None:
    client.cookies.set(COOKIE, cookies["owner"])
    url = "/p/demo/settings/members"
    assert client.post(url, data={"name": "viewer", "role": "researcher"}, follow_redirects=False).status_code == 303
    assert client.post(url, data={"name": "owner", "role": "viewer"}).status_code == 409
    assert client.post(url, data={"name": "viewer", "role": "king"}).status_code == 422
    refused = client.post(url, data={"name": "nobody", "role": "grader"})
    assert refused.status_code == 404 and 'value="nobody"' in refused.text  # what was typed is kept
    assert "<option selected>grader" in refused.text and "There is no account “nobody”" in refused.text
    page = client.get("/p/demo/settings")
    assert page.status_code == 200 and "researcher" in page.text


def test_projects_are_listed_made_and_refused(client: TestClient, cookies: dict[str, str]) -> None:
    client.cookies.set(COOKIE, cookies["owner"])
    assert client.get("/", follow_redirects=False).headers["location"] == "/p/demo"
    assert "New project" in client.get("/?all=1").text
    made = client.post("/projects", data={"slug": "Second", "name": "The second"}, follow_redirects=False)
    assert made.headers["location"] == "/p/second"
    assert client.get("/p/second").status_code == 200
    assert "The second" in client.get("/").text
    assert client.post("/projects", data={"slug": "demo"}).status_code == 409
    refused = client.post("/projects", data={"slug": "no spaces", "name": "A study"})
    assert refused.status_code == 422 and 'value="no spaces"' in refused.text and 'value="A study"' in refused.text
    assert client.get("/p/other").status_code == client.get("/p/none").status_code == 404


def test_an_account_without_a_project_is_told_what_to_do(client: TestClient, project: Project) -> None:
    with transaction() as session:
        client.cookies.set(COOKIE, make_login(session, make_account(session, "newcomer"), "session"))
    assert "No project yet" in client.get("/").text
