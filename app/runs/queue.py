"""The run spine: launch, claim, lease, fence, finish and sweep. SQL decides; the broker only wakes somebody up."""

import importlib.metadata
import logging
import uuid
from collections.abc import Iterable
from functools import cache

import sqlalchemy as sa
from sqlmodel import Session, SQLModel, col, select

from app import __version__
from app.config import settings
from app.db import MAX_ID, after_commit, clean_text, db_now, get, now
from app.errors import AppError, Conflict, Unavailable
from app.runs.models import ENDED, LIVE, SAID, LogLine, Metric, Run, RunIo, RunNeed
from app.runs.recipe import Recipe, sha256_of

log = logging.getLogger(__name__)

PACKAGES = ("torch", "transformers", "trl", "peft", "lm_eval", "numpy", "openai")


class Fenced(Exception):
    """Another attempt has taken this run over (or it ended): the writer must stop."""


class NoRow(AppError):
    """A recipe points at a row that this project does not have."""

    status_code = 422


@cache
def package_versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def launch(
    session: Session, recipe: Recipe, *, project_id: int, account_id: int | None = None, form_key: str | None = None,
    needs: Iterable[int] = (), priority: int = 0,
) -> Run:  # fmt: skip
    """Stores a run and wakes a worker once the transaction stands. The same form_key twice is the same run.

    Raises NoRow when the recipe points at rows the project does not have.
    """
    same = _sent_before(session, form_key, project_id)
    if same is not None:
        return same
    for noun, key in recipe.references():
        check_reference(session, noun, key, project_id)
    recipe.check(session, project_id)
    stored = recipe.stored()
    run = Run(
        project_id=project_id, kind=recipe.kind, queue=recipe.pick_queue(session), title=recipe.title()[:200],
        recipe=stored, recipe_sha256=sha256_of(stored), form_key=form_key, priority=priority, account_id=account_id,
        code_version=__version__, packages=package_versions(),
    )  # fmt: skip
    try:
        with session.begin_nested():
            session.add(run)
    except sa.exc.IntegrityError:
        same = _sent_before(session, form_key, project_id)  # the other half of a double click was quicker
        if same is None:
            raise
        return same
    for needed in set(needs):
        session.add(RunNeed(run_id=run.id, needs_id=needed))
    for noun, key in dict.fromkeys(recipe.references()):
        session.add(RunIo(run_id=run.id, is_output=False, noun=noun, ref_id=key))
    wake(session, run)
    return run


def _sent_before(session: Session, form_key: str | None, project_id: int) -> Run | None:
    same = session.exec(select(Run).where(Run.form_key == form_key)).first() if form_key else None
    if same is not None and same.project_id != project_id:
        raise Conflict("This form was already sent for another project: reload the page.")
    return same


def check_reference(session: Session, noun: str, key: int, project_id: int) -> None:
    """Raises NoRow unless `noun` has this id within the project."""
    table = Run.metadata.tables[noun]
    known = sa.select(table.c.project_id).where(table.c.id == key)
    owner = session.execute(known).scalar() if 0 < key <= MAX_ID else None
    if owner != project_id:
        raise NoRow(f"There is no {noun.replace('_', ' ')} {key} in this project.")


def wake(session: Session, run: Run) -> None:
    """Sends the run's id to its queue after the commit."""
    run_id, queue = run.id, run.queue
    after_commit(session, lambda: send_wake_up(run_id, queue))


def send_wake_up(run_id: int, queue: str) -> None:
    """Puts the id on the broker; a broker that is away is no error here, since the ticker asks again."""
    from kombu.exceptions import OperationalError

    from app.runs.broker import celery

    try:
        celery().send_task("worker.run", args=[run_id], queue=queue, ignore_result=True, retry=False)
    except (OperationalError, OSError, Unavailable):
        log.warning("run %s: no wake-up sent, the broker is away; the ticker will repair it", run_id)


def _needs() -> tuple[sa.FromClause, sa.FromClause]:
    tables = SQLModel.metadata.tables
    return tables["run_need"].alias(), tables["run"].alias()


def runnable(queues: Iterable[str]) -> sa.Select[int]:
    """Ids of runs that may start: queued, not cancelled, everything needed done; best priority first."""
    need, needed = _needs()
    unfinished = sa.select(need.c.run_id).where(
        need.c.run_id == col(Run.id), need.c.needs_id == needed.c.id, needed.c.status != "done"
    )
    return (
        sa.select(col(Run.id))
        .where(col(Run.status) == "queued", col(Run.queue).in_(list(queues)), ~unfinished.exists())
        .where(col(Run.is_cancel_asked).is_(False))
        .order_by(col(Run.priority).desc(), col(Run.id))
    )


