"""Training on from what was trained: DPO's later rounds and what holds them, and SFT on what an arm wrote."""

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from sqlmodel import Session, col, select

from app.checkpoints.arms import find_or_make_arm, find_or_make_imported_arm
from app.checkpoints.models import Checkpoint
from app.db import reading, transaction
from app.errors import Invalid
from app.pairs.models import Completion
from app.projects.models import Project
from app.prompts.models import Prompt
from app.runs.models import LogLine, Run
from app.runs.queue import claim, launch
from app.training.models import LogProb
from app.training.recipes import DpoRecipe, SftRecipe
from app.training.rounds import read_rounds
from app.training.stale import retrain
from tests.worker.test_training_runs import OFFLINE, TINY_BASE, ground, made, run, tiny_project  # noqa: F401
from tests.worker.tiny import same, weights_in
from worker.checkpoints import weights_of
from worker.demonstrations import demonstrations_of
from worker.job import Job
from worker.reference_cache import weights_key
from worker.several import Follower


def start_of(key: int) -> Any:
    with reading() as session:
        return weights_of(session, key)


@pytest.mark.parametrize("is_lora", [False, True])
def test_a_later_round_is_held_to_its_start_or_to_where_the_rounds_began(
    tiny_project: Project, ground: dict[str, int], is_lora: bool,  # noqa: F811
) -> None:  # fmt: skip
    base = ground["base"]
    given: dict[str, Any] = {**OFFLINE, "snapshot": ground["snapshot"], "is_lora": is_lora, "max_steps": 2}
    first = made(run(tiny_project, DpoRecipe(start=base, reference=base, **given)))
    read = {weights_key(start_of(key), "float32") for key in (base, first.id)}
    began = run(tiny_project, DpoRecipe(start=first.id, reference=base, is_later_round=True, **given))
    assert made(began).parent_id == first.id
    with transaction() as session:  # round 2 has texts that nobody has read yet: the base reads them, loaded beside
        texts = {one.text_sha256: one.value for one in session.exec(select(LogProb)).all()}
        session.execute(sa.delete(LogProb))
    again = run(tiny_project, DpoRecipe(start=first.id, reference=base, is_later_round=True, **given))
    assert again.cost["reference_passes"] == len(texts)
    assert same(weights_in(start_of(made(again).id).folder), weights_in(start_of(made(began).id).folder))
    with reading() as session:
        found = {one.text_sha256: one.value for one in session.exec(select(LogProb)).all()}
        names = set(session.exec(select(LogProb.weights_sha256)).all())
    assert found == pytest.approx(texts, abs=1e-5)
    assert names == {weights_key(start_of(base), "float32")}, "no text was read by another reference than the base"
    assert began.cost["reference_passes"] == 0, "what the first round has paid for is not paid again"
    own = made(run(tiny_project, DpoRecipe(start=first.id, reference=first.id, **given)))
    with reading() as session:
        assert set(session.exec(select(LogProb.weights_sha256)).all()) == read
    assert not same(weights_in(start_of(own.id).folder), weights_in(start_of(made(began).id).folder))
    with reading() as session:
        (only,) = read_rounds(
            session, own
        )  # both trainings read the same labels: that is one round, trained on further
    assert (only.number, only.checkpoint.id, only.start.id, only.reference and only.reference.id) == (
        1,
        first.id,
        base,
        base,
    )
    assert (only.writer, only.is_own, only.n_prompts) == ("others (a file or a revision)", False, 0)


def test_a_reference_that_no_line_leads_to_is_refused(tiny_project: Project, ground: dict[str, int]) -> None:  # noqa: F811
    other = made(run(tiny_project, TINY_BASE.model_copy(update={"seed": 2})))
    given = {"start": ground["base"], "snapshot": ground["snapshot"], "is_later_round": True}
    with transaction() as session:
        DpoRecipe(reference=ground["base"], **given).check(session, tiny_project.id)
        with pytest.raises(Invalid, match="neither the starting checkpoint nor one"):
            DpoRecipe(reference=other.id, **given).check(session, tiny_project.id)


def write(session: Session, prompts: list[Prompt], arm_id: int, text: str, stop_reason: str, run_id: int) -> None:
    session.add_all(
        Completion(prompt_id=one.id, arm_id=arm_id, run_id=run_id, text=f"{text} {one.text}", stop_reason=stop_reason,
                   sample=0 if text == "First" else 1)
        for one in prompts
    )  # fmt: skip


