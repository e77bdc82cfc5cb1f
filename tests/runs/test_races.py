"""Two at once: a double click, a lease renewed while it is swept, a cancel as the run ends."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from sqlmodel import Session, col

from app import db
from app.errors import Conflict
from app.projects.models import Project
from app.prompts.recipes import ImportPromptsRecipe
from app.runs import queue
from app.runs.models import Run

RECIPE = ImportPromptsRecipe(shipped="demo")


def launch(project: Project, form_key: str | None = None) -> int:
    with db.transaction() as session:
        return queue.launch(session, RECIPE, project_id=project.id, form_key=form_key).id


def meanwhile(first: Callable[[Session], object], second: Callable[[], object]) -> Future[object]:
    """Runs `second` in a thread while the transaction that did `first` is still open; then commits that one."""
    with ThreadPoolExecutor() as pool:
        with db.transaction() as session:
            first(session)
            late = pool.submit(second)
            time.sleep(0.5)  # the other has begun, and waits for our locks
        return late


def in_transaction(work: Callable[[Session], object]) -> Callable[[], object]:
    def run() -> object:
        with db.transaction() as session:
            return work(session)

    return run


def claim() -> Run:
    with db.transaction() as session:
        run = queue.claim(session, ["cpu"], "w", None)
    assert run is not None
    return run


def read(run_id: int) -> Run:
    with db.reading() as session:
        return db.get(session, Run, run_id)


def test_both_halves_of_a_double_click_get_the_one_run(project: Project) -> None:
    made: list[int] = []

    def first(session: Session) -> None:
        made.append(queue.launch(session, RECIPE, project_id=project.id, form_key="k").id)

    assert meanwhile(first, lambda: launch(project, "k")).result() == made[0]


def test_a_lease_renewed_while_it_is_swept_stands(project: Project) -> None:
    launch(project)
    run = claim()
    with db.transaction() as session:
        session.execute(sa.update(Run).where(col(Run.id) == run.id).values(lease_until=1.0))
    meanwhile(lambda session: queue.renew(session, run.id, run.attempt), in_transaction(queue.sweep)).result()
    assert (read(run.id).status, read(run.id).deaths) == ("running", 0)


def test_a_run_that_ends_as_it_is_cancelled_stays_ended(project: Project) -> None:
    launch(project)
    run = claim()

    def cancel() -> None:
        with db.transaction() as session:
            seen = Run(**read(run.id).model_dump())  # as a page read it before the run ended
            seen.status = "running"
            queue.cancel(session, seen)

    late = meanwhile(lambda session: queue.finish(session, run.id, run.attempt, "done"), cancel)
    with pytest.raises(Conflict, match="just ended"):
        late.result()
    assert (read(run.id).status, read(run.id).is_cancel_asked) == ("done", False)


def test_a_cancel_between_queue_and_claim_is_never_lost(project: Project) -> None:
    for _ in range(10):
        run_id = launch(project)
        gate = threading.Barrier(2)
        taken: list[Run | None] = []

        def take(gate: threading.Barrier = gate, taken: list[Run | None] = taken) -> None:
            gate.wait()
            with db.transaction() as session:
                taken.append(queue.claim(session, ["cpu"], "w", None))

        with ThreadPoolExecutor() as pool:
            late = pool.submit(take)
            gate.wait()
            with db.transaction() as session:
                queue.cancel(session, db.get(session, Run, run_id))
            late.result()
        run = read(run_id)
        assert run.is_cancel_asked and run.status == ("running" if taken[0] else "cancelled")
        if taken[0]:
            with db.transaction() as session:
                queue.finish(session, run_id, run.attempt, "cancelled")
