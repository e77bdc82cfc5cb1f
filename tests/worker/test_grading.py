"""Preparing a grading by the real worker function on tiny checkpoints, resumed, and over arms of other kinds."""

import pytest
from fastapi.testclient import TestClient
from sqlmodel import col, select

from app.accounts.models import Account
from app.checkpoints.arms import find_or_make_arm, find_or_make_imported_arm
from app.checkpoints.models import Arm
from app.db import get, reading, transaction
from app.grading.items import Marks, give_grade
from app.grading.models import GradeItem, Grading
from app.grading.recipes import GradingRecipe
from app.pairs.models import Completion
from app.projects.models import Project
from app.prompts.models import Prompt
from app.revising.recipes import InContextRecipe
from app.runs.models import LogLine, Run, RunIo
from app.runs.queue import launch, outputs
from tests.benchmarks.rows import demo_prompts, fresh_project, tiny_checkpoint
from tests.review.rows import do, do_run
from tests.revising.rows import make_constitution
from worker.child import work

SHORT = {"max_new_tokens": 12, "temperature": 1.0}


@pytest.fixture
def demo(sqlite_database: str) -> Project:
    """A project on SQLite: these runs are about models, not about databases."""
    return fresh_project()


def prompts_of(project: Project, n: int) -> int:
    with transaction() as session:
        return demo_prompts(session, project, n).id


def grading_of(run: Run) -> tuple[Grading, list[GradeItem]]:
    with reading() as session:
        grading = session.exec(select(Grading).where(Grading.run_id == run.id)).one()
        items = session.exec(
            select(GradeItem).where(GradeItem.grading_id == grading.id).order_by(col(GradeItem.position))
        )
        return grading, list(items.all())


def test_the_same_prompts_go_through_every_checkpoint(demo: Project) -> None:
    one, two = tiny_checkpoint(demo, 1), tiny_checkpoint(demo, 2, "other", "dpo")
    run = do(demo, GradingRecipe(prompt_set=prompts_of(demo, 12), checkpoints=[one, two], n_prompts=8,
                                 decoding=SHORT, batch_size=4, seed=3))  # fmt: skip
    grading, items = grading_of(run)
    with reading() as session:
        arms = [get(session, Arm, arm) for arm in grading.arms]
        assert [arm.checkpoint_id for arm in arms] == [one, two]
        for item in items:
            sides = [get(session, Completion, side) for side in (item.left_id, item.right_id)]
            assert {side.arm_id for side in sides} == set(grading.arms)
            assert {side.prompt_id for side in sides} == {item.prompt_id} and {s.run_id for s in sides} == {run.id}
            assert item.is_identical == (sides[0].text.strip() == sides[1].text.strip())
        lefts = [get(session, Completion, item.left_id).arm_id for item in items]
        made = session.exec(select(RunIo.noun).where(RunIo.run_id == run.id, RunIo.is_output)).all()
        tokens = get(session, Run, run.id).cost["generated_tokens"]
    assert len(items) == 8 == grading.planned_n + grading.n_identical
    assert sorted(lefts.count(arm.id) for arm in arms) == [4, 4]
    assert sorted(made) == ["arm", "arm", "grading"] and tokens > 0


def test_a_checkpoint_against_itself_gives_only_ties(demo: Project) -> None:
    """Two arms of one checkpoint, both greedy: they write the same."""
    one = tiny_checkpoint(demo)
    prompts = prompts_of(demo, 4)
    with transaction() as session:
        greedy = {"temperature": 0.0, "top_p": 1.0, "max_new_tokens": 12}
        arms = [
            find_or_make_arm(session, demo.id, checkpoint=one, decoding=greedy).id,
            find_or_make_arm(session, demo.id, checkpoint=one, decoding=greedy | {"note": 1}).id,
        ]
    run = do(demo, GradingRecipe(prompt_set=prompts, arms=arms, n_prompts=4))
    grading, items = grading_of(run)
    assert (grading.planned_n, grading.n_identical) == (0, 4) and all(item.is_identical for item in items)
    with reading() as session:
        assert any("nothing to grade" in line.text for line in session.exec(select(LogLine)).all())


def test_a_run_taken_up_again_makes_one_grading(demo: Project) -> None:
    one, two = tiny_checkpoint(demo, 1), tiny_checkpoint(demo, 2, "other", "dpo")
    recipe = GradingRecipe(prompt_set=prompts_of(demo, 6), checkpoints=[one, two], n_prompts=6, decoding=SHORT)
    run = do(demo, recipe)
    grading, items = grading_of(run)
    with transaction() as session:  # as if the worker had died just after the last write
        row = get(session, Run, run.id)
        row.status, row.attempt = "running", row.attempt + 1
    assert work(run.id, run.attempt + 1) == "done"
    after, again = grading_of(run)
    assert after.id == grading.id and [item.token for item in again] == [item.token for item in items]


