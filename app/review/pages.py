"""What the review pages show of a place: the pair before the answer, and the verdict with its reasons after it."""

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, select

from app.accounts.models import Account
from app.constitutions.models import Principle
from app.db import get
from app.judging.models import Judge, Opinion, Verdict, VerdictSet
from app.judging.reweigh import root_of
from app.pairs.models import Completion, Pair
from app.projects.access import Member
from app.prompts.models import Prompt
from app.review.adjudication import Word, read_words
from app.review.answers import as_shown
from app.review.models import Answer, Override, Queue
from app.runs.models import Run

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
    pair = get(session, Pair, answer.pair_id)
    prompt = get(session, Prompt, pair.prompt_id)
    a, b = get(session, Completion, pair.a_id).text, get(session, Completion, pair.b_id).text
    left, right = (b, a) if answer.is_swapped else (a, b)
    return Shown(prompt.messages, prompt.reference, left, right)


def read_revealed(session: Session, answer: Answer, queue: Queue, *, has_reasons: bool = True) -> Revealed:
    """What the judge said of a pair, in short without its reasons. Call it only once the place is answered."""
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
        reasons=_read_reasons(session, answer, queue) if has_reasons else [], override=override,
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
    mine = select(Answer).where(
        Answer.queue_id == queue.id, Answer.account_id == account_id, col(Answer.answered_at).is_not(None)
    )
    return session.exec(mine.order_by(col(Answer.answered_at).desc(), col(Answer.id).desc()).limit(1)).first()


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
    called = labels_called(session, get(session, VerdictSet, queue.verdict_set_id))
    return "judge" if called == "verdicts" else called


def labels_called(session: Session, verdict_set: VerdictSet) -> str:
    """“verdicts” of a judge, “imported labels” of a file, or “labels”, such as those of revisions handed over."""
    if get(session, Judge, verdict_set.judge_id).kind != "imported":
        return "verdicts"
    run = session.get(Run, verdict_set.run_id) if verdict_set.run_id else None
    return "imported labels" if run is None or run.kind == "import_pairs" else "labels"


def named(session: Session, member: Member, queue: Queue) -> dict[str, Any]:
    """What every page of a queue is called, and whose labels it is about."""
    name = name_for(member, queue)
    return {"queue": queue, "name": name, "title": name, "speaker": speaker_of(session, queue)}
