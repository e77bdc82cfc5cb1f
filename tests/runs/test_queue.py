"""The run spine in SQL, on both databases: launch, claim, lease, fence, finish, sweep, cancel, resume."""

import threading
from datetime import timedelta

import pytest
import sqlalchemy as sa
from sqlmodel import col, select

from app import db
from app.errors import Conflict
from app.projects.models import Project
from app.prompts.recipes import ImportPromptsRecipe
from app.review.recipes import AuditRecipe
from app.runs import queue
from app.runs.models import RUN_STATE, LogLine, Metric, Run, RunIo
from app.runs.queue import Fenced, NoRow
from app.runs.routes import seconds_left
from worker.child import work
from worker.job import Cancelled, Job

RECIPE = ImportPromptsRecipe(shipped="demo", name="demo prompts")


def launch(project: Project, *, needs: tuple[int, ...] = (), priority: int = 0, form_key: str | None = None) -> int:
    with db.transaction() as session:
        run = queue.launch(session, RECIPE, project_id=project.id, needs=needs, priority=priority, form_key=form_key)
        return run.id


def claim(worker: str = "w", slot: str | None = None) -> Run | None:
    with db.transaction() as session:
        return queue.claim(session, ["cpu"], worker, slot)


def status(run_id: int) -> str:
    with db.reading() as session:
        return db.get(session, Run, run_id).status


def finish(run: Run, outcome: str = "done") -> None:
    with db.transaction() as session:
        queue.finish(session, run.id, run.attempt, outcome)


def expire(run_id: int) -> None:
    with db.transaction() as session:
        session.execute(sa.update(Run).where(col(Run.id) == run_id).values(lease_until=1.0))


def test_the_row_keeps_what_makes_a_run_repeatable(project: Project) -> None:
    run_id = launch(project)
    with db.reading() as session:
        run = db.get(session, Run, run_id)
    assert run.recipe["kind"] == "import_prompts" and run.recipe["seed"] == 1
    assert len(run.recipe_sha256) == 64 and run.code_version
    assert {"torch", "transformers", "trl"} <= run.packages.keys()


def test_a_double_click_is_one_run(project: Project) -> None:
    assert launch(project, form_key="k") == launch(project, form_key="k")
    assert launch(project) != launch(project)


def test_a_row_of_nowhere_is_refused_and_nothing_is_stored(project: Project) -> None:
    with pytest.raises(NoRow, match="verdict set 77"), db.transaction() as session:
        queue.launch(session, AuditRecipe(verdict_set=77), project_id=project.id)
    with db.reading() as session:
        assert session.exec(select(Run)).all() == []


def test_claims_go_by_priority_then_age_and_none_twice(project: Project) -> None:
    first, second, urgent = launch(project), launch(project), launch(project, priority=5)
    order = [run.id for run in (claim(), claim(), claim()) if run]
    assert order == [urgent, first, second]
    assert claim() is None


def test_eight_claimers_take_forty_runs_each_once(project: Project) -> None:
    wanted = {launch(project) for _ in range(40)}
    taken: list[int] = []

    def work() -> None:
        while (run := claim(threading.current_thread().name)) is not None:
            taken.append(run.id)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # a claimer that met a locked row may have gone home early; whoever is left is claimed now
    while (run := claim()) is not None:
        taken.append(run.id)
    assert sorted(taken) == sorted(wanted)


def test_a_slot_holds_one_run(project: Project) -> None:
    launch(project)
    launch(project)
    held = claim(slot="gpu:0")
    assert held is not None
    assert claim(slot="gpu:0") is None
    assert claim(slot="gpu:1") is not None
    finish(held)


def test_a_run_waits_for_what_it_needs_and_fails_with_it(project: Project) -> None:
    first = launch(project)
    second = launch(project, needs=(first,))
    run = claim()
    assert run is not None and run.id == first and claim() is None
    finish(run)
    after = claim()
    assert after is not None and after.id == second
    finish(after, "failed")
    third = launch(project, needs=(second,))
    with db.transaction() as session:
        assert queue.sweep(session) == 1
    assert status(third) == "failed"