def test_imported_completions_are_an_arm_too(demo: Project) -> None:
    one, prompts = tiny_checkpoint(demo), prompts_of(demo, 5)
    with transaction() as session:
        arm = find_or_make_imported_arm(session, demo.id, "people").id
        file = launch(session, GradingRecipe(prompt_set=prompts, checkpoints=[one], arms=[arm]), project_id=demo.id)
        file.status = "done"
        rows = session.exec(select(Prompt).where(Prompt.set_id == prompts).order_by(col(Prompt.position))).all()
        session.add_all([Completion(prompt_id=p.id, arm_id=arm, run_id=file.id, text="By hand.") for p in rows[:4]])
    recipe = GradingRecipe(prompt_set=prompts, checkpoints=[one], arms=[arm], n_prompts=5, decoding=SHORT)
    with transaction() as session:
        run_id = launch(session, recipe, project_id=demo.id).id
    with pytest.raises(AssertionError, match="no completion for 1 of 5 prompts"):
        do_run(run_id)
    with transaction() as session:
        session.add(Completion(prompt_id=rows[4].id, arm_id=arm, run_id=file.id, text="By hand."))
    run = do(demo, recipe)
    assert len(grading_of(run)[1]) == 5


@pytest.fixture
def database(sqlite_database: str) -> str:
    """SQLite alone, for `client` too."""
    return sqlite_database


def test_an_arm_in_context_is_graded_blind_like_the_others(client: TestClient, project: Project) -> None:
    """By the page, by the API and as a step's recipe; results name it, a grader's pages do not."""
    base, dpo = tiny_checkpoint(project), tiny_checkpoint(project, 2, "tuned", "dpo")
    with transaction() as session:
        constitution = make_constitution(session, project).id
    told = do(project, InContextRecipe(checkpoint=base, constitution=constitution, decoding=SHORT))
    with reading() as session:
        (arm_id,) = outputs(session, told.id, "arm")
    given = {"prompt_set": prompts_of(project, 4), "checkpoints": [base, dpo], "arms": [arm_id], "n_prompts": 4}
    form = client.get(f"/p/{project.slug}/new/grading").text
    assert "system message" in form  # the arm is among those to choose
    settings = {f"decoding.{name}": value for name, value in SHORT.items()}
    client.post(f"/p/{project.slug}/new/grading", data={**given, **settings, "is_all_pairs": "true"})
    api = {"kind": "grading", **given, "decoding": SHORT, "is_all_pairs": False, "name": "by the API"}
    assert client.post(f"/api/v1/p/{project.slug}/runs", json=api).status_code in (200, 201)
    with reading() as session:
        keys = session.exec(select(Run.id).where(Run.kind == "grading").order_by(col(Run.id))).all()
    (by_page, items), (by_api, fewer) = (grading_of(do_run(key)) for key in keys)
    assert by_page.arms == by_api.arms and by_page.arms[2] == arm_id and (len(items), len(fewer)) == (12, 8)
    shown = [item for item in items if not item.is_identical]
    for item in shown:
        page = client.get(f"/p/{project.slug}/grade/item/{item.token}").text
        assert not any(word in page for word in ("in context", "in-context", "system message", "friendly"))
    with transaction() as session:
        grading = get(session, Grading, by_page.id)
        owner = session.exec(select(Account.id)).one()
        for item in shown:
            is_told = get(session, Completion, item.left_id).arm_id == arm_id
            give_grade(session, item, grading, owner, Marks("left" if is_told else "tie", 4, 2, "yes", "no", 1.0))
    assert client.post(f"/p/{project.slug}/grade/{by_page.id}/close").status_code == 200
    found = client.get(f"/p/{project.slug}/grade/{by_page.id}/results.json").json()
    assert {one["arm"] for one in found["graded"]} == set(by_page.arms)
    assert {(one["against"], one["arm"]) for one in found["compared"]} >= {(by_page.arms[0], arm_id)}
    assert "arm-in-context" in client.get(f"/p/{project.slug}/grade/{by_page.id}").text


def test_an_arm_sampled_otherwise_is_told(demo: Project) -> None:
    one = tiny_checkpoint(demo)
    with transaction() as session:
        warm = find_or_make_arm(session, demo.id, checkpoint=one, decoding={**SHORT, "temperature": 0.3})
        session.flush()
        arms = [warm.id]
    do(demo, GradingRecipe(prompt_set=prompts_of(demo, 4), checkpoints=[one], arms=arms, n_prompts=4, decoding=SHORT))
    with reading() as session:
        said = [line.text for line in session.exec(select(LogLine).where(LogLine.level == "warning"))]
    assert len(said) == 1 and said[0].startswith("base · T=0.3: sampled with other settings")


def test_one_arm_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two"):
        GradingRecipe(prompt_set=1, checkpoints=[1, 1])
