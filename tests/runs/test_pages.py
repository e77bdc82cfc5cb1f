"""Run pages: list, downloads, live progress, curves, cancel and resume, and what other projects see."""

import base64
import csv
import io
import json
import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from app import db
from app.accounts.logins import make_account
from app.accounts.models import Account
from app.projects.models import Project
from app.projects.projects import make_project
from app.prompts.models import PromptSet
from app.prompts.recipes import ImportPromptsRecipe
from app.runs import queue
from app.runs.models import Metric, Run, RunIo, Sampled, Worker

RECIPE = ImportPromptsRecipe(shipped="demo", name="=1+1")


@pytest.fixture
def run_id(project: Project) -> int:
    with db.transaction() as session:
        return queue.launch(session, RECIPE, project_id=project.id).id


def test_an_empty_list_says_what_to_do(client: TestClient) -> None:
    page = client.get("/p/demo/runs")
    assert page.status_code == 200 and "No run yet" in page.text


def test_the_list_is_also_json_csv_and_jsonl(client: TestClient, run_id: int) -> None:
    assert f"/p/demo/runs/{run_id}" in client.get("/p/demo/runs").text
    as_json = client.get("/p/demo/runs.json").json()
    assert [row["id"] for row in as_json["rows"]] == [run_id]
    rows = list(csv.DictReader(io.StringIO(client.get("/p/demo/runs.csv").text)))
    assert rows[0]["title"] == "'=1+1"  # no spreadsheet takes it for a formula
    lines = client.get("/p/demo/runs.jsonl").text.splitlines()
    assert json.loads(lines[0])["status"] == "queued"
    assert client.get("/p/demo/runs?status=done").text.count("Nothing fits these filters") == 1


def test_a_queued_run_says_what_it_waits_for_and_a_done_one_did_all(client: TestClient, project: Project) -> None:
    with db.transaction() as session:
        runs = [Run(project_id=project.id, kind="generate", queue="gpu", recipe={}, recipe_sha256="") for _ in range(3)]
        counted = Run(project_id=project.id, kind="import_prompts", queue="cpu", recipe={}, recipe_sha256="", done=400,
                      status="done")  # fmt: skip
        session.add_all([*runs, counted])
        session.flush()
        first, _, last = [run.id for run in runs]
    assert "waiting 2 ahead of it in the queue" in client.get(f"/p/demo/runs/{last}").text
    with db.transaction() as session:
        assert queue.claim(session, ["gpu"], "test", "gpu:0").id == first  # type: ignore[union-attr]
    said = f"waiting behind run {first} on gpu:0, 1 ahead of it in the queue"
    assert said in client.get(f"/p/demo/runs/{last}/progress").text
    assert client.get("/p/demo/runs.json?status=done").json()["rows"][0]["total"] == 400


def test_a_paused_run_is_called_so_wherever_runs_are_listed(client: TestClient, run_id: int) -> None:
    with db.transaction() as session:
        run = queue.claim(session, ["cpu"], "test", None)
        assert run is not None
        queue.finish(session, run.id, run.attempt, "cancelled", "Paused after step 3: look at ten pairs.")
    page = client.get("/p/demo/runs").text
    assert page.count("badge-paused") == 2 and "Resume run 1" in page and "badge-cancelled" not in page
    assert client.get("/p/demo/runs.json?status=paused").json()["rows"][0]["status"] == "paused"
    assert client.get("/p/demo/runs.json?status=cancelled").json()["rows"] == []
    assert client.get(f"/p/demo/runs/{run_id}.json").json()["status"] == "paused"
    home = client.get("/p/demo").text
    assert "badge-paused" in home and "is paused: look at what it hands over, then resume it" in home
    again = client.post(f"/api/v1/p/demo/runs/{run_id}/cancel")
    assert again.status_code == 409 and "already paused" in again.json()["error"]
    assert client.post(f"/api/v1/p/demo/runs/{run_id}/resume").json()["status"] == "queued"
    assert client.post(f"/api/v1/p/demo/runs/{run_id}/cancel").json()["status"] == "cancelled"
    assert "badge-paused" not in client.get("/p/demo/runs").text


def test_workers_that_were_lost_long_ago_are_folded_away_and_counted(client: TestClient) -> None:
    assert "No worker yet" in client.get("/p/demo/workers").text
    ages = {"busy": 2, "gone": 3600, "old": 90_000, "older": 900_000}
    with db.transaction() as session:
        clock = db.db_now(session)
        session.add_all(Worker(name=name, queues="cpu", beat_at=clock - age) for name, age in ages.items())
    lately, _, folded = client.get("/p/demo/workers").text.partition("<details")
    assert "busy" in lately and "60 min ago" in lately and "older" not in lately
    assert "2 not heard of for more than a day" in folded and "10 days ago" in folded and "25 h ago" in folded
    assert "busy" not in folded


