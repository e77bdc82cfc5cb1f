"""The pages of pairs: sets, both sides opened, completions, Compare, the panel of a generation, downloads."""

import pytest
from sqlmodel import select
from starlette.testclient import TestClient

from app.checkpoints.models import Arm
from app.db import reading, transaction
from app.pairs.models import Completion, Pair
from app.projects.models import Membership, Project
from app.runs.models import Run
from tests.benchmarks.rows import demo_prompts, tiny_checkpoint
from tests.prompts.rows import do, made


@pytest.fixture
def run(client: TestClient, project: Project) -> Run:
    """Pairs across two arms for eight prompts."""
    with transaction() as session:
        key = demo_prompts(session, project, 8, "train").id
    return do(
        project.id, "generate", prompt_set=key, checkpoint=tiny_checkpoint(project, 1, "one"), samples=1,
        name="the pairs",
        other_checkpoint=tiny_checkpoint(project, 2, "two", "dpo"), pairing="across", decoding={"max_new_tokens": 8},
    )  # fmt: skip


def test_a_pair_set_and_its_pairs(client: TestClient, run: Run) -> None:
    assert run.status == "done", run.error
    key = made(run, "pair_set")
    assert "the pairs" in client.get("/p/demo/pairs").text
    page = client.get(f"/p/demo/pairs/{key}")
    assert "What is the capital of France?" in page.text and "/p/demo/new/judge?pair_set=" in page.text
    with reading() as session:
        pair = session.exec(select(Pair).where(Pair.pair_set_id == key)).first()
        assert pair is not None
        a = session.get(Completion, pair.a_id)
    opened = client.get(f"/p/demo/pairs/{key}/{pair.id}", headers={"HX-Request": "true"})
    assert opened.status_code == 200 and "<html" not in opened.text and "arm-dpo" in opened.text
    rows = client.get(f"/p/demo/pairs/{key}.json").json()["rows"]
    assert (
        a is not None and rows[0]["a"] == a.text and {rows[0]["arm_a"], rows[0]["arm_b"]} == {"one · T=1", "two · T=1"}
    )
    assert client.get(f"/p/demo/pairs/{key}?split=dev").text.count("<details") == 0
    assert len(client.get("/p/demo/pairs.jsonl").text.splitlines()) == 1


def test_completions_and_the_panel(client: TestClient, run: Run) -> None:
    with reading() as session:
        arms = session.exec(select(Arm).order_by("id")).all()
    assert len(client.get("/p/demo/pairs/completions.json").json()["rows"]) == 16
    some = client.get(f"/p/demo/pairs/completions.json?arm={arms[0].id}&run={run.id}").json()["rows"]
    assert len(some) == 8 and {row["arm"] for row in some} == {arms[0].name}
    assert client.get("/p/demo/pairs/completions?run=x").status_code == 422
    panel = client.get(f"/p/demo/runs/{run.id}/panel/generate").text
    assert "hx-trigger" not in panel and "8 pairs: the pairs" in panel
    assert panel.count('<th scope="row">') == 2


def test_compare_shows_each_arm_and_walks_from_prompt_to_prompt(client: TestClient, run: Run) -> None:
    page = client.get("/p/demo/checkpoints/compare")
    assert "one · T=1" in page.text and "two · T=1" in page.text and "Previous prompt" in page.text
    with reading() as session:
        arm = session.exec(select(Arm).order_by("id")).first()
        first = session.exec(select(Completion).order_by("prompt_id")).first()
    assert arm is not None and first is not None
    page = client.get(f"/p/demo/checkpoints/compare?prompt={first.prompt_id}&arm={arm.id}")
    assert page.text.count("<article>") == 1 and "Next prompt" in page.text and "Previous prompt" not in page.text


def test_empty_pages_say_what_to_do(client: TestClient) -> None:
    assert "Bring prompts first" in client.get("/p/demo/pairs").text
    assert "Nothing to compare yet" in client.get("/p/demo/checkpoints/compare").text
    assert "Nothing has been written yet" in client.get("/p/demo/pairs/completions").text


def test_rows_of_another_project_are_not_there(client: TestClient, run: Run) -> None:
    with transaction() as session:
        other = Project(slug="other", name="Other")
        session.add(other)
        session.flush()
        owner = session.exec(select(Membership)).first()
        assert owner is not None
        session.add(Membership(project_id=other.id, account_id=owner.account_id, role="owner"))
    with reading() as session:
        prompt = session.exec(select(Completion.prompt_id)).first()
    key = made(run, "pair_set")
    for path in (
        f"pairs/{key}",
        f"pairs/{key}.csv",
        f"pairs/{key}/1",
        f"checkpoints/compare?prompt={prompt}",
        f"runs/{run.id}/panel/generate",
    ):
        assert client.get(f"/p/other/{path}").status_code == 404, path
    assert client.get("/p/other/pairs/completions.json").json()["rows"] == []
