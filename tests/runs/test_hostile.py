"""What a stranger may send: never a crash, never half an answer, the same on both databases."""

import base64
import json
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlmodel import col, select

from app import db
from app.projects.models import Project
from app.prompts.recipes import ImportPromptsRecipe
from app.runs import queue
from app.runs.models import LogLine, Metric, Run, Sampled
from worker.job import Job

HUGE = 2**70


@pytest.fixture
def run_id(project: Project) -> int:
    with db.transaction() as session:
        return queue.launch(session, ImportPromptsRecipe(shipped="demo"), project_id=project.id).id


def cursor(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode()


@pytest.mark.parametrize(
    "query",
    [
        {"after": cursor([None, HUGE])},
        {"after": cursor([None, float("inf")])},
        {"after": cursor(["abc", 1]), "sort": "created_at"},
        {"after": cursor([[1], 1]), "sort": "created_at"},
        {"after": cursor([5, 1]), "sort": "created_at"},
        {"after": cursor([{"at": "2026-01-01"}, 1])},
    ],
)
def test_a_made_up_page_of_a_table_is_refused(client: TestClient, query: dict[str, str]) -> None:
    for path in ("runs", "runs.json"):
        assert client.get(f"/p/demo/{path}", params=query).status_code == 422


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (f"samples?step={HUGE}", 422),
        ("curves?beside=²", 422),
        ("curves?beside=" + "9" * 5000, 422),
        (f"curves?beside={HUGE}", 200),
        (f"curves.json?beside={HUGE}", 404),
    ],
)
def test_numbers_that_cannot_be(client: TestClient, run_id: int, path: str, status: int) -> None:
    assert client.get(f"/p/demo/runs/{run_id}/{path}").status_code == status


@pytest.mark.parametrize("key", [HUGE, -HUGE, 0])
def test_a_recipe_that_points_nowhere(client: TestClient, key: int) -> None:
    answer = client.post("/api/v1/p/demo/runs", json={"kind": "judge", "pair_set": key, "judge": 1})
    assert answer.status_code == 422 and "no pair set" in answer.json()["error"]


def test_half_a_character_is_named_not_a_crash(client: TestClient) -> None:
    headers = {"content-type": "application/json"}
    answer = client.post("/api/v1/p/demo/runs", content=b'{"kind": "\\ud800"}', headers=headers)
    assert answer.status_code == 422 and "no kind of run" in answer.json()["error"]


@pytest.mark.parametrize("origin", ["http://[", "null", "", "http://127.0.0.1.evil.example", "//127.0.0.1"])
def test_a_strange_origin_is_another_site(client: TestClient, run_id: int, origin: str) -> None:
    assert client.post(f"/p/demo/runs/{run_id}/cancel", headers={"origin": origin}).status_code == 403


def test_a_nul_is_refused_in_every_form_on_both_databases(client: TestClient) -> None:
    assert client.post("/account/tokens", data={"label": "a\x00b"}).status_code == 422
    assert client.post("/projects", data={"slug": "abc", "name": "\x00"}).status_code == 422


def test_a_fragment_for_nobody_is_no_login_page(client: TestClient, run_id: int) -> None:
    client.cookies.clear()
    answer = client.get(f"/p/demo/runs/{run_id}/progress", headers={"hx-request": "true"}, follow_redirects=False)
    assert answer.status_code == 401 and "<html" not in answer.text and "sign in" in answer.text


def test_what_a_model_says_is_stored_whatever_it_is(project: Project, run_id: int) -> None:
    with db.transaction() as session:
        run = queue.claim(session, ["cpu"], "w", None)
    assert run is not None
    job = Job(run.id, run.attempt)
    job.log("a\x00b\ud800")
    job.sampled(1, [("p\x00", "t\ud800", None)])
    with db.transaction() as session:
        queue.give_back(session, run.id, run.attempt, is_death=True, why="its output: \x00")
    with db.transaction() as session:
        run = queue.claim(session, ["cpu"], "w", None)
        assert run is not None
        queue.finish(session, run.id, run.attempt, "failed", "Traceback \x00")
    with db.reading() as session:
        assert session.get_one(Run, run_id).error == "Traceback \ufffd"
        said = session.exec(select(LogLine.text).order_by(col(LogLine.id))).all()
        assert list(said) == ["a\ufffdb?", "its output: \ufffd"]
        assert session.exec(select(Sampled.text)).one() == "t?"


def test_every_point_is_downloaded_once_and_in_order(client: TestClient, run_id: int) -> None:
    with db.transaction() as session:
        session.add_all(Metric(run_id=run_id, name=n, step=s, value=0.5) for n in ("b", "a") for s in range(5001))
    lines = client.get(f"/p/demo/runs/{run_id}/metrics.csv").text.splitlines()
    wanted = [f"{name},{step},0.5" for name in ("a", "b") for step in range(5001)]
    assert lines[0] == "name,step,value,at" and [line.rpartition(",")[0] for line in lines[1:]] == wanted