def test_keyset_pages_show_every_row_once(client: TestClient, project: Project) -> None:
    with db.transaction() as session:
        wanted = {queue.launch(session, RECIPE, project_id=project.id).id for _ in range(120)}
    for sort in ("", "created_at", "-created_at"):
        seen: list[int] = []
        url = f"/p/demo/runs?sort={sort}"
        while url:
            page = client.get(url)
            table = page.text[page.text.index("<tbody>") : page.text.index("</tbody>")]
            seen += [int(part.split('"')[0]) for part in table.split('href="/p/demo/runs/')[1:]][::2]
            url = (
                page.text.split('rel="next"')[0].rpartition('<a href="')[2].rstrip('" ')
                if 'rel="next"' in page.text
                else ""
            )
            url = url.replace("&amp;", "&")
        assert len(seen) == 120 and set(seen) == wanted
    assert client.get("/p/demo/runs?sort=recipe").status_code == 422
    assert client.get("/p/demo/runs?after=rubbish").status_code == 422
    forged = [["a"], 1], [{"at": "0001-01-01T00:00:00+23:59"}, 1]  # whoever writes a cursor may write anything
    for path, cursor in zip(("pairs/completions", "pairs?sort=-created_at"), forged, strict=True):
        after = base64.urlsafe_b64encode(json.dumps(cursor).encode()).decode()
        assert client.get(f"/p/demo/{path}{'&' if '?' in path else '?'}after={after}").status_code == 422, path


def test_the_live_part_asks_again_until_the_run_has_ended(client: TestClient, run_id: int) -> None:
    assert "every 1s" in client.get(f"/p/demo/runs/{run_id}").text
    assert client.post(f"/p/demo/runs/{run_id}/cancel", follow_redirects=False).status_code == 303
    rest = client.get(f"/p/demo/runs/{run_id}/progress").text
    assert "every 1s" not in rest and "cancelled" in rest
    assert client.post(f"/p/demo/runs/{run_id}/cancel").status_code == 409
    assert client.post(f"/api/v1/p/demo/runs/{run_id}/resume").json()["status"] == "queued"


def test_samples_whose_detail_says_little_are_shown(client: TestClient, run_id: int) -> None:
    detail = {"prompt": 1.0, "kl": 0.5, "group": 0.0, "length": 7.0}  # as worker/measure.py stores them
    with db.transaction() as session:
        session.add(Sampled(run_id=run_id, step=0, place=0, prompt="Why?", text="So.", detail=detail))
    page = client.get(f"/p/demo/runs/{run_id}/samples")
    assert page.status_code == 200 and "7 tokens" in page.text and "Why?" in page.text


def test_curves_are_decimated_and_keep_the_last_point(client: TestClient, run_id: int) -> None:
    with db.transaction() as session:
        for step in range(2000):
            session.add(Metric(run_id=run_id, name="loss", step=step, value=step / 2))
        session.add(Metric(run_id=run_id, name="dev_loss", step=7, value=None))
    found = client.get(f"/p/demo/runs/{run_id}/curves.json?figure=loss&points=100").json()
    train, dev = found["series"]
    assert train["label"] == "train" and 90 <= len(train["step"]) <= 102
    assert train["step"][0] == 0 and train["step"][-1] == 1999 and train["value"][-1] == 999.5
    assert dev["step"] == [7] and dev["value"] == [None]
    assert client.get(f"/p/demo/runs/{run_id}/curves").text.count("data-curve=") == 1
    assert len(client.get(f"/p/demo/runs/{run_id}/metrics.csv").text.splitlines()) == 2002


def test_other_projects_see_nothing(client: TestClient, run_id: int) -> None:
    with db.transaction() as session:
        make_project(session, "other", "Other", make_account(session, "stranger"))
    for path in ("runs/1", "runs", "workers", "new/judge"):
        assert client.get(f"/p/other/{path}").status_code == 404
    with db.transaction() as session:
        session.get_one(Run, run_id)
        owner = session.get_one(Account, 1)
        make_project(session, "mine", "Mine", owner)
    assert client.get(f"/p/mine/runs/{run_id}").status_code == 404
    assert client.post(f"/p/mine/runs/{run_id}/cancel").status_code == 404


@pytest.mark.parametrize("path", ["runs/0", f"runs/{2**63}", "runs/99999999999999999999", "runs/x", "runs/1%00"])
def test_ids_that_cannot_be_are_refused_and_never_a_500(client: TestClient, path: str) -> None:
    assert client.get(f"/p/demo/{path}").status_code in {404, 422}


