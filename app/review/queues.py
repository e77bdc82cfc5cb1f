"""Queues: drawing what people look at, opening and closing, and each person's progress."""

import hashlib
import random
import statistics
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm.attributes import set_committed_value
from sqlmodel import Session, col, select

from app.accounts.models import Account
from app.db import get, now, table_of
from app.errors import Invalid, NotFound
from app.judging.models import Rating, RatingSet, Verdict, VerdictSet
from app.projects.access import Member
from app.review.adjudication import unsettled_pairs
from app.review.leases import claim
from app.review.models import Answer, Mark, Override, Queue, Tally
from app.review.recipes import AuditRecipe
from app.runs.models import Run

RECENT = 25  # last answers that say how fast a person is
ANSWER = table_of(Answer)
_EXCHANGE = sa.update(ANSWER).where(ANSWER.c.id == sa.bindparam("answer")).values(is_swapped=~ANSWER.c.is_swapped)


def project_queue(session: Session, member: Member, queue_id: int) -> Queue:
    """A queue of this project; raises NotFound."""
    queue = get(session, Queue, queue_id)
    if queue.project_id != member.project.id:
        raise NotFound(f"There is no queue {queue_id}.")
    return queue


def choose_pairs(session: Session, recipe: AuditRecipe) -> list[int]:
    """Ids of the pairs in the order they will be shown; raises Invalid when there is nothing to look at.

    An audit draws from all pairs of the verdict set, unreadable ones included, each with the same chance. A repair
    queue takes those that most need a person, leaving out pairs that already stand overridden; an adjudication those
    on which people split evenly.
    """
    of_set = col(Verdict.verdict_set_id) == recipe.verdict_set
    if recipe.purpose == "audit":
        everything = sa.select(col(Verdict.pair_id)).where(of_set).order_by(col(Verdict.pair_id))
        drawn = list(session.execute(everything).scalars())
        if not drawn:
            raise Invalid("These verdicts are empty: judge the pairs first.", {"verdict_set": ["has no verdict"]})
        return random.Random(recipe.seed).sample(drawn, min(recipe.n, len(drawn)))
    if recipe.purpose == "adjudication":
        return _choose_unsettled(session, recipe)
    standing = sa.select(col(Override.pair_id)).where(
        col(Override.pair_id) == col(Verdict.pair_id), col(Override.withdrawn_at).is_(None)
    )
    needy = sa.select(col(Verdict.pair_id)).where(of_set, col(Verdict.need) > 0, ~standing.exists())
    drawn = list(session.execute(needy.order_by(col(Verdict.need).desc(), col(Verdict.id)).limit(recipe.n)).scalars())
    if not drawn:
        raise Invalid("No verdict of this set needs a person: no flip, no doubt, nothing unreadable. Draw an audit.")
    return drawn


def _choose_unsettled(session: Session, recipe: AuditRecipe) -> list[int]:
    verdict_set = get(session, VerdictSet, recipe.verdict_set or 0)
    unsettled = sorted(unsettled_pairs(session, verdict_set.pair_set_id))
    waiting = set(
        session.execute(
            sa.select(col(Answer.pair_id))
            .join(Queue, col(Queue.id) == col(Answer.queue_id))
            .where(col(Queue.kind) == "adjudication", col(Queue.closed_at).is_(None), col(Answer.first).is_(None))
        ).scalars()
    )
    drawn = [pair for pair in unsettled if pair not in waiting][: recipe.n]
    if not drawn:
        rest = " Those that are split wait in an adjudication queue already." if unsettled else ""
        raise Invalid(f"No pair needs an adjudicator: people split evenly on none.{rest}")
    return drawn


def choose_completions(session: Session, recipe: AuditRecipe) -> list[int]:
    """A random sample of the completions a judge was asked to score, unreadable scores included; raises Invalid."""
    scored = sa.select(col(Rating.completion_id)).where(col(Rating.rating_set_id) == recipe.rating_set).distinct()
    drawn = list(session.execute(scored.order_by(col(Rating.completion_id))).scalars())
    if not drawn:
        raise Invalid("These scores are empty: let the judge score completions first.",
                      {"rating_set": ["has no score"]})  # fmt: skip
    return random.Random(recipe.seed).sample(drawn, min(recipe.n, len(drawn)))


