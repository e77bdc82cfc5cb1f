"""Queues: drawing the pairs, and handing out places under a lease so that two people never hold the same one."""

import hashlib
import random

import sqlalchemy as sa
from sqlalchemy import Executable
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import aliased
from sqlmodel import Session, col, select

from app.db import db_now, get
from app.errors import Conflict, Invalid, NotFound
from app.judging.models import Verdict, VerdictSet
from app.projects.access import Member
from app.review.models import Answer, Override, Queue
from app.review.recipes import AuditRecipe
from app.runs.models import Run

LEASE_S = 15 * 60.0


def project_queue(session: Session, member: Member, queue_id: int) -> Queue:
    """A queue of this project; raises NotFound."""
    queue = get(session, Queue, queue_id)
    if queue.project_id != member.project.id:
        raise NotFound(f"There is no queue {queue_id}.")
    return queue


def choose_pairs(session: Session, recipe: AuditRecipe) -> list[int]:
    """Ids of the pairs in the order they will be shown; raises Invalid when there is nothing to look at.

    An audit draws from all pairs of the verdict set, unreadable ones included, each with the same chance. A repair
    queue takes those that most need a person, leaving out pairs that already stand overridden.
    """
    of_set = col(Verdict.verdict_set_id) == recipe.verdict_set
    if recipe.purpose == "audit":
        drawn = list(
            session.execute(sa.select(col(Verdict.pair_id)).where(of_set).order_by(col(Verdict.pair_id))).scalars()
        )
        if not drawn:
            raise Invalid("These verdicts are empty: judge the pairs first.", {"verdict_set": ["has no verdict"]})
        return random.Random(recipe.seed).sample(drawn, min(recipe.n, len(drawn)))
    standing = sa.select(col(Override.pair_id)).where(
        col(Override.pair_id) == col(Verdict.pair_id), col(Override.withdrawn_at).is_(None)
    )
    needy = sa.select(col(Verdict.pair_id)).where(of_set, col(Verdict.need) > 0, ~standing.exists())
    drawn = list(session.execute(needy.order_by(col(Verdict.need).desc(), col(Verdict.id)).limit(recipe.n)).scalars())
    if not drawn:
        raise Invalid("No verdict of this set needs a person: no flip, no doubt, nothing unreadable. Draw an audit.")
    return drawn


def make_queue(session: Session, recipe: AuditRecipe, project_id: int, run_id: int) -> Queue:
    """Stores the queue and its places, or finds the one this run has made already."""
    known = session.exec(select(Queue).where(Queue.run_id == run_id)).first()
    if known is not None:
        return known
    pairs = choose_pairs(session, recipe)
    is_audit = recipe.purpose == "audit"
    name = recipe.name or f"{'Audit' if is_audit else 'Repair'} of {len(pairs)} pairs"
    queue = Queue(
        project_id=project_id, name=name, verdict_set_id=recipe.verdict_set, kind=recipe.purpose, seed=recipe.seed,
        n=len(pairs), overlap=recipe.overlap, run_id=run_id,
    )  # fmt: skip
    session.add(queue)
    session.flush()
    rows = [
        {"queue_id": queue.id, "pair_id": pair, "place": place, "position": position, "is_swapped": False, "note": ""}
        for place in range(recipe.overlap)
        for position, pair in enumerate(pairs)
    ]
    session.execute(sa.insert(Answer), rows)
    return queue


def is_swapped_for(queue: Queue, pair_id: int, account_id: int) -> bool:
    """Whether this person sees b on the left: a fair coin for each person and pair, the same at every visit."""
    coin = f"{queue.id}:{queue.seed}:{pair_id}:{account_id}"
    return bool(hashlib.sha256(coin.encode()).digest()[0] & 1)


def held_place(session: Session, queue: Queue, account_id: int) -> Answer | None:
    """The place this person holds and has not answered, if any. A lease that is over still counts until it is taken."""
    mine = select(Answer).where(
        Answer.queue_id == queue.id, Answer.account_id == account_id, col(Answer.answered_at).is_(None)
    )
    return session.exec(mine.order_by(col(Answer.position)).limit(1)).first()


def claim_place(session: Session, queue: Queue, account_id: int) -> Answer | None:
    """The place this person is to answer next, held for a quarter of an hour; None when nothing is left for them.

    One atomic UPDATE takes it, so two people never hold the same place, on either database.
    """
    if queue.closed_at is not None:
        raise Conflict("This queue is closed.")
    held = held_place(session, queue, account_id)
    if held is not None:
        renewed = session.execute(
            sa.update(Answer)
            .where(col(Answer.id) == held.id, col(Answer.account_id) == account_id, col(Answer.first).is_(None))
            .values(lease_until=db_now(session) + LEASE_S)
        )
        if renewed.rowcount == 1:  # type: ignore[attr-defined]
            session.refresh(held)
            return held
    for _ in range(3):
        try:
            with session.begin_nested():
                taken = session.execute(_take(session, queue, account_id)).scalar()
        except IntegrityError:
            continue  # another window of the same person took another place of this pair at this moment
        if taken is None:
            return None
        row = session.exec(select(Answer).where(Answer.id == taken).execution_options(populate_existing=True)).one()
        row.is_swapped = is_swapped_for(queue, row.pair_id, account_id)
        session.flush()
        return row
    raise Conflict("This queue is open in another window of yours: go on there, or try again.")


def _take(session: Session, queue: Queue, account_id: int) -> Executable:
    """The UPDATE that takes the first free place of a pair this person has no place of."""
    now = db_now(session)
    free, own = aliased(Answer), aliased(Answer)
    has_one = sa.select(col(own.id)).where(
        col(own.queue_id) == queue.id, col(own.pair_id) == col(free.pair_id), col(own.account_id) == account_id
    )
    chosen = (
        sa.select(col(free.id))
        .where(col(free.queue_id) == queue.id, col(free.first).is_(None), ~has_one.exists())
        .where(sa.or_(col(free.account_id).is_(None), col(free.lease_until) < now))
        .order_by(col(free.place), col(free.position))
        .limit(1)
    )
    if session.get_bind().dialect.name == "postgresql":
        chosen = chosen.with_for_update(skip_locked=True, of=free)
    return (
        sa.update(Answer)
        .where(col(Answer.id) == chosen.scalar_subquery(), col(Answer.first).is_(None))
        .where(sa.or_(col(Answer.account_id).is_(None), col(Answer.lease_until) < now))
        .values(account_id=account_id, lease_until=now + LEASE_S)
        .returning(col(Answer.id))
    )


def check_judging_is_over(session: Session, verdict_set: VerdictSet) -> None:
    """Raises Invalid while verdicts are still being added: a draw or a snapshot of half of them would be no sample."""
    run = session.get(Run, verdict_set.run_id) if verdict_set.run_id else None
    if run is not None and run.is_live:
        raise Invalid(f"“{verdict_set.name}” is still being judged (run {run.id}): wait until that run has ended.")
