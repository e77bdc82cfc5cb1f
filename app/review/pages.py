"""What the review pages show of a place: the pair before the answer, and the verdict with its reasons after it."""

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, select

from app.accounts.models import Account
from app.constitutions.models import Principle
from app.db import get, table_of
from app.judging.models import Judge, Opinion, Verdict, VerdictSet
from app.judging.reweigh import root_of
from app.pairs.models import Completion, Pair
from app.projects.access import Member
from app.prompts.models import Prompt
from app.review.adjudication import Word, read_words
from app.review.answers import as_shown
from app.review.models import Answer, Override, Queue
from app.runs.models import Run

# What the screen of every pair asks of the database, built once: building it took longer than running it.
PAIR, PROMPT, COMPLETION, VERDICT, OVERRIDE, VERDICT_SET, JUDGE, RUN = map(
    table_of, (Pair, Prompt, Completion, Verdict, Override, VerdictSet, Judge, Run)
)
_A, _B = COMPLETION.alias("a"), COMPLETION.alias("b")
_SHOWN = (
    sa.select(PROMPT.c.messages, PROMPT.c.reference, _A.c.text.label("a"), _B.c.text.label("b"))
    .join_from(PAIR, PROMPT, PROMPT.c.id == PAIR.c.prompt_id)
    .join(_A, _A.c.id == PAIR.c.a_id)
    .join(_B, _B.c.id == PAIR.c.b_id)
    .where(PAIR.c.id == sa.bindparam("pair"))
)
_SAID = (
    sa.select(VERDICT.c.outcome, OVERRIDE.c.choice)
    .join_from(PAIR, VERDICT, sa.and_(VERDICT.c.pair_id == PAIR.c.id,
                                      VERDICT.c.verdict_set_id == sa.bindparam("verdict_set")), isouter=True)
    .outerjoin(OVERRIDE, sa.and_(OVERRIDE.c.pair_id == PAIR.c.id, OVERRIDE.c.withdrawn_at.is_(None)))
    .where(PAIR.c.id == sa.bindparam("pair"))
)  # fmt: skip
_LAST = (
    sa.select(Answer)
    .where(col(Answer.queue_id) == sa.bindparam("queue"), col(Answer.account_id) == sa.bindparam("person"))
    .where(col(Answer.answered_at).is_not(None))
    .order_by(col(Answer.answered_at).desc(), col(Answer.id).desc())
    .limit(1)
)
_ORIGIN = (
    sa.select(JUDGE.c.kind, RUN.c.kind)
    .join_from(VERDICT_SET, JUDGE, JUDGE.c.id == VERDICT_SET.c.judge_id)
    .outerjoin(RUN, RUN.c.id == VERDICT_SET.c.run_id)
    .where(VERDICT_SET.c.id == sa.bindparam("verdict_set"))
)
AGAIN = "Its call had failed, and the judge is asked again: there is no verdict just now."


@dataclass(frozen=True)
class Shown:
    """A pair as this person sees it. Nothing here tells what the judge said."""

    messages: list[dict[str, str]]
    reference: str | None
    left: str
    right: str


@dataclass(frozen=True)
class Reason:
    """One reading of the pair by a judge, on the sides this person saw."""

    judge: str
    order: str
    choice: str | None
    text: str
    by_principle: list[tuple[str, str, str]]  # key, what the principle says, choice


@dataclass(frozen=True)
class Revealed:
    """The verdict and its reasons, on the sides this person saw, and what stands over the pair now."""

    choice: str | None
    reason: str
    is_flip: bool
    p_chosen: float | None
    reasons: list[Reason]
    override: Override | None
    override_choice: str | None
    override_by: str


def read_shown(session: Session, answer: Answer) -> Shown:
    """The pair of a place, sides as stored with it."""
    pair = session.execute(_SHOWN, {"pair": answer.pair_id}).one()
    left, right = (pair.b, pair.a) if answer.is_swapped else (pair.a, pair.b)
    return Shown(pair.messages, pair.reference, left, right)


def read_outcome(session: Session, answer: Answer, queue: Queue) -> tuple[str | None, str | None]:
    """What the verdict says of a pair and what the override does, if one stands, on the sides this person saw.

    Call it only once the place is answered.
    """
    assert answer.first is not None
    found = session.execute(_SAID, {"pair": answer.pair_id, "verdict_set": queue.verdict_set_id}).one()
    return as_shown(found.outcome, answer.is_swapped), as_shown(found.choice, answer.is_swapped)