def make_queue(session: Session, recipe: AuditRecipe, project_id: int, run_id: int) -> Queue:
    """Stores the queue and its places, or finds the one this run has made already."""
    known = session.exec(select(Queue).where(Queue.run_id == run_id)).first()
    if known is not None:
        return known
    is_scoring = recipe.purpose == "scoring"
    items = choose_completions(session, recipe) if is_scoring else choose_pairs(session, recipe)
    name = recipe.name or f"{recipe.purpose.capitalize()} of {len(items)} {'completions' if is_scoring else 'pairs'}"
    queue = Queue(
        project_id=project_id, name=name, verdict_set_id=recipe.verdict_set, rating_set_id=recipe.rating_set,
        kind=recipe.purpose, seed=recipe.seed, n=len(items), overlap=recipe.overlap, run_id=run_id,
    )  # fmt: skip
    session.add(queue)
    session.flush()
    more = {"is_skipped": False, "scores": {}} if is_scoring else {"is_swapped": False}
    rows = [
        {"queue_id": queue.id, "completion_id" if is_scoring else "pair_id": item, "place": place,
         "position": position, "note": "", **more}
        for place in range(recipe.overlap)
        for position, item in enumerate(items)
    ]  # fmt: skip
    session.execute(sa.insert(Mark if is_scoring else Answer), rows)
    return queue


def is_swapped_for(queue: Queue, pair_id: int, account_id: int) -> bool:
    """Whether this person sees b on the left: a fair coin for each person and pair, the same at every visit."""
    coin = f"{queue.id}:{queue.seed}:{pair_id}:{account_id}"
    return bool(hashlib.sha256(coin.encode()).digest()[0] & 1)


def claim_place(session: Session, queue: Queue, account_id: int) -> Answer | None:
    """The pair this person is to answer next, held for a quarter of an hour; None when nothing is left for them."""
    row = claim(session, Answer, queue, account_id)
    if row is not None and row.is_swapped != is_swapped_for(queue, row.pair_id, account_id):
        session.execute(_EXCHANGE, {"answer": row.id})
        set_committed_value(row, "is_swapped", not row.is_swapped)
    return row


def check_judging_is_over(session: Session, verdict_set: VerdictSet | RatingSet) -> None:
    """Raises Invalid while verdicts are still being added: a draw or a snapshot of half of them would be no sample."""
    run = session.get(Run, verdict_set.run_id) if verdict_set.run_id else None
    if run is not None and run.is_live:
        raise Invalid(f"“{verdict_set.name}” is still being judged (run {run.id}): wait until that run has ended.")


@dataclass(frozen=True)
class Progress:
    """What one person has done in a queue."""

    name: str
    n: int
    last_at: datetime | None
    n_skipped: int
    seconds: float | None  # the median of their last RECENT


def read_progress(session: Session, queue: Queue, account_id: int | None = None) -> list[Progress]:
    """Each person's progress in a queue, the busiest first; or one person's alone.

    What people did was counted when it was stored; how long it took is read from the last ones alone.
    """
    query = (
        select(Tally, Account.name)
        .join(Account, col(Account.id) == col(Tally.account_id))
        .where(Tally.queue_id == queue.id, Tally.n > 0)
        .order_by(col(Tally.n).desc(), col(Tally.account_id))
    )
    if account_id is not None:
        query = query.where(Tally.account_id == account_id)
    return [_progress_of(session, queue, tally, name) for tally, name in session.exec(query).all()]


def _progress_of(session: Session, queue: Queue, tally: Tally, name: str) -> Progress:
    kind: Any = Mark if queue.kind == "scoring" else Answer
    recent = (
        sa.select(kind.seconds, kind.answered_at)
        .where(kind.queue_id == queue.id, kind.account_id == tally.account_id, kind.answered_at.is_not(None))
        .order_by(kind.answered_at.desc(), kind.id.desc())
        .limit(RECENT)
    )
    rows = session.execute(recent).all()
    seconds = [row.seconds for row in rows if row.seconds is not None]
    return Progress(
        name, tally.n, rows[0].answered_at if rows else None, tally.n_skipped,
        statistics.median(seconds) if seconds else None,
    )  # fmt: skip


def latest_verdict_set(session: Session, project_id: int) -> int | None:
    """The verdicts a new queue is offered for."""
    mine = select(VerdictSet.id).where(VerdictSet.project_id == project_id, col(VerdictSet.archived_at).is_(None))
    return session.exec(mine.order_by(col(VerdictSet.id).desc()).limit(1)).first()


def set_closed(session: Session, queue: Queue, is_closed: bool) -> None:
    """Closes a queue, so that nobody takes from it or answers in it, or opens it again; nothing is lost by either."""
    queue.closed_at = now() if is_closed else None
    session.flush()
