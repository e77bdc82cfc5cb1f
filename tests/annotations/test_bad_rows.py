"""An import that bad rows stopped: they are listed, and leaving them out is one press away."""

import json
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select
from starlette.testclient import TestClient

from app.annotations.models import AnnotationSet
from app.db import reading
from app.home.next_step import find_next_steps
from app.projects.models import Project
from app.prompts.models import PromptSet
from app.runs.models import Run
from tests.prompts.rows import again, do
from tests.review.rows import do_run

LABELS = {"layout": "rows", "scale": "pairwise3", "item_fields": ["q"], "annotator_field": "who", "label_field": "says"}
GOOD: dict[str, dict[str, Any]] = {
    "import_prompts": {"prompt": "Why?"}, "import_pairs": {"prompt": "Why?", "chosen": "So.", "rejected": "No."},
    "import_annotations": {"q": 1, "who": "ann", "says": "a"},
}  # fmt: skip


@pytest.mark.parametrize("kind", GOOD)
def test_the_bad_rows_are_left_out_by_one_press(
    kind: str, client: TestClient, project: Project, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(f"{json.dumps(GOOD[kind])}\nno JSON\n")
    more = LABELS if kind == "import_annotations" else {}
    failed = do(project.id, kind, path=str(file), **more)
    page = client.get(f"/p/demo/runs/{failed.id}").text
    assert failed.status == "failed" and (failed.done, failed.total) == (1, 2)
    assert '<button type="submit" class="primary">Import without the bad row</button>' in page
    assert '<button type="submit">Resume</button>' in page
    panel = client.get(f"/p/demo/runs/{failed.id}/panel/{kind}").text
    assert '<td class="num">2</td><td>no JSON' in panel and "Nothing was stored" in panel
    press = f"/p/demo/import/without/{failed.id}"
    sent = [client.post(press, follow_redirects=False) for _ in range(2)]
    assert [one.status_code for one in sent] == [303, 303] and sent[0].headers["location"] == sent[1].headers[
        "location"
    ]
    run = do_run(int(sent[0].headers["location"].rpartition("/")[2]))
    assert run.recipe == {**failed.recipe, "may_reject": True}
    assert client.post(f"/p/demo/import/without/{run.id}").status_code == 409, "that one did not fail"
    made: Any = AnnotationSet if kind == "import_annotations" else PromptSet
    with reading() as session:
        assert session.exec(select(made)).one().n_rejected == 1
    shown = client.get(f"/p/demo/runs/{run.id}/panel/{kind}").text
    assert "Rows refused" in shown and "no JSON" in shown


@pytest.mark.parametrize("text", ["no JSON\nnor this\n", ""])
def test_without_a_good_row_nothing_is_offered(text: str, client: TestClient, project: Project, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(text)
    run = do(project.id, "import_prompts", path=str(file))
    assert run.status == "failed" and "bad row" not in client.get(f"/p/demo/runs/{run.id}").text
    assert client.post(f"/p/demo/import/without/{run.id}").status_code == 409
    assert client.post("/p/demo/import/without/999").status_code == 404
    assert again(run.id).status == "failed"
    with reading() as session:
        assert len(session.exec(select(Run)).all()) == 1


def test_the_way_from_home_and_from_the_list_passes_through_the_look(client: TestClient, project: Project) -> None:
    with reading() as session:
        urls = {step.label: step.url for step in find_next_steps(session, project)}
    assert urls["Import prompts"] == "/p/demo/prompts/import"
    first = client.get(urls["Import prompts"]).text
    assert 'formaction="/p/demo/import/look">Look at it first' in first
    assert "/p/demo/prompts/import?target=annotations" in client.get("/p/demo/annotations").text
    page = client.get("/p/demo/prompts/import?target=annotations").text
    assert "<h1>Import annotations</h1>" in page and "Import at once" not in page
    sent = {"text": '{"q": 1, "who": "ann", "says": "a"}', "target": "annotations", "format": "jsonl"}
    looked = client.post("/p/demo/import/look", data=sent)
    assert "target=annotations" in str(looked.url) and "As annotations" in looked.text
    refused = client.post("/p/demo/import/look", data={"target": "annotations"})
    assert refused.status_code == 422 and "<h1>Import annotations</h1>" in refused.text