def test_what_never_started_says_what_became_of_the_run_it_needs(project: Project) -> None:
    endings = {"failed": ("failed", "No."), "was cancelled": ("cancelled", None), "is paused": ("cancelled", "Paused.")}
    after: dict[str, int] = {}
    for said, (ending, error) in endings.items():
        first = launch(project)
        after[said] = launch(project, needs=(first,))
        run = claim()
        assert run is not None and run.id == first
        with db.transaction() as session:
            queue.finish(session, run.id, run.attempt, ending, error)
    last = launch(project, needs=(after["failed"],))
    with db.transaction() as session:
        assert queue.sweep(session) == 3
    with db.transaction() as session:
        assert queue.sweep(session) == 1  # what needed one that was skipped
    with db.reading() as session:
        runs = {run.id: run for run in session.exec(select(Run))}
        told = dict(session.execute(select(Run.id, RUN_STATE)).all())
    assert told == {key: run.state for key, run in runs.items()}
    assert sorted(told.values()) == ["cancelled", "failed", "paused", "skipped", "skipped", "skipped", "skipped"]
    for said, key in after.items():
        assert f"which this one needs, {said}: it never started" in (runs[key].error or "")
    assert "was skipped: it never started" in (runs[last].error or "")


def test_a_lost_lease_is_taken_over_and_the_late_writer_is_fenced(project: Project) -> None:
    run_id = launch(project)
    old = claim("old")
    assert old is not None
    late = Job(old.id, old.attempt)
    expire(run_id)
    with db.transaction() as session:
        assert queue.sweep(session) == 1
    new = claim("new")
    assert new is not None and new.id == run_id and new.attempt == old.attempt + 1
    with pytest.raises(Fenced):
        late.metric(1, loss=1.0)
    with pytest.raises(Fenced), db.transaction() as session:
        queue.renew(session, old.id, old.attempt)
    with pytest.raises(Fenced):
        finish(old)
    Job(new.id, new.attempt).metric(1, loss=2.0)
    finish(new)
    with db.reading() as session:
        assert [m.value for m in session.exec(select(Metric)).all()] == [2.0]
    assert status(run_id) == "done"


def test_three_deaths_fail_a_run_with_the_reason(project: Project) -> None:
    run_id = launch(project)
    for death in range(3):
        run = claim()
        assert run is not None, f"claim after {death} deaths"
        with db.transaction() as session:
            queue.give_back(session, run.id, run.attempt, is_death=True, why="killed by a test")
    with db.reading() as session:
        run = db.get(session, Run, run_id)
    assert run.status == "failed" and run.error is not None and "killed by a test" in run.error
    assert claim() is None
    with db.transaction() as session:
        queue.resume(session, db.get(session, Run, run_id))
    assert claim() is not None


def test_a_worker_that_leaves_costs_no_death(project: Project) -> None:
    launch(project)
    for _ in range(5):
        run = claim()
        assert run is not None and run.deaths == 0
        with db.transaction() as session:
            queue.give_back(session, run.id, run.attempt, is_death=False, why="stopped")


def test_cancel_ends_what_waits_and_asks_what_runs(project: Project) -> None:
    waiting = launch(project)
    with db.transaction() as session:
        queue.cancel(session, db.get(session, Run, waiting))
    assert status(waiting) == "cancelled"
    with pytest.raises(Conflict), db.transaction() as session:
        queue.cancel(session, db.get(session, Run, waiting))
    launch(project)
    run = claim()
    assert run is not None
    job = Job(run.id, run.attempt)
    job.check()
    with db.transaction() as session:
        queue.cancel(session, db.get(session, Run, run.id))
    job._checked = 0  # the job looks at the database twice a second at most
    with pytest.raises(Cancelled):
        job.check()


