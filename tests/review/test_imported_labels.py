"""Labels that came with a file are called what they are, in review and on the project's home; no judge gave them."""

import json
from pathlib import Path

from sqlmodel import select
from starlette.testclient import TestClient

from app.db import reading
from app.home.next_step import find_next_steps
from app.judging.models import VerdictSet
from app.projects.models import Project
from app.prompts.recipes import ImportPairsRecipe
from app.review.models import Answer, Queue
from app.review.recipes import AuditRecipe
from tests.review.rows import do


def test_imported_labels_are_not_called_the_judge(client: TestClient, project: Project, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"Question {i}?", "chosen": f"Good {i}.", "rejected": f"Bad {i}."} for i in range(6)]
    file.write_text("\n".join(map(json.dumps, rows)))
    do(project, ImportPairsRecipe(path=str(file), name="house pairs"))
    home = client.get("/p/demo").text
    assert "imported labels, 0 of them unreadable" in home and "verdicts, " not in home
    with reading() as session:
        labels = session.exec(select(VerdictSet)).one()
        texts = [step.text for step in find_next_steps(session, project)]
    assert labels.name == "house pairs: imported labels"
    do(project, AuditRecipe(purpose="audit", verdict_set=labels.id, n=6))
    with reading() as session:
        texts += [step.text for step in find_next_steps(session, project)]
        queue = session.exec(select(Queue)).one()
    assert not any("verdict" in text for text in texts), texts
    root = "/p/demo/review"
    client.post(f"{root}/{queue.id}/next")
    with reading() as session:
        answer = next(one for one in session.exec(select(Answer)).all() if one.account_id)
    shown = client.get(f"{root}/{queue.id}/next").text
    assert "<kbd>N</kbd></dt>" in shown, "the legend names the key of the page after this one"
    client.post(f"{root}/answers/{answer.id}", data={"choice": "left"})
    said = client.get(f"{root}/answers/{answer.id}").text
    assert "and the imported labels" in said and "What the imported labels say" in said
    assert "<dt><kbd>N</kbd></dt>" in said
    whole, listed = client.get(f"{root}/{queue.id}").text, client.get(root).text
    assert "Imported labels and people" in whole and "Each labelled pair" in whole
    assert f"of {labels.name}</span>" in listed
    detail = client.get(f"{root}/{queue.id}/estimates").text
    assert "Imported labels and people, without ties" in detail
    for page in (said, whole, listed.partition("Labels and people")[2], detail):
        assert "the judge" not in page.lower()
