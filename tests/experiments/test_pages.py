"""Experiments on pages and by API: starting, the live board, what is refused."""

import json

import pytest
from starlette.testclient import TestClient

from app.db import reading
from app.experiments.advance import advance_all
from app.experiments.models import Experiment
from app.experiments.routes import read_seeds, read_variables
from tests.experiments.test_advance import SIMPLE, work_off

ROOT = "/p/demo/experiments"


def test_the_list_offers_the_shipped_files(client: TestClient) -> None:
    page = client.get(ROOT)
    assert page.status_code == 200 and "No experiment yet" in page.text
    assert f"{ROOT}/new?file=demo" in page.text
    form = client.get(f"{ROOT}/new?file=demo")
    assert form.status_code == 200 and "kind: demo_base" in form.text


def test_a_form_starts_one_experiment_however_often_it_is_sent(client: TestClient) -> None:
    form = {"text": SIMPLE, "seeds": "5-6", "scale": "", "variables": "", "form_key": "k"}
    answers = [client.post(f"{ROOT}/new", data=form, follow_redirects=False) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [303, 303]
    assert answers[0].headers["location"] == answers[1].headers["location"]
    board = client.get(answers[0].headers["location"])
    assert "hx-trigger" in board.text and "5" in board.text
    for _ in range(3):
        advance_all()
        work_off()
    done = client.get(answers[0].headers["location"] + "/board")
    assert "hx-trigger" not in done.text and "badge-done" in done.text
    rows = client.get(f"{ROOT}.json").json()["rows"]
    assert [(row["name"], row["status"], row["seeds"]) for row in rows] == [("Simple", "done", [5, 6])]
    assert client.get(f"{ROOT}.csv").text.startswith("id,name,status")


def test_the_form_keeps_what_was_typed_and_says_what_is_wrong(client: TestClient) -> None:
    wrong = SIMPLE.replace("shipped: demo, dev", "shiped: demo, dev")
    answer = client.post(f"{ROOT}/new", data={"text": wrong, "seeds": "two", "variables": "x"})
    assert answer.status_code == 422 and "Seeds" in answer.text and "shiped: demo" in answer.text
    answer = client.post(f"{ROOT}/new", data={"text": wrong, "seeds": "2"})
    assert answer.status_code == 422 and "step “later”" in answer.text
    with reading() as session:
        assert session.get(Experiment, 1) is None


def test_the_api_starts_shows_cancels_and_retries(client: TestClient) -> None:
    api = "/api/v1/p/demo/experiments"
    made = client.post(api, json={"text": SIMPLE, "seeds": [2], "form_key": "once"})
    assert made.status_code == 201
    one = made.json()
    assert one["n_steps"] == 2 and one["steps"][0]["status"] == "waiting"
    assert client.post(api, json={"text": SIMPLE, "seeds": [2], "form_key": "once"}).json()["id"] == one["id"]
    assert client.post(f"{api}/{one['id']}/cancel").json()["status"] == "cancelled"
    assert client.post(f"{api}/{one['id']}/cancel").status_code == 409
    assert client.post(f"{api}/{one['id']}/retry").json()["status"] == "running"
    assert client.post(f"{api}/{one['id']}/explode").status_code == 404
    assert client.post(api, json={"file": "nothing"}).status_code == 422
    assert client.post(api, json={"text": SIMPLE, "sedes": [2]}).status_code == 422
    assert client.get(f"{ROOT}/{one['id']}.json").json()["name"] == "Simple"


@pytest.mark.parametrize(
    "text",
    [
        "[" * 5000,
        "a: &x [1]\nb: *x",
        "steps: 3",
        "\ud800",
        "name: \x00",
        "{}",
        "name: x\nsteps: [{name: a, recipe: 3}]",
    ],
)
def test_nothing_pasted_breaks_the_server(client: TestClient, text: str) -> None:
    answer = client.post("/api/v1/p/demo/experiments", content=json.dumps({"text": text}))
    assert answer.status_code == 422, answer.text


def test_seeds_and_variables_are_read() -> None:
    assert read_seeds("1, 3 5-7") == [1, 3, 5, 6, 7] and read_seeds("") == []
    assert read_variables("a=b=c\n\n d = e ") == {"a": "b=c", "d": "e"}
