"""The pages of prompts: uploading, pasting, a path, refusals, filters, downloads, and who may do what."""

import csv
import io
import json
from pathlib import Path

import pytest
from sqlmodel import select
from starlette.testclient import TestClient

from app.config import settings
from app.db import get, reading, transaction
from app.projects.models import Membership, Project
from app.prompts.models import Prompt, PromptSet
from app.runs.models import QUEUES, Run
from app.runs.queue import claim
from tests.conftest import forget_settings
from tests.prompts.rows import again, do, made
from worker.child import work

IMPORT = "/p/demo/prompts/import"


def finish_latest() -> Run:
    with transaction() as session:
        run = claim(session, QUEUES, "test", None)
    assert run is not None
    work(run.id, run.attempt)
    return again(run.id)


def texts(run: Run) -> list[str]:
    with reading() as session:
        rows = session.exec(select(Prompt).where(Prompt.set_id == made(run, "prompt_set")).order_by("position"))
        return [row.text for row in rows]


def test_an_empty_project_says_what_to_do_and_the_shipped_set_is_one_click_away(client: TestClient) -> None:
    page = client.get("/p/demo/prompts")
    assert "No prompts yet" in page.text and IMPORT in page.text
    form = {"shipped": "demo", "name": "demo prompts", "form_key": "k1"}
    for _ in range(2):  # a double click
        answer = client.post("/p/demo/new/import_prompts", data=form, follow_redirects=False)
        assert answer.status_code == 303
    run = finish_latest()
    assert run.status == "done", run.error
    with reading() as session:
        assert len(session.exec(select(Run)).all()) == 1
    assert "demo prompts" in client.get("/p/demo/prompts").text
    panel = client.get(f"/p/demo/runs/{run.id}/panel/import_prompts")
    assert "hx-trigger" not in panel.text and "534" in panel.text


def test_a_file_is_uploaded_kept_and_imported_once(client: TestClient, data_dir: Path) -> None:
    rows = [{"instruction": "Add.", "input": "1 and 2", "category": "sums"}, {"instruction": "Say hello."}]
    file = {"file": ("my prompts ä.jsonl", "\n".join(map(json.dumps, rows)), "application/jsonl")}
    form = {"form_key": "u1", "dev_share": "0", "test_share": "0", "may_reject": "false"}
    first = client.post(IMPORT, data=form, files=file, follow_redirects=False)
    second = client.post(IMPORT, data=form, files=file, follow_redirects=False)
    assert first.status_code == 303 and first.headers["location"] == second.headers["location"]
    assert len([p for p in (data_dir / "uploads").rglob("*") if p.is_file()]) == 1
    run = finish_latest()
    assert run.status == "done", run.error
    assert texts(run) == ["Add.\n\n1 and 2", "Say hello."]
    key = made(run, "prompt_set")
    page = client.get(f"/p/demo/prompts/{key}")
    assert "my-prompts-ä" in page.text and "Say hello." in page.text
    assert "Say hello." not in client.get(f"/p/demo/prompts/{key}?category=sums").text
    with reading() as session:
        prompt = session.exec(select(Prompt).where(Prompt.category == "sums")).one()
    opened = client.get(f"/p/demo/prompts/{key}/{prompt.id}", headers={"HX-Request": "true"})
    assert "1 and 2" in opened.text and "<html" not in opened.text
    assert "<html" in client.get(f"/p/demo/prompts/{key}/{prompt.id}").text
    found = client.get(f"/p/demo/prompts/{key}.json").json()["rows"]
    assert [row["category"] for row in found] == ["sums", ""]
    assert len(client.get(f"/p/demo/prompts/{key}.jsonl").text.splitlines()) == 2
    lines = list(csv.DictReader(io.StringIO(client.get("/p/demo/prompts.csv").text)))
    assert lines[0]["n"] == "2"


def test_what_is_downloaded_can_be_imported_again(client: TestClient, project: Project, tmp_path: Path) -> None:
    first = do(project.id, "import_prompts", shipped="demo")
    file = tmp_path / "again.jsonl"
    file.write_bytes(client.get(f"/p/demo/prompts/{made(first, 'prompt_set')}.jsonl").content)
    second = do(project.id, "import_prompts", path=str(file))
    assert second.status == "done", second.error
    with reading() as session:
        one, two = (get(session, PromptSet, made(run, "prompt_set")) for run in (first, second))
        assert (one.sha256, one.counts) == (two.sha256, two.counts)