def read_revealed(session: Session, answer: Answer, queue: Queue) -> Revealed:
    """What the judge said of a pair and why. Call it only once the place is answered."""
    assert answer.first is not None
    verdict = session.exec(
        select(Verdict).where(Verdict.verdict_set_id == queue.verdict_set_id, Verdict.pair_id == answer.pair_id)
    ).first() or Verdict(verdict_set_id=0, pair_id=answer.pair_id, reason=AGAIN)
    override = session.exec(
        select(Override).where(Override.pair_id == answer.pair_id, col(Override.withdrawn_at).is_(None))
    ).first()
    p_chosen = verdict.p_a if verdict.outcome == "a" or verdict.p_a is None else 1 - verdict.p_a
    return Revealed(
        choice=as_shown(verdict.outcome, answer.is_swapped), reason=verdict.reason, is_flip=verdict.is_flip,
        p_chosen=p_chosen if verdict.outcome in {"a", "b"} else None,
        reasons=_read_reasons(session, answer, queue), override=override,
        override_choice=as_shown(override.choice, answer.is_swapped) if override else None,
        override_by=get(session, Account, override.account_id).name if override else "",
    )  # fmt: skip


def _read_reasons(session: Session, answer: Answer, queue: Queue) -> list[Reason]:
    verdict_set = get(session, VerdictSet, queue.verdict_set_id or 0)
    said: dict[str, str] = {}
    if verdict_set.constitution_id:
        principles = select(Principle).where(Principle.constitution_id == verdict_set.constitution_id)
        said = {row.key: row.body for row in session.exec(principles)}
    opinions = session.execute(
        sa.select(Opinion, col(Judge.name))
        .join(Judge, col(Judge.id) == col(Opinion.judge_id))
        .where(col(Opinion.verdict_set_id) == root_of(session, verdict_set).id, col(Opinion.pair_id) == answer.pair_id)
        .order_by(col(Opinion.judge_id), col(Opinion.sample), col(Opinion.is_swapped))
    ).all()
    reasons = []
    for opinion, judge in opinions:
        by_principle = [
            (key, said.get(key, ""), as_shown(choice, answer.is_swapped) or "unreadable")
            for key, choice in opinion.by_principle.items()
        ]
        order = "sides exchanged" if opinion.is_swapped else "sides as they are"
        reasons.append(Reason(judge, order, as_shown(opinion.choice, answer.is_swapped), opinion.reason, by_principle))
    return reasons


def last_answered(session: Session, queue: Queue, account_id: int) -> Answer | None:
    """The place this person answered last in a queue: where U leads back to."""
    last: Answer | None = session.execute(_LAST, {"queue": queue.id, "person": account_id}).scalar()
    return last


def name_for(member: Member, queue: Queue) -> str:
    """What this member may read as the name: a researcher's words could tell a grader whose completions these are."""
    return queue.name if member.may("viewer") else f"{queue.kind.capitalize()} {queue.id}"


def read_others(session: Session, answer: Answer) -> list[tuple[str | None, str]]:
    """What people said of a pair before its adjudicator, on the sides this person sees: (choice, comment), no names."""
    words: list[Word] = read_words(session, [answer.pair_id]).get(answer.pair_id, [])
    return [(as_shown(word.choice, answer.is_swapped), word.why) for word in words if word.answer_id != answer.id]


def speaker_of(session: Session, queue: Queue) -> str:
    """Who gave what people check here: “judge”, or of a set that no judge gave what its labels are called."""
    if queue.verdict_set_id is None:
        return "judge"
    called = _read_called(session, queue.verdict_set_id)
    return "judge" if called == "verdicts" else called


def labels_called(session: Session, verdict_set: VerdictSet) -> str:
    """“verdicts” of a judge, “imported labels” of a file, or “labels”, such as those of revisions handed over."""
    return _read_called(session, verdict_set.id)


def _read_called(session: Session, verdict_set_id: int) -> str:
    judge_kind, run_kind = session.execute(_ORIGIN, {"verdict_set": verdict_set_id}).one()
    if judge_kind != "imported":
        return "verdicts"
    return "imported labels" if run_kind in {None, "import_pairs"} else "labels"


def named(session: Session, member: Member, queue: Queue) -> dict[str, Any]:
    """What every page of a queue is called, and whose labels it is about."""
    name = name_for(member, queue)
    return {"queue": queue, "name": name, "title": name, "speaker": speaker_of(session, queue)}