def say_wait(session: Session, run: Run) -> str:
    """What a queued run waits for: who holds the slots, and how many come before it. "" where it may start now."""
    same = col(Run.queue) == run.queue
    first = sa.or_(col(Run.priority) > run.priority, sa.and_(col(Run.priority) == run.priority, col(Run.id) < run.id))
    before = runnable([run.queue]).where(first).order_by(None).subquery()
    n_before = int(session.execute(sa.select(sa.func.count()).select_from(before)).scalar_one())
    said = []
    if run.queue == "gpu":
        busy = select(Run).where(Run.status == "running", same).order_by(col(Run.id)).limit(8)
        said = [
            f"behind {f'run {one.id}' if one.project_id == run.project_id else 'a run of another project'}"
            + (f" on {one.slot}" if one.slot else "")
            for one in session.exec(busy)
        ]
    said += [f"{n_before:,} ahead of it in the queue"] if n_before else []
    return ", ".join(said)


def claim(session: Session, queues: Iterable[str], worker: str, slot: str | None) -> Run | None:
    """Takes the next runnable row for a worker, or None. `slot` names a GPU; one running row holds it at most.

    Raises sqlalchemy's IntegrityError when the slot is busy (Postgres finds out only at the write).
    """
    if slot is not None:
        busy = session.exec(select(Run.id).where(Run.slot == slot, Run.status == "running")).first()
        if busy is not None:
            return None
    chosen = runnable(queues).limit(1)
    if session.get_bind().dialect.name == "postgresql":
        chosen = chosen.with_for_update(skip_locked=True, of=Run)
    # Two statements, since Postgres may run a locking subquery of an UPDATE more than once, each time for another row.
    run_id = session.execute(chosen).scalar()
    changed = session.execute(
        sa.update(Run)
        .where(col(Run.id) == run_id, col(Run.status) == "queued")
        .values(
            status="running", worker=worker, slot=slot, attempt=Run.attempt + 1, error=None, counted_at=None,
            lease_until=db_now(session) + settings().lease_s, started_at=sa.func.coalesce(Run.started_at, now()),
        )
        .returning(col(Run.id))
    ).scalar()  # fmt: skip
    if changed is None:
        return None
    return session.exec(select(Run).where(Run.id == changed).execution_options(populate_existing=True)).one()


def renew(session: Session, run_id: int, attempt: int) -> bool:
    """Extends the lease. Returns whether a cancel was asked for; raises Fenced when the run is no longer ours."""
    asked = session.execute(
        sa.update(Run)
        .where(col(Run.id) == run_id, col(Run.attempt) == attempt, col(Run.status) == "running")
        .values(lease_until=db_now(session) + settings().lease_s)
        .returning(col(Run.is_cancel_asked))
    ).scalar()
    if asked is None:
        raise Fenced(f"run {run_id} attempt {attempt} was taken over")
    return bool(asked)


_RUNS = Run.metadata.tables["run"]
# Made once and past the mapper: every write begins with it, some of them hundreds of times a minute.
_FENCE = (
    sa.update(_RUNS)
    .where(_RUNS.c.id == sa.bindparam("run"), _RUNS.c.attempt == sa.bindparam("held"), _RUNS.c.status == "running")
    .values(attempt=_RUNS.c.attempt)
)


def fence(session: Session, run_id: int, attempt: int) -> None:
    """Begins every write of a run: locks its row, and raises Fenced unless this attempt still holds it."""
    held = session.execute(_FENCE, {"run": run_id, "held": attempt})
    if held.rowcount != 1:  # type: ignore[attr-defined]
        raise Fenced(f"run {run_id} attempt {attempt} was taken over")


def finish(session: Session, run_id: int, attempt: int, status: str, error: str | None = None) -> None:
    """Ends an attempt as done, failed or cancelled, and wakes whoever waited for it. Raises Fenced."""
    fence(session, run_id, attempt)
    error = None if error is None else clean_text(error)
    session.execute(
        sa.update(Run).where(col(Run.id) == run_id)
        .values(status=status, error=error, slot=None, lease_until=None, ended_at=now())
    )  # fmt: skip
    waiting = session.exec(
        select(Run).join(RunNeed, col(RunNeed.run_id) == col(Run.id)).where(RunNeed.needs_id == run_id)
    )
    for run in waiting.all():
        wake(session, run)


def give_back(session: Session, run_id: int, attempt: int, *, is_death: bool, why: str) -> None:
    """Queues an attempt again (its process died, or its worker is going away), unless it has died too often."""
    fence(session, run_id, attempt)
    run = get(session, Run, run_id)
    session.refresh(run)
    run.deaths, why = run.deaths + int(is_death), clean_text(why)
    session.add(LogLine(run_id=run_id, attempt=attempt, level="warning", text=why))
    run.slot, run.lease_until, run.worker = None, None, None
    if run.is_cancel_asked:
        run.status, run.ended_at = "cancelled", now()
    elif run.deaths >= settings().max_deaths:
        run.status, run.ended_at = "failed", now()
        run.error = f"The process doing this run died {run.deaths} times; the last time: {why}"
    else:
        run.status = "queued"
        wake(session, run)