def test_pasted_text_and_the_api(client: TestClient) -> None:
    answer = client.post(
        IMPORT, data={"text": "What is tea?\n\nWhat is rice?\n", "name": "pasted ones"}, files={"file": ("", b"")}
    )
    assert answer.status_code == 200
    assert texts(finish_latest()) == ["What is tea?", "What is rice?"]
    answer = client.post(
        "/api/v1/p/demo/prompts/import", data={"format": "csv", "prompt_field": "q"},
        files={"file": ("x.csv", b"q,z\nhow?,1\n")},
    )  # fmt: skip
    assert answer.status_code == 201 and answer.json()["recipe"]["prompt_field"] == "q"
    assert texts(finish_latest()) == ["how?"]


REFUSED = [
    ({}, "Choose a file, paste text, or give a path"),
    ({"text": "x", "path": "/tmp/y"}, "one of them only"),
    ({"text": "x", "dev_share": "0.6", "test_share": "0.6"}, "must leave something to train on"),
    ({"text": "x", "limit": "0"}, "must be at least 1"),
]


@pytest.mark.parametrize(("form", "said"), REFUSED)
def test_a_refused_form_keeps_what_was_typed_and_no_file(
    client: TestClient, data_dir: Path, form: dict[str, str], said: str
) -> None:
    page = client.post(IMPORT, data={"name": "kept name", **form}, files={"file": ("", b"")})
    assert page.status_code == 422 and said in page.text and "kept name" in page.text
    assert not [p for p in data_dir.glob("uploads/**/*") if p.is_file()]
    answer = client.post("/api/v1/p/demo/prompts/import", data=form, files={"file": ("", b"")})
    assert answer.status_code == 422 and said in answer.text


def test_an_upload_that_is_too_large_is_refused_before_it_is_read(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFLAB_UPLOAD_MB", "1")
    monkeypatch.setenv("PREFLAB_DATABASE_URL", settings().database)
    forget_settings()
    page = client.post(IMPORT, files={"file": ("big.txt", b"x" * (2 * 2**20))})
    assert page.status_code == 413 and "PREFLAB_UPLOAD_MB" in page.text


def test_rejected_rows_are_shown_and_downloaded(client: TestClient) -> None:
    client.post(IMPORT, data={"text": '{"prompt": "fine"}\n{"prompt": ""}\n'})
    run = finish_latest()
    assert run.status == "failed"
    assert "The last import failed" in client.get("/p/demo/prompts").text
    assert "is empty: fill it" in client.get(f"/p/demo/prompts/rejected/{run.id}").text
    rows = client.get(f"/p/demo/prompts/rejected/{run.id}.json").json()["rows"]
    assert [row["line"] for row in rows] == [2]
    assert "is empty" in client.get(f"/p/demo/runs/{run.id}/panel/import_prompts").text


def test_a_viewer_reads_and_rows_of_another_project_are_not_there(client: TestClient, project: Project) -> None:
    run = do(project.id, "import_prompts", shipped="demo")
    key = made(run, "prompt_set")
    with transaction() as session:
        other = Project(slug="other", name="Other")
        session.add(other)
        session.flush()
        owner = session.exec(select(Membership)).first()
        assert owner is not None
        session.add(Membership(project_id=other.id, account_id=owner.account_id, role="viewer"))
    for path in (f"prompts/{key}", f"prompts/{key}.json", f"prompts/rejected/{run.id}", f"prompts/{key}/1"):
        assert client.get(f"/p/other/{path}").status_code == 404, path
    assert client.get("/p/other/prompts").status_code == 200
    assert client.get("/p/other/prompts/import").status_code == 403
    assert client.post("/p/other/prompts/import", data={"text": "x"}).status_code == 403
    client.cookies.clear()
    assert client.post(IMPORT, data={"text": "x"}).status_code == 401


def test_the_import_of_pairs_has_a_page_too(client: TestClient) -> None:
    row = {"prompt": "p", "chosen": "good", "rejected": "bad"}
    form = client.get("/p/demo/pairs/import").text
    path = form[form.index('<input id="f-path"') :].split(">")[0]
    assert "required" not in path  # a browser would not send a pasted text without it
    client.post("/p/demo/pairs/import", data={"text": json.dumps(row), "labeller": "mine", "name": "my pairs"})
    run = finish_latest()
    assert run.status == "done", run.error
    assert "my pairs" in client.get("/p/demo/pairs").text
    assert "my pairs" in client.get(f"/p/demo/runs/{run.id}/panel/import_pairs").text