def test_a_form_keeps_what_was_typed_and_marks_the_field(client: TestClient) -> None:
    answer = client.post(
        "/p/demo/new/import_prompts", data={"shipped": "demo", "dev_share": "7", "name": "typed", "form_key": "k"}
    )
    assert answer.status_code == 422
    assert 'value="typed"' in answer.text and 'value="7"' in answer.text
    assert answer.text.count('aria-invalid="true"') == 1 and 'value="k"' in answer.text
    both = client.post("/p/demo/new/import_prompts", data={"shipped": "demo", "path": "x.jsonl"})
    assert both.status_code == 422 and "one of the two" in both.text


def test_a_form_sent_twice_is_one_run_and_the_page_follows(client: TestClient) -> None:
    form = {"shipped": "demo", "form_key": "same"}
    answers = [client.post("/p/demo/new/import_prompts", data=form, follow_redirects=False) for _ in range(3)]
    there = {answer.headers["location"] for answer in answers}
    assert len(there) == 1
    again = client.get(f"/p/demo/new/import_prompts?like={there.pop().rpartition('/')[2]}")
    assert again.status_code == 200 and "selected" in again.text


def test_the_api_takes_the_same_recipe_and_names_what_is_wrong(client: TestClient) -> None:
    made = client.post("/api/v1/p/demo/runs", json={"kind": "import_prompts", "shipped": "demo"})
    assert made.status_code == 201 and made.json()["status"] == "queued"
    wrong = client.post("/api/v1/p/demo/runs", json={"kind": "import_prompts", "shipped": "demo", "sede": 3})
    assert wrong.status_code == 422 and "sede" in wrong.json()["fields"]
    assert client.post("/api/v1/p/demo/runs", json={"kind": "nothing"}).status_code == 422
    assert client.post("/api/v1/p/demo/runs", json={"kind": "judge", "pair_set": 1, "judge": 1}).status_code == 422
    hostile = {"kind": "import_prompts", "path": "a\x00b"}
    assert client.post("/api/v1/p/demo/runs", json=hostile).status_code == 422
    assert client.post("/api/v1/p/demo/runs", content=b'{"kind":"import_prompts","path":"\\ud800"}',
                       headers={"content-type": "application/json"}).status_code == 422  # fmt: skip


def test_writes_from_another_site_are_refused(client: TestClient, run_id: int) -> None:
    url = f"/p/demo/runs/{run_id}/cancel"
    for headers in (
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "http://evil.example"},
    ):
        assert client.post(url, headers=headers).status_code == 403
    assert client.post(url, headers={"origin": "http://127.0.0.1"}, follow_redirects=False).status_code == 303
    assert client.get("/p/demo/runs", headers={"host": "evil.example"}).status_code == 400


def test_a_run_as_json_names_the_rows_it_read_and_made(client: TestClient, project: Project, run_id: int) -> None:
    with db.transaction() as session:
        made = PromptSet(project_id=project.id, name="demo prompts", state="ready", sha256="f" * 64)
        session.add(made)
        session.flush()
        queue.record_output(session, run_id, "prompt_set", made.id, made.sha256)
        session.add(RunIo(run_id=run_id, is_output=False, noun="run", ref_id=run_id))
    row = {"noun": "prompt_set", "id": made.id, "name": "demo prompts", "sha256": "f" * 64}
    for path in (f"/api/v1/p/demo/runs/{run_id}", f"/p/demo/runs/{run_id}.json"):
        found = client.get(path).json()
        assert (found["id"], found["status"], found["made"]) == (run_id, "queued", [row])
        assert [(one["noun"], one["id"]) for one in found["read"]] == [("run", run_id)]
    cancelled = client.post(f"/api/v1/p/demo/runs/{run_id}/cancel").json()
    assert (cancelled["status"], cancelled["made"]) == ("cancelled", [row])
    api = client.post("/api/v1/p/demo/runs", json={"kind": "generate", "prompt_set": made.id, "checkpoint": 1})
    assert api.status_code == 422  # no such checkpoint
    launched = client.post("/api/v1/p/demo/runs", json={"kind": "red_team", "way": "templates", "prompt_set": made.id})
    assert launched.status_code == 201, launched.text
    assert (launched.json()["read"], launched.json()["made"]) == ([row | {"sha256": ""}], [])


def test_the_requests_that_the_docs_name_are_there(client: TestClient) -> None:
    paths = client.get("/api/v1/openapi.json").json()["paths"]
    said = re.findall(r"`(GET|POST) (/api/v1/[^`?]*)`", Path("docs/api.md").read_text(encoding="utf-8"))
    assert len(said) >= 5 and all(method.lower() in paths.get(path, {}) for method, path in said), said