def by_teacher(project: Project, ground: dict[str, int], kind: str) -> int:  # noqa: F811
    """The arm of a teacher that has written twice for every prompt; one was cut off, one is empty."""
    with transaction() as session:
        writing = Run(
            project_id=project.id, kind="generate", queue="gpu", status="done", recipe={}, recipe_sha256="0" * 64,
            code_version="0",
        )  # fmt: skip
        session.add(writing)
        prompts = list(session.exec(select(Prompt).where(Prompt.set_id == ground["prompts"])).all())
        arm = (
            find_or_make_imported_arm(session, project.id, "teacher")
            if kind == "imported"
            else find_or_make_arm(session, project.id, checkpoint=ground["base"], decoding={"temperature": 1.0})
        )
        session.flush()
        write(session, prompts, arm.id, "First", "imported", writing.id)
        write(session, prompts, arm.id, "Second", "imported", writing.id)
        session.flush()
        rows = session.exec(select(Completion).where(Completion.sample == 0).order_by(col(Completion.id))).all()
        train = {one.id for one in prompts if one.split == "train"}
        cut, empty = [row for row in rows if row.prompt_id in train][:2]
        cut.stop_reason, empty.text = "length", " "
        return arm.id


@pytest.mark.parametrize("kind", ["imported", "checkpoint"])
def test_sft_copies_what_an_arm_wrote(tiny_project: Project, ground: dict[str, int], kind: str) -> None:  # noqa: F811
    arm = by_teacher(tiny_project, ground, kind)
    given = {**OFFLINE, "start": ground["base"], "arm": arm, "prompt_set": ground["prompts"]}
    done = run(tiny_project, SftRecipe(**given))
    checkpoint = made(done)
    with reading() as session:
        splits = list(session.exec(select(Prompt.split).where(Prompt.set_id == ground["prompts"])).all())
        log = " ".join(session.exec(select(LogLine.text).where(LogLine.run_id == done.id)).all())
        base = session.get_one(Checkpoint, ground["base"])
    assert done.cost["demonstrations"] == splits.count("train") and "labels" not in done.cost
    assert "1 cut off, 1 empty" in log and f"{sum(s in ('train', 'dev') for s in splits)} completions to copy" in log
    lines = (
        start_of(checkpoint.id).folder.parents[1] / "runs" / str(done.id) / "demonstrations" / "rows.jsonl"
    ).read_text()
    assert lines.count("First") == lines.count("\n") - 2 and lines.count("Second") == 2
    assert not same(weights_in(start_of(checkpoint.id).folder), weights_in(start_of(base.id).folder))
    with transaction() as session, pytest.raises(Invalid, match="copied what an arm wrote"):
        retrain(session, session.get_one(Run, done.id), 1)


def test_of_several_processes_the_first_freezes_what_is_copied(
    tiny_project: Project, ground: dict[str, int], monkeypatch: pytest.MonkeyPatch,  # noqa: F811
) -> None:  # fmt: skip
    arm = by_teacher(tiny_project, ground, "imported")
    recipe = SftRecipe(**OFFLINE, start=ground["base"], arm=arm, prompt_set=ground["prompts"])
    with transaction() as session:
        key = launch(session, recipe, project_id=tiny_project.id).id
        claimed = claim(session, ["gpu"], "test", None)
        assert claimed is not None and claimed.id == key
        attempt = claimed.attempt
    monkeypatch.setenv("RANK", "1")
    other = Follower(key, attempt)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(demonstrations_of, other)
        time.sleep(0.6)
        assert not waiting.done() and not (other.folder / "demonstrations").exists()
        monkeypatch.setenv("RANK", "0")
        frozen = demonstrations_of(Job(key, attempt))
        assert waiting.result(30) == frozen and frozen.train


def test_sft_needs_one_source_and_something_in_it(tiny_project: Project, ground: dict[str, int]) -> None:  # noqa: F811
    for given in ({}, {"snapshot": 1, "arm": 1, "prompt_set": 1}, {"arm": 1}, {"snapshot": 1, "prompt_set": 1}):
        with pytest.raises(ValueError, match="choose p"):
            SftRecipe(start=1, **given)
    with transaction() as session:
        arm = find_or_make_imported_arm(session, tiny_project.id, "silent")
        session.flush()
        recipe = SftRecipe(start=ground["base"], arm=arm.id, prompt_set=ground["prompts"], **OFFLINE)
        launch(session, recipe, project_id=tiny_project.id, form_key=hashlib.sha256(b"x").hexdigest())
    from tests.worker.test_training_runs import go_on

    with reading() as session:
        key = session.exec(select(Run.id).order_by(col(Run.id).desc())).first()
    failed = go_on(key or 0)
    assert failed.status == "failed" and "“silent” has written nothing" in (failed.error or "")
