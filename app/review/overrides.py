"""The whole history of a pair's label: what people answered, the overrides that followed, what was withdrawn."""

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import aliased
from sqlmodel import Session, col

from app.accounts.models import Account
from app.db import get
from app.errors import NotFound
from app.judging.models import Verdict, VerdictSet
from app.pairs.models import Completion, Pair, PairSet
from app.projects.access import Member
from app.prompts.models import Prompt
from app.review.adjudication import is_split, read_words
from app.review.answers import standing_override
from app.review.models import Answer, Override, Queue


@dataclass(frozen=True)
class Event:
    """One thing that happened to a pair's label."""

    at: datetime
    what: str  # answer, override, withdrawal
    who: str
    choice: str
    why: str
    queue: Queue | None = None
    later: str | None = None  # of an answer: what they said after the reveal
    seconds: float | None = None
    override_id: int | None = None


@dataclass(frozen=True)
class History:
    """A pair, what judges said of it, and what people made of that."""

    pair: Pair
    pair_set: PairSet
    prompt: Prompt
    a: str
    b: str
    verdicts: list[tuple[VerdictSet, Verdict]]
    events: list[Event]
    standing: Override | None
    is_split: bool


def project_pair(session: Session, member: Member, pair_id: int) -> tuple[Pair, PairSet]:
    """A pair of this project with its set; raises NotFound."""
    pair = get(session, Pair, pair_id)
    pair_set = get(session, PairSet, pair.pair_set_id)
    if pair_set.project_id != member.project.id:
        raise NotFound(f"There is no pair {pair_id}.")
    return pair, pair_set


def read_history(session: Session, member: Member, pair_id: int) -> History:
    """Everything that was said of a pair, in the order it happened; raises NotFound."""
    pair, pair_set = project_pair(session, member, pair_id)
    verdicts = session.execute(
        sa.select(VerdictSet, Verdict)
        .join(Verdict, col(Verdict.verdict_set_id) == col(VerdictSet.id))
        .where(col(Verdict.pair_id) == pair_id)
        .order_by(col(VerdictSet.id))
    ).all()
    events = [*_answers(session, pair_id), *_overrides(session, pair_id)]
    return History(
        pair=pair, pair_set=pair_set, prompt=get(session, Prompt, pair.prompt_id),
        a=get(session, Completion, pair.a_id).text, b=get(session, Completion, pair.b_id).text,
        verdicts=[(row[0], row[1]) for row in verdicts], events=sorted(events, key=lambda event: event.at),
        standing=standing_override(session, pair_id),
        is_split=is_split(read_words(session, [pair_id]).get(pair_id, [])),
    )  # fmt: skip


def _answers(session: Session, pair_id: int) -> list[Event]:
    rows = session.execute(
        sa.select(Answer, Account, Queue)
        .join(Account, col(Account.id) == col(Answer.account_id))
        .join(Queue, col(Queue.id) == col(Answer.queue_id))
        .where(col(Answer.pair_id) == pair_id, col(Answer.first).is_not(None))
        .order_by(col(Answer.id))
    ).all()
    found = []
    for answer, account, queue in rows:
        assert answer.answered_at is not None and answer.first is not None
        found.append(Event(answer.answered_at, "answer", account.name, answer.first, answer.note, queue,
                           answer.later, answer.seconds))  # fmt: skip
    return found


def _overrides(session: Session, pair_id: int) -> list[Event]:
    maker, taker = aliased(Account), aliased(Account)
    rows = session.execute(
        sa.select(Override, col(maker.name), col(taker.name))
        .join(maker, col(maker.id) == col(Override.account_id))
        .outerjoin(taker, col(taker.id) == col(Override.withdrawn_by_id))
        .where(col(Override.pair_id) == pair_id)
        .order_by(col(Override.id))
    ).all()
    found = []
    for override, by, taken_by in rows:
        found.append(Event(override.made_at, "override", by, override.choice, override.why, override_id=override.id))
        if override.withdrawn_at is not None:
            why = "taken back by hand" if taken_by else "people’s answers or their comment changed"
            found.append(Event(override.withdrawn_at, "withdrawal", taken_by or "", override.choice, why))
    return found