def test_what_is_not_finite_is_null_and_a_step_said_twice_is_one_point(project: Project) -> None:
    launch(project)
    run = claim()
    assert run is not None
    job = Job(run.id, run.attempt)
    job.metric(1, loss=float("nan"), kl=0.5)
    job.metric(1, kl=0.25)
    job.metric(2, kl=1.0)
    job.resumed_at(1)
    with db.reading() as session:
        points = {(m.name, m.step): m.value for m in session.exec(select(Metric)).all()}
        lines = [line.text for line in session.exec(select(LogLine)).all()]
    assert points == {("loss", 1): None, ("kl", 1): 0.25}
    assert lines == ["resumed after step 1"]


def test_what_a_run_made_is_noted_once(project: Project) -> None:
    launch(project)
    run = claim()
    assert run is not None
    job = Job(run.id, run.attempt)
    for sha256 in ("", "ab"):
        with job.write() as session:
            job.made(session, "prompt_set", 3, sha256)
    with db.reading() as session:
        rows = session.exec(select(RunIo)).all()
        assert queue.outputs(session, run.id, "prompt_set") == [3]
    assert [(row.noun, row.sha256) for row in rows] == [("prompt_set", "ab")]


def test_money_and_time_add_up_over_attempts(project: Project) -> None:
    launch(project)
    run = claim()
    assert run is not None
    job = Job(run.id, run.attempt)
    job.spend(usd=0.5, judge_calls=2)
    job.spend(usd=0.25)
    with db.reading() as session:
        assert db.get(session, Run, run.id).cost == {"usd": 0.75, "judge_calls": 2}


def test_the_transaction_that_breaks_stores_and_sends_nothing(project: Project) -> None:
    sent: list[int] = []
    with pytest.raises(RuntimeError), db.transaction() as session:
        queue.launch(session, RECIPE, project_id=project.id)
        db.after_commit(session, lambda: sent.append(1))
        raise RuntimeError
    with db.reading() as session:
        assert session.exec(select(Run)).all() == []
    assert sent == []


def test_a_recipe_that_cannot_be_read_fails_at_once_with_the_reason(project: Project) -> None:
    run_id = launch(project)
    with db.transaction() as session:
        old = {"kind": "import_prompts", "shipped": "demo", "gone": 1}
        session.execute(sa.update(Run).where(col(Run.id) == run_id).values(recipe=old))
    run = claim()
    assert run is not None and work(run.id, run.attempt) == "failed"
    with db.reading() as session:
        assert "gone" in (db.get(session, Run, run_id).error or "")


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)  # which says of a missing table what it says of itself
def test_a_database_that_breaks_is_no_failure_of_the_run(project: Project) -> None:
    run_id = launch(project)
    run = claim()
    assert run is not None
    with db.transaction() as session:
        session.execute(sa.text("ALTER TABLE prompt_set RENAME TO away"))
    with pytest.raises(sa.exc.OperationalError):
        work(run.id, run.attempt)
    assert status(run_id) == "running"  # its supervisor sees the process end, and queues it again


def test_time_left_is_reckoned_from_what_this_attempt_did(project: Project) -> None:
    run_id = launch(project)

    def left(*, seconds_ago: float) -> float | None:
        with db.transaction() as session:
            at = db.now() - timedelta(seconds=seconds_ago)
            session.execute(sa.update(Run).where(col(Run.counted_at).is_not(None)).values(counted_at=at))
            return seconds_left(db.get(session, Run, run_id))

    first = claim()
    assert first is not None
    job = Job(first.id, first.attempt)
    job.progress(0, 100)
    job._said = 0
    job.progress(50, 100)
    assert left(seconds_ago=10) == pytest.approx(10, rel=0.1)
    with db.transaction() as session:
        queue.give_back(session, first.id, first.attempt, is_death=False, why="stopped")
        old = db.now() - timedelta(days=1)
        session.execute(sa.update(Run).values(started_at=old))
    again = claim()
    assert again is not None and left(seconds_ago=0) is None
    job = Job(again.id, again.attempt)
    job.progress(50, 100)
    job._said = 0
    job.progress(75, 100)
    assert left(seconds_ago=10) == pytest.approx(10, rel=0.1)  # a day in the queue counts for nothing
    job.progress(10, 40)
    assert left(seconds_ago=10) is None  # another part of the work, counted anew