def sweep(session: Session) -> int:
    """Takes back runs whose lease is over and fails those whose need failed. Returns how many rows it changed."""
    # Locked, since a lease may be renewed between this look and the taking back; and no two tickers wait on each other.
    lost = session.execute(
        sa.select(col(Run.id), col(Run.attempt))
        .where(col(Run.status) == "running", col(Run.lease_until) < db_now(session))
        .with_for_update(skip_locked=True)
    ).all()  # fmt: skip
    n = 0
    for run_id, attempt in lost:
        try:
            give_back(session, run_id, attempt, is_death=True, why="the worker stopped answering: its lease ran out")
            n += 1
        except Fenced:
            log.info("run %s was taken back by another ticker", run_id)
    return n + _skip(session)


def _skip(session: Session) -> int:
    """Fails the queued runs that need one which did not come to its end."""
    need, needed = _needs()
    hopeless = session.execute(
        sa.select(col(Run.id), sa.func.min(needed.c.id))
        .join(need, need.c.run_id == col(Run.id))
        .join(needed, needed.c.id == need.c.needs_id)
        .where(col(Run.status) == "queued", needed.c.status.in_(["failed", "cancelled"]))
        .group_by(col(Run.id))
    ).all()
    n = 0
    for run_id, needed_id in hopeless:
        why = SAID[get(session, Run, needed_id).state]
        changed = session.execute(
            sa.update(Run).where(col(Run.id) == run_id, col(Run.status) == "queued")
            .values(
                status="failed", ended_at=now(),
                error=f"Run {needed_id}, which this one needs, {why}: it never started. Resume that one, then this.",
            )
        )  # fmt: skip
        n += int(changed.rowcount)  # type: ignore[attr-defined]
    return n


def cancel(session: Session, run: Run) -> None:
    """Asks a run to stop; one that has not started ends at once."""
    if run.status in ENDED:
        raise Conflict(f"Run {run.id} is already {run.state}.")
    asked = sa.update(Run).where(col(Run.id) == run.id, col(Run.status).in_(LIVE)).values(is_cancel_asked=True)
    if session.execute(asked).rowcount != 1:  # type: ignore[attr-defined]
        raise Conflict(f"Run {run.id} has just ended: reload the page.")
    session.execute(
        sa.update(Run)
        .where(col(Run.id) == run.id, col(Run.status) == "queued")
        .values(status="cancelled", ended_at=now())
    )
    session.refresh(run)


def resume(session: Session, run: Run) -> None:
    """Queues a run again that failed, was cancelled or paused; it goes on from what it has stored."""
    if run.status not in {"failed", "cancelled"}:
        raise Conflict(f"Run {run.id} is {run.state}: only a run that failed, was cancelled or paused can be resumed.")
    changed = session.execute(
        sa.update(Run).where(col(Run.id) == run.id, col(Run.status) == run.status)
        .values(status="queued", is_cancel_asked=False, deaths=0, error=None, ended_at=None)
    )  # fmt: skip
    if changed.rowcount != 1:  # type: ignore[attr-defined]
        raise Conflict(f"Run {run.id} has just changed: reload the page.")
    session.refresh(run)
    wake(session, run)


def record_output(session: Session, run_id: int, noun: str, key: int, sha256: str = "") -> None:
    """Notes that a run made a row; noting it twice is once."""
    same = select(RunIo).where(RunIo.run_id == run_id, RunIo.is_output, RunIo.noun == noun, RunIo.ref_id == key)
    row = session.exec(same).first()
    if row is None:
        session.add(RunIo(run_id=run_id, is_output=True, noun=noun, ref_id=key, sha256=sha256))
    elif sha256:
        row.sha256 = sha256


def outputs(session: Session, run_id: int, noun: str) -> list[int]:
    """Ids of the rows called `noun` that a run made, oldest first."""
    made = select(RunIo.ref_id).where(RunIo.run_id == run_id, RunIo.is_output, RunIo.noun == noun)
    return list(session.exec(made.order_by(col(RunIo.id))))


def drop_metrics_after(session: Session, run_id: int, step: int) -> None:
    """A resumed run repeats the steps after its last checkpoint: their old points go."""
    session.execute(sa.delete(Metric).where(col(Metric.run_id) == run_id, col(Metric.step) > step))


def new_form_key() -> str:
    """A key that makes a form, however often it is sent, one run."""
    return uuid.uuid4().hex
