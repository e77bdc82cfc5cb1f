"""Places in a queue, handed out under a lease: two people never hold the same one, and nobody gets an item twice."""

from functools import cache
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import aliased
from sqlmodel import Session, col

from app.accounts.models import Account
from app.db import clean_text, db_now, table_of
from app.errors import Conflict
from app.review.models import Answer, Mark, Queue

LEASE_S = 15 * 60.0
IDLE_S = 5 * 60.0  # a longer pause over one item is no work: its time is counted up to here
NOTE_MAX = 10_000
EARLIER = "Said before: "

Place = TypeVar("Place", Answer, Mark)


def _is_open(kind: Any) -> Any:
    """That a place has no answer yet, as its index knows it."""
    return (kind.first if hasattr(kind, "first") else kind.answered_at).is_(None)


def _item(kind: Any) -> Any:
    return kind.pair_id if hasattr(kind, "pair_id") else kind.completion_id


def held_place(session: Session, kind: type[Place], queue: Queue, account_id: int) -> Place | None:
    """The place this person holds and has not answered, if any. A lease that is over still counts until it is taken."""
    held: Place | None = session.execute(_held(kind), {"queue": queue.id, "person": account_id}).scalar()
    return held


# The statements below are built once: every answer asks them, and building them took longer than running them.
@cache
def _held(kind: Any) -> sa.Select[Any]:
    is_mine = kind.queue_id == sa.bindparam("queue"), kind.account_id == sa.bindparam("person")
    return sa.select(kind).where(*is_mine, kind.answered_at.is_(None)).order_by(kind.position).limit(1)


def one_press_at_a_time(session: Session, account_id: int) -> bool:
    """Makes a person's presses wait for each other, so that a double click takes one place; whether it may have waited.

    On SQLite all writers wait for each other anyway.
    """
    if session.get_bind().dialect.name != "postgresql":
        return False
    session.execute(sa.select(col(Account.id)).where(col(Account.id) == account_id).with_for_update(key_share=True))
    return True


def claim(session: Session, kind: type[Place], queue: Queue, account_id: int) -> Place | None:
    """The place this person is to answer next, held for a quarter of an hour; None when nothing is left for them.

    One atomic UPDATE takes it, so two people never hold the same place, on either database. A place that is held
    already is held anew, and its clock begins again.
    """
    if queue.closed_at is not None:
        raise Conflict("This queue is closed.")
    held = held_place(session, kind, queue, account_id)
    if held is None and one_press_at_a_time(session, account_id):
        held = held_place(session, kind, queue, account_id)
    if held is not None:
        renewed = session.execute(
            sa.update(kind)
            .where(col(kind.id) == held.id, col(kind.account_id) == account_id, _is_open(kind))
            .values(lease_until=db_now(session) + LEASE_S)
        )
        if renewed.rowcount == 1:  # type: ignore[attr-defined]
            session.refresh(held)
            return held
    statement = _taken(kind, session.get_bind().dialect.name)
    for _ in range(3):
        try:
            with session.begin_nested():
                moment = db_now(session)
                given = {"queue": queue.id, "person": account_id, "moment": moment, "until": moment + LEASE_S}
                taken: Place | None = session.execute(statement, given).scalar()
        except IntegrityError:
            continue  # another window of the same person took another place of this item at this moment
        return taken
    raise Conflict("This queue is open in another window of yours: go on there, or try again.")


@cache
def _taken(kind: Any, dialect: str) -> Any:
    """The place that claim_statement takes, as an object."""
    taken = sa.select(kind).from_statement(claim_statement(kind, dialect))
    return taken.execution_options(populate_existing=True)


@cache
def claim_statement(kind: Any, dialect: str) -> Any:
    """The UPDATE that takes the first free place of an item a person has no place of.

    Its parameters: queue, person, moment and until.
    """
    table = table_of(kind)
    queue: Any = sa.bindparam("queue")
    person: Any = sa.bindparam("person")
    moment: Any = sa.bindparam("moment")
    free: Any = aliased(kind)
    own: Any = aliased(kind)
    has_one = sa.select(own.id).where(own.queue_id == queue, _item(own) == _item(free), own.account_id == person)
    chosen = (
        sa.select(free.id)
        # asked place by place, in order: as NOT EXISTS, Postgres would join and sort the whole queue to find the first
        .where(free.queue_id == queue, _is_open(free), has_one.scalar_subquery().is_(None))
        .where(sa.or_(free.account_id.is_(None), free.lease_until < moment))
        .order_by(free.place, free.position)
        .limit(1)
    )
    if dialect == "postgresql":
        chosen = chosen.with_for_update(skip_locked=True, of=free)
    return (
        sa.update(table)
        .where(table.c.id == chosen.scalar_subquery(), _is_open(table.c))
        .where(sa.or_(table.c.account_id.is_(None), table.c.lease_until < moment))
        .values(account_id=person, lease_until=sa.bindparam("until"), note="")  # a comment begun was the other's
        .returning(table)
    )


def give_back(session: Session, kind: type[Place], queue: Queue, account_id: int) -> None:
    """Ends the lease of what this person holds: anybody may take it now; come back first, and it is theirs again."""
    session.execute(
        sa.update(kind)
        .where(col(kind.queue_id) == queue.id, col(kind.account_id) == account_id, col(kind.answered_at).is_(None))
        .values(lease_until=0.0)
    )


def keep_draft(session: Session, kind: type[Place], place_id: int, account_id: int, note: str) -> bool:
    """Keeps a comment that is being written with the place; False once the place is answered or another's."""
    kept = session.execute(
        sa.update(kind)
        .where(col(kind.id) == place_id, col(kind.account_id) == account_id, _is_open(kind))
        .values(note=clean_text(note)[:NOTE_MAX])
    )
    return bool(kept.rowcount == 1)  # type: ignore[attr-defined]


def newer_note(note: str, before: str) -> str:
    """A comment sent with an answer that is stored already: it comes first, and what was said before it stays below.

    Sent again, or sent empty, it changes nothing.
    """
    note = clean_text(note).strip()
    if not note or before == note or before.startswith(f"{note}\n{EARLIER}"):
        return before
    return (f"{note}\n{EARLIER}{before}" if before else note)[:NOTE_MAX]


def seconds_held(session: Session, place: Answer | Mark) -> float | None:
    """How long a place has been held by the database's clock, a pause counted up to IDLE_S; call it at the answer.

    None of one that was given back before: nobody knows how long it was looked at."""
    if not place.lease_until:
        return None
    return min(max(db_now(session) - (place.lease_until - LEASE_S), 0.0), IDLE_S)
