"""Home: what each stage has, the next sensible step from an empty project to the report, and the API's description."""

import re
from pathlib import Path
from typing import Any

from sqlmodel import select
from starlette.testclient import TestClient

from app.accounts.logins import make_account
from app.db import get, now, reading, transaction
from app.grading.models import Grade, GradeItem
from app.home.next_step import find_next_steps
from app.home.pipeline import read_stages
from app.pairs.models import PairSet
from app.projects.models import Project
from app.prompts.models import PromptSet
from app.recipes import RECIPES, read_recipe
from app.runs.models import Run
from app.runs.queue import launch
from app.training.models import Snapshot
from tests.experiments.test_advance import work_off
from tests.grading.rows import make_marked_grading

# A field of a nested model, as the form names it.
SHORT: dict[str, Any] = {"decoding.max_new_tokens": 8}


def press(client: TestClient, is_only_read: bool = False, **fields: object) -> str:
    """Presses the next step: fills its form with what the link gives plus `fields`, and works off the run."""
    page = client.get("/p/demo").text
    label, url = re.search(r'class="button primary" href="([^"]+)">([^<]+)', page).group(2, 1)  # type: ignore[union-attr]
    path, _, query = url.replace("&amp;", "&").partition("?")
    if "/new/" in path and not is_only_read:
        assert client.get(f"{path}?{query}").status_code == 200
        given = dict(part.split("=", 1) for part in query.split("&") if part)
        answer = client.post(path, data={**given, **{k: str(v) for k, v in fields.items()}}, follow_redirects=False)
        assert answer.status_code == 303, answer.text
        work_off()
    return label


def start(project: Project, kind: str, **fields: object) -> None:
    with transaction() as session:
        launch(session, read_recipe({"kind": kind, **fields}), project_id=project.id)
    work_off()


def test_the_next_step_leads_from_nothing_to_training(client: TestClient, project: Project, tmp_path: Path) -> None:
    assert press(client, is_only_read=True) == "Start the demo"
    start(project, "import_prompts", shipped="demo")
    assert press(client, is_only_read=True) == "Import a checkpoint"
    start(project, "demo_base", steps=2, batch_size=4, hidden=32, mlp=32, layers=1, heads=2)
    assert press(client, limit=6, samples=4, **SHORT) == "Generate pairs"
    assert press(client, judge_kind="rule") == "Add a judge"
    assert press(client) == "Judge them"
    # the untrained base writes nothing worth preferring, so the preferences come from a file
    rows = [f'{{"prompt": "Question {i}?", "chosen": "Good {i}.", "rejected": "Bad {i}."}}' for i in range(20)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(rows))
    start(project, "import_pairs", path=str(tmp_path / "pairs.jsonl"))
    assert press(client) == "Freeze preferences"
    with reading() as session:
        assert set(session.exec(select(Run.status)).all()) == {"done"}
        assert find_next_steps(session, project)[0].label == "Train SFT"
    with transaction() as session:  # an override after the freeze makes the snapshot stale
        snapshot = session.exec(select(Snapshot)).one()
        get(session, PairSet, snapshot.pair_set_id).labels_version += 1
    with reading() as session:
        assert find_next_steps(session, project)[0].label == "Freeze them again"


def test_the_stages_show_what_is_there(client: TestClient, project: Project) -> None:
    empty = client.get("/p/demo")
    assert empty.status_code == 200 and empty.text.count("prompts in 0 sets") == 1
    start(project, "import_prompts", shipped="demo")
    start(project, "import_prompts", path="absent.jsonl")
    page = client.get("/p/demo").text
    assert "534" in page and "prompts in 1 set" in page
    assert "badge-failed" in page  # the last import


def test_grades_are_counted_by_item_and_what_is_put_away_not_at_all(project: Project) -> None:
    with transaction() as session:
        grading = make_marked_grading(session, project, n=3)
        items = session.exec(select(GradeItem.id).where(GradeItem.grading_id == grading.id)).all()
        people = [make_account(session, f"grader {i}").id for i in range(2)]
        session.add_all(Grade(item_id=items[0], account_id=one, choice="left") for one in people)
        session.add(Grade(item_id=items[1], account_id=people[0], choice="skip"))
        session.add(PromptSet(project_id=project.id, name="old", state="ready", n=9, archived_at=now()))
    with reading() as session:
        stages = {stage.label: (stage.count, stage.about) for stage in read_stages(session, project)}
    assert stages["Grade"] == (1, "of 3 items graded") and stages["Prompts"] == (3, "prompts in 1 set")


def test_openapi_describes_writes_and_files_and_nothing_else(client: TestClient) -> None:
    api = client.get("/api/v1/openapi.json").json()
    assert all(path.startswith("/api/v1/") or path.endswith((".json", ".csv", ".jsonl")) for path in api["paths"])
    assert {"/p/{project}/runs.csv", "/api/v1/p/{project}/experiments"} <= api["paths"].keys()
    body = api["paths"]["/api/v1/p/{project}/runs"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    kinds = [
        api["components"]["schemas"][ref["$ref"].rpartition("/")[2]]["properties"]["kind"] for ref in body["oneOf"]
    ]
    assert [kind["const"] for kind in kinds] == list(RECIPES)
    assert api["security"] == [{"token": []}]
