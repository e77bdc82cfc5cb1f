"""How much has been done in a queue, by each person and in all: counted where it is stored, so that no page counts."""

from functools import cache

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Session

from app.db import table_of
from app.review.models import Queue, Tally

TALLY, QUEUE = map(table_of, (Tally, Queue))
ANSWERED = (
    sa.update(QUEUE)
    .where(QUEUE.c.id == sa.bindparam("queue"))
    .values(n_answered=QUEUE.c.n_answered + sa.bindparam("more"))
)


def count_done(session: Session, queue_id: int, account_id: int, n: int, n_skipped: int) -> None:
    """So many more places (or fewer, below 0) that this person has answered, and of those skipped.

    The database adds, so that none of several answers at one moment is lost.
    """
    given = {"queue": queue_id, "person": account_id, "more": n, "skipped": n_skipped}
    if n:
        session.execute(ANSWERED, given)
    session.execute(_add(session.get_bind().dialect.name), given)


@cache
def _add(dialect: str) -> sa.Insert:
    insert = (postgresql if dialect == "postgresql" else sqlite).insert(TALLY)
    insert = insert.values(
        queue_id=sa.bindparam("queue"), account_id=sa.bindparam("person"), n=sa.bindparam("more"),
        n_skipped=sa.bindparam("skipped"),
    )  # fmt: skip
    return insert.on_conflict_do_update(
        index_elements=["queue_id", "account_id"],
        set_={"n": TALLY.c.n + insert.excluded.n, "n_skipped": TALLY.c.n_skipped + insert.excluded.n_skipped},
    )
